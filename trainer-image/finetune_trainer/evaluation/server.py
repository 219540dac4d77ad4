"""Contenders answered by a vLLM server in the same pod, with the image and the arguments that will serve the adapter.

The operator adds the server to the pods of baseline and evaluation on GPUs
(docs/adr/0045-a-server-beside-the-evaluation.md). It listens on loopback alone and has loaded the base model; adapters are put
into a volume of both, and loaded by request. What is sent are token ids, rendered as for our own engine; every setting of
sampling is named, since a server would take those that are not from the model's generation_config.json.
"""

import concurrent.futures
import dataclasses
import hashlib
import json
import pathlib
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from finetune_api import job, reasons, run
from finetune_trainer.data import tokens
from finetune_trainer.evaluation import engines
from finetune_trainer.process import errors, http, log, signals

COMPLETIONS = "/v1/completions"

SCHEMA_HINT = (
    "; the request had evaluation.outputSchema: if only such fail, leave Structured out of evaluation.baselines"
)

AT_ONCE = 64
"""Requests in flight; the server makes batches of them."""

SECONDS, PATIENCE = 600.0, 20.0
"""For a request, besides a second for each token; and for its retries: a server that ended does not return with its adapters."""

READY_SECONDS = 60.0
"""Until the server lists its model; where it is a sidecar, it is ready before the evaluation starts."""

SIZE = 64 << 20
"""Bytes of an answer: a hundred for each token of the longest prompts."""

SPARE = 2
"""Positions that a score needs besides its tokens: the server generates one, and benchmarks' windows are one longer."""

NEUTRAL: Mapping[str, Any] = {
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}
"""Settings with which the model's own probabilities decide."""

PROBE, PROBED = "x7q", 12
"""An answer that no model gives unless its schema allows no other, and the tokens that it may take."""

POLL = 0.5
"""Seconds between checks for SIGTERM while requests are under way."""


@dataclasses.dataclass(frozen=True)
class Sidecar:
    """The server, and the volume that this process shares with it."""

    url: str
    folder: pathlib.Path
    """Holds the base model in `base`, and gets the adapters."""
    scoring_at_once: int = AT_ONCE
    """Scored requests in flight."""

    @property
    def base(self) -> pathlib.Path:
        return self.folder / pathlib.Path(run.MODEL_PATH).name


