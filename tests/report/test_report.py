"""What the report says, without a browser: verdict, reasons, words, marks, choice of samples, packaging."""

import html
import json
import math
import re
from pathlib import Path

import jinja2
import jsonschema
import pytest
from hatchling.builders.wheel import WheelBuilder
from tests.report import example

from finetune_api import job, results, status
from finetune_trainer import report
from finetune_trainer.report import differences, document, drawings, judgement, parts, reading, samples, words
from generate import api

Metric = job.Metric
Contender = job.Contender
Mark = judgement.Mark
REPOSITORY = Path(__file__).resolve().parents[2]
ROOM = Path(report.__file__).parent


def test_the_verdict_is_a_sentence_with_its_evidence() -> None:
    text = judgement.verdict(example.everything())
    assert text.passed
    assert text.reason.startswith("All 3 gates passed; the first: ExactMatch at least 0.8, measured: 0.9200")
    assert text.evidence == (
        "ExactMatch 0.92 (0.87 to 0.95) against 0.61 with a prompt and 3 examples; a difference this large comes by chance in 1 "
        "of 10,000."
    )
    assert text.cautions == ()


def test_a_missed_gate_is_the_reason_and_warnings_are_listed_with_it() -> None:
    text = judgement.verdict(example.failed())
    assert not text.passed
    assert (
        text.reason == "ExactMatch at least 0.8 was required; measured: 0.6400. 3 of 3 gates failed; this is the first."
    )
    assert text.evidence.endswith("against 0.67 with a prompt and 3 examples; the tuned model is not better.")
    assert text.cautions[0] == "The base model with a prompt and 3 examples passes the gates without any training."
    assert text.cautions[1].startswith("Only 24 test examples")


def test_a_prompt_that_may_be_enough_is_no_evidence_for_training() -> None:
    text = (
        "undecided: as measured the base model meets the gates' bounds as it is, but 16 validation examples are too few"
    )
    unsure = status.Baseline(undecided=[Contender.BASE], examples=16, message=text)
    found = example.changed(example.everything(), baseline=unsure)
    assert judgement.verdict(found).cautions == (
        "The base model alone may pass the gates without any training: too few validation examples to decide.",
    )
    (reason,) = (one for one in judgement.against_tuning(found) if one.title == "A prompt is sufficient")
    assert reason.mark is judgement.Mark.UNDECIDED
    assert reason.measured.startswith("undecided: as measured")


def test_a_strong_baseline_that_was_not_asked_is_named_with_the_verdict() -> None:
    left_out = [
        "Retrieved with 4 examples: it would take about 90 s",
        "ManyShot: it would take about 90 s, 30 s are left",
    ]
    found = example.changed(example.everything(), left_out=left_out)
    assert judgement.verdict(found).cautions == (
        "Not compared with Retrieved and Many-shot, which may do better than the baselines above.",
    )
    few = example.changed(example.everything(), left_out=["FewShot with more: there was no time"])
    assert judgement.verdict(few).cautions == ()


def test_a_job_without_gates_passes_and_the_page_says_what_that_is_worth() -> None:
    text = judgement.verdict(example.bare())
    assert text.reason == "The job has no gates, so nothing was required: every model passes."
    assert text.evidence == ""


def test_a_gain_that_may_be_random_is_reported_with_the_verdict() -> None:
    found = example.everything()
    unsure = [
        one.model_copy(update={"p_value": 0.2, "low": -0.1}) if one.over is Contender.FEW_SHOT else one
        for one in found.comparisons
    ]
    text = judgement.verdict(example.changed(found, comparisons=unsure))
    assert "comes by chance in 20 of 100, so it could be chance" in text.evidence
    assert text.cautions == ("By ExactMatch it is not certain that the tuned model is better than the best baseline.",)


