"""Canary secrets are planted wherever a pod gets some, and looked for in everything that a stage says or leaves behind.

The stages are processes, as in a pod; the store and the server repeat what they are sent, as badly made ones do.
"""

import http.server
import json
import os
import pathlib
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tests.trainer import tiny

from finetune_trainer.process import secrets
from support import warm

CANARIES = {
    "AWS_ACCESS_KEY_ID": "AKIACANARY1234567890",
    "AWS_SECRET_ACCESS_KEY": "canary/S3+secret/8d1f0c",
    "AWS_SESSION_TOKEN": "canary-session-token-5b77",
    "HF_TOKEN": "hf_canaryhubtoken42",
    "API_KEY": "canary-api-key-93ae",
    "JUDGE_API_KEY": "canary-judge-key-61d0",
    "OPTIMIZER_API_KEY": "canary-optimizer-key-7c1e",
}
ABOUT = {"namespace": "ml", "job": "tiny", "revision": "r1"}


class StageOutput:
    """Everything that a stage said, and how it ended."""

    def __init__(self, code: int, log: str, outcome: str) -> None:
        self.code, self.log, self.outcome = code, log, outcome

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.splitlines()]


Stage = Callable[..., StageOutput]


@pytest.fixture
def stage(tmp_path: pathlib.Path) -> Stage:
    """Runs a stage with the canaries in its environment."""

    def run(document: dict[str, Any], *words: str, **environment: str) -> StageOutput:
        (tmp_path / "run.json").write_text(json.dumps(document))
        (tmp_path / "termination").write_text("")
        command = [words[0], "--run", str(tmp_path / "run.json"), *words[1:]]
        inherited = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
        own = {
            "FINETUNE_WORK": str(tmp_path / "work"),
            "FINETUNE_TERMINATION_PATH": str(tmp_path / "termination"),
            "FINETUNE_METRICS_PORT": "0",
            "FINETUNE_STORAGE_PATIENCE": "2",
        }
        whole, log = inherited | own | CANARIES | environment, tmp_path / f"{words[0]}.log"
        if "HF_ENDPOINT" in environment:  # is read on import
            with log.open("w") as output:
                program = [sys.executable, "-m", "finetune_trainer", *command]
                code = subprocess.run(program, env=whole, stdout=output, stderr=output, timeout=300).returncode
        else:
            code = warm.start("finetune_trainer", command, whole, log).wait(300)
        return StageOutput(code, log.read_text(), (tmp_path / "termination").read_text())

    return run


def leaks(text: str) -> list[str]:
    return [name for name, value in CANARIES.items() if value in text or json.dumps(value)[1:-1] in text]


def nothing_leaks(output: StageOutput) -> None:
    for place in (output.log, output.outcome):
        assert not leaks(place), place


