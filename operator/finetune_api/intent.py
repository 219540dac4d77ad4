"""Why a job exists: read by the advice that preflight gives."""

import enum

from pydantic import Field

from finetune_api import model


class Advice(enum.StrEnum):
    ENFORCE = "Enforce"
    WARN = "Warn"
    # Not "Off": YAML readers turn a bare Off into false.
    IGNORE = "Ignore"


class Intent(model.Model):
    """Why the job exists; the advisor reads it."""

    advice: Advice = Field(
        default=Advice.WARN,
        description="What to do when fine-tuning looks like the wrong tool, for example for too few examples. "
        "Enforce: stop before a GPU is requested. Warn: say so and go on. Ignore: say nothing. Default: Warn.",
    )