def test_the_five_reasons_and_the_two_against() -> None:
    found = example.everything()
    reasons = judgement.for_tuning(found)
    assert [one.title for one in reasons] == ["Style and format", "Domain", "Cost", "Fewer tokens", "Consistency"]
    assert {one.mark for one in reasons} == {Mark.FOR}
    assert [one.title for one in reasons if one.is_goal] == ["Style and format", "Fewer tokens"]
    # 115 tokens / 0.92 and 919 / 0.61: the wrong answers are paid for, too
    assert reasons[2].measured.startswith(
        "125 tokens for each right answer, prompts and wrong answers included, against 1,507"
    )
    assert reasons[3].measured == "A prompt of 78 tokens against 880 with a prompt and 3 examples: 802 fewer (91 %)."
    assert [one.mark for one in judgement.against_tuning(found)] == [Mark.CLEAR, Mark.CLEAR]
    assert [one.mark for one in judgement.against_tuning(example.failed())] == [Mark.AGAINST, Mark.AGAINST]


def test_the_report_says_what_the_general_questions_can_show() -> None:
    shares = {(Metric.GENERAL_ACCURACY, Contender.BASE): 0.61, (Metric.GENERAL_ACCURACY, Contender.TUNED): 0.58}
    shares |= {
        (Metric.INSTRUCTION_FOLLOWING, Contender.BASE): 0.35,
        (Metric.INSTRUCTION_FOLLOWING, Contender.TUNED): 0.10,
    }
    found = example.everything()
    values = [
        results.Value(metric=metric, contender=who, value=share, examples=265)
        for (metric, who), share in shares.items()
    ]
    compared = [
        results.Comparison(
            metric=metric,
            over=Contender.BASE,
            gain=gain,
            low=gain - 0.05,
            high=gain + 0.05,
            p_value=0.9,
            examples=count,
            detectable=least,
        )
        for metric, gain, count, least in (
            (Metric.GENERAL_ACCURACY, -0.03, 265, 0.0591),
            (Metric.INSTRUCTION_FOLLOWING, -0.25, 60, 0.1204),
        )
    ]
    text = judgement.against_tuning(example.changed(found, values=[*found.values, *values], comparisons=compared))[
        0
    ].measured
    assert "On 265 questions a loss below 6 percentage points can go unseen." in text
    assert "Of 60 instructions on the form of an answer it follows 10 %, the base model 35 %;" in text
    assert "0.412 (0.351 to 0.475) nats per token on the task's prompts" in text
    assert "training.replay" in judgement.against_tuning(example.failed())[0].measured
    assert "training.replay" not in text


def test_an_unmeasured_number_says_how_to_measure_it() -> None:
    found = example.bare()
    every = [*judgement.for_tuning(found), *judgement.against_tuning(found)]
    assert {one.mark for one in every} == {Mark.UNMEASURED}
    assert all(len(one.measured) > 40 for one in every)
    assert report.page(found).count("How to measure it:") == 7


def test_a_judge_has_a_part_of_its_own_with_all_counts() -> None:
    page = report.page(example.judged())
    part = page.split('aria-labelledby="judge"')[1].split("</section>")[0]
    for words_ in (
        "wise-70b",
        "Friendly and short.",
        "Not complete:",
        "160 verdicts late",
        "0.91",
        "0.84 to 0.95",
        "5 decided by the order",
        "1 with the same text",
        "2 left out without a verdict",
        "so it could be chance",
        "not measured: too few verdicts",
    ):
        assert words_ in part, words_
    assert "judge" not in report.page(example.everything()).split("</style>")[1].split("How to measure")[0]


def test_public_benchmarks_have_a_part_of_their_own_and_a_loss_is_reported_above() -> None:
    found = example.benchmarked()
    page = report.page(found)
    part = page.split('aria-labelledby="benchmarks"')[1].split("</section>")[0]
    for words_ in (
        "<bdi>0.4.13</bdi>",
        "Not complete:",
        "piqa has no questions",
        "without the model's chat template",
        "strict-match",
        "200 questions, 5 examples before each; higher is better",
        "−0.070",
        "−0.110 to −0.030",
        "Worse: a difference this large comes by chance in",
        "Better: a difference",
        "Not significant: a difference",
        "No difference",
        "1,204",
        "lower is better",
        "No test: the metric has no value for single questions",
        "not defined",
    ):
        assert words_ in html.unescape(part), words_
    assert "worse than the base model in public benchmarks: hellaswag (acc_norm)." in page
    assert "benchmark" not in report.page(example.everything()).split("</style>")[1]


