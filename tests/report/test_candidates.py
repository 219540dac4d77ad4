"""Other models in the report: their rungs of the ladder, and a warning where one is better than the tuned model."""

from tests.report import example

from finetune_api import candidates, job, results
from finetune_trainer import report
from finetune_trainer.report import judgement, ladder

Metric, Contender, Mark = job.Metric, job.Contender, judgement.Mark
LARGE, GONE = Contender("large"), Contender("gone")


def with_candidates(value: float = 0.97, gain: float = -0.05) -> results.Results:
    found = example.everything()
    return example.changed(
        found,
        best_alternative=LARGE,
        candidates=[
            results.Candidate(
                name="large",
                model="wise-70b",
                endpoint="https://models.example/v1",
                prompt=Contender.RETRIEVED,
                answered=180,
                problem="20 of 200 questions were refused",
            ),
            results.Candidate(name="gone", model="m", endpoint="http://gone/v1", answered=0, problem="no answer <b>"),
        ],
        values=[
            *found.values,
            results.Value(metric=Metric.EXACT_MATCH, contender=LARGE, value=value, low=0.9, high=0.99, examples=180),
        ],
        comparisons=[
            *found.comparisons,
            results.Comparison(
                metric=Metric.EXACT_MATCH,
                over=LARGE,
                gain=gain,
                low=gain - 0.02,
                high=gain + 0.02,
                p_value=0.9,
                examples=180,
            ),
        ],
        tokens=[*found.tokens, results.Tokens(contender=LARGE, prompt=400, answer=20, cost=1.2)],
    )


def row(found: results.Results, title: str) -> ladder.Rung:
    return next(one for one in ladder.rungs(found) if one.title == title)


def test_a_candidate_is_a_rung_between_the_prompts_and_fine_tuning() -> None:
    titles = [one.title for one in ladder.rungs(with_candidates())]
    assert titles[-6:] == ["RAG", "Structured", "large", "gone", "Fine-tuning", "Pre-training"]
    found = row(with_candidates(), "large")
    assert found.takes == "wise-70b at models.example; the prompt of Retrieved"
    assert found.reached == "ExactMatch 0.97 (0.90 to 0.99), on 180 of them"
    assert found.cost == "420,000 tokens, 1.20 USD"
    assert (found.verdict, found.mark) == ("better than the tuned model", Mark.AGAINST)


def test_a_candidate_that_did_not_answer_says_why() -> None:
    found = row(with_candidates(), "gone")
    assert (found.reached, found.mark) == ("no answer <b>", Mark.UNMEASURED)
    assert "no answer &lt;b&gt;" in report.page(with_candidates())


def test_a_better_candidate_is_a_warning_and_a_worse_one_is_none() -> None:
    assert any("the candidate large is better" in text for text in judgement.verdict(with_candidates()).cautions)
    worse = with_candidates(0.5, 0.4)
    assert not any("candidate" in text for text in judgement.verdict(worse).cautions)


def cost_of(found: results.Results) -> str:
    return next(one.measured for one in judgement.for_tuning(found) if one.title == "Cost")


def test_quality_per_money_is_against_the_best_alternative() -> None:
    found = with_candidates()
    spent = [one.model_copy(update={"cost": 0.46}) if one.contender is Contender.TUNED else one for one in found.tokens]
    priced = example.changed(found, tokens=spent, paid_back_requests=12_000)
    text = cost_of(priced)
    assert "1,000 right answers cost 0.50 USD to serve, against 1.24 USD by the candidate large" in text
    assert "paid back after 12,000 requests, on busy GPUs" in text
    assert "money never pays" in cost_of(example.changed(priced, paid_back_requests=None))
    assert "to serve" not in cost_of(found), "a price is unknown"


def test_smaller_base_models_that_were_tried_are_named_with_their_result_and_cost() -> None:
    tried = [
        candidates.Candidate(
            model="tiny-1b",
            parameters=1_500_000_000,
            result="Missed",
            message="1 of 2 gates failed: ExactMatch at least 0.8: 0.61 <b>",
            gpu_hours="0.250000",
            amount="0.500000",
        ),
        candidates.Candidate(model="own", result="Missed", message="missed"),
    ]
    page = report.page(example.changed(example.everything(), smaller_models=tried, currency="USD"))
    assert "tiny-1b (1.5 billion parameters)" in page
    assert "ExactMatch at least 0.8: 0.61 &lt;b&gt;" in page
    assert "0.25 GPU-hours, 0.50 USD" in page
    assert "no GPU" in page
    assert "Smaller base models" not in report.page(example.everything())
