"""The verify stage: does the running server really apply the adapter? In the slim image.

vLLM may accept an adapter and still compute the base model. So the server scores the recorded answers of the canary
under both names: tuned must agree with the evaluation's record, and differ from base as it did there. In a ServingPool the stage
delivers the adapter first, and asks each pod, token by token, some at a time.
"""

import concurrent.futures
import json
import os
import pathlib
import tempfile
import time
from typing import Any

from finetune_api import outcome, reasons, run
from finetune_trainer.gateway import delivery
from finetune_trainer.process import errors, http, log, signals
from finetune_trainer.stages import fetch
from finetune_trainer.store import storage

TOLERANCE = 0.15
"""Mean nats per token that served and recorded log-probabilities may differ: other kernels round bfloat16 differently.
Measured between this trainer and vLLM 0.32 on a CPU, SmolLM2-135M: 0.002."""

RELATIVE = 0.05
"""The same as a share of the recorded difference between tuned and base, if that is larger."""

VISIBLE = 0.02
"""Recorded differences between tuned and base below this are hidden by rounding."""

SHARE = 0.5
"""Share of the recorded difference between tuned and base that the server must show."""

TIMEOUT, PATIENCE = 120.0, 30.0
"""Seconds for one request, and for its retries: the server may be replaced meanwhile."""

AT_ONCE = 8
"""Requests to a pool's pod at the same time, a token each."""

SIZE = 16 << 20
"""Bytes of an answer: a hundred for each token of the longest prompts."""

PARSER = (
    "The examples have tools: give the server --enable-auto-tool-choice and --tool-call-parser=NAME in "
    "spec.deployment.extraArgs, or for all jobs of the base model in its defaults.serving.extraArgs; NAME is hermes for Qwen "
    "2.5, llama3_json for Llama 3.1, mistral for Mistral"
)
"""What to do when vLLM was started without a parser of tool calls."""


class Refused(errors.Failure):
    """The server answers, but not correctly."""

    def __init__(self, message: str) -> None:
        super().__init__(reasons.Reason.ADAPTER_NOT_SERVED, message)


def verify(spec: run.Run, endpoint: str, uri: str, *, patience: float) -> outcome.Outcome:
    """Raises Failure: AdapterNotServed when the server does not serve this adapter, ServerFailed when it never answers."""
    key = os.environ.get("API_KEY", "")
    if key != key.strip():
        raise errors.Failure(
            reasons.Reason.INVALID_SPEC,
            "API_KEY in deployment.apiKeySecret begins or ends with white space or a line break. The server requires the key "
            "with it, and no client can send that: write it without, for example by `printf`, into a Secret of another name.",
        )
    server = Server(endpoint.rstrip("/"), key)
    recorded = _recorded(storage.of(spec.storage), uri)
    tuned, base = spec.served_model_name, spec.base_model.name
    server.wait({tuned, base}, patience)
    log.info("the server lists both models", tuned=tuned, base=base)
    found = check(server, recorded, tuned, base)
    return _verified(f"{tuned} answers", base, found)


def verify_pool(
    spec: run.Run, pool: str, base: str, uri: str, adapter: str, sha256: str, *, patience: float
) -> outcome.Outcome:
    """Delivers the adapter to a ServingPool, and checks it on each of its pods.

    pool: DNS name of the pool's pods; base: the name under which they serve the base model; uri: canary.json; adapter, sha256:
    its folder and its manifest's hash.

    Raises Failure: as `verify`, and AdapterIncompatible when a pod refuses the files.
    """
    store = storage.of(spec.storage)
    recorded = _recorded(store, uri)
    with tempfile.TemporaryDirectory() as work:
        folder = pathlib.Path(work)
        fetch.adapter(store, adapter.rstrip("/"), sha256, folder)
        delivered = delivery.deliver(folder, sha256, pool, patience=patience)
    log.info("every pod has the adapter", pods=len(delivered.endpoints))
    checked = [check(Shared(each, delivered.key), recorded, delivered.model, base) for each in delivered.endpoints]
    worst = outcome.Verification(
        tokens_per_second=min(one.tokens_per_second for one in checked),
        difference_from_base=min(one.difference_from_base for one in checked),
        difference_from_evaluation=max(one.difference_from_evaluation for one in checked),
    )
    return _verified(f"{len(checked)} pods of the pool answer", base, worst)


