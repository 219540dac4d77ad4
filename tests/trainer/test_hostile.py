"""Files, models and stores that mean harm: each ends as a finding or a failure with words, and runs, reads or tells nothing more.

docs/security.md lists what is tried here beside what stops it.
"""

import contextlib
import gzip
import http.server
import json
import pathlib
import random
import shutil
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from finetune_api import run
from finetune_trainer.data import rows
from finetune_trainer.process import errors
from finetune_trainer.stages import preflight
from finetune_trainer.store import storage

World = Callable[..., run.Run]
ROUNDS = 60


def read(path: pathlib.Path) -> list[rows.Row | rows.Bad]:
    return list(rows.read(storage.Storage(), f"file://{path}"))


def last(path: pathlib.Path) -> rows.Bad:
    found = read(path)[-1]
    assert isinstance(found, rows.Bad), found
    return found


def damaged(data: bytes, rng: random.Random) -> bytes:
    """A copy with some bytes changed, or cut off."""
    copy = bytearray(data)
    for _ in range(rng.choice([1, 3, 20])):
        copy[rng.randrange(len(copy))] = rng.randrange(256)
    return bytes(copy[: rng.randrange(1, len(copy))] if rng.random() < 0.2 else copy)


def good_files(folder: pathlib.Path) -> dict[str, bytes]:
    """The same rows in every kind of file."""
    values = [{"prompt": f"{n}+1=", "completion": str(n + 1)} for n in range(200)]
    lines = "".join(json.dumps(value) + "\n" for value in values).encode()
    path = folder / "good.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{**value, "n": [{"x": 1}]} for value in values]), path)
    return {
        "a.parquet": path.read_bytes(),
        "a.jsonl": lines,
        "a.jsonl.gz": gzip.compress(lines),
        "a.jsonl.zst": zstandard.ZstdCompressor().compress(lines),
        "a.json": json.dumps(values).encode(),
        "a.json.gz": gzip.compress(json.dumps(values).encode()),
        "a.csv": b"prompt,completion\n" + b"".join(b'"%d","a\nb"\n' % n for n in range(200)),
        "a.parquet.gz": gzip.compress(path.read_bytes()),
    }


@pytest.mark.parametrize(
    "name", ["a.parquet", "a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.json", "a.json.gz", "a.csv", "a.parquet.gz"]
)
def test_a_damaged_file_of_any_kind_never_ends_the_process(tmp_path: pathlib.Path, name: str) -> None:
    data, rng, bad = good_files(tmp_path)[name], random.Random(7), 0
    for number in range(ROUNDS):
        path = tmp_path / name
        path.write_bytes(damaged(data, rng))
        try:
            bad += any(isinstance(one, rows.Bad) for one in read(path))
        except Exception as error:
            raise AssertionError(f"round {number} of seed 7") from error
    assert bad, "nothing was damaged"


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_endless_nesting_is_a_finding(tmp_path: pathlib.Path, name: str) -> None:
    (tmp_path / name).write_bytes(b'{"text": ' + b"[" * 200_000)
    assert "nested too deeply" in last(tmp_path / name).problem


