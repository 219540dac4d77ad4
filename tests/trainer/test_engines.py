"""The two engines of an evaluation: our own, and a server's client, before a server with vLLM's API on the same model.

The real vLLM answers in tests/e2e/test_again.py; here a stand-in computes with transformers what vLLM would say.
"""

import http.server
import json
import pathlib
import shutil
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from tests.trainer import tiny

from finetune_api import job, reasons, run
from finetune_trainer.data import dataset
from finetune_trainer.engine import model
from finetune_trainer.evaluation import answers, contenders, divergence, engines, in_process, server
from finetune_trainer.process import errors
from finetune_trainer.stages import evaluate, preflight, train

World = Callable[..., run.Run]
BASE, TUNED = job.Contender.BASE, job.Contender.TUNED
CONTEXT = 600
DRAWN = {"Divergence", "GeneralDivergence"}
"""Metrics of drawn answers, of which a server gives more."""


class Vllm:
    """A server with the parts of vLLM's API that an evaluation uses."""

    def __init__(self, engine: in_process.InProcess) -> None:
        self.engine, self.lock = engine, threading.Lock()
        self.adapters: dict[str, str] = {}
        self.asked: list[dict[str, Any]] = []
        self.refuses: dict[str, tuple[int, Any]] = {}
        """Path, or field of a request -> what it answers instead."""
        self.ignores_schemas = False

    def get(self) -> tuple[int, Any]:
        return 200, {"data": [{"id": "tiny-base", "max_model_len": CONTEXT}]}

    def post(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        if path in self.refuses:
            return self.refuses[path]
        if "structured_outputs" in body and "structured_outputs" in self.refuses:
            return self.refuses["structured_outputs"]
        with self.lock, torch.inference_mode():
            if path == "/v1/load_lora_adapter":
                self.engine.add_adapter(TUNED, pathlib.Path(body["lora_path"]))
                self.adapters[body["lora_name"]] = body["lora_path"]
                return 200, f"Success: LoRA adapter '{body['lora_name']}' added successfully."
            self.asked.append(body)
            assert len(body["prompt"]) + body["max_tokens"] <= CONTEXT, "vLLM answers 400"
            which = BASE if body["model"] == "tiny-base" else TUNED
            assert which is BASE or body["model"] in self.adapters, "vLLM answers 404"
            scored = "prompt_logprobs" in body
            return 200, {"choices": [self.scored(which, body["prompt"]) if scored else self.written(which, body)]}

    def scored(self, which: job.Contender, ids: list[int]) -> dict[str, Any]:
        with self.engine._as(which):
            logits = self.engine.model(torch.tensor([ids])).logits[0].float()
        entries: list[Any] = [None]
        for row, token in zip(torch.log_softmax(logits, -1), ids[1:], strict=False):
            entries.append({str(token): {"logprob": float(row[token]), "rank": int((row > row[token]).sum()) + 1}})
        return {"text": "", "prompt_logprobs": entries}

    def written(self, which: job.Contender, body: dict[str, Any]) -> dict[str, Any]:
        schema = json.dumps(body["structured_outputs"]["json"]) if "structured_outputs" in body else None
        schema = None if self.ignores_schemas else schema
        ending = engines.Ending(frozenset(body["stop_token_ids"]), body["max_tokens"], tuple(body["stop"]), schema)
        if not body["temperature"]:
            [ids] = self.engine.greedy(which, [body["prompt"]], ending)
            return {"token_ids": ids, "text": self.engine.tokenizer.decode(ids)}
        rules = job.Consistency(samples=2, temperature=body["temperature"])
        return {"token_ids": self.engine.sample(which, [body["prompt"]], ending, rules, body["seed"])[0][0]}


def loaded(base: pathlib.Path, spec: run.Run) -> in_process.InProcess:
    plain = model.load(base, job.Precision.FLOAT32, torch.device("cpu"))
    tokenizer = answers.tokens.load(base, spec.training).tokenizer
    return in_process.InProcess(plain, model.head(plain), torch.device("cpu"), spec, tokenizer)


@pytest.fixture
def served(world: World, base: pathlib.Path, tmp_path: pathlib.Path) -> Iterator[tuple[run.Run, Vllm, server.Sidecar]]:
    """A run, a server, and how it is reached."""
    spec = world(
        training={"precision": "Float32"},
        evaluation={
            "generation": {"maxNewTokens": 24},
            "baselines": ["Base", "FewShot"],
            "forgetting": {"maximumQuestions": 16},  # by default a server is asked more than our own engine
        },
    )
    fake = Vllm(loaded(base, spec))

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.answer(*fake.get())

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.answer(*fake.post(self.path, body))

        def answer(self, code: int, value: Any) -> None:
            self.send_response(code)
            self.end_headers()
            self.wfile.write((value if isinstance(value, str) else json.dumps(value)).encode())

        def log_message(self, *_: Any) -> None:
            pass

    listener = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=listener.serve_forever, daemon=True).start()
    models = tmp_path / "models"
    shutil.copytree(base, models / "base")
    yield spec, fake, server.Sidecar(f"http://127.0.0.1:{listener.server_address[1]}", models)
    listener.shutdown()
    listener.server_close()


