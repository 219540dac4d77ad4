"""The seam between an evaluation and the model that answers: our own engine in this process, or a server beside it.

Both answer as any contender: the base model, or an adapter on it. `answers` asks; `in_process` and `server` answer.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Literal, Protocol

from finetune_api import job
from finetune_trainer.data import tokens

ADAPTED = frozenset({job.Contender.TUNED, job.Contender.SERVING})
"""Contenders that are an adapter on the base model; all others are the base model."""

ADAPTER_CONFIG = "adapter_config.json"
"""PEFT's description of an adapter, in its folder."""

Kind = Literal[job.EvaluationEngine.IN_PROCESS, job.EvaluationEngine.SERVER]

Done = Callable[[int], None]
"""Called with the number of prompts answered so far."""


def silent(_: float) -> None:
    """Nobody wants to know how far it is."""


@dataclasses.dataclass(frozen=True)
class Ending:
    """When an answer is over: at a stop token, which is part of it, after `limit` tokens, or with one of some texts."""

    stops: frozenset[int]
    limit: int
    texts: tuple[str, ...] = ()
    schema: str | None = None
    """A JSON Schema, as JSON: what the answer is held to while it is written. One that is cut at `limit` is no JSON."""


class Engine(Protocol):
    """A base model that answers with or without an adapter. Token ids in, token ids out. Methods raise Failure and Stopped."""

    @property
    def kind(self) -> Kind:
        """Which of the two it is, as results.json says it."""
        ...

    @property
    def positions(self) -> int | None:
        """Tokens of a prompt with its answer; None where the model does not say."""
        ...

    def add_adapter(self, which: job.Contender, folder: pathlib.Path) -> str | None:
        """From now on `which` is the adapter in this folder, in place of any other. Returns why it does not fit the base; None
        where it does."""
        ...

    def refusal(self, prompt: list[int], ending: Ending) -> str | None:
        """Why no answer to such a prompt can be held to the schema of `ending`; None where it can."""
        ...

    def greedy(
        self, which: job.Contender, prompts: Sequence[list[int]], ending: Ending, done: Done = silent
    ) -> list[list[int]]:
        """The most likely continuation of each prompt."""
        ...

    def sample(
        self,
        which: job.Contender,
        prompts: Sequence[list[int]],
        ending: Ending,
        rules: job.Consistency,
        seed: int,
        done: Done = silent,
    ) -> list[list[list[int]]]:
        """`rules.samples` continuations of each prompt, drawn at the temperature of the rules."""
        ...

    def likelihoods(
        self, which: job.Contender, encoded: Sequence[tokens.Encoded], done: Done = silent
    ) -> list[tuple[float, bool]]:
        """The summed log-probability of each row's learned tokens, and whether each of these is the likeliest in its place."""
        ...

    def log_probabilities(self, which: job.Contender, prompt: list[int], answer: list[int]) -> list[float]:
        """Of each token of an answer, in nats."""
        ...
