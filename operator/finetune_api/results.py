"""results.json: all results of an evaluation, for the report and for programs.

Its JSON Schema is docs/reference/results.schema.json.
"""

from typing import Any, Literal

from pydantic import Field

from finetune_api import candidates as basemodels
from finetune_api import job, status


class Value(status.Reported):
    """One metric of one contender on the test examples."""

    metric: job.Metric
    contender: job.Contender
    value: float
    low: float | None = Field(default=None, description="Lower end of the 95 % interval; absent: not defined.")
    high: float | None = Field(default=None, description="Upper end of the 95 % interval.")
    examples: int = Field(description="Number of examples, questions or pairs behind the value.")


class Comparison(status.Reported):
    """The tuned model compared with another contender on the same examples."""

    metric: job.Metric
    over: job.Contender
    gain: float = Field(description="How much better the tuned model is, in the metric's unit; negative: worse.")
    low: float = Field(description="Lower end of the 95 % interval of the gain.")
    high: float = Field(description="Upper end of the 95 % interval of the gain.")
    p_value: float = Field(
        description="p-value: probability of at least this gain if the tuned model were no better (one-sided, paired)."
    )
    examples: int
    detectable: float | None = Field(
        default=None,
        description="The smallest difference that such a test would show in four of five evaluations like this one. Absent: the "
        "metric is no share of examples.",
    )


class PairwiseResult(status.Reported):
    """The judge's verdicts on the tuned model's answers against one contender's. One counts when the judge says the same with the
    answers in the other order; what it says of one order alone is a tie."""

    over: job.Contender
    win_rate: float | None = Field(
        default=None,
        description="JudgeWinRate: wins and half of the ties, as a share of all. Absent: most questions got no "
        "verdict.",
    )
    low: float | None = Field(default=None, description="Lower end of its 95 % interval.")
    high: float | None = Field(default=None, description="Upper end of its 95 % interval.")
    p_value: float | None = Field(
        default=None,
        description="p-value: probability of at least this many wins among wins and losses if both were equally "
        "likely (sign test).",
    )
    wins: int
    ties: int
    losses: int
    same: int = Field(
        default=0, description="Ties because both answers are the same text, which is not sent to the judge."
    )
    swayed: int = Field(default=0, description="Ties because the judge's verdict depended on the order of the answers.")
    unread: int = Field(default=0, description="Questions left out: a verdict was refused, late, or malformed.")


class Judgement(status.Reported):
    """The results of evaluation.judge; judge.jsonl has every verdict."""

    model: str = Field(description="The judge's model name at its endpoint.")
    criteria: str = Field(description="The criteria that the judge was given.")
    comparisons: list[PairwiseResult] = Field(default_factory=list, alias="duels")
    problem: str | None = Field(default=None, description="Why the judge failed, or stopped early.")


class Score(status.Reported):
    """The value of one metric of a task for one model."""

    value: float | None = Field(
        default=None, description="Absent: not a number, for example the perplexity of a broken model."
    )
    low: float | None = Field(
        default=None,
        description="Lower end of the 95 % interval. Absent: the metric is not a function of sums over questions.",
    )
    high: float | None = Field(default=None, description="Upper end of the 95 % interval.")
    stderr: float | None = Field(
        default=None,
        description="Standard error of a mean, as in lm-evaluation-harness. Absent for other metrics.",
    )


class Benchmark(status.Reported):
    """One metric of one task of lm-evaluation-harness, for both models on the same questions."""

    task: str
    version: str | None = Field(
        default=None, description="The task's version; values of different versions are not comparable."
    )
    metric: str = Field(description="The task's name for it, for example acc_norm or exact_match.")
    filter: str | None = Field(
        default=None, description="How the answer was extracted from the text, if the task has several ways."
    )
    few_shot: int = Field(description="Solved examples before each question.")
    examples: int = Field(description="Questions that were asked.")
    higher_is_better: bool = True
    base: Score
    tuned: Score
    gain: float | None = Field(default=None, description="How much better the tuned model is; negative: worse.")
    low: float | None = Field(
        default=None,
        description="Lower end of the 95 % interval of the gain, paired by question. Absent: as for values.",
    )
    high: float | None = Field(default=None, description="Upper end of the 95 % interval of the gain.")
    p_value: float | None = Field(
        default=None,
        description="p-value: probability of at least this difference, in either direction, if both models were "
        "equal (two-sided, paired).",
    )