def test_a_job_is_judged_alike_by_both_engines(
    served: tuple[run.Run, Vllm, server.Sidecar], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the questions to results.json, with an adapter that was trained."""
    for kind in divergence.PROMPTS:
        monkeypatch.setitem(divergence.PROMPTS, kind, 4)
    spec, fake, sidecar = served
    preflight.preflight(spec)
    train.train(spec, 1, 1.0)
    evaluate.evaluate(spec, None, None, 1)
    other = spec.model_copy(update={"evaluation_hash": "e2"})
    evaluate.evaluate(other, None, None, 1, sidecar=sidecar)
    own, beside = (
        json.loads(
            (pathlib.Path(one.layout.evaluation(one.evaluation_hash).removeprefix("file://")) / name).read_text()
        )
        for name in ("results.json",)
        for one in (spec, other)
    )
    assert (own["engine"], beside["engine"]) == ("InProcess", "Server")
    assert own["evaluation"]["gates"] == beside["evaluation"]["gates"]
    assert len(own["values"]) == len(beside["values"]) > 20
    for one, two in zip(own["values"], beside["values"], strict=True):
        assert (one["metric"], one["contender"]) == (two["metric"], two["contender"])
        if one["metric"] in DRAWN:
            continue
        assert one["value"] == pytest.approx(two["value"], rel=1e-3, abs=1e-4), one
    assert list(fake.adapters) == ["tuned"]
    assert {body["model"] for body in fake.asked} == {"tiny-base", "tuned"}
    assert all(body["repetition_penalty"] == 1.0 and body["top_p"] == 1.0 for body in fake.asked), (
        "a server takes what is not named from the model's generation_config.json"
    )


def test_a_server_gets_a_seed_for_each_sample(served: tuple[run.Run, Vllm, server.Sidecar]) -> None:
    _, fake, sidecar = served
    engine = server.Server(sidecar, "tiny-base")
    rules = job.Consistency(samples=3, temperature=0.7)
    found = engine.sample(BASE, [[5, 6, 7], [8, 9]], engines.Ending(frozenset(), 4), rules, 1)
    assert [len(one) for one in found] == [3, 3]
    assert all(len(ids) == 4 for one in found for ids in one)
    assert len({body["seed"] for body in fake.asked}) == 6
    assert {body["temperature"] for body in fake.asked} == {0.7}


def test_an_answer_of_a_server_ends_with_a_text(served: tuple[run.Run, Vllm, server.Sidecar]) -> None:
    _, fake, sidecar = served
    engine = server.Server(sidecar, "tiny-base")
    ours = fake.engine
    [whole] = ours.greedy(BASE, [[5, 6, 7]], engines.Ending(frozenset(), 12))
    stop = ours.tokenizer.decode(whole[5:7])
    ending = engines.Ending(frozenset(), 12, (stop,))
    assert engine.greedy(BASE, [[5, 6, 7]], ending) == ours.greedy(BASE, [[5, 6, 7]], ending)
    assert fake.asked[-1]["stop"] == [stop]
    assert fake.asked[-1]["include_stop_str_in_output"] is True


def test_answers_of_a_server_are_held_to_a_schema(
    served: tuple[run.Run, Vllm, server.Sidecar], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, fake, sidecar = served
    engine, schema = server.Server(sidecar, "tiny-base"), {"enum": ["refund", "praise"]}
    stops = frozenset({fake.engine.tokenizer.eos_token_id})
    ending = engines.Ending(stops, 24, schema=json.dumps(schema))
    [answer] = engine.greedy(BASE, [[5, 6, 7]], ending)
    assert fake.asked[-1]["structured_outputs"] == {"json": schema}
    assert json.loads(fake.engine.tokenizer.decode(answer, skip_special_tokens=True)) in schema["enum"]
    engine.greedy(BASE, [[5, 6, 7]], engines.Ending(stops, 2))
    assert "structured_outputs" not in fake.asked[-1]
    assert engine.refusal([5, 6, 7], ending) is None
    assert sum(body["max_tokens"] for body in fake.asked[-3:]) < 16, "to know whether a schema works takes few tokens"
    fake.ignores_schemas = True
    assert "--reasoning-parser" in (engine.refusal([5, 6, 7], ending) or "")
    fake.refuses["structured_outputs"] = (500, {"error": {"message": "Grammar error: Unimplemented keys"}})
    assert "Grammar error: Unimplemented keys" in (engine.refusal([5, 6, 7], ending) or "")
    monkeypatch.setattr(server, "PATIENCE", 0.1)
    with pytest.raises(errors.Failure, match="leave Structured out"):
        engine.greedy(BASE, [[5, 6, 7]], ending)
    fake.refuses["/v1/completions"] = (500, {"error": {"message": "EngineCore encountered an issue"}})
    with pytest.raises(errors.Failure, match="EngineCore encountered an issue"):
        engine.refusal([5, 6, 7], ending)


def test_a_question_longer_than_the_servers_context_is_named(served: tuple[run.Run, Vllm, server.Sidecar]) -> None:
    _, _, sidecar = served
    engine = server.Server(sidecar, "tiny-base")
    assert engine.positions < CONTEXT
    [answer] = engine.greedy(BASE, [[5] * (CONTEXT - 2)], engines.Ending(frozenset(), 24))
    assert len(answer) == 2, "as many tokens as there is room for"
    with pytest.raises(errors.Failure, match="--max-model-len") as caught:
        engine.greedy(BASE, [[5] * CONTEXT], engines.Ending(frozenset(), 24))
    assert caught.value.reason is reasons.Reason.INVALID_SPEC
    assert str(CONTEXT) in caught.value.message


def test_a_server_that_ends_is_a_failure_that_is_tried_again(
    served: tuple[run.Run, Vllm, server.Sidecar], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, fake, sidecar = served
    monkeypatch.setattr(server, "PATIENCE", 0.1)
    engine = server.Server(sidecar, "tiny-base")
    fake.refuses["/v1/completions"] = (500, {"error": {"message": "EngineCore encountered an issue"}})
    with pytest.raises(errors.Failure, match="EngineCore encountered an issue") as caught:
        engine.greedy(BASE, [[5, 6, 7]] * 80, engines.Ending(frozenset(), 4))
    assert caught.value.reason is reasons.Reason.SERVER_FAILED
    assert caught.value.exit == 1
    monkeypatch.setattr(server, "READY_SECONDS", 0.1)
    with pytest.raises(errors.Failure, match="does not serve another-base"):
        server.Server(sidecar, "another-base")


def test_an_adapter_that_the_server_refuses_is_no_contender(served: tuple[run.Run, Vllm, server.Sidecar]) -> None:
    _, fake, sidecar = served
    fake.refuses["/v1/load_lora_adapter"] = (
        400,
        {"error": {"message": "LoRA rank 64 is greater than max_lora_rank 8"}},
    )
    engine = server.Server(sidecar, "tiny-base")
    (sidecar.folder / "elsewhere").mkdir()
    assert "rank 64 is greater" in (engine.add_adapter(job.Contender.SERVING, sidecar.folder / "elsewhere") or "")


def test_scores_are_those_of_our_own_engine(served: tuple[run.Run, Vllm, server.Sidecar], base: pathlib.Path) -> None:
    """Sums, whether the answer is the greedy one, and single tokens for the canary."""
    spec, _, sidecar = served
    encoder = answers.tokens.load(base, spec.training)
    rows = [dataset.from_record({"source": str(n), **row}) for n, row in enumerate(tiny.examples(5))]
    script = contenders.Script(job.Prompt())
    encoded = [encoder.answered(script.ask(one, BASE)) for one in rows]
    ours, theirs = loaded(base, spec), server.Server(sidecar, "tiny-base")
    [greedy] = ours.greedy(BASE, [[5, 6, 7]], engines.Ending(frozenset(), 4))
    encoded.append(answers.tokens.Encoded([5, 6, 7, *greedy], [False] * 3 + [True] * 4))
    wanted, found = ours.likelihoods(BASE, encoded), theirs.likelihoods(BASE, encoded)
    assert [total for total, _ in found] == pytest.approx([total for total, _ in wanted], rel=1e-4)
    assert [best for _, best in found] == [best for _, best in wanted]
    assert found[-1][1] is True
    assert theirs.log_probabilities(BASE, [5, 6, 7], [8, 9]) == pytest.approx(
        ours.log_probabilities(BASE, [5, 6, 7], [8, 9]), rel=1e-4
    )
