"""The canary: answers of the tuned model with the log-probability of every token, under tuned and base.

evaluate records it; verify requests the same from the server and so sees whether it really applies the adapter. The module
imports nothing heavy.
"""

import json
from typing import Any

from finetune_api import job
from finetune_trainer.data import dataset
from finetune_trainer.evaluation import engines

EXAMPLES, CANDIDATES, LENGTH = 4, 12, 32
"""Examples recorded, examples considered, tokens of an answer."""


def record(engine: engines.Engine, prompts: list[list[int]], answers: list[list[int]]) -> list[dict[str, Any]]:
    """The EXAMPLES answers in which tuned and base differ most: they show best whether the adapter is applied."""
    found: list[dict[str, Any]] = []
    for prompt, answer in zip(prompts, answers, strict=True):
        answer = answer[:LENGTH]
        if not answer:
            continue
        tuned, base = (
            [round(value, 5) for value in engine.log_probabilities(which, prompt, answer)]
            for which in (job.Contender.TUNED, job.Contender.BASE)
        )
        found.append({"prompt": prompt, "answer": answer, "tuned": tuned, "base": base})
    found.sort(key=lambda one: -difference(one["tuned"], one["base"]))
    return found[:EXAMPLES]


def difference(one: list[float], other: list[float]) -> float:
    """Mean absolute difference per token, in nats."""
    return sum(abs(a - b) for a, b in zip(one, other, strict=True)) / max(1, len(one))


def document(
    recorded: list[dict[str, Any]], first: dataset.Example | None, served: str, base: str, limit: int
) -> dict[str, Any]:
    """canary.json: the recorded examples, and one request as a client would send it."""
    request: dict[str, Any] = {"maxTokens": limit}
    if first is not None and first.messages:
        request["messages"] = [turn.wire() for turn in first.prompt]
        if first.tools is not None:
            request["tools"] = json.loads(first.tools)
    elif first is not None and first.text is not None:
        request["prompt"] = first.text[:200]
    return {"model": served, "base": base, "examples": recorded, "request": request}