class Harness(status.Reported):
    """The results of evaluation.harness."""

    release: str = Field(description="The release of lm-evaluation-harness.")
    chat_template: bool = Field(description="Whether questions were rendered with the model's chat template.")
    benchmarks: list[Benchmark] = Field(default_factory=list)
    problems: list[str] = Field(default_factory=list, description="Why tasks are missing whose data was not available.")


class Tokens(status.Reported):
    """What a request takes, averaged over the test examples."""

    contender: job.Contender
    prompt: float
    answer: float
    seconds: float | None = Field(
        default=None,
        description="Seconds of one device for each answer in the evaluation, many requests at a time. Absent for candidates.",
    )
    cost: float | None = Field(
        default=None,
        description="Price of 1,000 requests: of a candidate by its price of tokens, else `seconds` by the price of the "
        "evaluation's GPUs, where they are of the training's type. Absent: unknown.",
    )


class Tried(status.Reported):
    """A number of retrieved examples that was tried on validation examples."""

    examples: int = Field(description="Training examples before each question, at most.")
    value: float | None = Field(default=None, description="The value of `metric`.")
    low: float | None = Field(default=None, description="Lower end of its 95 % interval.")
    high: float | None = Field(default=None, description="Upper end of its 95 % interval.")
    asked: int = Field(description="Validation examples that were asked.")


Placement = Literal["System", "Question"]


class TriedPrompt(status.Reported):
    """A prompt that was tried on validation examples."""

    instruction: str = Field(description="The instruction on the form of the answer.")
    placement: Placement = Field(description="Where it stands: at the end of the system prompt, or after the question.")
    examples: job.Contender = Field(
        description="Whose examples come before the question: FewShot's or Retrieved's. Prompt: none."
    )
    value: float | None = Field(default=None, description="The value of `metric`.")
    low: float | None = Field(default=None, description="Lower end of its 95 % interval.")
    high: float | None = Field(default=None, description="Upper end of its 95 % interval.")
    asked: int = Field(description="Validation examples that were asked.")
    by: str | None = Field(
        default=None, description="The model of intent.prompt.optimizer that wrote the instruction. Absent: rules did."
    )


class Reflection(status.Reported):
    """What intent.prompt.optimizer did."""

    model: str = Field(description="Its name at the endpoint.")
    endpoint: str
    requests: int = Field(description="Instructions that were requested of it.")
    calls: int = Field(description="Answers of the base model that the optimization took.")
    problem: str | None = Field(default=None, description="Why it ended early.")


class Optimized(status.Reported):
    """How the contender Optimized was asked: with the prompt that did best on validation examples."""

    instruction: str = Field(
        description="The instruction on the form of the answer, beside intent.prompt.system or the examples' own system prompt."
    )
    placement: Placement = Field(description="Where it stands: at the end of the system prompt, or after the question.")
    examples: job.Contender = Field(
        description="Whose examples come before the question: FewShot's or Retrieved's. Prompt: none."
    )
    metric: job.Metric | None = Field(
        default=None, description="The metric that chose the prompt. Absent: none was tried."
    )
    tried: list[TriedPrompt] = Field(default_factory=list)
    reflection: Reflection | None = Field(
        default=None, description="Absent: the job names no intent.prompt.optimizer, or there was no time for it."
    )


class Retrieved(status.Reported):
    """How the contender Retrieved was asked: by the number of examples that did best on validation examples."""

    examples: int = Field(description="Training examples before each question, at most.")
    metric: job.Metric | None = Field(
        default=None, description="The metric that chose the number. Absent: none was tried."
    )
    tried: list[Tried] = Field(default_factory=list)
    copies: int = Field(
        default=0,
        description="Test questions for which one of the retrieved examples has the same question, ignoring case and "
        "punctuation. The tuned model was trained on the same examples.",
    )


