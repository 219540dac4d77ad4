"""The choice between docker and buildah, and what is asked of docker, by a stand-in that writes down its arguments."""

import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from images import builder, catalogue, publish


class Registry(http.server.BaseHTTPRequestHandler):
    """Answers, and has no image."""

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/v2/" else 404)
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def host() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Registry)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A docker whose daemon answers; the file has a line for each call."""
    written = tmp_path / "calls"
    program = tmp_path / "docker"
    program.write_text(
        f'#!/bin/sh\necho "$@" >> {written}\ncase "$1" in info) echo id;; image) exit 1;; esac\nexit 0\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("BASE_IMAGE", "registry.example.com/python:3.11")
    return written


def test_docker_is_chosen_where_its_daemon_answers(calls: Path) -> None:
    assert builder.choose().name == "docker"


def test_docker_without_a_daemon_is_passed_over(calls: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "docker").write_text("#!/bin/sh\necho 'Cannot connect to the Docker daemon' >&2\nexit 1\n")
    monkeypatch.setattr(builder.debian, "ensure", lambda *_: None)
    monkeypatch.setattr(builder.Buildah, "__init__", lambda self: None)
    assert builder.choose().name == "buildah"


def test_an_image_is_built_tagged_and_pushed_under_its_content(calls: Path, host: str) -> None:
    references = publish.build([catalogue.FETCH], host)
    tag = catalogue.tag(catalogue.FETCH, "registry.example.com/python:3.11")
    assert references == {"fetch": f"{host}/finetune-fetch:{tag}"}
    build, push = (next(line for line in calls.read_text().splitlines() if line.startswith(f"{verb} "))
                   for verb in ("build", "push"))  # fmt: skip
    assert "--target fetch" in build
    assert "--build-arg=BASE_IMAGE=registry.example.com/python:3.11" in build
    assert push.endswith(references["fetch"])


def test_what_an_image_stands_on_is_built_before_and_named_to_it(calls: Path, host: str) -> None:
    publish.build([catalogue.VLLM_CPU], host)
    builds = [line for line in calls.read_text().splitlines() if line.startswith("build ")]
    assert ["--target torch" in line for line in builds] == [True, False]
    assert "--build-arg=TORCH_IMAGE=localhost/finetune-torch:" in builds[1]
    assert not any(line.startswith("push") and "finetune-torch" in line for line in calls.read_text().splitlines())


def test_a_tag_of_ones_own_is_built_even_where_the_contents_are_known(calls: Path, host: str) -> None:
    assert publish.build([catalogue.OPERATOR], host, "v1") == {"operator": f"{host}/finetune-operator:v1"}