def test_one_random_loss_among_many_benchmarks_is_not_reported_as_a_loss() -> None:
    found = example.benchmarked()
    assert found.harness is not None
    unsure = [one.model_copy(update={"p_value": 0.03, "gain": -0.01}) for one in found.harness.benchmarks[:3]]
    assert not reading.worse_benchmarks(
        example.changed(found, harness=found.harness.model_copy(update={"benchmarks": unsure}))
    )
    alone = found.harness.model_copy(update={"benchmarks": unsure[:1]})
    assert reading.worse_benchmarks(example.changed(found, harness=alone)) == unsure[:1]


def test_style_is_what_a_judge_says_where_style_is_the_goal() -> None:
    found = example.judged()
    counted = judgement.for_tuning(found)[0]
    assert counted.measured.startswith("JsonSchema"), "what can be counted goes first"
    styled = example.changed(found, intent=found.intent.model_copy(update={"goals": [job.Goal.STYLE]}))
    reason = judgement.for_tuning(styled)[0]
    assert (reason.mark, reason.is_goal) == (Mark.UNDECIDED, True)
    assert (
        "a win rate of 0.56 (0.46 to 0.65) over the base model with a prompt and 3 examples: 30 won" in reason.measured
    )
    alone = example.changed(
        styled, judgement=found.judgement.model_copy(update={"comparisons": found.judgement.comparisons[:1]})
    )
    assert judgement.for_tuning(alone)[0].mark is Mark.FOR


def test_without_a_comparison_only_separate_intervals_decide() -> None:
    def marked(tuned: tuple[float, float], base: tuple[float, float], metric: job.Metric) -> judgement.Mark:
        values = [
            results.Value(metric=metric, contender=who, value=sum(ends) / 2, low=ends[0], high=ends[1], examples=90)
            for who, ends in ((Contender.TUNED, tuned), (Contender.BASE, base))
        ]
        return judgement.for_tuning(example.changed(example.bare(), values=values))[1].mark

    assert marked((0.8, 0.9), (0.5, 0.7), Metric.EXACT_MATCH) is Mark.FOR
    assert marked((0.5, 0.7), (0.8, 0.9), Metric.EXACT_MATCH) is Mark.AGAINST
    assert marked((0.6, 0.85), (0.5, 0.7), Metric.EXACT_MATCH) is Mark.UNDECIDED
    assert marked((0.5, 0.7), (0.8, 0.9), Metric.LOSS) is Mark.FOR


def test_a_baseline_without_a_right_answer_has_no_price() -> None:
    values = [
        one if one.contender is Contender.TUNED else one.model_copy(update={"value": 0.0})
        for one in example.everything().values
    ]
    cost = judgement.for_tuning(example.changed(example.everything(), best_baseline=Contender.BASE, values=values))[2]
    assert "against no right answer by the base model alone" in cost.measured
    assert cost.mark is Mark.FOR


def test_a_training_without_break_even_says_why() -> None:
    found = example.changed(example.everything(), break_even_requests=None)
    assert judgement.unpaid(found) == "the speed of reading prompts was not measured"
    priceless = found.training.model_copy(update={"cost": None, "currency": None})
    assert judgement.unpaid(example.changed(found, training=priceless)) == judgement.unpaid(found)
    assert "duration of the training" in judgement.unpaid(example.changed(found, training=results.Training()))
    nothing = [one.model_copy(update={"prompt": 78.0}) for one in found.tokens]
    assert judgement.unpaid(example.changed(found, tokens=nothing)) == "no prompt tokens are saved"
    assert judgement.unpaid(example.changed(found, tokens=[])) == "no baseline's tokens per request are known"


def test_a_job_about_style_is_summed_up_by_its_judge() -> None:
    found = example.changed(example.judged(), headline=Metric.JUDGE_WIN_RATE, best_baseline=Contender.FEW_SHOT)
    text = judgement.verdict(found)
    assert "win rate of 0.56" in text.evidence
    assert "30 won, 50 tied, 18 lost" in text.evidence
    assert any("JudgeWinRate" in one and "not certain" in one for one in text.cautions), "a p-value of 0.1"


