"""Least rights: each stage against VersityGW with exactly the policy of docs/guides/storage.md, and one that lacks a right."""

import http.client
import http.server
import json
import pathlib
import re
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tests.support import stores
from tests.trainer import tiny

from finetune_api import reasons, run
from finetune_trainer.data import rows
from finetune_trainer.process import errors
from finetune_trainer.stages import baseline, evaluate, fetch, preflight, train
from finetune_trainer.store import folders, storage

GUIDE = pathlib.Path(__file__).parents[2] / "docs" / "guides" / "storage.md"
WRITER, READER = "writer", "reader"


def rights() -> dict[str, tuple[list[str], list[str]]]:
    """The table of the guide: stage -> rights in the output, rights on data and base model."""
    found = {}
    for line in GUIDE.read_text().partition("## Rights")[2].splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 4 and "s3:" in cells[1]:
            found[cells[0]] = tuple(re.findall(r"s3:\w+", cells[1])), tuple(re.findall(r"s3:\w+", cells[2]))
    every = found["preflight"][1]
    return {stage: (list(own), list(data or every)) for stage, (own, data) in found.items()}


def policy(*grants: tuple[str, list[str], str]) -> dict[str, Any]:
    """A bucket's policy: (user, rights, prefix) each."""
    statements = []
    for user, wanted, prefix in grants:
        bucket = [right for right in wanted if right == "s3:ListBucket"]
        objects = [right for right in wanted if right != "s3:ListBucket"]
        for some, resource in ((bucket, "arn:aws:s3:::data"), (objects, f"arn:aws:s3:::data/{prefix}*")):
            if some:
                statements.append(
                    {"Effect": "Allow", "Principal": {"AWS": [user]}, "Action": some, "Resource": [resource]}
                )
    return {"Version": "2012-10-17", "Statement": statements}


class Place:
    """A bucket with data and a base model, and a job whose two keys may do nothing yet."""

    def __init__(self, store: stores.Store, base: pathlib.Path) -> None:
        self.store = store
        store.client.create_bucket(Bucket="data")
        store.client.put_object(Bucket="data", Key="in/train.jsonl", Body=tiny.jsonl(tiny.examples(60)).encode())
        for path in base.iterdir():
            store.client.upload_file(str(path), "data", f"in/base/{path.name}")
        self.keys = {name: store.user(name) for name in (WRITER, READER)}

    def allow(self, *grants: tuple[str, list[str], str]) -> None:
        self.store.client.put_bucket_policy(Bucket="data", Policy=json.dumps(policy(*grants)))

    def spec(self, **changes: Any) -> run.Run:
        reader = {"endpoint": self.store.url, "credentialsSecret": READER}
        document = tiny.run_document("s3://data/in/base", ["s3://data/in/*.jsonl"], "s3://data/out")
        document["baseModel"]["storage"] = document["dataset"]["storage"] = reader
        document["storage"]["endpoint"] = self.store.url
        document["training"] |= {"maxSteps": 4, "checkpoints": {"everyMinutes": 1, "keep": 1}}
        document["evaluation"] = {"maximumExamples": 4, "generation": {"maxNewTokens": 4}}
        return run.Run.model_validate(document | changes)


@pytest.fixture
def place(tmp_path: pathlib.Path, base: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    with stores.versity(tmp_path / "versity") as store:
        made = Place(store, base)
        for prefix, user in (("", WRITER), ("DATA_", READER), ("BASE_MODEL_", READER)):
            monkeypatch.setenv(f"{prefix}AWS_ACCESS_KEY_ID", made.keys[user][0])
            monkeypatch.setenv(f"{prefix}AWS_SECRET_ACCESS_KEY", made.keys[user][1])
        yield made


STAGES: dict[str, Callable[[run.Run], Any]] = {
    "preflight": preflight.preflight,
    "baseline": lambda spec: baseline.baseline(spec, 1),
    "train": lambda spec: train.train(spec, 1, 1.0),
    "evaluate": lambda spec: evaluate.evaluate(spec, None, None, 1),
}


@pytest.mark.slow
def test_each_stage_needs_no_right_that_the_guide_does_not_list(
    place: Place, tmp_path: pathlib.Path, fresh: Callable[[], None]
) -> None:
    table, spec = rights(), place.spec()
    assert {*STAGES, "verify", "the server's fetch"} == set(table)
    outcomes = {}
    for name, stage in STAGES.items():
        own, reading = table[name]
        place.allow((WRITER, own, "out/"), (READER, reading, "in/"))
        outcomes[name] = stage(spec)
        fresh()
    assert "s3:DeleteObject" not in str(table)
    store = storage.of(spec.storage)
    adapter = folders.manifest(store, spec.layout.adapter)
    assert adapter is not None
    own, reading = table["the server's fetch"]
    place.allow((WRITER, own, "out/"), (READER, reading, "in/"))
    fetch.fetch(spec, spec.layout.adapter, adapter.sha256, tmp_path / "to" / "base", tmp_path / "to" / "adapter")
    assert (tmp_path / "to" / "base" / "config.json").is_file()
    place.allow((WRITER, table["verify"][0], "out/"))
    assert json.loads(store.read(f"{spec.layout.evaluation('e1')}/canary.json"))["examples"]


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["preflight", "train", "evaluate"])
def test_every_right_that_the_guide_lists_is_needed_and_named(
    place: Place, stage: str, fresh: Callable[[], None]
) -> None:
    table, spec = rights(), place.spec()
    everything = ["s3:ListBucket", "s3:GetObject", "s3:PutObject", "s3:AbortMultipartUpload"]
    for earlier in list(STAGES)[: list(STAGES).index(stage)]:
        place.allow((WRITER, everything, "out/"), (READER, everything, "in/"))
        STAGES[earlier](spec)
        fresh()
    for lacking in set(table[stage][0]) - {"s3:AbortMultipartUpload"}:
        if (stage, lacking) == ("evaluate", "s3:ListBucket"):
            continue  # VersityGW says of a missing object that it is missing, also without this right
        place.allow((WRITER, [right for right in everything if right != lacking], "out/"), (READER, everything, "in/"))
        with pytest.raises(errors.Failure) as caught:
            STAGES[stage](spec)
        assert caught.value.reason is reasons.Reason.S3_ACCESS_DENIED
        assert lacking in caught.value.message
        fresh()


