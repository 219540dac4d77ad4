"""Who answers the test examples: the tuned model, its baselines, and the models of evaluation.candidates."""

import enum
import re
from collections.abc import Iterable
from typing import Annotated, Any, Literal, get_args

from pydantic import Field

from finetune_api import model

CANDIDATE = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"
"""The name of a model of evaluation.candidates: in lower case, so that it is none of the other contenders'."""


class Contender(enum.StrEnum):
    """Who answers. A model of evaluation.candidates is a contender by its name: a value, and no member of the list."""

    BASE = "Base"
    PROMPT = "Prompt"
    FEW_SHOT = "FewShot"
    RETRIEVED = "Retrieved"
    OPTIMIZED = "Optimized"
    MANY_SHOT = "ManyShot"
    RAG = "RAG"
    STRUCTURED = "Structured"
    SERVING = "Serving"
    TUNED = "Tuned"

    @classmethod
    def _missing_(cls, value: object) -> "Contender | None":
        """The contender of a candidate's name: one object for each name, as for the members."""
        if not isinstance(value, str) or not re.fullmatch(CANDIDATE, value):
            return None
        made = str.__new__(cls, value)
        made._name_ = made._value_ = value
        found: Contender = cls._value2member_map_.setdefault(value, made)  # type: ignore[assignment]
        return found

    @property
    def is_candidate(self) -> bool:
        """Whether it is a model of evaluation.candidates."""
        return self._name_ not in type(self).__members__

    @classmethod
    def __get_pydantic_json_schema__(cls, *_: Any) -> dict[str, Any]:
        return {
            "type": "string",
            "maxLength": 63,
        }  # of statuses: in their long lists a rule for each would cost too much


BEST = "BestBaseline"
"""What a gate names in `over` to require more than every baseline."""

BEST_ALTERNATIVE = "BestAlternative"
"""The same, of every baseline and every candidate."""

Endpoint = Annotated[
    str,
    model.text(
        r"^https?://[A-Za-z0-9.:\[\]-]+(/[A-Za-z0-9._~%/-]*)?$",
        "must be an http or https URL without user, query and fragment, for example https://judge.example/v1",
        512,
    ),
]
ServedName = Annotated[str, model.text(r"^\S+$", "must be a model's name, without spaces", 256)]
SecretName = model.Name


CandidateName = Annotated[
    str,
    model.text(
        f"^{CANDIDATE}$", "must be lower-case letters, digits and '-', starting and ending with a letter or digit", 63
    ),
]


class Candidate(model.Model):
    """Another model that answers the same questions, with a prompt and without training."""

    name: CandidateName = Field(description="Its name among the contenders, which gates may name in over.")
    endpoint: Endpoint = Field(
        description="The base URL of an OpenAI-compatible API; /chat/completions is appended. The pods of baseline and "
        "evaluation send it the questions of validation and test examples, with the prompt that did best with the base "
        "model: intent.prompt.system, the form of the answers (their labels or keys), training examples or passages of "
        "documents. Redirects are not followed."
    )
    model: ServedName = Field(description="The model's name at the endpoint.")
    api_key_secret: SecretName | None = Field(
        default=None,
        description="The name of a Secret in the job's namespace whose key API_KEY is sent as a bearer token. "
        "Absent: no token is sent.",
    )
    price_per_million_prompt_tokens: float | None = Field(
        default=None,
        ge=0,
        description="The price of a million tokens of prompts, in the chart's currency. Absent: unknown.",
    )
    price_per_million_answer_tokens: float | None = Field(
        default=None,
        ge=0,
        description="The price of a million tokens of answers, in the chart's currency. Absent: unknown.",
    )

    def price(self, prompt: float, answer: float) -> float | None:
        """Of a request of so many tokens; None where it is unknown."""
        if self.price_per_million_prompt_tokens is None or self.price_per_million_answer_tokens is None:
            return None
        return (
            self.price_per_million_prompt_tokens * prompt + self.price_per_million_answer_tokens * answer
        ) / 1_000_000


Baseline = Literal[
    Contender.BASE,
    Contender.PROMPT,
    Contender.FEW_SHOT,
    Contender.RETRIEVED,
    Contender.OPTIMIZED,
    Contender.MANY_SHOT,
    Contender.RAG,
    Contender.STRUCTURED,
]

BASELINES: tuple[Baseline, ...] = get_args(Baseline)
"""The alternatives to fine-tuning with the same base model, from cheap to costly."""

FORMER_DEFAULTS: tuple[list[str], ...] = tuple(
    [one.value for one in BASELINES if one not in later]
    for later in ({Contender.OPTIMIZED}, {Contender.OPTIMIZED, Contender.STRUCTURED})
)
"""Defaults of evaluation.baselines in earlier releases."""


def alternatives(found: Iterable[Contender]) -> list[Contender]:
    """The baselines among these contenders, from cheap to costly, then the candidates."""
    there = list(found)
    return [*(one for one in BASELINES if one in there), *(one for one in there if one.is_candidate)]


def compared_with(over: str | None, found: Iterable[Contender]) -> list[Contender]:
    """The contenders among these that a gate's `over` means."""
    if over == BEST:
        return [one for one in alternatives(found) if not one.is_candidate]
    return alternatives(found) if over == BEST_ALTERNATIVE else [one for one in found if one == over]