@pytest.mark.parametrize(
    "p_value,text",
    [
        (0.0, "fewer than 1 of 10,000"),
        (0.0001, "1 of 10,000"),
        (0.007, "1 of 140"),
        (0.049, "1 of 20"),
        (0.05, "5 of 100"),
        (0.5, "50 of 100"),
        (math.nan, "an unknown share of cases"),
    ],
)
def test_a_p_value_in_words(p_value: float, text: str) -> None:
    assert words.share_of_cases(p_value) == text


@pytest.mark.parametrize(
    "metric,value,text",
    [
        (Metric.EXACT_MATCH, 0.925, "0.93"),
        (Metric.EXACT_MATCH, 0.9987, "0.999"),
        (Metric.EXACT_MATCH, 1.0, "1.00"),
        (Metric.EXACT_MATCH, 0.0004, "0.0004"),
        (Metric.LOSS, 0.2119, "0.212"),
        (Metric.LOSS, math.inf, "not defined"),
        (Metric.FORGETTING, -0.004, "−0.4 %"),
    ],
)
def test_a_number_is_never_rounded_to_all_or_nothing(metric: job.Metric, value: float, text: str) -> None:
    assert words.number(metric, value) == text


def test_differences_are_marked_by_word() -> None:
    assert differences.marked('{"intent": "refund", "urgent": true}', '{"intent": "praise", "urgent": true}') == [
        ("same", '{"intent": "'),
        ("lacks", "refund"),
        ("adds", "praise"),
        ("same", '", "urgent": true}'),
    ]
    assert differences.marked("It will come on Monday, we hope.", "It will come two days later, we hope.") == [
        ("same", "It will come "),
        ("lacks", "on Monday"),
        ("adds", "two days later"),
        ("same", ", we hope."),
    ]
    assert differences.marked("one two three", "one two three four") == [("same", "one two three"), ("adds", " four")]


def test_differences_and_what_surrounds_them_are_escaped() -> None:
    one = sample(1, "a <i> c\x07", None, "a <b> c")
    page = report.page(example.changed(example.bare(), samples=[one]))
    assert ">a &lt;<del>b</del><ins>i</ins>&gt; c<ins>␇</ins></pre>" in page


def test_answers_that_share_nothing_are_not_dotted_with_marks() -> None:
    assert differences.marked('{"intent": "refund"}', "Sure, I would be happy to help you with that.") is None
    assert differences.marked("word " * 4000, "other " * 4000) is None


def sample(line: int, tuned: str | None, base: str | None, expected: str | None = "yes") -> results.Sample:
    answers = {Contender.TUNED: tuned, Contender.BASE: base}
    return results.Sample(source=f"x:{line}", messages=[], expected=expected, answers=answers)


def test_the_samples_that_tell_most_come_first() -> None:
    listed = [
        *(sample(line, "yes", "yes") for line in range(30)),
        *(sample(line, "no", "yes") for line in range(30, 40)),
        *(sample(line, "no", "no") for line in range(40, 60)),
        *(sample(line, " yes\n", "no") for line in range(60, 90)),
    ]
    kinds = samples.Kind
    shown = report.choose(listed, Contender.BASE, 20)
    assert [kind for kind, _ in shown] == [kinds.HELPED] * 8 + [kinds.HURT] * 6 + [kinds.BOTH_WRONG] * 4 + [
        kinds.BOTH_RIGHT
    ] * 2
    assert [one.source for _, one in shown[:2]] == ["x:60", "x:61"]
    assert len(report.choose(listed, Contender.BASE, 500)) == len(listed)
    assert {kind for kind, _ in report.choose(listed, None, 500)} == {kinds.RIGHT, kinds.WRONG}


def test_the_report_calls_correct_what_the_evaluation_does() -> None:
    judged = sample(1, "YES", "yes").model_copy(update={"right": {Contender.TUNED: True, Contender.BASE: True}})
    assert [kind for kind, _ in report.choose([judged], Contender.BASE)] == [samples.Kind.BOTH_RIGHT]


def test_free_text_samples_are_chosen_by_similarity() -> None:
    wanted = "we will send the parcel again tomorrow"
    listed = [
        sample(1, "we will send the parcel tomorrow", "hello there", wanted),
        sample(2, "hello there", "we will send a parcel again tomorrow", wanted),
        sample(3, None, None, wanted),
    ]
    kinds = [kind for kind, _ in report.choose(listed, Contender.BASE)]
    assert kinds == [samples.Kind.NEARER, samples.Kind.FARTHER, samples.Kind.UNANSWERED]


