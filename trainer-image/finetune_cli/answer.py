"""The answer of every verb: one document, printed as JSON by --output json and as text by `show`, and the exit code.

Its JSON Schema is docs/reference/cli.schema.json. Fields that do not apply are absent or empty.
"""

import enum
import re
import urllib.parse
from typing import Any, Literal

from pydantic import Field

from finetune_api import evaluation, exits, reasons, results, status

Command = Literal["validate", "advise", "estimate", "run", "report", "chat"]


class Exit(enum.IntEnum):
    """The exit codes of `finetune`; where the trainer's stages have a code for it, the same."""

    DONE = 0
    """Success, also with warnings; for `run` also where a prompt alone passes the gates, so that there is nothing to train."""
    UNEXPECTED = 1
    """`run`: a stage failed for a reason that no other code is for; the message names its log."""
    INVALID = int(exits.Exit.INVALID)
    """Arguments or manifest are wrong, a data check whose policy is Fail found something, data or model cannot be read, training
    does not fit into memory, or advice under intent.advice: Enforce ends the job."""
    OUT_OF_MEMORY = int(exits.Exit.OUT_OF_MEMORY)
    """`run`: a stage ran out of memory, also with a smaller micro-batch."""
    DIVERGED = int(exits.Exit.DIVERGED)
    """`run`: training diverged: the loss is not a number or rose far."""
    STORAGE = int(exits.Exit.STORAGE)
    """S3 or the hub could not be reached."""
    GATES = 6
    """`run`, `report`: the model was trained and evaluated, but a gate did not pass."""
    DEFECT = 70
    """A defect of `finetune` itself: report the line on stderr; `--debug` adds the traceback."""
    STOPPED = int(exits.Exit.STOPPED)
    """Ctrl-C or SIGTERM; `run` saved a checkpoint, and the same command resumes from it."""


VERBS = ("must ", "is ", "has ", "needs ", "contains ", "cannot ")
"""How the messages begin that have the field as their subject."""


class Problem(status.Reported):
    """What is wrong with the input, and where."""

    file: str | None = Field(default=None, description="The file; absent: the command line.")
    line: int | None = Field(default=None, description="Its line, from 1.")
    path: str | None = Field(default=None, description="The field, for example spec.dataset.train[0].")
    message: str = Field(description="What was found, what was expected.")

    @property
    def text(self) -> str:
        """As one line: job.yaml:7: spec.training.epochs must be ...; a sentence of its own comes after a colon."""
        place = f"{self.file}:{self.line}: " if self.line else f"{self.file}: " if self.file else ""
        between = " " if self.message.startswith(VERBS) else ": "
        return f"{place}{self.path + between if self.path else ''}{self.message}"


class Finding(status.Reported):
    """A finding of a data check; docs/reference/checks.md has the rules."""

    rule: str = Field(description="The rule's id.")
    severity: str = Field(description="error, warning or note.")
    policy: str = Field(description="What was done about it: Drop, Warn or Fail.")
    count: int = Field(description="Rows; 1 for the data as a whole.")
    dropped: int = Field(default=0, description="Rows left out.")
    share: float = Field(description="Of the rows that the rule checked.")
    message: str = Field(description="The finding in words.")
    places: list[str] = Field(
        default_factory=list, description="The first 20 places: file:line, some with a short description."
    )
    advice: str = Field(default="", description="What to do.")


class Counts(status.Reported):
    """The amount of data."""

    examples: int = Field(description="Training examples, without those left out.")
    validation_examples: int = 0
    test_examples: int = 0
    tokens: int | None = Field(default=None, description="Of the training examples; absent without a model.")
    trainable_tokens: int | None = Field(default=None, description="Tokens of the training examples that are learned.")


class Job(status.Reported):
    """The job, and the place of its results."""

    namespace: str
    name: str
    revision: str = Field(description="The hash of what is trained: the same as in a cluster.")
    output: str = Field(description="The revision's folder.")


