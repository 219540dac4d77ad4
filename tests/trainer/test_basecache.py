"""The cache of base models, by real processes: what several do at once, what a killed one leaves, what goes first."""

import collections
import hashlib
import http.client
import json
import os
import pathlib
import subprocess
import sys
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from http import server
from typing import Any

import pytest
from tests.trainer import tiny

from finetune_api import run
from finetune_operator.manifests import modelcache
from finetune_trainer.process import errors
from finetune_trainer.store import basecache, locks, objects, origin, sources, storage

WEIGHTS = "model.safetensors"
SIZE = 256 * 1024
STAGE = """
import pathlib, sys, time
from finetune_trainer.store import locks
locks.use(pathlib.Path(sys.argv[1]))
print("held", flush=True)
time.sleep(600)
"""


def weights(seed: int, size: int = SIZE) -> bytes:
    """A whole file of safetensors."""
    header = json.dumps({"w": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    return len(header).to_bytes(8, "little") + header + bytes([seed]) * size


def files(seed: int) -> dict[str, bytes]:
    return {"config.json": b'{"model_type": "llama"}', "tokenizer.json": b"{}", WEIGHTS: weights(seed)}


class Door:
    """Before the store: counts what is read of each object, and can be slow or broken."""

    def __init__(self, behind: str) -> None:
        self.read: collections.Counter[str] = collections.Counter()
        self.slow = threading.Event()
        self.begun = threading.Event()
        self.broken = ""
        door, where = self, urllib.parse.urlsplit(behind).netloc

        class Handler(server.BaseHTTPRequestHandler):
            def respond(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                there = http.client.HTTPConnection(where)
                there.request(self.command, self.path, body, dict(self.headers))
                answer = there.getresponse()
                data, name = answer.read(), urllib.parse.urlsplit(self.path).path.rpartition("/")[2]
                if self.command == "GET" and "list-type" not in self.path:
                    door.read[name] += 1
                    if door.broken == name:
                        data = data[:-1] + b"x"
                self.send_response(answer.status)
                for key, value in answer.getheaders():
                    if key.lower() not in ("transfer-encoding", "content-length", "connection", "server", "date"):
                        self.send_header(key, value)
                length = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(data))
                self.send_header("Content-Length", length or "0")
                self.end_headers()
                half = len(data) // 2
                self.wfile.write(data[:half])
                if name == WEIGHTS and self.command == "GET" and door.slow.is_set():
                    door.begun.set()
                    while door.slow.is_set():
                        time.sleep(0.05)
                self.wfile.write(data[half:])

            do_GET = do_PUT = do_HEAD = do_POST = respond

            def log_message(self, *_: Any) -> None: ...

        self._server = server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self.slow.clear()
        self._server.shutdown()


@pytest.fixture
def door(s3_server: str, s3: Any) -> Iterator[Door]:
    for number, name in enumerate(("one", "two", "three")):
        for file, data in files(number).items():
            s3.put_object(Bucket="data", Key=f"models/{name}/{file}", Body=data)
    made = Door(s3_server)
    yield made
    made.close()


Fetch = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def fetch(tmp_path: pathlib.Path, door: Door) -> Iterator[Fetch]:
    """Starts the container that fetches a base model, as the pods do."""
    running: list[subprocess.Popen[str]] = []

    def start(
        name: str = "one", *more: str, source: str = "", endpoint: str = door.url, **environment: str
    ) -> subprocess.Popen[str]:
        number = len(running)
        document = tiny.run_document(source or f"s3://data/models/{name}", ["file:///none"], "file:///none")
        document["storage"]["endpoint"] = endpoint
        (tmp_path / f"run-{number}.json").write_text(json.dumps(document))
        (tmp_path / "cache").mkdir(exist_ok=True)
        (tmp_path / f"pod-{number}").mkdir()
        command = [sys.executable, "-m", "finetune_trainer", "fetch", "--run", str(tmp_path / f"run-{number}.json")]
        command += ["--base-to", str(tmp_path / f"pod-{number}" / "base"), "--cache", str(tmp_path / "cache"), *more]
        variables = os.environ | {"FINETUNE_TERMINATION_PATH": str(tmp_path / f"end-{number}"), **environment}
        running.append(
            subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        )
        return running[-1]

    yield start
    for process in running:
        if process.poll() is None:
            process.kill()
            process.wait()
        if process.stdout:
            process.stdout.close()


def log_of(process: subprocess.Popen[str], code: int = 0) -> str:
    text = process.communicate(timeout=120)[0]
    assert process.returncode == code, text
    return text


def models(tmp_path: pathlib.Path) -> list[str]:
    """The models that are complete, without the hash of their names."""
    return sorted(path.name.rpartition("-")[0] for path in (tmp_path / "cache").iterdir() if path.name != locks.STATE)


def folder_of(tmp_path: pathlib.Path, name: str) -> pathlib.Path:
    return next((tmp_path / "cache").glob(f"{name}-*"))


def age(tmp_path: pathlib.Path, name: str, kind: str, hours: float) -> None:
    then = time.time() - hours * 3600
    os.utime(locks.path(folder_of(tmp_path, name), kind), (then, then))


def test_two_pods_at_once_download_once(fetch: Fetch, door: Door, tmp_path: pathlib.Path) -> None:
    door.slow.set()
    first = fetch()
    assert door.begun.wait(60)
    second = fetch()
    waits = next(line for line in second.stdout or [] if "another pod fills" in line)
    assert json.loads(waits)["of"] == sum(map(len, files(0).values()))
    door.slow.clear()
    assert "downloaded into the cache" in log_of(first)
    assert "found in the cache" in log_of(second)
    assert door.read == dict.fromkeys(files(0), 1)
    one, two = (tmp_path / f"pod-{n}" / "base" for n in (0, 1))
    assert one.is_symlink()
    assert one.resolve() == two.resolve()
    assert {path.name: path.read_bytes() for path in two.iterdir()} == files(0)


def test_what_a_killed_pod_leaves_counts_as_nothing_and_its_whole_files_are_not_read_again(
    fetch: Fetch, door: Door, tmp_path: pathlib.Path
) -> None:
    door.slow.set()
    first = fetch()
    assert door.begun.wait(60)
    part = next((tmp_path / "cache" / locks.STATE).glob("*.part"))
    while not {"config.json", "tokenizer.json"} <= {path.name for path in part.iterdir()}:
        time.sleep(0.05)
    first.kill()
    first.wait()
    door.slow.clear()
    assert models(tmp_path) == []
    assert not (tmp_path / "pod-0" / "base").exists()
    log_of(fetch())
    assert door.read == {"config.json": 1, "tokenizer.json": 1, WEIGHTS: 2}
    assert {path.name for path in folder_of(tmp_path, "one").iterdir()} == set(files(0))
    assert not part.exists()


@pytest.mark.parametrize("noticed_by", ["its time", "the daily check"])
def test_a_file_that_changed_is_found_by_its_hash_and_alone_is_fetched_again(
    fetch: Fetch, door: Door, tmp_path: pathlib.Path, noticed_by: str
) -> None:
    log_of(fetch())
    path = folder_of(tmp_path, "one") / WEIGHTS
    before = path.stat()
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    if noticed_by == "the daily check":
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert "found in the cache" in log_of(fetch()), "size and time are as they were"
        age(tmp_path, "one", "files", 25)
    assert "not as they were downloaded" in log_of(fetch())
    assert path.read_bytes() == weights(0)
    assert door.read == {"config.json": 1, "tokenizer.json": 1, WEIGHTS: 2}
    assert "found in the cache" in log_of(fetch())


def test_what_arrives_with_another_hash_than_the_stores_is_discarded(
    fetch: Fetch, door: Door, tmp_path: pathlib.Path
) -> None:
    door.broken = WEIGHTS
    assert "hash md5:" in log_of(fetch(), code=5)
    assert models(tmp_path) == []
    door.broken = ""
    log_of(fetch())
    assert (folder_of(tmp_path, "one") / WEIGHTS).read_bytes() == weights(0)


def test_a_source_that_changed_is_another_model_of_the_cache(fetch: Fetch, tmp_path: pathlib.Path, s3: Any) -> None:
    log_of(fetch())
    s3.put_object(Bucket="data", Key=f"models/one/{WEIGHTS}", Body=weights(7))
    log_of(fetch())
    assert models(tmp_path) == ["one", "one"]
    assert (tmp_path / "pod-0" / "base" / WEIGHTS).read_bytes() == weights(0)
    assert (tmp_path / "pod-1" / "base" / WEIGHTS).read_bytes() == weights(7)


def test_a_store_of_somebody_else_cannot_replace_a_model_of_the_cache(
    fetch: Fetch, s3_server: str, tmp_path: pathlib.Path
) -> None:
    """It may list what it likes: the same names and tags, or a way out of the folder."""
    log_of(fetch())
    log_of(fetch(endpoint=s3_server))
    assert models(tmp_path) == ["one", "one"]
    listed = [objects.Entry("s3://data/models/one/model.safetensors", SIZE, "a")]
    listed.append(objects.Entry("s3://data/models/one/../two/model.safetensors", SIZE, "b"))

    class Lying(storage.Storage):
        def entries(self, prefix: str, flat: bool = False) -> Iterator[objects.Entry]:
            yield from listed

    base = run.ResolvedBaseModel(name="b", source="s3://data/models/one")
    assert [file.name for file in origin.of(base, Lying()).files] == ["model.safetensors"]


def test_the_model_that_was_used_longest_ago_makes_room(fetch: Fetch, tmp_path: pathlib.Path) -> None:
    theirs = tmp_path / "cache" / "somebody-elses"
    theirs.mkdir(parents=True)
    (theirs / "file").write_bytes(b"0" * SIZE)
    for name in ("one", "two"):
        log_of(fetch(name, "--cache-size", "600Ki"))
    age(tmp_path, "one", "use", 2)
    age(tmp_path, "two", "use", 3)
    assert "removed from the cache" in log_of(fetch("three", "--cache-size", "600Ki"))
    assert models(tmp_path) == ["one", "somebody", "three"]
    assert not list((tmp_path / "cache" / locks.STATE).glob("two-*.files"))


@pytest.mark.parametrize("who", ["a stage", "a server"])
def test_a_model_in_use_stays_and_without_room_the_pod_says_so(fetch: Fetch, tmp_path: pathlib.Path, who: str) -> None:
    for name in ("one", "two"):
        log_of(fetch(name, "--cache-size", "600Ki"))
    age(tmp_path, "one", "use", 3)
    age(tmp_path, "two", "use", 2)
    link = tmp_path / "pod-0" / "base"
    server = modelcache.HOLD.replace(run.MODEL_PATH, str(link))
    command = ["-c", STAGE, str(link)] if who == "a stage" else ["-c", server, "sh", "-c", "echo held; exec sleep 600"]
    user = subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, text=True)
    try:
        assert any("held" in line for line in user.stdout or [])
        log_of(fetch("three", "--cache-size", "600Ki"))
        assert models(tmp_path) == ["one", "three"]
        refused = log_of(fetch("two", "--cache-size", "600Ki"), code=5)
        assert "no room for two-" in refused, "one is in use, three was fetched a moment ago"
    finally:
        user.kill()
        user.communicate()
    log_of(fetch("two", "--cache-size", "600Ki"))
    assert models(tmp_path) == ["three", "two"]


def test_a_model_larger_than_the_cache_removes_nothing(fetch: Fetch, tmp_path: pathlib.Path) -> None:
    log_of(fetch("one"))
    age(tmp_path, "one", "use", 3)
    assert "no room" in log_of(fetch("two", "--cache-size", "200Ki"), code=5)
    assert models(tmp_path) == ["one"]


def test_a_download_that_a_killed_pod_left_makes_room_too(fetch: Fetch, door: Door, tmp_path: pathlib.Path) -> None:
    door.slow.set()
    first = fetch("one", "--cache-size", "300Ki")
    assert door.begun.wait(60)
    assert "no room" in log_of(fetch("two", "--cache-size", "300Ki"), code=5), "the first one's download is planned"
    first.kill()
    first.wait()
    door.slow.clear()
    log_of(fetch("two", "--cache-size", "300Ki"))
    assert models(tmp_path) == ["two"]


def test_a_download_that_stands_still_is_not_waited_for_for_ever(
    world: Callable[..., run.Run], door: Door, fetch: Fetch, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    door.slow.set()
    fetch()
    assert door.begun.wait(60)
    monkeypatch.setattr(basecache, "STUCK", 2.0)
    spec = world(baseModel={"name": "b", "source": "s3://data/models/one"}, storage={"endpoint": door.url})
    with pytest.raises(errors.Failure, match="has stayed at") as caught:
        basecache.provide(spec.base_model, storage.of(spec.storage), tmp_path / "cache", None)
    assert caught.value.exit == 5


def test_a_stage_takes_what_was_fetched_for_it_and_says_when_it_is_gone(
    world: Callable[..., run.Run], door: Door, fetch: Fetch, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log_of(fetch())
    link = tmp_path / "pod-0" / "base"
    monkeypatch.setenv(run.FETCHED, str(link))
    spec = world(baseModel={"name": "b", "source": "s3://data/models/one"}, storage={"endpoint": door.url})
    read = sum(door.read.values())
    assert sources.resolve(spec.base_model, storage.of(spec.storage), tmp_path / "own") == link
    assert sum(door.read.values()) == read
    (tmp_path / "dangling").symlink_to(tmp_path / "cache" / "removed-0")
    monkeypatch.setenv(run.FETCHED, str(tmp_path / "dangling"))
    with pytest.raises(errors.Failure, match=r"modelCache\.size") as caught:
        sources.resolve(spec.base_model, storage.of(spec.storage), tmp_path / "own")
    assert caught.value.exit == 5


def test_a_folder_that_cannot_be_written_is_named(fetch: Fetch, tmp_path: pathlib.Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / locks.STATE).write_text("a file in the way")
    assert "must be writable" in log_of(fetch(), code=5)


class Hub:
    """A hub with one model, of which one file is large: answers as the real one does."""

    COMMIT = "c" * 40

    def __init__(self, gated: bool = False) -> None:
        self.read: collections.Counter[str] = collections.Counter()
        hub = self

        class Handler(server.BaseHTTPRequestHandler):
            def respond(self) -> None:
                path = urllib.parse.urlsplit(self.path).path
                name = path.rpartition("/")[2]
                if path.startswith("/api/"):
                    status, headers, body = (
                        200,
                        {"Content-Type": "application/json"},
                        json.dumps(hub.listing()).encode(),
                    )
                elif gated:
                    status, headers, body = 403, {"X-Error-Code": "GatedRepo"}, b""
                else:
                    body = files(0)[name]
                    tag = hashlib.sha256(body).hexdigest()
                    status, headers = 200, {"ETag": f'"{tag}"', "X-Repo-Commit": hub.COMMIT}
                    hub.read[name] += self.command == "GET"
                self.send_response(status)
                for key, value in {"Content-Length": str(len(body)), **headers}.items():
                    self.send_header(key, value)
                self.end_headers()
                self.wfile.write(body if self.command != "HEAD" else b"")

            do_GET = do_HEAD = respond

            def log_message(self, *_: Any) -> None: ...

        self._server = server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def listing(self) -> dict[str, Any]:
        siblings = []
        for name, body in {**files(0), "original/consolidated.safetensors": b"again"}.items():
            blob = hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()
            one: dict[str, Any] = {"rfilename": name, "size": len(body), "blobId": blob}
            if name == WEIGHTS:
                sha256 = hashlib.sha256(body).hexdigest()
                one["lfs"] = {"size": len(body), "sha256": sha256, "pointerSize": 130}
            siblings.append(one)
        return {"id": "acme/tiny", "sha": self.COMMIT, "siblings": siblings}

    def close(self) -> None:
        self._server.shutdown()


def test_a_model_of_the_hub_is_checked_by_the_hubs_hashes_and_stored_under_its_commit(
    fetch: Fetch, tmp_path: pathlib.Path
) -> None:
    hub = Hub()
    there = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1"}
    log_of(fetch(source="hf://acme/tiny", **there))
    assert "found in the cache" in log_of(fetch(source="hf://acme/tiny", **there))
    hub.close()
    assert hub.read == dict.fromkeys(files(0), 1)
    assert {path.name: path.read_bytes() for path in folder_of(tmp_path, "tiny").iterdir()} == files(0)


def test_a_gated_model_in_the_cache_is_not_given_to_who_may_not_read_it(fetch: Fetch, tmp_path: pathlib.Path) -> None:
    hub, closed = Hub(), Hub(gated=True)
    there = {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1"}
    log_of(fetch(source="hf://acme/tiny", HF_ENDPOINT=hub.url, **there))
    assert "is gated" in log_of(fetch(source="hf://acme/tiny", HF_ENDPOINT=closed.url, **there), code=2)
    assert not (tmp_path / "pod-1" / "base").exists()
    hub.close()
    closed.close()