class Candidate(status.Reported):
    """A model of evaluation.candidates; its values are among the contenders', by its name."""

    name: str
    model: str = Field(description="Its name at the endpoint.")
    endpoint: str
    prompt: job.Contender | None = Field(
        default=None,
        description="Whose prompt it got: the one that did best with the base model. Absent: it was not asked.",
    )
    answered: int = Field(description="Test examples that it answered.")
    problem: str | None = Field(default=None, description="Why it did not answer, or not all of them.")
    structured: bool = Field(
        default=False,
        description="Whether its requests had evaluation.outputSchema as response_format: an endpoint that refuses it is asked "
        "without it.",
    )


class Tries(status.Reported):
    """How often this job was evaluated on the same test examples."""

    evaluations: int = Field(
        description="Evaluations on these test examples, this one included: of other revisions, and of other gates. At most "
        "1,000 are remembered."
    )
    test_set: str = Field(description="Hash of the test examples, without their places in files.")
    false_pass: float | None = Field(
        default=None,
        description="Upper bound of the probability that at least one of so many evaluations lets a model pass that misses a "
        "bound: their number times 1 - confidence. Absent: no gate asks for evidence.",
    )


class Sample(status.Reported):
    """One test example with every contender's answer."""

    source: str = Field(description="File and line of the example.")
    messages: list[dict[str, str]] | None = Field(default=None, description="The turns before the answer.")
    text: str | None = Field(default=None, description="A plain text, without an answer.")
    expected: str | None = None
    answers: dict[job.Contender, str | None] = Field(default_factory=dict)
    right: dict[job.Contender, bool] = Field(
        default_factory=dict,
        description="Whether each answer counts as right in the task's metric. Absent: an answer is right if it "
        "equals the expected one, ignoring surrounding white space.",
    )
    judged: dict[job.Contender, Literal["Won", "Tied", "Lost"]] = Field(
        default_factory=dict,
        description="The judge's verdict on the tuned model's answer compared with each contender's.",
    )


class TriedRate(status.Reported):
    """A learning rate that training.search tried."""

    learning_rate: float
    steps: int = Field(description="Steps that it was trained for, of those of the whole training.")
    loss: float | None = Field(default=None, description="Validation loss after them. Absent: it diverged.")


class MoreData(status.Reported):
    """Whether more training rows would help, by the losses of the training's first epoch, in which every row is new."""

    answer: Literal["MoreRows", "NoMore", "CannotTell"] = Field(
        description="MoreRows: about `rows` more lower the loss by 5 %. NoMore: not even twice as many rows do. CannotTell: "
        "`text` says why."
    )
    text: str = Field(description="The answer in a sentence.")
    rows: int | None = Field(default=None, description="More rows that lower the loss by 5 %, about.")
    low: int | None = Field(default=None, description="Lower end of their 95 % interval.")
    high: int | None = Field(default=None, description="Upper end of their 95 % interval.")
    twice: float | None = Field(
        default=None, description="The share by which the loss is lower with twice the rows, about, by the same curve."
    )