def check(server: "Server", recorded: dict[str, Any], tuned: str, base: str) -> outcome.Verification:
    """Asks one server. Raises Failure."""
    agreement, contrast, expected = compare(server, recorded["examples"], tuned, base)
    log.info("canary", agreement=round(agreement, 4), contrast=round(contrast, 4), recorded=round(expected, 4))
    check_scores(agreement, contrast, expected)
    text, speed = server.ask(tuned, recorded["request"])
    log.info("answered", text=text[:200], tokens_per_second=round(speed, 1))
    return outcome.Verification(
        tokens_per_second=round(speed, 1),
        difference_from_base=round(contrast, 4),
        difference_from_evaluation=round(agreement, 4),
    )


def _verified(who: str, base: str, found: outcome.Verification) -> outcome.Outcome:
    return outcome.Outcome(
        stage=reasons.Stage.VERIFY,
        message=f"{who} as evaluated: {found.difference_from_evaluation:.3f} nats per token from the recording, "
        f"{found.difference_from_base:.3f} from {base}",
        verification=found,
    )


def _recorded(store: storage.Storage, uri: str) -> dict[str, Any]:
    try:
        document: dict[str, Any] = json.loads(store.read(uri))
    except errors.NotFound:
        raise Refused(f"{uri} does not exist: there is nothing to compare the server with; evaluate again") from None
    return document


def compare(server: "Server", examples: list[dict[str, Any]], tuned: str, base: str) -> tuple[float, float, float]:
    """Nats per token: served tuned from recorded tuned, served tuned from served base, recorded tuned from recorded base."""
    agreement, contrast, expected = [], [], []
    for example in examples:
        tuned_scores = server.score(tuned, example["prompt"], example["answer"])
        other = server.score(base, example["prompt"], example["answer"])
        agreement += [abs(a - b) for a, b in zip(tuned_scores, example["tuned"], strict=True)]
        contrast += [abs(a - b) for a, b in zip(tuned_scores, other, strict=True)]
        expected += [abs(a - b) for a, b in zip(example["tuned"], example["base"], strict=True)]
    return mean(agreement), mean(contrast), mean(expected)


def check_scores(agreement: float, contrast: float, expected: float) -> None:
    """Raises Refused when the values show that the adapter is not applied, or not as it was evaluated."""
    if expected >= VISIBLE and contrast < SHARE * expected:
        raise Refused(
            f"the served model differs from the base by {contrast:.3f} nats per token, the evaluated one by {expected:.3f}: the "
            "server does not apply the adapter (or only in part). Check that the server's image supports LoRA for this "
            "architecture."
        )
    allowed = max(TOLERANCE, RELATIVE * expected)
    if agreement > allowed:
        raise Refused(
            f"the served model's log-probabilities differ from the evaluation's by {agreement:.3f} nats per token, allowed: "
            f"{allowed:.3f}. Check that the server has the same base model, precision and adapter as the evaluation."
        )


def mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0


