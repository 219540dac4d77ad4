"""Optimized: what its prompts say, how the best is chosen and what that costs, and when such a prompt is enough."""

import dataclasses
import json
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from tests.trainer import tiny

from finetune_api import evaluation, job, reasons, results, run
from finetune_trainer.data import dataset, tokens
from finetune_trainer.evaluation import (
    answers,
    chosen,
    contenders,
    doubt,
    engines,
    in_process,
    instructions,
    optimized,
    scoreboard,
    selection,
)
from finetune_trainer.stages import baseline, preflight
from finetune_trainer.store import storage

World = Callable[..., run.Run]
PROMPT, FEW, RETRIEVED = job.Contender.PROMPT, job.Contender.FEW_SHOT, job.Contender.RETRIEVED
OPTIMIZED = job.Contender.OPTIMIZED
LISTED = "exactly one of these labels"


def example(asked: str, answer: str, system: str | None = None) -> dataset.Example:
    before = (dataset.Message("system", system),) if system else ()
    return dataset.Example(asked, (*before, dataset.Message("user", asked), dataset.Message("assistant", answer)))


def mails(count: int, start: int = 0) -> list[dict[str, Any]]:
    """Mails to sort by two labels that nobody can guess."""
    kinds = [("I want my money back for item {n}.", "R7"), ("Thank you for {n}, it is great!", "P2")]
    pairs = [(kinds[n % 2][0].format(n=n), kinds[n % 2][1]) for n in range(start, start + count)]
    return [{"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]} for q, a in pairs]


def rows(count: int, start: int = 0) -> list[dataset.Example]:
    return [dataset.example(row, job.Format.CHAT, str(n)) for n, row in enumerate(mails(count, start))]


class Sorts:
    """An engine that sorts a mail where a prompt says by which labels, in the place that it listens to; else it chats."""

    kind = job.EvaluationEngine.IN_PROCESS
    positions = 1024

    def __init__(self, tokenizer: Any, listens: str = "") -> None:
        self.tokenizer, self.listens, self.asked = tokenizer, listens, 0

    def greedy(
        self, which: job.Contender, prompts: Sequence[list[int]], ending: engines.Ending, done: engines.Done
    ) -> list[list[int]]:
        self.asked += len(prompts)
        return [self.answer(self.tokenizer.decode(ids)) for ids in prompts]

    def answer(self, prompt: str) -> list[int]:
        system, _, question = prompt.rpartition("<|im_start|>user")
        knows = LISTED in {"": prompt, "system": system, "user": question}[self.listens]
        text = ("R7" if "money" in question else "P2") if knows else "That is a nice mail."
        return [*self.tokenizer.encode(text), self.tokenizer.eos_token_id]

    def likelihoods(
        self, which: job.Contender, encoded: Sequence[tokens.Encoded], done: engines.Done = engines.silent
    ) -> list[tuple[float, bool]]:
        return [(-1.0 * one.trainable, False) for one in encoded]


def runner_of(
    base: pathlib.Path, spec: run.Run, listens: str = "", room: int = 2000, system: str | None = None
) -> answers.ModelRunner:
    encoder = tokens.load(base, spec.training)
    training = rows(40)
    script = contenders.Script(job.Prompt(system=system), tuple(training[:2]), room=room)
    variants = answers.prompts(script, training, spec, encoder)
    script = dataclasses.replace(script, variants=variants)
    engine: Any = Sorts(encoder.tokenizer, listens)
    return answers.ModelRunner(engine, encoder, script, spec.evaluation)


# -- what the instructions say --


def form(*answered: str, labels: Sequence[str] | None = None) -> str:
    found = instructions.of([example(f"q{n}", one) for n, one in enumerate(answered)], labels)
    assert found is not None
    return found.form


def test_few_recurring_answers_are_listed_as_labels() -> None:
    assert form(*["spam", "ham", "ham "] * 4) == f"The answer is {LISTED}:\n- ham\n- spam"
    assert form("yes", "no", labels=["yes", "no", "maybe"]).endswith("- yes\n- no\n- maybe"), "those of the job"
    assert LISTED not in form("one", "two", "three", "four"), "answers that do not recur are no labels"
    assert LISTED not in form(*["the same"] * 9), "nor is a single one"


def test_keys_and_recurring_values_of_json_are_listed() -> None:
    found = form(*[json.dumps({"kind": kind, "n": n, "ok": True}) for n in range(6) for kind in ("new", "used")])
    assert found == (
        'The answer is one JSON object with the keys "kind" (one of "new", "used"), "n" (a number), "ok" (true or false).'
    )
    found = form('{"a": "x", "b": null}', '{"a": "y"}')
    assert '"a" (a text), "b" (null; not always there)' in found
    assert "JSON" not in form('{"a": 1}', "no json", "none at all")


def test_of_other_answers_the_length_is_stated() -> None:
    assert form("one two three", "one two three four five", "one two three four") == (
        "The answer is one line of about 4 words."
    )
    assert "a text of about 3 words" in form("a\nb c", "d\ne f")
    assert "one line of about 20 characters" in form(
        "これは日本語の長い文ですよねそうでしょう", "これは日本語の長い文ですよねそうでしょう"
    )


def test_answers_that_may_be_calls_get_no_instruction() -> None:
    calling = [dataset.example(row, job.Format.CHAT, str(n)) for n, row in enumerate(tiny.calling(4))]
    assert instructions.of(calling, None) is None
    assert instructions.of([], None) is None


# -- how the prompts are written --


def asked(variant: instructions.Variant, one: dataset.Example, **script: Any) -> list[tuple[str, str]]:
    made = contenders.Script(script.pop("prompt", job.Prompt()), optimized=variant, **script).ask(one, OPTIMIZED)
    return [(turn.role, turn.content) for turn in made.messages]


def test_the_instruction_follows_the_system_prompt_or_the_question() -> None:
    shot, one = example("like this", "so"), example("question", "answer", "own")
    before, after = instructions.Variant("Be brief.", "System"), instructions.Variant("Be brief.", "Question", FEW)
    rest = [("user", "question"), ("assistant", "answer")]
    assert asked(before, one) == [("system", "own\n\nBe brief."), *rest]
    assert asked(before, one, prompt=job.Prompt(system="Sort.")) == [("system", "Sort.\n\nBe brief."), *rest]
    assert asked(before, example("question", "answer")) == [("system", "Be brief."), *rest]
    assert asked(before, one, inline=True) == [("user", "own\n\nBe brief.\n\nquestion"), rest[1]]
    assert asked(after, one, shots=(shot,)) == [
        ("system", "own"),
        ("user", "like this"),
        ("assistant", "so"),
        ("user", "question\n\nBe brief."),
        ("assistant", "answer"),
    ]


def test_a_list_that_is_too_long_leaves_the_short_instruction(base: pathlib.Path, world: World) -> None:
    variants = runner_of(base, world()).script.variants
    assert [(one.placement, one.examples) for one in variants] == [
        (place, which) for which in (PROMPT, FEW) for place in ("System", "Question", "System")
    ]
    short = runner_of(base, world(), room=240).script.variants
    assert len(short) == 2
    assert not any(LISTED in one.instruction for one in short)


# -- how the best is chosen --


@pytest.mark.parametrize("listens, placement", [("system", "System"), ("user", "Question")])
def test_the_best_prompt_is_chosen_on_validation(
    base: pathlib.Path, world: World, listens: str, placement: str
) -> None:
    runner, limits = runner_of(base, world(), listens), selection.Budget(1000.0)
    choice = optimized.choose(runner, rows(32, 50), limits, selection.Pace(), [])
    assert choice is not None
    assert choice.given is not None
    assert (choice.found.placement, choice.found.examples) == (placement, PROMPT), "the shortest of equals"
    assert LISTED in choice.found.instruction
    assert choice.found.metric is job.Metric.EXACT_MATCH
    assert [one.text for one in choice.given.answers] == [one.answer for one in rows(32, 50)]
    tried = choice.found.tried
    assert [sum(each.asked == count for each in tried) for count in (16, 32)] == [3, 3], "the best half again"
    assert runner.engine.asked == 6 * 16 + 3 * 16  # type: ignore[attr-defined]
    assert limits.spent > 0
    assert runner.script.ask(rows(1)[0], OPTIMIZED) != rows(1)[0]
    best = max(one.value or 0 for one in choice.found.tried)
    chosen = next(one for one in choice.found.tried if one.instruction == choice.found.instruction)
    assert best == 1.0
    assert (chosen.value == 1.0) is (placement == "System"), "the first with this text stands in the system prompt"


def test_what_there_is_no_time_to_try_is_named(base: pathlib.Path, world: World) -> None:
    runner, slow = runner_of(base, world()), selection.Pace(answer=1.0, rate=1e6)
    limits = selection.Budget(30.0)
    assert optimized.choose(runner, rows(32, 50), limits, slow, []) is None
    assert limits.left_out == ["Optimized: it would take about 32 s, 30 s of 30 are left"]
    limits = selection.Budget(100.0)
    choice = optimized.choose(runner, rows(32, 50), limits, slow, [])
    assert choice is not None
    assert len(choice.found.tried) == 3, "the search takes at most half of what is left"
    assert limits.left_out == ["Optimized with 3 of 6 prompts: it would take about 32 s, 100 s of 100 are left"]
    assert optimized.choose(runner, rows(32, 50), selection.Budget(100.0), slow, [], rows(90)) is None, (
        "time is reserved for what the winner gets later"
    )


def test_retrieved_examples_are_shown_only_where_their_number_was_chosen(base: pathlib.Path, world: World) -> None:
    runner = runner_of(base, world())
    more = [instructions.Variant(f"The answer is {LISTED}: R7, P2", "System", RETRIEVED)]
    runner.script = dataclasses.replace(runner.script, variants=(*runner.script.variants[2:3], *more))
    limits = selection.Budget(1000.0)
    found = optimized.choose(runner, rows(4), limits, selection.Pace(), [], retrieved=False)
    assert found is not None
    assert found.found.examples is PROMPT
    found = optimized.choose(runner, rows(4), limits, selection.Pace(), [])
    assert found is not None
    assert found.found.examples is RETRIEVED


def test_each_prompt_gets_its_share_of_the_doubt() -> None:
    assert doubt.among([PROMPT, OPTIMIZED], 9).ways == {PROMPT: 1, OPTIMIZED: 9}
    assert doubt.among([PROMPT], 9).ways == {PROMPT: 1}


def test_examples_with_tools_are_not_instructed(base: pathlib.Path, world: World) -> None:
    runner = runner_of(base, world())
    calling = [dataset.example(row, job.Format.CHAT, str(n)) for n, row in enumerate(tiny.calling(2))]
    assert answers.obstacle(runner, OPTIMIZED, rows(2)) is None
    assert "may be a call" in (answers.obstacle(runner, OPTIMIZED, [*rows(2), *calling]) or "")


# -- when it is enough --


def test_an_optimized_prompt_that_is_enough_ends_the_job(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A base model that sorts as soon as somebody lists the labels: no reason to train, which no other baseline shows."""
    engines_made: list[Sorts] = []

    def load(spec: run.Run, folder: pathlib.Path, tokenizer: Any, scale: float) -> Any:
        engines_made.append(Sorts(tokenizer))
        return engines_made[-1]

    monkeypatch.setattr(in_process, "load", load)
    gates = [{"metric": "ExactMatch", "minimum": 0.8}]
    spec = world(
        mails(160),
        dataset={"validation": {"fraction": 0.4}},
        intent={"advice": "Enforce", "prompt": {"system": "Sort this mail."}},
        evaluation={"generation": {"maxNewTokens": 8}, "gates": gates, "baselines": list(evaluation.BASELINES)},
    )
    preflight.preflight(spec)
    others = [one for one in spec.evaluation.baselines if one is not OPTIMIZED]
    without = spec.model_copy(
        update={"evaluation_hash": "e2", "evaluation": spec.evaluation.model_copy(update={"baselines": others})}
    )
    found = baseline.baseline(without, 1)
    assert (found.reason, found.baseline and found.baseline.sufficient) == (None, None)
    found = baseline.baseline(spec, 1)
    assert found.reason is reasons.Reason.PROMPT_ALREADY_SUFFICIENT
    assert found.baseline is not None
    assert found.baseline.sufficient is OPTIMIZED
    assert re.match(
        "an optimized prompt is enough: the base model meets the gates' bounds with \"The answer is exactly one of these "
        "labels: - (R7 - P2|P2 - R7) Answer with the label only.* in the system prompt, on 64 validation examples: training",
        found.message,
    )
    folder = pathlib.Path(spec.layout.baseline("e1").removeprefix("file://"))
    best = results.Optimized.model_validate_json((folder / "prompt.json").read_text())
    assert LISTED in best.instruction

    # The evaluation asks with the same prompt, and searches no more.
    store = storage.of(spec.storage)
    runner = answers.load(spec, store)
    measured, limits = scoreboard.Findings(), selection.Budget(30.0)
    assert chosen.prompt(spec, store, runner, rows(4), measured, limits, selection.Pace())
    assert measured.optimized == best
    assert runner.script.optimized == instructions.Variant(best.instruction, best.placement, best.examples)
    assert engines_made[-1].asked == 0
