"""Retrieved and ManyShot: which training examples they show, how many, and what there is no time for."""

import json
import pathlib
from collections.abc import Callable

import pytest
import torch
from tests.trainer import tiny

from finetune_api import job, results, run
from finetune_trainer.data import dataset
from finetune_trainer.engine import model
from finetune_trainer.evaluation import answers, contenders, in_process, retrieval, selection
from finetune_trainer.stages import baseline, evaluate, preflight, train

World = Callable[..., run.Run]
RETRIEVED, MANY = job.Contender.RETRIEVED, job.Contender.MANY_SHOT


def example(asked: str, answer: str) -> dataset.Example:
    return dataset.Example(asked, (dataset.Message("user", asked), dataset.Message("assistant", answer)))


CARDS = [
    example("My card was lost on Monday", "lost_card"),
    example("Where is my parcel?", "parcel"),
    example("The card was stolen", "stolen_card"),
    example("Is my lost card insured?", "insurance"),
]


def index(size: int = 10) -> retrieval.Index[dataset.Example]:
    return retrieval.Index(CARDS, retrieval.question, lambda one: size)


def sources(found: list[dataset.Example]) -> list[str]:
    return [one.source for one in found]


def test_the_most_similar_example_stands_next_to_the_question() -> None:
    found = index().nearest("On Monday I lost a card", 2, room=100)
    assert sources(found) == ["Is my lost card insured?", "My card was lost on Monday"]


def test_retrieved_examples_fit_into_the_room() -> None:
    assert len(index(30).nearest("card", 4, room=100)) == 3
    assert index(30).nearest("card", 4, room=20) == []
    long = retrieval.Index(CARDS, retrieval.question, lambda one: 90 if "insured" in one.source else 10)
    found = long.nearest("lost card insured", 2, room=50)
    assert "Is my lost card insured?" not in sources(found), "a long one is left out"
    assert len(found) == 2, "and a shorter one takes its place"


def test_a_question_without_a_known_word_still_gets_examples() -> None:
    assert len(index().nearest("zzz", 2, room=100)) == 2
    assert (
        len(retrieval.Index([example("...", "dots")], retrieval.question, lambda one: 1).nearest("...", 2, room=9)) == 1
    )


def test_scripts_without_spaces_are_searched_by_character() -> None:
    rows = [example("カードを紛失しました", "lost"), example("荷物はどこですか", "parcel")]
    found = retrieval.Index(rows, retrieval.question, lambda one: 1).nearest("荷物がない", 1, room=9)
    assert sources(found) == ["荷物はどこですか"]


def test_retrieved_examples_come_between_system_prompt_and_question() -> None:
    script = contenders.Script(job.Prompt(system="Sort."), index=index(), retrieved=1, room=100)
    asked = script.ask(example("Where is it, my parcel?", "?"), RETRIEVED)
    assert [turn.content for turn in asked.messages] == [
        "Sort.",
        "Where is my parcel?",
        "parcel",
        "Where is it, my parcel?",
        "?",
    ]
    assert [turn.learned for turn in asked.messages if turn.role == "assistant"] == [False, True]


def test_many_examples_are_balanced_over_the_answers(base: pathlib.Path, world: World) -> None:
    encoder = answers.tokens.load(base, world().training)
    rows = [example(f"common {n}", "yes") for n in range(60)] + [example(f"rare {n}", "no") for n in range(12)]
    each = contenders.size(rows[-1], encoder)
    chosen = contenders.many(rows, 1, room=22 * each, encoder=encoder)
    counts = [sum(one.answer == answer for one in chosen) for answer in ("yes", "no")]
    assert abs(counts[0] - counts[1]) <= 1, "as many of each as fit"
    assert sum(counts) >= 15
    assert chosen == contenders.many(rows, 1, room=22 * each, encoder=encoder), "by the seed"
    order = [one.answer for one in chosen]
    assert order != sorted(order), "answers are mixed"
    assert len(contenders.many(rows, 1, room=10**6, encoder=encoder)) == 72


