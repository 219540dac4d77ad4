import http.server
import json
import pathlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from finetune_api import reasons, run
from finetune_trainer.gateway import delivery
from finetune_trainer.process import errors
from finetune_trainer.stages import verify
from finetune_trainer.store import folders, storage

World = Callable[..., run.Run]

EXAMPLES = [
    {"prompt": [5, 6, 7], "answer": [8, 9], "tuned": [-0.1, -0.2], "base": [-3.0, -4.0]},
    {"prompt": [1], "answer": [2], "tuned": [-0.5], "base": [-2.5]},
]


class Fake:
    """What a vLLM server answers, as far as verify asks it."""

    def __init__(self) -> None:
        self.models = ["tiny-tuned", "tiny-base"]
        self.values: dict[str, Any] = {"tiny-tuned": "tuned", "tiny-base": "base"}
        self.noise = 0.01
        self.key: str | None = None
        self.unready = 0
        self.parses = True
        self.asked: list[tuple[str, Any]] = []

    def get(self, path: str) -> tuple[int, Any]:
        if self.unready:
            self.unready -= 1
            return 503, {}
        return (200, {"data": [{"id": name} for name in self.models]}) if path == "/v1/models" else (404, {})

    def post(self, path: str, body: Any) -> tuple[int, Any]:
        self.asked.append((path, body))
        usage = {"completion_tokens": 7}
        if "tools" in body and not self.parses:
            return 400, {
                "message": '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set'
            }
        if "tools" in body:
            call = {"id": "x", "type": "function", "function": {"name": "thank", "arguments": "{}"}}
            return 200, {"choices": [{"message": {"content": None, "tool_calls": [call]}}], "usage": usage}
        if path == "/v1/chat/completions":
            return 200, {"choices": [{"message": {"content": "hello"}}], "usage": usage}
        if isinstance(body["prompt"], str):
            return 200, {"choices": [{"text": "more"}], "usage": usage}
        if "allowed_token_ids" in body:
            return 200, {"choices": [{"text": "x", "logprobs": self.next(body)}], "usage": usage}
        example = next(one for one in EXAMPLES if one["prompt"] + one["answer"] == body["prompt"])
        scores = [None, *[{"0": {"logprob": -9.0}} for _ in example["prompt"][1:]]]
        for token, value in zip(example["answer"], example[self.values[body["model"]]], strict=True):
            scores.append({str(token): {"logprob": value + self.noise, "rank": 1, "decoded_token": "x"}})
        return 200, {"choices": [{"text": "", "prompt_logprobs": scores}], "usage": usage}

    def next(self, body: Any) -> Any:
        """The only token that may follow, with what it had among all."""
        (token,) = body["allowed_token_ids"]
        texts = [(one, one["prompt"] + one["answer"][:at], at) for one in EXAMPLES for at in range(len(one["answer"]))]
        example, at = next((one, at) for one, text, at in texts if text == body["prompt"])
        assert (example["answer"][at], body["return_tokens_as_token_ids"]) == (token, True)
        value = example[self.values[body["model"]]][at] + self.noise
        return {"tokens": [f"token_id:{token}"], "token_logprobs": [value], "top_logprobs": [{}], "text_offset": [0]}


@pytest.fixture
def server() -> Iterator[tuple[Fake, str]]:
    fake = Fake()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.answer(*fake.get(self.path))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.answer(*fake.post(self.path, body))

        def answer(self, code: int, value: Any) -> None:
            if fake.key and self.headers.get("Authorization") != f"Bearer {fake.key}":
                code, value = 401, {}
            self.send_response(code)
            self.end_headers()
            self.wfile.write(json.dumps(value).encode())

        def log_message(self, *_: Any) -> None:
            pass

    listener = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=listener.serve_forever, daemon=True).start()
    yield fake, f"http://127.0.0.1:{listener.server_address[1]}/"
    listener.shutdown()