@pytest.mark.parametrize("name", ["a.json.gz", "a.jsonl.gz", "a.csv.gz", "a.jsonl.zst"])
def test_an_archive_that_swells_is_read_no_further_than_one_value_may_be_long(
    tmp_path: pathlib.Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A string of 256 times the bound, in some kilobytes."""
    monkeypatch.setattr(rows, "LONGEST_LINE", 2**18)
    start = b"text\n" if ".csv" in name else b'{"text": "'
    swollen = start + b"a" * (256 * 2**18)
    packed = gzip.compress(swollen, 1) if name.endswith("gz") else zstandard.ZstdCompressor().compress(swollen)
    assert len(packed) < len(swollen) / 100
    (tmp_path / name).write_bytes(packed)
    read_bytes = 0

    def counted(stream: Any, size: int = -1) -> bytes:
        nonlocal read_bytes
        data: bytes = plain(stream, size)
        read_bytes += len(data)
        return data

    plain = gzip.GzipFile.read
    monkeypatch.setattr(gzip.GzipFile, "read", counted)
    found = last(tmp_path / name)
    assert found.ends
    assert read_bytes < 32 * 2**18


def test_a_compressed_file_that_wants_a_window_of_gigabytes_is_refused(tmp_path: pathlib.Path) -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=30, enable_ldm=True)
    writer = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    (tmp_path / "a.jsonl.zst").write_bytes(writer.compress(b'{"text": "a"}\n' * 1000) + writer.flush())
    assert "damaged" in last(tmp_path / "a.jsonl.zst").problem


def edit(file: pathlib.Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_code_in_a_model_directory_is_never_run(
    world: World, base: pathlib.Path, tmp_path: pathlib.Path, file: str
) -> None:
    """transformers runs such files when it is allowed to; here the file would leave a mark."""
    copy, mark = tmp_path / "copy", tmp_path / "mark"
    shutil.copytree(base, copy)
    (copy / "evil.py").write_text(f"open({str(mark)!r}, 'w')\nclass Evil: pass\n")
    (copy / "__init__.py").write_text(f"open({str(mark)!r}, 'w')\n")
    edit(
        copy / file,
        auto_map={"AutoConfig": "evil.Evil", "AutoTokenizer": ["evil.Evil", "evil.Evil"]},
        tokenizer_class="Evil",
    )
    spec = world(baseModel={"name": "tiny-base", "source": f"file://{copy}"})
    if file == "config.json":
        with pytest.raises(errors.Failure, match="needs its own code"):
            preflight.preflight(spec)
    else:  # a tokenizer of the standard kind is made instead, or none
        with contextlib.suppress(errors.Failure):
            preflight.preflight(spec)
    assert not mark.exists(), "the model's own code ran"


def test_weights_that_are_pickled_are_not_even_fetched(
    world: World, base: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(base, copy)
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(errors.Failure, match="Pickled weights are never loaded"):
        preflight.preflight(world(baseModel={"name": "tiny-base", "source": f"file://{copy}"}))


def test_a_chat_template_cannot_reach_out_of_its_sandbox(
    world: World, base: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    copy, mark = tmp_path / "copy", tmp_path / "mark"
    shutil.copytree(base, copy)
    classes = "{{ messages.__class__.__mro__[1].__subclasses__() }}"
    evil = f"{classes}{{{{ cycler.__init__.__globals__.os.system('touch {mark}') }}}}"
    (copy / "chat_template.jinja").write_text(evil)
    with pytest.raises(errors.Failure):
        preflight.preflight(world(baseModel={"name": "tiny-base", "source": f"file://{copy}"}))
    assert not mark.exists()


class Inner(http.server.BaseHTTPRequestHandler):
    """A service inside the cluster that is no store, and whose pages are nobody's business."""

    code = 200
    seen: list[str] = []  # noqa: RUF012

    def answer(self) -> None:
        self.seen.append(f"{self.command} {self.path}")
        body = b"<html>the inner page: canary-4711</html>"
        self.send_response(self.code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = answer

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def inner() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Inner)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("code", [200, 301, 400, 403, 404, 500])
@pytest.mark.parametrize("pattern", ["s3://api/secret.jsonl", "s3://api/v1/*.jsonl"])
def test_a_response_that_is_not_from_a_store_is_not_quoted(
    inner: str, code: int, pattern: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An endpoint is any address that a pod can reach: its pages must not come back in the job's status."""
    monkeypatch.setattr(Inner, "code", code)
    monkeypatch.setattr(Inner, "seen", [])
    store = storage.Storage(inner, None, 0.1)
    messages = []
    for attempt in (
        lambda: [one for entry in rows.find(store, [pattern]) for one in rows.read(store, entry.uri)],
        lambda: store.write("s3://api/secret", b"x"),
    ):
        try:
            messages += [one.problem for one in attempt() or [] if isinstance(one, rows.Bad)]
        except errors.Failure as failure:
            messages.append(failure.message)
    assert Inner.seen
    assert "canary-4711" not in " ".join(messages)