def runner_of(base: pathlib.Path, spec: run.Run, rows: list[dataset.Example], room: int = 700) -> answers.ModelRunner:
    plain = model.load(base, job.Precision.FLOAT32, torch.device("cpu"))
    encoder = answers.tokens.load(base, spec.training)
    made = retrieval.Index(rows, retrieval.question, lambda one: contenders.size(one, encoder))
    script = contenders.Script(job.Prompt(), index=made, room=room)
    ours = in_process.InProcess(plain, model.head(plain), torch.device("cpu"), spec, encoder.tokenizer)
    return answers.ModelRunner(ours, encoder, script, spec.evaluation)


def rows_of(count: int, start: int = 0) -> list[dataset.Example]:
    return [dataset.from_record({"source": str(n), **row}) for n, row in enumerate(tiny.examples(count, start=start))]


def test_the_number_of_examples_is_chosen_on_validation(base: pathlib.Path, world: World) -> None:
    runner = runner_of(base, world(evaluation={"generation": {"maxNewTokens": 4}}), rows_of(40), room=500)
    limits = selection.Budget(1000.0)
    choice = selection.choose(runner, rows_of(6, 50), limits, selection.Pace(), [job.Gate(metric="Loss", maximum=1)])
    assert choice is not None
    assert [one.examples for one in choice.found.tried] == [4, 16], "no more than 16 fit into the room"
    assert all(one.asked == 6 for one in choice.found.tried)
    assert choice.found.metric is job.Metric.LOSS
    best = min(choice.found.tried, key=lambda one: one.value or 0)
    assert choice.found.examples == runner.script.retrieved == best.examples
    assert limits.spent > 0


def test_what_there_is_no_time_for_is_named(base: pathlib.Path, world: World) -> None:
    runner = runner_of(base, world(), rows_of(40))
    limits = selection.Budget(30.0)
    slow = selection.Pace(answer=10.0, rate=100.0)
    assert selection.choose(runner, rows_of(6, 50), limits, slow, []) is None
    assert limits.left_out[0].startswith("Retrieved with 4 examples: it would take about")
    assert [one.split(":")[0] for one in limits.left_out] == [
        "Retrieved with 4 examples",
        "Retrieved with 16 examples",
        "Retrieved with as many examples as fit",
    ]


def test_a_number_that_shows_no_more_than_the_last_is_not_tried(base: pathlib.Path, world: World) -> None:
    runner = runner_of(base, world(evaluation={"generation": {"maxNewTokens": 4}}), rows_of(3))
    choice = selection.choose(runner, rows_of(4, 50), selection.Budget(1000.0), selection.Pace(), [])
    assert choice is not None
    assert [one.examples for one in choice.found.tried] == [4], "there are three"


def test_without_validation_examples_the_smallest_number_is_taken(base: pathlib.Path, world: World) -> None:
    runner = runner_of(base, world(), rows_of(40))
    choice = selection.choose(runner, [], selection.Budget(1000.0), selection.Pace(), [], rows_of(4, 50))
    assert choice is not None
    assert (choice.found.examples, choice.found.tried, choice.given) == (4, [], None)


def test_the_budget_is_a_share_of_the_training_but_half_a_minute_at_least() -> None:
    rules = job.Evaluation(baseline_budget=0.2)
    assert selection.budget(rules, 3600).seconds == 720
    assert selection.budget(rules, 10).seconds == selection.budget(rules, None).seconds == 30
    assert selection.training_seconds(selection.Pace(rate=500.0), 100_000) == 400, "twice the time of reading"