def test_without_the_right_to_delete_checkpoints_are_withdrawn_and_named(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    everything = ["s3:ListBucket", "s3:GetObject", "s3:PutObject", "s3:AbortMultipartUpload"]
    place.allow((WRITER, everything, "out/"), (READER, everything, "in/"))
    spec = place.spec()
    preflight.preflight(spec)
    store = storage.of(spec.storage)
    folder = pathlib.Path(__file__).parent
    for step in (1, 2):
        folders.save(store, folder / "cases", spec.layout.checkpoint(step))
    assert folders.remove(store, spec.layout.checkpoint(1)) is False
    assert folders.manifest(store, spec.layout.checkpoint(1)) is None
    left = train.remove_checkpoints(spec, store) or ""
    objects = list(store.entries(f"{spec.layout.checkpoints}/"))
    assert f"{len(objects)} objects" in left
    assert spec.layout.checkpoints in left
    assert "s3:DeleteObject" in left
    saved = folders.save(store, folder / "cases", spec.layout.checkpoint(1))
    assert folders.manifest(store, spec.layout.checkpoint(1)) == saved, "the same place is used again"
    place.allow((WRITER, [*everything, "s3:DeleteObject"], "out/"))
    assert train.remove_checkpoints(spec, store) is None


@pytest.fixture
def like_amazon(place: Place) -> Iterator[str]:
    """The store behind a gate that answers 403 for a missing object if the key may not list, as Amazon's does."""
    host = urllib.parse.urlsplit(place.store.url).netloc

    class Gate(http.server.BaseHTTPRequestHandler):
        def forward(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            onward = http.client.HTTPConnection(host)
            onward.request(self.command, self.path, body, dict(self.headers))
            answer = onward.getresponse()
            content = answer.read()
            missing = answer.status == 404 and "list-type" not in self.path
            self.send_response(403 if missing else answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in ("transfer-encoding", "date", "server"):
                    self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content.replace(b"NoSuchKey", b"AccessDenied") if missing else content)

        do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = forward

        def log_message(self, *_: Any) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Gate)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_a_refusal_that_may_mean_absent_says_so(place: Place, like_amazon: str) -> None:
    place.allow((WRITER, ["s3:GetObject"], "in/"))
    store = storage.Storage(like_amazon, patience=60)
    assert store.stat("s3://data/in/train.jsonl").size
    with pytest.raises(errors.Failure) as caught:
        store.stat("s3://data/in/tran.jsonl")
    assert caught.value.reason is reasons.Reason.S3_ACCESS_DENIED
    assert "s3:GetObject" in caught.value.message
    assert "does not exist" in caught.value.message
    assert "s3:ListBucket" in caught.value.message


def test_preflight_names_the_right_to_list_before_anything_else(place: Place, like_amazon: str) -> None:
    everything = ["s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"]
    place.allow((WRITER, everything, ""), (READER, ["s3:ListBucket", "s3:GetObject"], "in/"))
    spec = place.spec(storage={"output": "s3://data/out", "endpoint": like_amazon})
    with pytest.raises(errors.Failure) as caught:
        preflight.preflight(spec)
    assert caught.value.reason is reasons.Reason.S3_ACCESS_DENIED
    assert "s3:ListBucket" in caught.value.message
    assert "does not exist" not in caught.value.message


def test_a_missing_file_is_missing_although_nothing_may_be_listed(place: Place) -> None:
    place.allow((WRITER, ["s3:GetObject"], "in/"))
    store = storage.Storage(place.store.url, patience=60)
    assert [entry.uri for entry in rows.find(store, ["s3://data/in/train.jsonl"])] == ["s3://data/in/train.jsonl"]
    with pytest.raises(errors.Failure) as caught:
        rows.find(store, ["s3://data/in/tran.jsonl"])
    assert caught.value.reason is reasons.Reason.DATASET_NOT_FOUND
    with pytest.raises(errors.Failure) as caught:
        rows.find(store, ["s3://data/in/*.jsonl"])
    assert caught.value.reason is reasons.Reason.S3_ACCESS_DENIED
    assert "s3:ListBucket" in caught.value.message