class Server:
    """An OpenAI-compatible server."""

    def __init__(self, endpoint: str, key: str | None) -> None:
        self._endpoint = endpoint
        self._server = http.Server(endpoint, key or "", seconds=TIMEOUT, size=SIZE)

    def wait(self, names: set[str], patience: float) -> None:
        """Until the server lists the names. Raises Failure after `patience` seconds, or at once when it refuses the key."""
        deadline, state = time.monotonic() + patience, "no answer yet"
        while True:
            signals.check()
            try:
                listed = {entry["id"] for entry in self._server.ask("/v1/models", seconds=10)["data"]}
                if names <= listed:
                    return
                state = f"it lists {', '.join(sorted(listed))}"
            except http.Failed as failed:
                if failed.status in (401, 403):
                    raise Refused(f"{self._endpoint}: the API key is wrong or missing: {failed}") from failed
                state = str(failed)
            except (KeyError, TypeError):
                state = "its list of models is not readable"
            if time.monotonic() > deadline:
                message = f"{self._endpoint} does not list {', '.join(sorted(names))} after {patience:.0f} s ({state})"
                if state.startswith("it lists"):
                    raise Refused(message + ". Check --lora-modules and the served names.")
                raise errors.Failure(reasons.Reason.SERVER_FAILED, message + ". Check the server's pods.")
            time.sleep(1)

    def score(self, name: str, prompt: list[int], answer: list[int]) -> list[float]:
        """The log-probability of each token of the answer after the prompt (vLLM's prompt_logprobs)."""
        body = {
            "model": name,
            "prompt": prompt + answer,
            "max_tokens": 1,
            "temperature": 0,
            "prompt_logprobs": 0,
        }
        found = self._post("/v1/completions", body)["choices"][0].get("prompt_logprobs")
        if not found or len(found) != len(prompt) + len(answer):
            raise Refused(f"{self._endpoint} does not return prompt_logprobs; the server must be vLLM")
        try:
            return [
                float(entry[str(token)]["logprob"]) for entry, token in zip(found[len(prompt) :], answer, strict=True)
            ]
        except (KeyError, TypeError) as error:
            raise Refused(f"{self._endpoint}: prompt_logprobs miss tokens of the request: {error}") from error

    def ask(self, name: str, request: dict[str, Any]) -> tuple[str, float]:
        """One request as a client sends it: the answer, and tokens per second."""
        body = {"model": name, "max_tokens": min(64, request.get("maxTokens", 64)), "temperature": 0}
        begun = time.monotonic()
        if "messages" in request:
            question = {key: request[key] for key in ("messages", "tools") if key in request}
            found = self._chat(body | question)
            message = found["choices"][0]["message"]
            text = message.get("content") or (json.dumps(message["tool_calls"]) if message.get("tool_calls") else "")
        else:
            found = self._post("/v1/completions", body | {"prompt": request.get("prompt", "Hello")})
            text = found["choices"][0]["text"]
        seconds = time.monotonic() - begun
        return text or "", found.get("usage", {}).get("completion_tokens", 0) / max(seconds, 1e-9)

    def _chat(self, body: dict[str, Any]) -> Any:
        try:
            return self._post("/v1/chat/completions", body)
        except Refused as refused:
            if "tool-call-parser" not in str(refused):
                raise
            raise Refused(f"{refused}. {PARSER}") from refused

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        signals.check()
        try:
            return self._server.ask(path, body, patience=PATIENCE)
        except http.Failed as failed:
            message = f"{self._endpoint}{path}: {failed}"
            if failed.transient:
                raise errors.Failure(reasons.Reason.SERVER_FAILED, message) from failed
            raise Refused(message) from failed


class Shared(Server):
    """A pod of a pool, whose engine answers clients at the same time. Log-probabilities of prompts are not for it: they can crash
    vLLM's CPU build beside other requests, so that gateways refuse them."""

    def score(self, name: str, prompt: list[int], answer: list[int]) -> list[float]:
        executor = concurrent.futures.ThreadPoolExecutor(AT_ONCE, "score")
        try:
            asked = [executor.submit(self._next, name, prompt + answer[:at], token) for at, token in enumerate(answer)]
            return [one.result() for one in asked]
        finally:
            executor.shutdown(wait=False, cancel_futures=True)

    def _next(self, name: str, prompt: list[int], token: int) -> float:
        """The log-probability of a token after a prompt: it alone may follow, and vLLM reports what it was before that."""
        body = {
            "model": name,
            "prompt": prompt,
            "max_tokens": 1,
            "temperature": 0,
            "logprobs": 0,
            "allowed_token_ids": [token],
            "return_tokens_as_token_ids": True,
        }
        found = self._post("/v1/completions", body)["choices"][0].get("logprobs") or {}
        if found.get("tokens") != [f"token_id:{token}"] or len(found.get("token_logprobs") or ()) != 1:
            raise Refused(f"{self._endpoint} does not return the log-probability of a token; the server must be vLLM")
        return float(found["token_logprobs"][0])