@pytest.fixture
def ask(world: World, tmp_path: pathlib.Path, server: tuple[Fake, str]) -> Callable[..., Any]:
    """Verifies the fake server."""
    request = {"maxTokens": 24, "messages": [{"role": "user", "content": "Hi"}]}
    (tmp_path / "canary.json").write_text(json.dumps({"examples": EXAMPLES, "request": request}))

    def verified(patience: float = 5, endpoint: str | None = None) -> Any:
        return verify.verify(world(), endpoint or server[1], f"file://{tmp_path}/canary.json", patience=patience)

    return verified


def refused(ask: Callable[..., Any], words: str, **options: Any) -> errors.Failure:
    with pytest.raises(errors.Failure, match=words) as caught:
        ask(**options)
    return caught.value


def test_a_server_that_applies_the_adapter_is_verified(ask: Callable[..., Any], server: tuple[Fake, str]) -> None:
    found = ask().verification
    assert found.difference_from_evaluation == 0.01
    assert found.difference_from_base == pytest.approx((2.9 + 3.8 + 2.0) / 3, abs=1e-3)
    assert found.tokens_per_second > 0
    path, body = server[0].asked[-1]
    assert path == "/v1/chat/completions"
    assert body["model"] == "tiny-tuned"
    assert body["messages"][0]["content"] == "Hi"


def test_a_server_that_ignores_the_adapter_is_caught(ask: Callable[..., Any], server: tuple[Fake, str]) -> None:
    server[0].values["tiny-tuned"] = "base"
    failure = refused(ask, "does not apply the adapter")
    assert failure.reason is reasons.Reason.ADAPTER_NOT_SERVED
    assert failure.exit == 2


def test_a_server_with_another_base_model_is_caught(ask: Callable[..., Any], server: tuple[Fake, str]) -> None:
    server[0].noise = 0.5
    assert refused(ask, "allowed: 0").reason is reasons.Reason.ADAPTER_NOT_SERVED


def test_an_adapter_too_close_to_its_base_is_judged_by_agreement_only() -> None:
    verify.check_scores(agreement=0.01, contrast=0.0, expected=0.001)
    with pytest.raises(verify.Refused):
        verify.check_scores(agreement=0.2, contrast=0.0, expected=0.001)


def test_the_server_is_waited_for(ask: Callable[..., Any], server: tuple[Fake, str]) -> None:
    server[0].unready = 2
    assert ask().verification is not None


def test_a_server_without_the_model_is_refused_after_a_timeout(
    ask: Callable[..., Any], server: tuple[Fake, str]
) -> None:
    server[0].models = ["tiny-base"]
    assert refused(ask, "it lists tiny-base", patience=0).reason is reasons.Reason.ADAPTER_NOT_SERVED


def test_an_unreachable_server_is_another_failure(ask: Callable[..., Any]) -> None:
    failure = refused(ask, "after 0 s", patience=0, endpoint="http://127.0.0.1:9")
    assert failure.reason is reasons.Reason.SERVER_FAILED
    assert failure.exit == 1


