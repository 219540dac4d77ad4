"""Rows of which only the question is read, for a teacher to answer (training.teacher). Pure."""

import dataclasses
from typing import Any

from finetune_api import job
from finetune_trainer.data import dataset, shapes

EXPECTED = (
    '{"messages": [{"role": "user", "content": "..."}]}, {"prompt": "..."} or {"instruction": "...", "input": "..."}, with or '
    "without an answer"
)

TO_COME = "-"
"""In place of the answer while the row is read."""


def example(value: Any, kind: job.Format, source: str) -> dataset.Example:
    """A row as an example whose last answer is empty; of a chat no other answer is learned. Raises Wrong.

    The answer of a row that has one is not read.
    """
    fields = shapes.shape(value).fields if isinstance(value, dict) else {}
    completed = _completed(fields, kind)
    if completed is None:
        raise dataset.Wrong(f"training.teacher needs a question (found: {shapes.keys(fields)}); expected {EXPECTED}")
    made = dataset.example(completed[1], completed[0], source)
    if made.tools is not None:
        raise dataset.Wrong("training.teacher answers with text, and this row has 'tools'; remove them", dataset.TOOLS)
    before = tuple(dataclasses.replace(turn, learned=False) for turn in made.prompt)
    return dataclasses.replace(made, messages=(*before, dataset.Message("assistant", "")))


def _completed(fields: dict[str, Any], kind: job.Format) -> tuple[job.Format, dict[str, Any]] | None:
    """The format, and the row with TO_COME as its answer; None where it asks nothing."""
    any_format = kind is job.Format.AUTO
    if isinstance(fields.get("messages"), list) and (any_format or kind is job.Format.CHAT):
        turns = fields["messages"]
        answered = bool(turns) and isinstance(turns[-1], dict) and turns[-1].get("role") == "assistant"
        asked = turns[:-1] if answered else turns
        return job.Format.CHAT, fields | {"messages": [*asked, {"role": "assistant", "content": TO_COME}]}
    if "prompt" in fields and (any_format or kind is job.Format.PROMPT_COMPLETION):
        return job.Format.PROMPT_COMPLETION, fields | {"completion": TO_COME}
    if "instruction" in fields and (any_format or kind is job.Format.INSTRUCTION):
        return job.Format.INSTRUCTION, fields | {"output": TO_COME}
    return None
