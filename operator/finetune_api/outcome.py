"""What a stage's pod answers: its termination message (at most 4 KiB) and, while it trains, its progress ConfigMap."""

from pydantic import Field

from finetune_api import model, reasons, status

TERMINATION_PATH = "/dev/termination-log"
TERMINATION_BYTES = 4096


class Training(model.Model):
    adapter: status.Adapter
    steps: int
    loss: float
    validation_loss: float | None = None
    best_step: int | None = None
    tokens_per_second: float = 0.0
    seconds: float = 0.0
    peak_memory: int | None = Field(
        default=None, description="Peak memory in bytes: of the GPU, or of the process on a CPU."
    )
    resumed_from: int | None = Field(default=None, description="The step of the checkpoint that the run resumed from.")


class Verification(model.Model):
    tokens_per_second: float
    difference_from_base: float = Field(
        description="Mean absolute log-probability difference per token, served tuned vs base."
    )
    difference_from_evaluation: float = Field(
        description="The same, served tuned against what the evaluation recorded."
    )


class Outcome(model.Model):
    """How a stage ended. `reason` is set when it failed, or, for preflight, when advice ends the job."""

    stage: reasons.Stage
    reason: reasons.Reason | None = None
    message: str = ""
    preflight: status.Preflight | None = None
    training: Training | None = None
    evaluation: status.Evaluation | None = None
    report: str | None = None
    verification: Verification | None = None

    def termination_message(self) -> str:
        """This outcome as JSON of at most 4 KiB: lists and texts are shortened until it fits, results are kept."""
        outcome = self
        text = outcome.model_dump_json(by_alias=True, exclude_none=True)
        while len(text.encode()) > TERMINATION_BYTES:
            if outcome.preflight and (outcome.preflight.findings or outcome.preflight.advice):
                shorter = outcome.preflight.model_copy(
                    update={
                        "findings": outcome.preflight.findings[: len(outcome.preflight.findings) // 2],
                        "advice": outcome.preflight.advice[: max(1, len(outcome.preflight.advice) // 2)]
                        if outcome.preflight.findings
                        else [],
                    }
                )
                outcome = outcome.model_copy(update={"preflight": shorter})
            elif outcome.message:
                outcome = outcome.model_copy(update={"message": outcome.message[: len(outcome.message) // 2]})
            elif outcome.evaluation and outcome.evaluation.metrics:
                outcome = outcome.model_copy(
                    update={
                        "evaluation": outcome.evaluation.model_copy(update={"metrics": outcome.evaluation.metrics[:-1]})
                    }
                )
            else:
                break
            text = outcome.model_dump_json(by_alias=True, exclude_none=True)
        return text


class ProgressReport(model.Model):
    """What the trainer writes into its ConfigMap. Attempt and revision tell an old pod's words from a new one's."""

    revision: str
    attempt: int
    progress: status.Progress
    checkpoint: status.Checkpoint | None = None
