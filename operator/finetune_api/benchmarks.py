"""Public benchmarks: tasks of lm-evaluation-harness, with their data, and the gates on what they measure."""

from typing import Annotated

from pydantic import Field

from finetune_api import model
from finetune_api.dataset import UriList

TaskName = Annotated[
    str,
    model.text(
        r"^[A-Za-z0-9_.:+()-]+$",
        "must be the name of a task of lm-evaluation-harness, for example arc_easy",
        128,
    ),
]


TaskMeasure = Annotated[
    str,
    model.text(
        r"^[A-Za-z0-9_.:,@+() -]+$", "must be a task's own name for a measure or a filter, for example acc_norm", 128
    ),
]


class Task(model.Model):
    """A public benchmark, by its name in lm-evaluation-harness, with its data."""

    model_config = model.Model.model_config | {
        "json_schema_extra": model.rules(
            (
                "!has(self.fewShotUris) || has(self.uris)",
                "fewShotUris needs uris: all data of a task comes from files, or all from the hub",
            )
        )
    }
    name: TaskName = Field(
        description="The task's name in the trainer image's release of lm-evaluation-harness, for example arc_easy, "
        "hellaswag or gsm8k. List the tasks of a group one by one. Preflight refuses unknown names, and tasks "
        "that run third-party code; docs/reference/evaluation.md says which."
    )
    uris: UriList | None = Field(
        default=None,
        description="Files of the task's questions, with the fields of the task's own dataset, in the file formats "
        "of dataset.train. Absent: the pods download the task's own dataset from the hub.",
    )
    few_shot: int | None = Field(
        default=None,
        ge=0,
        le=64,
        description="Number of solved examples before each question. Absent: the task's own setting.",
    )
    few_shot_uris: UriList | None = Field(
        default=None,
        description="Files with these examples, in the same formats as uris. Absent: the task's own examples, if "
        "they need no files.",
    )


class TaskGate(model.Model):
    """A condition on one measure of a public benchmark that the tuned model must meet before it serves."""

    model_config = model.Model.model_config | {
        "json_schema_extra": model.rules(
            (
                "has(self.minimum) || has(self.maximum) || has(self.improvement) || has(self.margin)",
                "a gate on a benchmark needs minimum, maximum, improvement or margin",
            ),
            (
                "!(has(self.improvement) && has(self.margin))",
                "improvement requires a gain, margin allows a loss: give one of them",
            ),
            (
                "!(has(self.minimum) && has(self.maximum)) || self.minimum <= self.maximum",
                "a gate's minimum must not be greater than its maximum",
            ),
        )
    }
    task: TaskName = Field(description="The name of one of evaluation.harness.tasks.")
    measure: TaskMeasure | None = Field(
        default=None,
        description="What the task measures, by the task's name for it, for example acc, acc_norm or exact_match. Absent: "
        "the only one; preflight refuses a gate that leaves out which of several is meant, and names them.",
    )
    filter: TaskMeasure | None = Field(
        default=None,
        description="How the answer is extracted from the text, by the task's name for it, for example strict-match. "
        "Absent: the only way.",
    )
    minimum: float | None = Field(default=None, description="The tuned model's value must be at least this.")
    maximum: float | None = Field(default=None, description="The tuned model's value must be at most this.")
    improvement: float | None = Field(
        default=None,
        ge=0,
        description="By how much the tuned model must be better than the base model on the same questions, in the measure's "
        "unit. 0: better by any amount. Absent: it need not be better.",
    )
    margin: float | None = Field(
        default=None,
        gt=0,
        json_schema_extra={"x-message": "must be above 0: evidence of no loss at all would take endless questions"},
        description="By how much the tuned model may be worse than the base model on the same questions, in the measure's "
        "unit. At the default confidence a margin of 0.02 of a share takes about 1,600 questions, 0.05 takes 285, 0.1 takes "
        "84. Absent: it may be worse by any amount.",
    )
    confidence: float = Field(
        default=0.95,
        ge=0.5,
        le=0.9999,
        json_schema_extra={"x-message": "must be from 0.5 to 0.9999: write 0.95 for 95 %"},
        description="As in evaluation.gates. A measure without values of single questions, such as an F1 over all of them, "
        "needs 0.5: its value alone decides. Default: 0.95.",
    )

    @property
    def base_passes(self) -> bool:
        """Whether the base model itself passes, whatever it scores: it requires no loss, and no more than that."""
        return self.minimum is None and self.maximum is None and self.improvement is None


class Harness(model.Model):
    """Public benchmarks for the base model and the tuned one: what the tuned model has lost, and may lose."""

    model_config = model.Model.model_config | {
        "json_schema_extra": model.rules(
            (
                "!has(self.gates) || self.gates.all(g, self.tasks.exists(t, t.name == g.task))",
                "a gate's task must be the name of one of evaluation.harness.tasks",
            )
        )
    }
    tasks: list[Task] = Field(
        min_length=1,
        max_length=32,
        description="The tasks, without repetition.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    )
    maximum_examples: int = Field(
        default=200,
        ge=2,
        le=1_000_000,
        description="The maximum number of questions per task, chosen by the seed. Default: 200.",
    )
    chat_template: bool = Field(
        default=False,
        description="Whether questions are rendered with the model's chat template. Default: false, as in "
        "lm-evaluation-harness.",
    )
    gates: list[TaskGate] | None = Field(
        default=None,
        min_length=1,
        max_length=16,
        description="Requirements that the tuned model must meet in these tasks before it serves, beside evaluation.gates. "
        "Absent: none.",
    )

    @property
    def required(self) -> list[TaskGate]:
        return self.gates or []