class Server:
    """A server that has loaded the base model under the name `base`."""

    @property
    def kind(self) -> engines.Kind:
        return job.EvaluationEngine.SERVER

    def __init__(self, sidecar: Sidecar, base: str) -> None:
        self._sidecar, self._base = sidecar, base
        self._http = http.Server(sidecar.url, seconds=SECONDS, size=SIZE)
        self._adapters: dict[job.Contender, str] = {}
        self._context = self._wait()
        log.info("a server answers", url=sidecar.url, model=base, context=self._context)

    @property
    def positions(self) -> int:
        return self._context - SPARE

    def _wait(self) -> int:
        """The context's length, once the base model is listed."""
        deadline = time.monotonic() + READY_SECONDS
        while True:
            signals.check()
            try:
                for entry in self._http.ask("/v1/models", seconds=10)["data"]:
                    if entry["id"] == self._base:
                        return int(entry["max_model_len"])
                state = "it does not list it"
            except http.Failed as failed:
                state = str(failed)
            except (KeyError, TypeError, ValueError):
                state = "its list of models is not readable; the server must be vLLM"
            if time.monotonic() > deadline:
                raise _failed(f"does not serve {self._base} after {READY_SECONDS:.0f} s ({state})")
            time.sleep(POLL)

    def add_adapter(self, which: job.Contender, folder: pathlib.Path) -> str | None:
        name, place = which.value.lower(), self._sidecar.folder / which.value.lower()
        shutil.copytree(folder, place, dirs_exist_ok=True)
        try:
            self._http.ask("/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(place)})
        except http.Failed as failed:
            if failed.status is None:
                raise _failed(f"does not load an adapter: {failed}") from failed
            if failed.status >= 300:  # it says in plain text that it did
                return f"vLLM does not load it: {failed}"
        self._adapters[which] = name
        log.info("the server loaded an adapter", name=name)
        return None

    def refusal(self, prompt: list[int], ending: engines.Ending) -> str | None:
        # That the server answers at all: some releases of vLLM refuse a schema with status 500, like any trouble of their own.
        self.greedy(job.Contender.BASE, [prompt], dataclasses.replace(ending, limit=1, schema=None))
        probe = dataclasses.replace(ending, limit=PROBED, schema=json.dumps({"enum": [PROBE]}))
        try:
            for tried in (dataclasses.replace(ending, limit=1), probe):
                body = self._question(job.Contender.BASE, prompt, tried) | {"temperature": 0.0}
                answer = self._http.ask(COMPLETIONS, body, seconds=SECONDS)
            text = answer["choices"][0]["text"]
        except http.Failed as failed:
            if failed.status is None:
                raise _failed(f"does not answer: {failed}") from failed
            return f"vLLM refuses it: {failed}"
        if PROBE in text:
            return None
        return "vLLM ignores the schema of a request, as it does with --reasoning-parser in deployment.extraArgs"

    def greedy(
        self,
        which: job.Contender,
        prompts: Sequence[list[int]],
        ending: engines.Ending,
        done: engines.Done = engines.silent,
    ) -> list[list[int]]:
        bodies = [self._question(which, prompt, ending) | {"temperature": 0.0} for prompt in prompts]
        return [_ids(one) for one in self._all(bodies, AT_ONCE, done)]

    def sample(
        self,
        which: job.Contender,
        prompts: Sequence[list[int]],
        ending: engines.Ending,
        rules: job.Consistency,
        seed: int,
        done: engines.Done = engines.silent,
    ) -> list[list[list[int]]]:
        bodies = [
            self._question(which, prompt, ending)
            | {"temperature": rules.temperature, "seed": _number(f"{seed}:{number}:{repetition}")}
            for number, prompt in enumerate(prompts)
            for repetition in range(rules.samples)
        ]
        found = [_ids(one) for one in self._all(bodies, AT_ONCE, lambda count: done(count // rules.samples))]
        return [found[begin : begin + rules.samples] for begin in range(0, len(found), rules.samples)]

    def likelihoods(
        self, which: job.Contender, encoded: Sequence[tokens.Encoded], done: engines.Done = engines.silent
    ) -> list[tuple[float, bool]]:
        bodies = [self._scored(which, one.ids) for one in encoded]
        found = []
        for one, answer in zip(encoded, self._all(bodies, self._sidecar.scoring_at_once, done), strict=True):
            scores = list(_scores(answer, one.ids, [n for n, learned in enumerate(one.learned) if learned and n]))
            found.append((sum(value for value, _ in scores), all(best for _, best in scores)))
        return found

    def log_probabilities(self, which: job.Contender, prompt: list[int], answer: list[int]) -> list[float]:
        ids = prompt + answer
        [found] = self._all([self._scored(which, ids)], 1, engines.silent)
        return [value for value, _ in _scores(found, ids, list(range(len(prompt), len(ids))))]

    # -- requests --

    def _question(self, which: job.Contender, prompt: list[int], ending: engines.Ending) -> dict[str, Any]:
        return {
            **self._common(which, prompt),
            "max_tokens": min(ending.limit, self._context - len(prompt)),
            "stop_token_ids": sorted(ending.stops),
            "stop": list(ending.texts),
            "include_stop_str_in_output": True,
            "skip_special_tokens": False,
            "return_token_ids": True,
            **({} if ending.schema is None else {"structured_outputs": {"json": json.loads(ending.schema)}}),
        }

    def _scored(self, which: job.Contender, ids: list[int]) -> dict[str, Any]:
        return {
            **self._common(which, ids),
            "max_tokens": 1,
            "temperature": 0.0,
            "prompt_logprobs": 0,
        }

    def _common(self, which: job.Contender, ids: list[int]) -> dict[str, Any]:
        if len(ids) >= self._context:
            raise errors.Failure(
                reasons.Reason.INVALID_SPEC,
                f"a question of {len(ids)} tokens does not fit the server's context of {self._context} tokens, as it would not "
                "when the model serves: raise --max-model-len in deployment.extraArgs, shorten the question, or set "
                "evaluation.engine: InProcess",
            )
        name = self._adapters[which] if which in engines.ADAPTED else self._base
        return {"model": name, "prompt": ids, **NEUTRAL}

    def _all(self, bodies: Sequence[dict[str, Any]], at_once: int, done: engines.Done) -> list[Any]:
        """The choice that answers each request, in their order. The first failure ends it."""
        executor = concurrent.futures.ThreadPoolExecutor(at_once, "ask")
        try:
            asked = [executor.submit(self._ask, body) for body in bodies]
            for count, one in enumerate(_as_completed(asked), start=1):
                one.result()
                done(count)
            return [one.result() for one in asked]
        finally:
            executor.shutdown(wait=False, cancel_futures=True)

    def _ask(self, body: dict[str, Any]) -> Any:
        seconds = SECONDS + body["max_tokens"]
        try:
            return self._http.ask(COMPLETIONS, body, patience=PATIENCE, seconds=seconds)["choices"][0]
        except http.Failed as failed:
            hint = "" if "structured_outputs" not in body else SCHEMA_HINT
            raise _failed(f"does not answer: {failed}{hint}") from failed
        except (KeyError, IndexError, TypeError) as error:
            raise _failed("sends an answer without choices; it must be vLLM") from error


def _as_completed(asked: Sequence["concurrent.futures.Future[Any]"]) -> Iterator["concurrent.futures.Future[Any]"]:
    """Each when it is over; SIGTERM is noticed while none is."""
    pending = set(asked)
    while pending:
        signals.check()
        over, pending = concurrent.futures.wait(pending, POLL, concurrent.futures.FIRST_COMPLETED)
        yield from over


def _ids(choice: Any) -> list[int]:
    found = choice.get("token_ids")
    if found is None:
        raise _failed("returns no token_ids; it must be vLLM 0.11 or newer")
    return list(found)


def _scores(choice: Any, ids: list[int], places: Sequence[int]) -> Iterator[tuple[float, bool]]:
    """Log-probability of the tokens at these places, and whether each is the likeliest."""
    listed = choice.get("prompt_logprobs")
    if not listed or len(listed) != len(ids):
        raise _failed("returns no prompt_logprobs; it must be vLLM")
    try:
        for place in places:
            entry = listed[place][str(ids[place])]
            yield float(entry["logprob"]), int(entry["rank"]) == 1
    except (KeyError, TypeError, ValueError) as error:
        raise _failed(f"returns prompt_logprobs without tokens of the request: {errors.describe(error)}") from error


def _number(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4])


def _failed(what: str) -> errors.Failure:
    return errors.Failure(reasons.Reason.SERVER_FAILED, f"the server beside the evaluation {what}")
