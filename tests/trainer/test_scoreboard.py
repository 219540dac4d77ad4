from collections.abc import Callable
from typing import Any

import pytest

from finetune_api import job, results, run
from finetune_trainer import report
from finetune_trainer.data import dataset
from finetune_trainer.evaluation import answers, evidence, headline, metrics, pairwise, prices, scoreboard
from finetune_trainer.store import storage

World = Callable[..., run.Run]
Metric = job.Metric
BASE, PROMPT, FEW_SHOT, TUNED = job.Contender.BASE, job.Contender.PROMPT, job.Contender.FEW_SHOT, job.Contender.TUNED

EXAMPLES = [
    dataset.Example(
        source=f"test.jsonl:{number}",
        messages=(dataset.Message("user", "a question"), dataset.Message("assistant", "an answer", learned=True)),
    )
    for number in range(4)
]


def gate(metric: job.Metric, **bounds: Any) -> job.Gate:
    return job.Gate(metric=metric, **(bounds or {"minimum": 0.5}))


def mean(value: float) -> evidence.Column:
    return evidence.mean([value] * 4)


def free_text() -> scoreboard.Findings:
    """No answer equals the expected one; by Rouge a few examples are the best baseline, by the loss the prompt. Prompts have 10
    tokens, 110 and 410; the tuned model's have 10."""
    rouge = {BASE: 0.1, PROMPT: 0.3, FEW_SHOT: 0.4, TUNED: 0.6}
    losses = {BASE: 3.0, PROMPT: 1.0, FEW_SHOT: 2.0, TUNED: 0.5}
    sizes = {BASE: 10, PROMPT: 110, FEW_SHOT: 410, TUNED: 10}
    return scoreboard.Findings(
        asked={
            who: answers.Answers([metrics.Answer("an answer", "another", 2.0, 2)] * 4, [[1, 2]] * 4, [[1] * size] * 4)
            for who, size in sizes.items()
        },
        values={
            who: {Metric.EXACT_MATCH: mean(0.0), Metric.ROUGE_L: mean(rouge[who]), Metric.LOSS: mean(losses[who])}
            for who in sizes
        },
        prefill=2_000.0,
    )


def results_of(spec: run.Run, found: scoreboard.Findings, **training: Any) -> results.Results:
    facts = scoreboard.Provenance("0" * 64, 1.0, training, {})
    return scoreboard.results_of(spec, storage.of(spec.storage), found, [], EXAMPLES, facts)


def test_the_best_baseline_of_a_free_text_job_is_chosen_by_its_informative_metric(world: World) -> None:
    found = results_of(world(), free_text(), seconds=600.0)
    assert (found.headline, found.best_baseline) == (Metric.ROUGE_L, FEW_SHOT)
    assert found.evaluation.score == "0.6000"


def test_tokens_saved_and_break_even_are_those_against_the_best_baseline(world: World) -> None:
    found = results_of(world(), free_text(), seconds=600.0)
    assert found.evaluation.tokens_saved_per_request == 400, "410 - 10"
    # In the 600 seconds of the training 1,200,000 tokens are read: the 400 of 3,000 requests.
    assert found.break_even_requests == 3_000
    several = world().model_copy(update={"gpus": 2, "nodes": 3})
    assert results_of(several, free_text(), seconds=600.0).break_even_requests == 6 * 3_000, "six GPUs were busy"


@pytest.mark.parametrize(
    "saved,seconds,prefill,expected",
    [
        (400, 600.0, 2_000.0, 3_000),
        (3, 10.0, 1.0, 3),
        (0, 600.0, 2_000.0, None),
        (-5, 600.0, 2_000.0, None),
        (None, 600.0, 2_000.0, None),
        (400, None, 2_000.0, None),
        (400, 600.0, 0.0, None),
    ],
)
def test_break_even_is_the_training_time_in_requests(
    saved: int | None, seconds: float | None, prefill: float, expected: int | None
) -> None:
    assert prices.break_even(saved, seconds, prefill) == expected


def test_the_report_names_the_break_even_and_never_a_price_that_is_missing(world: World) -> None:
    page = report.page(results_of(world(), free_text(), seconds=600.0))
    assert "3,000 requests" in page
    assert "400 fewer" in page, "the tokens of a prompt against the best baseline's"
    unknown = report.page(results_of(world(), free_text()))
    assert "the duration of the training is unknown" in unknown
    assert "Price of the training" not in page + unknown


def test_a_gate_decides_the_headline_unless_it_is_not_about_answers() -> None:
    values = free_text().values
    decide = headline.decide
    assert decide([gate(Metric.LOSS)], values, {}) == headline.Headline(Metric.LOSS, PROMPT, PROMPT), "the lowest loss"
    assert decide([gate(Metric.EXACT_MATCH)], values, {}) == headline.Headline(Metric.EXACT_MATCH, BASE, BASE), (
        "the cheapest"
    )
    assert decide([gate(Metric.FORGETTING)], values, {}) == headline.Headline(Metric.ROUGE_L, FEW_SHOT, FEW_SHOT)
    assert decide([gate(Metric.JSON_VALID)], values, {}) == headline.Headline(Metric.ROUGE_L, FEW_SHOT, FEW_SHOT), (
        "unmeasured"
    )
    assert decide([], {TUNED: values[TUNED]}, {}) == headline.Headline(Metric.ROUGE_L, None)
    assert decide([], {}, {}) == headline.Headline(None, None)


def test_a_judge_decides_where_the_first_gate_is_about_it(world: World) -> None:
    found = free_text()
    # Verdicts of four questions against each baseline: 4 won; 3 won and 1 lost; 3 won and 1 tie.
    texts = {BASE: "AAAA", PROMPT: "BAAA", FEW_SHOT: "TAAA"}
    cases = [
        pairwise.Case(place, who, (), "", "ours", "theirs")
        for who, winners in texts.items()
        for place in range(len(winners))
    ]
    verdicts = {}
    for number, winner in enumerate("".join(texts.values())):
        for place, swapped in enumerate((False, True)):
            named = {"A": "AB", "B": "BA"}.get(winner)  # the tuned model's answer is A in the one order, B in the other
            verdicts[number, swapped] = pairwise.Verdict(pairwise.Winner(named[place] if named else "Tie"), "")
    found.judged = pairwise.Judged(cases, verdicts)
    gates = [gate(Metric.JUDGE_WIN_RATE, over=BASE, minimum=0.5)]
    spec = world().model_copy(update={"evaluation": world().evaluation.model_copy(update={"gates": gates})})
    assert found.headline(spec) == headline.Headline(Metric.JUDGE_WIN_RATE, PROMPT, PROMPT), "won 0.75, 0.875 and 1"
    assert headline.decide(gates, found.values, {}).metric is Metric.ROUGE_L, "nobody was judged"


def test_the_status_has_the_deciding_metric_also_of_a_job_without_gates(world: World) -> None:
    found = free_text()
    found.values = {who: columns | {Metric.ACCURACY: mean(0.5)} for who, columns in found.values.items()}
    listed = [(one.name, one.contender) for one in results_of(world(), found).evaluation.metrics]
    assert (Metric.ACCURACY, TUNED) in listed
    assert Metric.BLEU not in dict(listed)


def test_the_status_names_what_was_left_out(world: World) -> None:
    found = free_text()
    found.left_out = ["ManyShot: it would take about 90 s"]
    assert results_of(world(), found).evaluation.left_out == found.left_out