def test_the_api_key_comes_from_the_environment(
    ask: Callable[..., Any], server: tuple[Fake, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    server[0].key = "s3cret"
    failure = refused(ask, "the API key is wrong or missing")
    assert "s3cret" not in failure.message
    monkeypatch.setenv("API_KEY", "s3cret")
    assert ask().verification is not None


def test_a_server_that_is_not_vllm_is_reported(
    ask: Callable[..., Any], server: tuple[Fake, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    answers: list[tuple[int, Any]] = [
        (200, {"choices": [{"text": "x"}]}),
        (400, {"message": "no prompt_logprobs here"}),
    ]
    for answer, words in zip(answers, ("the server must be vLLM", "HTTP 400: no prompt_logprobs"), strict=True):
        monkeypatch.setattr(server[0], "post", lambda path, body, answer=answer: answer)
        refused(ask, words)


def test_plain_text_is_completed(ask: Callable[..., Any], server: tuple[Fake, str], tmp_path: pathlib.Path) -> None:
    document = {"examples": EXAMPLES, "request": {"maxTokens": 24, "prompt": "Once"}}
    (tmp_path / "canary.json").write_text(json.dumps(document))
    ask()
    assert server[0].asked[-1][1]["prompt"] == "Once"


def test_examples_with_tools_are_asked_with_them(
    ask: Callable[..., Any], server: tuple[Fake, str], tmp_path: pathlib.Path
) -> None:
    turns, tools = [{"role": "user", "content": "Thanks"}], [{"type": "function", "function": {"name": "thank"}}]
    document = {"examples": EXAMPLES, "request": {"messages": turns, "tools": tools, "maxTokens": 9}}
    (tmp_path / "canary.json").write_text(json.dumps(document))
    assert ask().verification.tokens_per_second > 0
    path, body = server[0].asked[-1]
    assert path == "/v1/chat/completions"
    assert (body["messages"], body["tools"]) == (turns, tools)
    server[0].parses = False
    refused(ask, "--enable-auto-tool-choice and --tool-call-parser=NAME in spec.deployment.extraArgs")


def test_a_missing_recording_is_reported(world: World, tmp_path: pathlib.Path) -> None:
    with pytest.raises(errors.Failure, match="evaluate again"):
        verify.verify(world(), "http://127.0.0.1:9", f"file://{tmp_path}/none.json", patience=0)


# -- in a pool --


@pytest.fixture
def deliver(
    world: World, tmp_path: pathlib.Path, server: tuple[Fake, str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Any]:
    """Delivers an adapter to a pool of the fake server and others, and verifies it there."""
    local = tmp_path / "local"
    local.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (local / name).write_text(name)
    sha256 = folders.save(storage.Storage(), local, f"file://{tmp_path}/adapter").sha256
    request = {"maxTokens": 24, "messages": [{"role": "user", "content": "Hi"}]}
    (tmp_path / "canary.json").write_text(json.dumps({"examples": EXAMPLES, "request": request}))
    fake, url = server
    fake.values = {sha256: "tuned", "pools-base": "base"}
    fake.key = "verify"

    def delivered(folder: pathlib.Path, sha256: str, host: str, *, patience: float) -> delivery.Delivered:
        assert sorted(one.name for one in folder.iterdir()) == sorted(
            (*(p.name for p in local.iterdir()), "manifest.json")
        )
        assert (host, patience) == ("shared-pods.ml.svc", 5)
        return delivery.Delivered((url.rstrip("/"), url.rstrip("/")), "verify", sha256)

    monkeypatch.setattr(delivery, "deliver", delivered)

    def verified(sha: str = sha256) -> Any:
        where = (f"file://{tmp_path}/canary.json", f"file://{tmp_path}/adapter", sha)
        return verify.verify_pool(world(), "shared-pods.ml.svc", "pools-base", *where, patience=5)

    return verified


def test_every_pod_of_a_pool_is_asked_by_the_adapters_name_there(
    deliver: Callable[..., Any], server: tuple[Fake, str]
) -> None:
    answer = deliver()
    assert answer.verification.difference_from_evaluation == 0.01
    assert "2 pods of the pool" in answer.message
    assert len([path for path, _ in server[0].asked if path == "/v1/chat/completions"]) == 2
    assert not [body for _, body in server[0].asked if "prompt_logprobs" in body], "others share the engine"


def test_a_pod_of_a_pool_that_ignores_the_adapter_is_caught(
    deliver: Callable[..., Any], server: tuple[Fake, str]
) -> None:
    server[0].values = dict.fromkeys(server[0].values, "base")
    with pytest.raises(errors.Failure, match="does not apply the adapter"):
        deliver()


def test_another_adapter_than_the_evaluated_one_is_not_delivered(deliver: Callable[..., Any]) -> None:
    with pytest.raises(errors.Failure):
        deliver("0" * 64)
