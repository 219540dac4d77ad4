"""The ladder of methods: what each rung takes, reached and costs, and which one is enough."""

from tests.report import example

from finetune_api import job, results, status
from finetune_trainer import report
from finetune_trainer.report import judgement, ladder

Metric, Contender, Mark = job.Metric, job.Contender, judgement.Mark


def row(found: results.Results, title: str) -> ladder.Rung:
    return next(one for one in ladder.rungs(found) if one.title == title)


def test_the_ladder_leads_from_the_base_model_to_pre_training() -> None:
    titles = [one.title for one in ladder.rungs(example.everything())]
    assert titles == [
        "Base",
        "Prompt",
        "Few-shot",
        "Retrieved",
        "Optimized",
        "Many-shot",
        "RAG",
        "Structured",
        "Fine-tuning",
        "Pre-training",
    ]


def test_a_measured_rung_has_value_interval_and_verdict() -> None:
    found = row(example.everything(), "Few-shot")
    assert found.takes == "3 examples in each request"
    assert found.reached.startswith("ExactMatch 0.61 (0.54 to 0.67)")
    assert found.verdict == "the best baseline; the tuned model is better"
    assert found.mark is Mark.FOR


def test_what_was_not_measured_says_why() -> None:
    found = example.changed(
        example.everything(), left_out=["ManyShot: it would take about 90 s, 30 s of 30 are left"], baseline=None
    )
    assert row(found, "Many-shot").reached == "no time: raise evaluation.baselineBudget"
    assert row(found, "Retrieved").reached == "not measured"
    assert "it would take about 90 s" in report.page(found)


def test_structured_decoding_says_whose_prompt_it_had_or_why_there_is_none() -> None:
    found = example.everything()
    assert row(found, "Structured").reached == "set evaluation.outputSchema to measure it"
    problem = 'answers cannot be held to evaluation.outputSchema: Unimplemented keys: ["not"]'
    refused = example.changed(found, left_out=[f"Structured: {problem}"])
    assert row(refused, "Structured").reached == problem
    values = [results.Value(metric=Metric.EXACT_MATCH, contender=Contender.STRUCTURED, value=0.7, examples=200)]
    asked = example.changed(found, structured=Contender.FEW_SHOT, values=[*found.values, *values])
    assert row(asked, "Structured").takes == "the JSON schema in each request; the prompt of Few-shot"


def test_an_optimized_prompt_says_what_it_consists_of_and_its_text_is_shown() -> None:
    found = example.everything()
    text = "The answer is exactly one of these labels:\n- refund\n- praise"
    chosen = results.Optimized(instruction=text, placement="Question", examples=Contender.FEW_SHOT)
    values = [results.Value(metric=Metric.EXACT_MATCH, contender=Contender.OPTIMIZED, value=0.7, examples=200)]
    asked = example.changed(found, optimized=chosen, values=[*found.values, *values])
    assert row(asked, "Optimized").takes == (
        "an instruction on the form of the answer after the question; the examples of Few-shot"
    )
    assert row(asked, "Optimized").reached == "ExactMatch 0.70"
    assert "- refund\n- praise" in report.page(asked)
    assert row(found, "Optimized").reached == "not measured"


def test_one_baseline_that_is_not_beaten_is_named() -> None:
    found = example.everything()
    unsure = [
        one.model_copy(update={"p_value": 0.2, "low": -0.1}) if one.over is Contender.PROMPT else one
        for one in found.comparisons
    ]
    unsure = [one for one in unsure if one.metric is Metric.EXACT_MATCH and one.over is Contender.PROMPT] or [
        results.Comparison(
            metric=Metric.EXACT_MATCH, over=Contender.PROMPT, gain=0.1, low=-0.1, high=0.3, p_value=0.2, examples=200
        )
    ]
    others = [one for one in found.comparisons if one.over is not Contender.PROMPT]
    tuned = row(example.changed(found, comparisons=[*others, *unsure]), "Fine-tuning")
    assert "not shown to be better than" in tuned.verdict
    assert "Prompt" in tuned.verdict
    assert tuned.mark is Mark.UNDECIDED


def test_a_rung_that_was_enough_counts_against_training() -> None:
    enough = status.Baseline(sufficient=Contender.FEW_SHOT, examples=97)
    found = row(example.changed(example.everything(), baseline=enough), "Few-shot")
    assert found.verdict == "the best baseline; passed the gates before training"
    assert found.mark is Mark.AGAINST


def test_the_cost_is_of_a_thousand_requests_where_their_price_is_known() -> None:
    tokens = [results.Tokens(contender=Contender.BASE, prompt=78, answer=22, seconds=0.36, cost=0.4)]
    priced = example.changed(example.everything(), tokens=tokens)
    unknown = example.changed(priced, tokens=[tokens[0].model_copy(update={"cost": None})])
    assert ladder.cost(unknown, Contender.BASE) == "100,000 tokens, 6 min 0 s", "the training's GPUs may be others"
    assert ladder.cost(priced, Contender.BASE) == "100,000 tokens, 6 min 0 s, 0.40 USD"
    assert ladder.cost(priced, Contender.TUNED) == ""


def test_the_page_shows_the_ladder_before_the_reasons() -> None:
    page = report.page(example.everything())
    assert page.index('aria-labelledby="ladder"') < page.index('aria-labelledby="reasons"')
    assert report.page(example.bare()).count("Pre-training") == 1
