"""results.json: all that an evaluation found, for the report and for programs.

Its JSON Schema is docs/reference/results.schema.json.
"""

from typing import Any, Literal

from pydantic import Field

from finetune_api import job, status


class Value(status.Reported):
    """One metric of one contender on the test examples."""

    metric: job.Metric
    contender: job.Contender
    value: float
    low: float | None = Field(default=None, description="Lower end of the 95 % interval; absent: not defined.")
    high: float | None = Field(default=None, description="Upper end of the 95 % interval.")
    examples: int = Field(description="Examples, questions or pairs that the value was measured on.")


class Comparison(status.Reported):
    """The tuned model against another contender on the same examples."""

    metric: job.Metric
    over: job.Contender
    gain: float = Field(description="By how much the tuned model is better, in the metric's unit; negative: worse.")
    low: float = Field(description="Lower end of the 95 % interval of the gain.")
    high: float = Field(description="Upper end of the 95 % interval of the gain.")
    p_value: float = Field(
        description="Probability of at least such a gain if the tuned model were no better (one-sided, paired)."
    )
    examples: int


class PairwiseResult(status.Reported):
    """The judge's verdicts on the tuned model's answers against one contender's. One counts when the judge says the same with the
    answers in the other order; what it says of one order alone is a tie."""

    over: job.Contender
    win_rate: float | None = Field(
        default=None,
        description="JudgeWinRate: wins and half of the ties, as a share of all; absent: most of what was asked got no "
        "verdict.",
    )
    low: float | None = Field(default=None, description="Lower end of its 95 % interval.")
    high: float | None = Field(default=None, description="Upper end of its 95 % interval.")
    p_value: float | None = Field(
        default=None,
        description="Probability of so many wins among wins and losses if either were as likely (sign test).",
    )
    wins: int
    ties: int
    losses: int
    same: int = Field(
        default=0, description="Ties because both answers are the same text, which the judge is not asked about."
    )
    swayed: int = Field(default=0, description="Ties because the judge changed its mind with the order of the answers.")
    unread: int = Field(
        default=0, description="Questions left out: a verdict was refused, late, or not of the requested form."
    )


class Judgement(status.Reported):
    """What evaluation.judge said; judge.jsonl has every verdict."""

    model: str = Field(description="The judge, by the name that its endpoint knows.")
    criteria: str = Field(description="What it was asked to judge by.")
    comparisons: list[PairwiseResult] = Field(default_factory=list, alias="duels")
    problem: str | None = Field(default=None, description="Why the judge could not be asked, or not to the end.")


class Score(status.Reported):
    """What one model got in one metric of a task."""

    value: float | None = Field(
        default=None, description="Absent: it is no number, as the perplexity of a broken model."
    )
    low: float | None = Field(
        default=None,
        description="Lower end of the 95 % interval; absent: the metric is no function of sums over questions.",
    )
    high: float | None = Field(default=None, description="Upper end of the 95 % interval.")
    stderr: float | None = Field(
        default=None,
        description="Standard error of a mean, as lm-evaluation-harness gives it; absent for other metrics.",
    )


class Benchmark(status.Reported):
    """One metric of one task of lm-evaluation-harness, of both models on the same questions."""

    task: str
    version: str | None = Field(default=None, description="Of the task; values of different versions do not compare.")
    metric: str = Field(description="As the task names it, for example acc_norm or exact_match.")
    filter: str | None = Field(
        default=None, description="How the answer was taken out of the text, where the task knows several ways."
    )
    few_shot: int = Field(description="Questions with answers that went before each question.")
    examples: int = Field(description="Questions that were asked.")
    higher_is_better: bool = True
    base: Score
    tuned: Score
    gain: float | None = Field(default=None, description="By how much the tuned model is better; negative: worse.")
    low: float | None = Field(
        default=None,
        description="Lower end of the 95 % interval of the gain, paired by question; absent: as for values.",
    )
    high: float | None = Field(default=None, description="Upper end of the 95 % interval of the gain.")
    p_value: float | None = Field(
        default=None,
        description="Probability of so large a difference, whichever is better, if both models were alike (paired).",
    )