def test_overfitting_is_reported_where_the_validation_loss_rises() -> None:
    assert "The model overfits: the validation loss rose from" in report.page(example.failed())
    assert "No sign of overfitting" in report.page(example.everything())
    assert "cannot be seen" in parts.overfitting([])


@pytest.mark.parametrize(
    "points", [[(1, 0.5)], [(1, 0.0), (2, 0.0)], [(1, 1e9), (100_000, 1e-9)], [(step, 2.0) for step in range(5000)]]
)
def test_curves_of_any_kind_are_drawn(points: list[drawings.Point]) -> None:
    history = [{"step": float(step), "loss": float(loss)} for step, loss in points]
    training = results.Training(history=history, validations=history[:1])
    page = report.page(example.changed(example.bare(), training=training))
    drawn = page[page.index('<svg class="curves"') : page.index("</svg>", page.index('<svg class="curves"'))]
    assert "nan" not in drawn
    assert len(drawn) < 20_000


def test_values_that_are_no_numbers_are_not_drawn() -> None:
    values = [
        results.Value(metric=metric, contender=who, value=math.nan, low=-math.inf, high=math.inf, examples=0)
        for metric in (Metric.LOSS, Metric.EXACT_MATCH)
        for who in (Contender.TUNED, Contender.BASE)
    ]
    history = [{"step": 1.0, "loss": math.nan}, {"step": 2.0, "loss": 1.0}, {"loss": 3.0}]
    page = report.page(
        example.changed(example.bare(), values=values, training=results.Training(history=history, validations=history))
    )
    assert "not defined" in page
    assert 'x="nan"' not in page
    assert "inf" not in page.split("</style>")[1].replace("information", "")


def test_the_page_is_the_same_for_the_same_results_and_asks_for_nothing() -> None:
    page = report.page(example.everything())
    assert page == report.page(example.everything())
    assert "default-src 'none'" in page
    assert "url(" not in page
    assert "src=" not in page


@pytest.mark.parametrize(
    "name", ["everything", "failed", "bare", "plain_text", "judged", "benchmarked", "other_scripts"]
)
def test_results_survive_the_file_and_fit_their_schema(name: str) -> None:
    found = getattr(example, name)()
    document = json.loads(json.dumps(found.wire()))
    jsonschema.Draft202012Validator(api.results_schema()).validate(document)
    assert report.page(results.Results.model_validate(document)) == report.page(found)


def test_the_schema_is_valid_and_refuses_what_is_no_result() -> None:
    schema = json.loads((REPOSITORY / "docs/reference/results.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    document = example.everything().wire()
    for change in ({"values": [{"metric": "Beauty"}]}, {"rank": "many"}, {"evaluation": None}):
        assert list(jsonschema.Draft202012Validator(schema).iter_errors(document | change))
    assert not list(jsonschema.Draft202012Validator(schema).iter_errors(document | {"later": 1}))


def test_a_name_that_a_template_gets_wrong_is_an_error() -> None:
    """It would else be an empty place on the page."""
    with pytest.raises(jinja2.UndefinedError):
        document.environment().from_string("{{ found.revison }}").render(found=example.bare())


def test_templates_and_style_sheet_travel_with_the_package() -> None:
    templates = {f"finetune_trainer/report/templates/{file.name}" for file in (ROOM / "templates").iterdir()}
    assert {"finetune_trainer/report/templates/style.css", "finetune_trainer/report/templates/page.html.j2"} < templates
    builder = WheelBuilder(str(REPOSITORY))
    assert templates <= {file.distribution_path for file in builder.recurse_included_files()}


def test_no_markup_is_written_outside_of_the_templates() -> None:
    """Nor is any text called markup: what is not in a template is escaped."""
    for file in ROOM.glob("*.py"):
        assert not re.findall(r"</?[a-z]+[ >]|Markup\(", file.read_text()), file.name
    for file in (ROOM / "templates").glob("*.j2"):
        assert not re.findall(r"\| *safe|autoescape", file.read_text()), file.name