class StageResult(status.Reported):
    """One stage of a run."""

    stage: reasons.Stage
    attempts: int = 1
    exit_code: int
    seconds: float
    reason: reasons.Reason | None = None
    message: str = ""


class Estimate(status.Reported):
    """The memory, duration and price of training."""

    memory: dict[str, Any] = Field(description="As of `finetune-trainer estimate --output json`; sizes in bytes.")
    duration: str | None = Field(default=None, description="For example 1h20m; absent: the accelerator is unknown.")
    cost: str | None = Field(default=None, description="For example 3.10 USD; absent: the price is unknown.")


class Reply(status.Reported):
    """A served model's answer to one question."""

    model: str
    text: str
    seconds: float = Field(description="Until the answer was complete.")


class Answer(status.Reported):
    """The answer of a verb."""

    command: Command
    exit_code: int = Field(description="The exit code of the process.")
    message: str = Field(default="", description="The answer in a sentence.")
    reason: reasons.Reason | None = Field(default=None, description="Why a job ends, from the list of the API.")
    problems: list[Problem] = Field(default_factory=list, description="What is wrong with the input.")
    notes: list[str] = Field(default_factory=list, description="Differences from a run in a cluster.")
    job: Job | None = None
    verdict: Literal["Recommended", "Caution", "NotRecommended"] | None = Field(
        default=None, description="Whether to fine-tune, as far as the data show."
    )
    counts: Counts | None = None
    learning_rate: str | None = Field(default=None, description="The peak learning rate, and where it comes from.")
    findings: list[Finding] = Field(default_factory=list, description="Findings of the data checks.")
    advice: list[str] = Field(default_factory=list, description="What to do.")
    estimate: Estimate | None = None
    stages: list[StageResult] = Field(default_factory=list, description="The stages of `run`.")
    baseline: status.Baseline | None = Field(default=None, description="The scores of a prompt alone.")
    passed: bool | None = Field(default=None, description="Whether every gate passed; absent: nothing was evaluated.")
    gates: list[status.GateResult] = Field(default_factory=list, description="Each gate with its measurement.")
    best_baseline: evaluation.Contender | None = Field(
        default=None, description="The baseline that is best by the headline metric."
    )
    contenders: list[results.Value] = Field(default_factory=list, description="Each metric of each contender.")
    left_out: list[str] = Field(
        default_factory=list, description="Contenders that were not measured, each with the reason."
    )
    comparisons: list[results.Comparison] = Field(
        default_factory=list, description="The tuned model against the others."
    )
    tokens: list[results.Tokens] = Field(default_factory=list, description="Tokens of a request for each contender.")
    benchmarks: list[results.Benchmark] = Field(
        default_factory=list, description="Base and tuned model in the tasks of evaluation.harness."
    )
    adapter: str | None = Field(default=None, description="The adapter's folder.")
    report: str | None = Field(default=None, description="report.html, for people.")
    reply: Reply | None = Field(default=None, description="What the served model answers, of `chat`.")


def code(reason: reasons.Reason | None, message: str = "") -> Exit:
    """The exit code of the reason that ended a stage; its message tells defects from other errors."""
    from finetune_trainer.process import errors

    if errors.is_defect(message):
        return Exit.DEFECT
    return Exit(errors.EXITS.get(reason, Exit.INVALID)) if reason is not None else Exit.DONE


def findings(documents: list[dict[str, Any]]) -> list[Finding]:
    """From the documents of the data checks, with local files as plain paths."""
    made = []
    for one in documents:
        known = {name: one[name] for name in Finding.model_fields if name in one}
        made.append(Finding(**{**known, "places": [place(text) for text in one.get("places", ())]}))
    return made


def place(text: str) -> str:
    """A text with its file:// URIs as plain paths."""
    return re.sub(r"file://(\S+)", lambda found: urllib.parse.unquote(found[1]), text)


def counts(found: status.Preflight) -> Counts:
    return Counts(
        examples=found.examples,
        validation_examples=found.validation_examples,
        test_examples=found.test_examples,
        tokens=found.tokens,
        trainable_tokens=found.trainable_tokens,
    )
