"""Why a job exists: read by the advice that preflight gives, and the prompt that the tuned model has to beat."""

import enum

from pydantic import Field

from finetune_api import model


class Advice(enum.StrEnum):
    ENFORCE = "Enforce"
    WARN = "Warn"
    # Not "Off": YAML readers turn a bare Off into false.
    IGNORE = "Ignore"


class Goal(enum.StrEnum):
    STYLE = "Style"
    FORMAT = "Format"
    DOMAIN = "Domain"
    COST = "Cost"
    TOKEN_REDUCTION = "TokenReduction"  # noqa: S105
    CONSISTENCY = "Consistency"
    KNOWLEDGE = "Knowledge"
    GENERAL_CAPABILITY = "GeneralCapability"


NOT_OF_PROMPTS = frozenset({Goal.COST, Goal.TOKEN_REDUCTION, Goal.CONSISTENCY})


class ChangeFrequency(enum.StrEnum):
    RARELY = "Rarely"
    MONTHLY = "Monthly"
    WEEKLY = "Weekly"
    DAILY = "Daily"


class Prompt(model.Model):
    """What is used today: the baseline to beat."""

    system: str | None = Field(
        default=None,
        min_length=1,
        max_length=32_768,
        description="The system prompt in use today. The contenders Prompt and FewShot get it in place of the examples' own "
        "system turn; the tuned model is asked as the examples are written. Absent: there is no contender Prompt.",
    )
    few_shot: int = Field(
        default=3,
        ge=0,
        le=64,
        description="How many examples of the training split the contender FewShot sees before each question, chosen by the "
        "seed. 0: there is no such contender. Default: 3.",
    )


class Intent(model.Model):
    """Why the job exists; the advisor reads it."""

    goals: list[Goal] = Field(
        default_factory=list,
        max_length=8,
        description="What the tuned model shall be better at. Style, Format, Domain, Cost, TokenReduction and Consistency are "
        "what fine-tuning is for. Knowledge (fresh facts) and GeneralCapability are not: the advice then says what to do "
        "instead. Empty: not said.",
        json_schema_extra={"x-kubernetes-list-type": "set"},
    )
    prompt: Prompt = Field(default_factory=Prompt, description="What is used today: the baseline to beat.")
    change_frequency: ChangeFrequency = Field(
        default=ChangeFrequency.RARELY,
        description="How often the requirements change: Rarely, Monthly, Weekly or Daily. What changes faster than a model can "
        "be trained and measured belongs into a prompt. Default: Rarely.",
    )
    advice: Advice = Field(
        default=Advice.WARN,
        description="What to do when fine-tuning looks like the wrong tool: too few examples, goals that it does not reach, "
        "or a prompt that passes the gates already. Enforce: stop before the training takes a GPU. Warn: say so and go on. "
        "Ignore: say nothing, and measure no baseline before training. Default: Warn.",
    )

    @property
    def content_with_a_prompt(self) -> bool:
        """Whether the job shall end when a prompt passes the gates: not where it wants what a prompt cannot give."""
        return self.advice is Advice.ENFORCE and not self.wants_more

    @property
    def wants_more(self) -> bool:
        """Whether a goal is left that a prompt which passes the gates has not reached with that."""
        return any(goal in NOT_OF_PROMPTS for goal in self.goals)