class Harness(status.Reported):
    """What evaluation.harness measured."""

    release: str = Field(description="Of lm-evaluation-harness.")
    chat_template: bool = Field(description="Whether questions went through the model's chat template.")
    benchmarks: list[Benchmark] = Field(default_factory=list)
    problems: list[str] = Field(default_factory=list, description="Why tasks are missing, whose data could not be had.")


class Tokens(status.Reported):
    """What a request costs in tokens, the means of the test examples."""

    contender: job.Contender
    prompt: float
    answer: float


class Sample(status.Reported):
    """One test example with every contender's answer."""

    source: str = Field(description="File and line that it came from.")
    messages: list[dict[str, str]] | None = Field(default=None, description="The turns before the answer.")
    text: str | None = Field(default=None, description="A plain text, which has no answer.")
    expected: str | None = None
    answers: dict[job.Contender, str | None] = Field(default_factory=dict)
    right: dict[job.Contender, bool] = Field(
        default_factory=dict,
        description="Whether each answer counts as right in the task's metric; absent: an answer is right that equals the "
        "expected one, white space around them aside.",
    )
    judged: dict[job.Contender, Literal["Won", "Tied", "Lost"]] = Field(
        default_factory=dict, description="How the tuned model's answer did against each contender's before the judge."
    )


class Training(status.Reported):
    """How the adapter was trained; absent parts: the adapter came from elsewhere."""

    history: list[dict[str, float]] = Field(default_factory=list, description="step and loss of every step.")
    validations: list[dict[str, float]] = Field(default_factory=list, description="step and loss of every validation.")
    seconds: float | None = None
    tokens_per_second: float | None = None
    peak_memory: int | None = Field(default=None, description="Bytes.")
    gpu_hours: float | None = Field(default=None, description="GPUs times hours of the training loop.")
    cost: float | None = Field(default=None, description="gpu_hours at the chart's price.")
    currency: str | None = None


class Results(status.Reported):
    """One evaluation of one revision."""

    namespace: str
    name: str
    revision: str
    base_model: str
    base_model_revision: str | None = Field(
        default=None, description="Commit or tag of the base model; absent: none named."
    )
    served_model_name: str
    rank: int
    adapter: str = Field(description="SHA-256 of the adapter's manifest.")
    intent: job.Intent
    evaluation: status.Evaluation = Field(description="As in the job's status: gates and whether all passed.")
    headline: job.Metric | None = Field(
        default=None,
        description="The metric that sums the evaluation up: of the first gate that is about the answers, else the first of the "
        "task's on which any model scored; absent: nothing was measured.",
    )
    best_baseline: job.Contender | None = Field(
        default=None,
        description="The baseline that is best by the headline metric, of equals the cheapest: what tokens, samples and "
        "break-even are compared with. Absent: none was measured.",
    )
    values: list[Value] = Field(default_factory=list)
    comparisons: list[Comparison] = Field(default_factory=list)
    judgement: Judgement | None = Field(default=None, description="Absent: the job has no evaluation.judge.")
    harness: Harness | None = Field(default=None, description="Absent: the job has no evaluation.harness.")
    tokens: list[Tokens] = Field(default_factory=list)
    break_even_requests: int | None = Field(
        default=None,
        description="Requests after which the prompt tokens saved would have kept a device busy for as long as the training kept "
        "its own, at the measured speed of reading prompts; absent: nothing is saved, or one of these is unknown.",
    )
    training: Training = Field(default_factory=Training)
    preflight: status.Preflight | None = None
    baseline: status.Baseline | None = None
    findings: list[dict[str, Any]] = Field(default_factory=list, description="As in preflight.json.")
    seconds: float = Field(description="Duration of the evaluation.")
    finished_at: status.Time | None = Field(default=None, description="When the evaluation ended.")
    samples: list[Sample] = Field(default_factory=list, description="The first of samples.jsonl.")