class Training(status.Reported):
    """How the adapter was trained. Absent parts: the adapter was not trained by this job."""

    history: list[dict[str, float]] = Field(default_factory=list, description="step and loss of every step.")
    validations: list[dict[str, float]] = Field(
        default_factory=list,
        description="step and loss of every validation, and the score of the answers where there is one.",
    )
    scored_by: job.Metric | None = Field(
        default=None,
        description="The metric of the scores: the adapter of the validation with the best one was kept. Absent: the one with "
        "the lowest loss.",
    )
    prompt: str | None = Field(
        default=None,
        description="The system prompt that the adapter was trained with, in place of the examples' own (training.prompt): "
        "clients must send it. Absent: it was trained on the examples as they are.",
    )
    learning_rate: float | None = Field(default=None, description="Its peak.")
    search: list[TriedRate] = Field(
        default_factory=list, description="The learning rates that were tried, in their order. Empty: one was trained."
    )
    more_data: MoreData | None = Field(
        default=None, description="Whether more rows would help. Absent: the steps' losses are not known."
    )
    seconds: float | None = None
    tokens_per_second: float | None = None
    peak_memory: int | None = Field(default=None, description="Bytes.")
    gpu_hours: float | None = Field(default=None, description="GPUs times hours of the training loop.")
    cost: float | None = Field(default=None, description="gpu_hours times the chart's price.")
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
        description="The metric that summarizes the evaluation: that of the first gate about answers, else the "
        "first of the task's metrics on which any model scored; of right answers, a tenth at least. Absent: nothing "
        "was measured.",
    )
    best_baseline: job.Contender | None = Field(
        default=None,
        description="The baseline that is best by the headline metric, the cheapest among equals; tokens, samples "
        "and break-even are compared with it. Absent: none was measured.",
    )
    best_alternative: job.Contender | None = Field(
        default=None, description="The same among baselines and candidates; without candidates the same baseline."
    )
    candidates: list[Candidate] = Field(
        default_factory=list, description="Empty: the job has no evaluation.candidates."
    )
    values: list[Value] = Field(default_factory=list)
    comparisons: list[Comparison] = Field(default_factory=list)
    judgement: Judgement | None = Field(default=None, description="Absent: the job has no evaluation.judge.")
    harness: Harness | None = Field(default=None, description="Absent: the job has no evaluation.harness.")
    retrieved: Retrieved | None = Field(default=None, description="Absent: there was no contender Retrieved.")
    optimized: Optimized | None = Field(default=None, description="Absent: there was no contender Optimized.")
    structured: job.Contender | None = Field(
        default=None,
        description="Whose prompt the contender Structured got: the one that did best without the schema, by another metric than "
        "JsonValid and JsonSchema. Absent: there was no such contender.",
    )
    smaller_models: list[basemodels.Candidate] = Field(
        default_factory=list,
        description="Those of baseModel.candidates that were trained and evaluated before this one, as status.candidates "
        "has them: their figures, their cost, and the evidence by which the next one followed.",
    )
    teacher: str | None = Field(
        default=None,
        description="Of training.teacher: the expected answers are those of this model. Prompt: the base model with "
        "intent.prompt.system; the tokens of Prompt are then those of the teacher, and the saved ones are the difference to "
        "them. Another: this one of evaluation.candidates. Absent: the answers of the rows.",
    )
    tries: Tries | None = Field(default=None, description="Absent: there are no test examples.")
    left_out: list[str] = Field(
        default_factory=list,
        description="Baselines, or variants of them, that were not measured, each with the reason: evaluation.baselineBudget "
        "left no time for it, or the questions cannot be put to it.",
    )
    tokens: list[Tokens] = Field(default_factory=list)
    break_even_requests: int | None = Field(
        default=None,
        description="Number of requests after which the saved prompt tokens amount to the device time of the "
        "training, at the measured prompt speed. Absent: nothing is saved, or one of these figures is unknown.",
    )
    paid_back_requests: int | None = Field(
        default=None,
        description="Number of requests after which the price of the training is saved against best_alternative, by the price "
        "of requests to both, serving included. Absent: they save nothing, or a price is unknown.",
    )
    currency: str = Field(default="USD", description="Of all prices.")
    training: Training = Field(default_factory=Training)
    preflight: status.Preflight | None = None
    baseline: status.Baseline | None = None
    findings: list[dict[str, Any]] = Field(default_factory=list, description="As in preflight.json.")
    engine: Literal[job.EvaluationEngine.IN_PROCESS, job.EvaluationEngine.SERVER] = Field(
        default=job.EvaluationEngine.IN_PROCESS,
        description="What generated the answers: the trainer itself, or a vLLM server beside it.",
    )
    seconds: float = Field(description="Duration of the evaluation.")
    finished_at: status.Time | None = Field(default=None, description="When the evaluation ended.")
    samples: list[Sample] = Field(default_factory=list, description="The first entries of samples.jsonl.")
