"""Examples with a system prompt in place of their own: as the adapter is trained, and asked, with training.prompt. Pure."""

import dataclasses

from finetune_trainer.data import dataset

KEY = "prompt"
"""Key in an adapter's manifest: the system prompt that it was trained with; null for the examples' own."""


def with_system(example: dataset.Example, text: str, *, inline: bool) -> dataset.Example:
    """The example with this system prompt; a plain text as it is. inline: the model's template has no system turn, so that the
    text comes before the first turn."""
    if not example.messages:
        return example
    own = example.messages[0].role == "system"
    turns = example.messages[1:] if own else example.messages
    if inline:
        first = dataclasses.replace(turns[0], content=f"{text}\n\n{turns[0].content}")
        return dataclasses.replace(example, messages=(first, *turns[1:]))
    return dataclasses.replace(example, messages=(dataset.Message("system", text), *turns))
