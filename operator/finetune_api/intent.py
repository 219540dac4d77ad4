"""The goals of a job, which preflight's advice uses, and the prompt that the tuned model has to beat."""

import enum

from pydantic import Field

from finetune_api import model
from finetune_api.contenders import Endpoint, SecretName, ServedName
from finetune_api.dataset import UriList


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


class Optimizer(model.Model):
    """A language model that rewrites the instruction of the contender Optimized, by what the base model got wrong (GEPA)."""

    endpoint: Endpoint = Field(
        description="The base URL of an OpenAI-compatible API; /chat/completions is appended. The pod of the baseline, or of the "
        "evaluation where there is none, sends it intent.prompt.system, instructions, and training examples with their expected "
        "answers and the base model's. No validation or test example is sent. Redirects are not followed."
    )
    model: ServedName = Field(description="The model's name at the endpoint.")
    api_key_secret: SecretName | None = Field(
        default=None,
        description="The name of a Secret in the job's namespace whose key API_KEY is sent as a bearer token. "
        "Absent: no token is sent.",
    )
    calls: int = Field(
        default=200,
        ge=40,
        le=2000,
        description="Answers of the base model that the optimization may take, at most; evaluation.baselineBudget limits them, "
        "too. Default: 200.",
    )


class Prompt(model.Model):
    """The prompt in use today: the baseline to beat."""

    system: str | None = Field(
        default=None,
        min_length=1,
        max_length=32_768,
        description="The system prompt in use today. The baselines but Base get it in place of the examples' own "
        "system turn; the tuned model gets the examples unchanged, unless training.prompt is Prompt. Absent: there is no "
        "contender Prompt.",
    )
    few_shot: int = Field(
        default=3,
        ge=0,
        le=64,
        description="How many examples of the training split the contender FewShot gets before each question, "
        "chosen by the seed. 0: there is no such contender. Default: 3.",
    )
    optimizer: Optimizer | None = Field(
        default=None,
        description="A language model that improves the best of Optimized's prompts, which are written by rules. Absent: those "
        "alone are tried.",
    )


class Retrieval(model.Model):
    """Documents in which answers may be found: the contender RAG."""

    uris: UriList = Field(
        description="The documents: plain text and Markdown (.txt, .md), or the file formats of dataset.train with a field "
        "`text`. In the store of the data files."
    )
    passages: int = Field(
        default=4,
        ge=1,
        le=64,
        description="How many passages, those most similar to the question, are put before it. Default: 4.",
    )


class Intent(model.Model):
    """The goals of the job, which the advisor uses."""

    goals: list[Goal] = Field(
        default_factory=list,
        max_length=8,
        description="What the tuned model should be better at. Style, Format, Domain, Cost, TokenReduction and "
        "Consistency are suitable goals. Knowledge (new facts) and GeneralCapability are not: the advice then "
        "says what to do instead. Empty: not stated.",
        json_schema_extra={"x-kubernetes-list-type": "set"},
    )
    prompt: Prompt = Field(default_factory=Prompt, description="The prompt in use today: the baseline to beat.")
    retrieval: Retrieval | None = Field(
        default=None,
        description="Documents in which answers may be found. The contender RAG gets passages of them before each question, so "
        "that the job shows whether retrieval alone is enough. Absent: there is no such contender.",
    )
    change_frequency: ChangeFrequency = Field(
        default=ChangeFrequency.RARELY,
        description="How often the requirements change: Rarely, Monthly, Weekly or Daily. Requirements that change "
        "faster than a model can be trained and evaluated belong in a prompt. Default: Rarely.",
    )
    advice: Advice = Field(
        default=Advice.WARN,
        description="What to do when fine-tuning looks like the wrong tool: too few examples, unsuitable goals, or "
        "a prompt that already passes the gates. Enforce: stop before training requests a GPU. Warn: show the "
        "advice and continue. Ignore: give no advice, and measure no baseline before training. Default: Warn.",
    )

    @property
    def content_with_a_prompt(self) -> bool:
        """Whether the job ends when a prompt passes the gates: not if a goal is one that a prompt cannot reach."""
        return self.advice is Advice.ENFORCE and not self.wants_more

    @property
    def wants_more(self) -> bool:
        """Whether there is a goal that a prompt has not reached by passing the gates."""
        return any(goal in NOT_OF_PROMPTS for goal in self.goals)