@pytest.fixture
def echo() -> Iterator[str]:
    """The URL of a server that refuses everything and repeats all headers that it got, in whatever form the client requests."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def answer(self) -> None:
            echoed = " ".join(f"{name}: {value}" for name, value in self.headers.items())
            echoed = f"you sent {echoed} with key {CANARIES['AWS_ACCESS_KEY_ID']}"
            xml = f"<Error><Code>InvalidAccessKeyId</Code><Message>{echoed}</Message></Error>".encode()
            listed = self.path == "/v1/models"
            refused = json.dumps({"error": {"message": echoed}}).encode() if self.path.startswith("/v1/") else xml
            body = json.dumps({"data": [{"id": "tiny-tuned"}, {"id": "tiny-base"}]}).encode() if listed else refused
            # an answer to HEAD has no body: the client repeats the request in a way that has one
            self.send_response(404 if self.command == "HEAD" else 200 if listed else 403)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body if self.command != "HEAD" else b"")

        do_GET = do_PUT = do_POST = do_HEAD = answer

        def log_message(self, *_: Any) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def in_bucket(base: pathlib.Path, endpoint: str, **changes: Any) -> dict[str, Any]:
    document = tiny.run_document(f"file://{base}", ["s3://data/train.jsonl"], "s3://data/out", **changes)
    document["storage"]["endpoint"] = endpoint
    return document


@pytest.mark.slow
def test_no_stage_prints_or_writes_a_secret_when_everything_succeeds(
    stage: Stage, s3: Any, s3_server: str, base: pathlib.Path
) -> None:
    s3.put_object(Bucket="data", Key="train.jsonl", Body=tiny.jsonl(tiny.examples(60)))
    document = in_bucket(base, s3_server, evaluation={"maximumExamples": 4, "generation": {"maxNewTokens": 4}})
    for name in ("preflight", "train", "evaluate"):
        output = stage(document, name)
        assert output.code == 0, output.log
        nothing_leaks(output)
        assert output.lines
        for line in output.lines:
            assert {"time", "level", "message"} <= set(line)
            assert (ABOUT | {"stage": name}).items() <= line.items()
    left = [entry["Key"] for entry in s3.list_objects_v2(Bucket="data", Prefix="out/")["Contents"]]
    assert any(key.endswith("report.html") for key in left)
    for key in left:
        assert not leaks(s3.get_object(Bucket="data", Key=key)["Body"].read().decode(errors="replace")), key


def test_a_store_that_repeats_what_it_was_sent_is_not_quoted_with_it(
    stage: Stage, echo: str, base: pathlib.Path
) -> None:
    output = stage(in_bucket(base, echo), "preflight")
    assert output.code == 2
    assert "S3AccessDenied" in output.outcome
    assert "you sent" in output.outcome
    nothing_leaks(output)


@pytest.mark.parametrize("end", ["", "\n"])
def test_the_command_line_shows_nothing_of_a_key(echo: str, tmp_path: pathlib.Path, end: str) -> None:
    command = [sys.executable, "-m", "finetune_cli", "validate", "s3://data/train.jsonl"]
    keys = {name: value + end for name, value in CANARIES.items() if name.startswith("AWS")}
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "AWS_ENDPOINT_URL": echo + end, **keys}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    shown = done.stdout + done.stderr
    assert done.returncode == 2
    assert "S3AccessDenied" in shown
    assert not leaks(shown)
    for part in ("AKIACANARY", "Credential=", "Signature="):
        assert part not in shown


def test_a_secret_that_ends_with_a_line_break_works(stage: Stage, s3: Any, s3_server: str, base: pathlib.Path) -> None:
    s3.put_object(Bucket="data", Key="train.jsonl", Body=tiny.jsonl(tiny.examples(60)))
    broken = {name: f"{value}\n" for name, value in CANARIES.items() if name.startswith("AWS")}
    output = stage(in_bucket(base, s3_server), "preflight", **broken)
    assert output.code == 0, output.outcome
    nothing_leaks(output)


def test_a_servers_key_that_no_client_can_send_is_named(stage: Stage, echo: str, base: pathlib.Path) -> None:
    document = tiny.run_document(f"file://{base}", ["file:///none"], "file:///none")
    output = stage(document, "verify", "--endpoint", echo, "--canary", "file:///none", API_KEY="canary-api-key-93ae\n")
    assert output.code == 2
    assert "deployment.apiKeySecret" in output.outcome
    nothing_leaks(output)


def test_a_server_that_repeats_the_api_key_is_not_quoted_with_it(
    stage: Stage, echo: str, base: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    examples = [{"prompt": [5, 6], "answer": [8], "tuned": [-0.1], "base": [-3.0]}]
    (tmp_path / "canary.json").write_text(json.dumps({"examples": examples, "request": {"maxTokens": 4}}))
    document = tiny.run_document(f"file://{base}", ["file:///none"], f"file://{tmp_path}/out")
    output = stage(document, "verify", "--endpoint", echo, "--canary", f"file://{tmp_path}/canary.json")
    assert "AdapterNotServed" in output.outcome
    assert "you sent" in output.outcome
    assert secrets.REDACTED in output.outcome
    nothing_leaks(output)


@pytest.mark.slow
def test_a_judge_that_repeats_its_key_is_not_quoted_with_it(
    stage: Stage, echo: str, base: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    (tmp_path / "train.jsonl").write_text(tiny.jsonl(tiny.examples(60)))
    rules = {
        "judge": {"endpoint": echo, "model": "wise", "apiKeySecret": "judge"},
        "gates": [{"metric": "JudgeWinRate", "over": "Base"}],
        "generation": {"maxNewTokens": 24},
    }
    document = tiny.run_document(
        f"file://{base}", [f"file://{tmp_path}/train.jsonl"], f"file://{tmp_path}/out", evaluation=rules
    )
    for name in ("preflight", "train"):
        output = stage(document, name)
        assert output.code == 0, output.outcome
    output = stage(document, "evaluate")
    assert output.code == 1
    assert "JudgeFailed" in output.outcome
    assert "HTTP 403" in output.outcome
    nothing_leaks(output)


def test_a_hub_that_repeats_the_token_is_not_quoted_with_it(
    stage: Stage, echo: str, tmp_path: pathlib.Path, base: pathlib.Path
) -> None:
    (tmp_path / "train.jsonl").write_text(tiny.jsonl(tiny.examples(60)))
    document = tiny.run_document("hf://acme/gated", [f"file://{tmp_path}/train.jsonl"], f"file://{tmp_path}/out")
    output = stage(document, "preflight", HF_ENDPOINT=echo)
    assert output.code != 0
    nothing_leaks(output)


@pytest.mark.parametrize("broken", ['{"name": 7', '{"name": "tiny", "canary-api-key-93ae": 1}'])
def test_a_run_file_that_cannot_be_read_is_not_quoted_with_secrets(
    stage: Stage, broken: str, tmp_path: pathlib.Path
) -> None:
    command = [sys.executable, "-m", "finetune_trainer", "train", "--run", str(tmp_path / "broken.json")]
    (tmp_path / "broken.json").write_text(broken)
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), **CANARIES}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert not leaks(done.stdout + done.stderr)


def test_a_secret_is_taken_out_in_every_form_and_when_it_was_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_KEY", 'quote"and\\slash')
    assert secrets.redact('raw quote"and\\slash end') == "raw [secret] end"
    assert secrets.redact('{"said": "quote\\"and\\\\slash"}') == '{"said": "[secret]"}'
    assert secrets.redact('it ends with quote"and') == "it ends with [secret]"
    assert secrets.redact("a quote and a slash") == "a quote and a slash"


def test_a_secret_is_taken_out_that_was_sent_without_the_end_of_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_API_KEY", "from-a-file\n")
    assert secrets.redact("you sent from-a-file.") == "you sent [secret]."


def test_short_values_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_KEY", "none")
    assert secrets.redact("there is none") == "there is none"


def test_the_search_finds_a_leak() -> None:
    assert leaks('{"message": "canary-api-key-93ae"}') == ["API_KEY"]