def test_the_pace_counts_a_common_prefix_once() -> None:
    prompts = [[7] * 90 + [n] * 10 for n in (1, 2)]
    asked = answers.Answers([], [[1], [1]], prompts, prefill=200.0, seconds=4.0)
    pace = selection.Pace().after(asked)
    assert pace.rate == pytest.approx(110.0), "110 different tokens in the one second in which 200 are read"
    assert pace.answer == pytest.approx(1.0), "4 seconds less two readings, for 2 answers"


def test_losses_of_a_long_common_prompt_are_computed_many_rows_at_a_time(
    base: pathlib.Path, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = runner_of(base, world(), rows_of(40))
    shots = tuple(rows_of(8))
    asked = [contenders.Script(job.Prompt(), many=shots).ask(one, MANY) for one in rows_of(10, 50)]
    wanted = answers.losses_of(runner, MANY, asked)
    calls: list[int] = []
    forward = in_process.decoder.Decoder.forward

    def noted(self: in_process.decoder.Decoder, batch: in_process.prefix_tree.Batch, **more: object) -> torch.Tensor:
        calls.append(len(batch.ids))
        return forward(self, batch, **more)

    monkeypatch.setattr(in_process, "TOKENS", {"cpu": 400})
    monkeypatch.setattr(in_process.decoder.Decoder, "forward", noted)
    found = answers.losses_of(runner, MANY, asked)
    assert [total for total, _ in found] == pytest.approx([total for total, _ in wanted], rel=1e-3)
    assert len(calls) < 5, "400 tokens of their own at a time, the prompt apart"


def test_a_job_is_compared_with_retrieved_and_many_examples(world: World) -> None:
    """From the baseline before training, which chooses the number, to the results."""
    gates = [{"metric": "ExactMatch", "minimum": 0.9, "confidence": 0.5}]
    spec = world(
        tiny.examples(120),
        dataset={"validation": {"fraction": 0.3}, "test": {"fraction": 0.1}},
        training={"maxSteps": 4},
        evaluation={"generation": {"maxNewTokens": 8}, "gates": gates},
    )
    preflight.preflight(spec)
    before = baseline.baseline(spec, 1).baseline
    assert before is not None
    assert {RETRIEVED, MANY} <= {one.contender for one in before.metrics}
    train.train(spec, 1, 1.0)
    evaluate.evaluate(spec, None, None, 1)
    folder = pathlib.Path(spec.layout.evaluation("e1").removeprefix("file://"))
    found = results.Results.model_validate_json((folder / "results.json").read_text())
    assert {RETRIEVED, MANY} <= {one.contender for one in found.values}
    assert found.retrieved is not None
    assert found.retrieved.examples in contenders.OPTIONS
    assert all(one.asked == 32 for one in found.retrieved.tried), "as chosen before training"
    assert found.retrieved.tried
    assert found.left_out == []
    tokens = {one.contender: one for one in found.tokens}
    assert tokens[RETRIEVED].prompt > tokens[job.Contender.BASE].prompt
    assert all(one.seconds for one in found.tokens)
    lines = (folder / "samples.jsonl").read_text().splitlines()
    assert str(RETRIEVED) in json.loads(lines[0])["answers"]


def test_a_retrieved_example_with_the_same_question_is_counted(base: pathlib.Path, world: World) -> None:
    runner = runner_of(base, world(), CARDS)
    assert selection.copies(runner, [example("where is my parcel", "?"), example("Where is my hat?", "?")]) == 1


def test_the_pace_is_that_of_the_contender_before() -> None:
    """A base model that writes until it is cut says nothing about one that was shown how to answer."""
    rambling = answers.Answers([], [[1] * 48] * 2, [[1, 2], [3, 4]], prefill=4.0, seconds=50.0)
    shown = answers.Answers([], [[1]] * 2, [[5] * 10 + [n] for n in (1, 2)], prefill=11.0, seconds=6.0)
    pace = selection.Pace().after(rambling).after(shown)
    assert pace.answer == pytest.approx(1.0)
    assert pace.rate == pytest.approx(6.0), "12 different tokens in two seconds"
