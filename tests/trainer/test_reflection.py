"""intent.prompt.optimizer: a double of a large model rewrites the instruction; what it is sent, and how it may fail."""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from tests.trainer import endpoints
from tests.trainer.endpoints import Model

from finetune_api import job, results, run
from finetune_trainer.data import dataset, tokens
from finetune_trainer.evaluation import (
    answers,
    contenders,
    endpoint,
    engines,
    in_process,
    instructions,
    optimized,
    reflection,
    selection,
)
from finetune_trainer.process import secrets
from finetune_trainer.stages import baseline, preflight

World = Callable[..., run.Run]
OPTIMIZED, PROMPT, RETRIEVED = job.Contender.OPTIMIZED, job.Contender.PROMPT, job.Contender.RETRIEVED
KEY = "optimizer-canary-key-4711"
RULE = "A wish for money is R7, all else is P2."
GATE = [{"metric": "ExactMatch", "minimum": 0.8}]


@pytest.fixture
def wise() -> Iterator[tuple[Model, str]]:
    with endpoints.served() as (model, url):
        model.answers = lambda question: {"content": f"The rule is clear:\n```\n{RULE}\n```"}
        yield model, url


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "PATIENCE", 1.0)


def mails(count: int, start: int = 0) -> list[dict[str, Any]]:
    """Mails to sort by two labels; the number is in no other mail."""
    kinds = [("I want my money back for item {n}.", "R7"), ("Thank you for {n}, it is great!", "P2")]
    pairs = [(kinds[n % 2][0].format(n=f"no{n}x"), kinds[n % 2][1]) for n in range(start, start + count)]
    return [{"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]} for q, a in pairs]


def rows(count: int, start: int = 0) -> list[dataset.Example]:
    return [dataset.example(row, job.Format.CHAT, str(n)) for n, row in enumerate(mails(count, start))]


class Sorts:
    """An engine that sorts a mail where the prompt has the rule, and else always says P2."""

    kind = job.EvaluationEngine.IN_PROCESS
    positions = 2048

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.prompts: list[str] = []

    def greedy(
        self, which: job.Contender, prompts: Sequence[list[int]], ending: engines.Ending, done: engines.Done
    ) -> list[list[int]]:
        texts = [self.tokenizer.decode(ids) for ids in prompts]
        self.prompts += texts
        return [[*self.tokenizer.encode(self.answer(text)), self.tokenizer.eos_token_id] for text in texts]

    def answer(self, prompt: str) -> str:
        return "R7" if RULE in prompt and "money" in prompt.rpartition("<|im_start|>user")[2] else "P2"

    def likelihoods(
        self, which: job.Contender, encoded: Sequence[tokens.Encoded], done: engines.Done = engines.silent
    ) -> list[tuple[float, bool]]:
        return [(-1.0 * one.trainable, False) for one in encoded]


def runner_of(base: pathlib.Path, world: World, url: str, **more: Any) -> answers.ModelRunner:
    spec = world(
        evaluation={"gates": GATE}, intent={"prompt": {"optimizer": {"endpoint": url, "model": "wise", **more}}}
    )
    encoder = tokens.load(base, spec.training)
    training = rows(40)
    script = contenders.Script(job.Prompt(system="Sort this mail."), tuple(training[:2]), room=2000)
    improved_by = instructions.optimizer(spec.intent.prompt.optimizer, training, lambda text: len(text) < 400, 7)
    script = dataclasses.replace(
        script, variants=answers.prompts(script, training, spec, encoder)[:3], optimizer=improved_by
    )
    engine: Any = Sorts(encoder.tokenizer)
    return answers.ModelRunner(engine, encoder, script, spec.evaluation)


def chosen(runner: answers.ModelRunner, limits: selection.Budget) -> results.Optimized:
    gates = [job.Gate.model_validate(one) for one in GATE]
    choice = optimized.choose(runner, rows(32, 1000), limits, selection.Pace(), gates)
    assert choice is not None
    return choice.found


def test_a_better_instruction_of_the_model_becomes_the_prompt(
    wise: tuple[Model, str], base: pathlib.Path, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(run.OPTIMIZER_KEY, f"{KEY}\n")
    model, url = wise
    model.key = KEY
    runner, limits = runner_of(base, world, url), selection.Budget(1000.0)
    found = chosen(runner, limits)
    assert found.instruction == RULE
    written = {one.by: one for one in found.tried}
    assert written["wise"].value == 1.0
    assert (written[None].value or 0) <= 0.5, "no prompt of the rules sorts"
    assert found.reflection is not None
    assert found.reflection.problem is None
    assert found.reflection.requests == len(model.asked) >= 1
    assert found.reflection.calls <= 200
    assert limits.left_out == []
    assert any(RULE in turn.content for turn in runner.script.ask(rows(1)[0], OPTIMIZED).messages)
    assert KEY not in json.dumps(found.wire())
    assert KEY not in secrets.redact(f"refused: {KEY}")


def test_the_model_is_sent_training_examples_alone(wise: tuple[Model, str], base: pathlib.Path, world: World) -> None:
    model, url = wise
    runner = runner_of(base, world, url)
    chosen(runner, selection.Budget(1000.0))
    sent = json.dumps(model.asked)
    assert "Sort this mail." in sent, "the system prompt, so that the task is known"
    assert "P2" in sent
    assert any(f"no{n}x" in sent for n in range(2, 40)), "training examples"
    assert not any(f"no{n}x" in sent for n in range(1000, 1032)), "no validation example"
    assert not any(f"no{n}x" in sent for n in (0, 1)), "nor those whose answers stand before the question"


@pytest.mark.parametrize(
    "breaks, says",
    [
        ({"refuses": lambda body: (401, "no such key")}, "401"),
        ({"refuses": lambda body: (429, "too many requests")}, "no answer in 1 s; the last: "),
        ({"refuses": lambda body: (500, "broken")}, "no answer in 1 s; the last: "),
        ({"answers": lambda question: {"content": "I am happy to help!"}}, "3 replies in a row were of no use"),
        ({"answers": lambda question: {"content": f"```\n{'very ' * 200}\n```"}}, "longer than"),
        ({"answers": lambda question: {"content": None}}, "3 replies in a row were of no use"),
    ],
)
def test_whatever_happens_at_the_endpoint_the_written_prompts_stay(
    wise: tuple[Model, str], base: pathlib.Path, world: World, breaks: dict[str, Any], says: str
) -> None:
    model, url = wise
    for name, value in breaks.items():
        setattr(model, name, value)
    limits = selection.Budget(1000.0)
    found = chosen(runner_of(base, world, url), limits)
    assert found.instruction != RULE
    assert all(one.by is None for one in found.tried)
    assert found.reflection is not None
    assert says in (found.reflection.problem or "")
    (left_out,) = limits.left_out
    assert left_out.startswith("Optimized by reflection ended early: ")
    assert says in left_out


def test_an_endpoint_that_is_slow_ends_the_search_with_its_time(
    wise: tuple[Model, str], base: pathlib.Path, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selection, "LEAST", 1.0)
    model, url = wise
    model.slow = 5.0
    limits = selection.Budget(1.5)
    found = chosen(runner_of(base, world, url), limits)
    assert found.reflection is not None
    assert "the endpoint gave no answer in the 1 s that were left" in (found.reflection.problem or "")


def test_what_there_is_no_time_or_no_call_for_is_not_asked(
    wise: tuple[Model, str], base: pathlib.Path, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, url = wise
    limits = selection.Budget(100.0, spent=95.0)
    assert not reflection.time_for(rows(32), limits, 30.0, an_answer=1.0)
    assert limits.left_out == ["Optimized by reflection: a step would take about 40 s, 30 s of 100 may be used"]
    model.answers = lambda question: {"content": f"```\nAlways be kind. {len(model.asked)}\n```"}
    found = chosen(runner_of(base, world, url, calls=60), selection.Budget(1000.0))
    assert found.reflection is not None
    assert 0 < found.reflection.calls <= 60
    found = chosen(runner_of(base, world, url, calls=2000), selection.Budget(1000.0))
    assert found.reflection is not None
    assert found.reflection.requests <= reflection.REQUESTS


def test_a_training_example_is_not_retrieved_for_itself(base: pathlib.Path, world: World) -> None:
    runner = runner_of(base, world, "http://127.0.0.1:9/v1")
    optimizer = runner.script.optimizer
    assert optimizer is not None
    asked: list[instructions.Variant] = []

    def ask(variant: instructions.Variant, examples: Sequence[dataset.Example]) -> answers.Answers:
        asked.append(variant)
        return answers.ask(runner, OPTIMIZED, [*examples])

    search = reflection.Search(optimizer, runner, ask, rows(8, 1000), job.Metric.EXACT_MATCH, 1.0, 0.0)
    start = instructions.Variant("Sort.", "System", RETRIEVED)
    search.run(start, answers.ask(runner, OPTIMIZED, rows(8, 1000)))
    assert asked
    assert all(one.examples is job.Contender.FEW_SHOT for one in asked)
    assert "no answer in" in (search.problem or "")


def test_a_failure_of_the_base_model_is_raised(wise: tuple[Model, str], base: pathlib.Path, world: World) -> None:
    runner = runner_of(base, world, wise[1])
    optimizer = runner.script.optimizer
    assert optimizer is not None

    def ask(variant: instructions.Variant, examples: Sequence[dataset.Example]) -> answers.Answers:
        raise RuntimeError("out of memory")

    search = reflection.Search(optimizer, runner, ask, rows(8, 1000), job.Metric.EXACT_MATCH, 100.0, 0.0)
    with pytest.raises(RuntimeError, match="out of memory"):
        search.run(instructions.Variant("Sort.", "System"), answers.ask(runner, OPTIMIZED, rows(8, 1000)))


def test_the_baseline_reports_the_optimizers_prompt(
    wise: tuple[Model, str], world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A whole stage: the prompt is enough, is recorded, and a restart pays nothing again."""
    model, url = wise
    monkeypatch.setattr(in_process, "load", lambda spec, folder, tokenizer, scale: Sorts(tokenizer))
    spec = world(
        mails(160),
        dataset={"validation": {"fraction": 0.4}},
        intent={"prompt": {"system": "Sort this mail.", "optimizer": {"endpoint": url, "model": "wise"}}},
        evaluation={"generation": {"maxNewTokens": 8}, "gates": GATE, "baselines": ["Prompt", "Optimized"]},
    )
    preflight.preflight(spec)
    found = baseline.baseline(spec, 1)
    assert found.baseline is not None
    assert found.baseline.sufficient is OPTIMIZED
    assert RULE in found.message
    folder = pathlib.Path(spec.layout.baseline("e1").removeprefix("file://"))
    best = results.Optimized.model_validate_json((folder / "prompt.json").read_text())
    assert best.instruction == RULE
    assert best.reflection is not None
    sent = json.dumps(model.asked)
    held = (pathlib.Path(spec.layout.data.removeprefix("file://")) / "validation.jsonl").read_text().splitlines()
    questions = [json.loads(line)["messages"][0]["content"] for line in held]
    assert questions
    assert not any(question in sent for question in questions)
    paid = len(model.asked)
    assert baseline.baseline(spec, 2).baseline == found.baseline
    assert len(model.asked) == paid
