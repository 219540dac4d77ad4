"""The canary: answers of the tuned model with the log-probability of every token, under tuned and base.

evaluate records it; verify requests the same from the server and so sees whether it really applies the adapter. Only recording
needs torch; the module itself imports nothing heavy.
"""

import json
from typing import TYPE_CHECKING, Any

from finetune_trainer.data import dataset

if TYPE_CHECKING:
    import torch

    from finetune_trainer.engine import loss

EXAMPLES, CANDIDATES, LENGTH = 4, 12, 32
"""Examples recorded, examples considered, tokens of an answer."""


def record(
    tuned: Any,
    head: "loss.Head",
    prompts: list[list[int]],
    answers: list[list[int]],
    where: "torch.device",
) -> list[dict[str, Any]]:
    """The EXAMPLES answers in which tuned and base differ most: they show best whether the adapter is applied."""
    from finetune_trainer.engine import lora

    found: list[dict[str, Any]] = []
    for prompt, answer in zip(prompts, answers, strict=True):
        answer = answer[:LENGTH]
        if not answer:
            continue
        adapted = _log_probabilities(tuned, head, prompt, answer, where)
        with lora.disabled(tuned):
            base = _log_probabilities(tuned, head, prompt, answer, where)
        found.append({"prompt": prompt, "answer": answer, "tuned": adapted, "base": base})
    found.sort(key=lambda one: -difference(one["tuned"], one["base"]))
    return found[:EXAMPLES]


def _log_probabilities(
    tuned: Any, head: "loss.Head", prompt: list[int], answer: list[int], where: "torch.device"
) -> list[float]:
    import torch

    from finetune_trainer.engine import loss, model

    marks = [False] * len(prompt) + [True] * len(answer)
    with torch.inference_mode():
        states, targets = model.labelled(tuned, head, [prompt + answer], [marks], where)
        return [round(value, 5) for value in loss.log_probabilities(states, targets, head).tolist()]


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
