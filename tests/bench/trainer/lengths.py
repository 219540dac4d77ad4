"""Tokens of a chat, counted by the benchmark itself: what both sides say that they train on must be the same number."""

import dataclasses
import json
import pathlib
from typing import Any

import jinja2.sandbox
import tokenizers
from tests.bench.trainer import workloads


@dataclasses.dataclass(frozen=True)
class Count:
    """Tokens of the whole chat, and those that are learned: each answer with its stop token."""

    tokens: int
    labelled: int

    def __add__(self, other: "Count") -> "Count":
        return Count(self.tokens + other.tokens, self.labelled + other.labelled)


@dataclasses.dataclass(frozen=True)
class Counter:
    """A model's tokenizer and chat template."""

    tokenizer: tokenizers.Tokenizer
    template: Any
    stop: str

    def text(self, text: str) -> int:
        return len(self.tokenizer.encode(text, add_special_tokens=False))

    def chat(self, chat: workloads.Chat) -> Count:
        labelled = 0
        for index, turn in enumerate(chat):
            if turn["role"] == "assistant":
                before = self.template.render(messages=chat[:index], add_generation_prompt=True)
                labelled += self.text(before + turn["content"] + self.stop) - self.text(before)
        return Count(self.text(self.template.render(messages=chat, add_generation_prompt=False)), labelled)

    def total(self, chats: list[workloads.Chat]) -> Count:
        return sum((self.chat(chat) for chat in chats), Count(0, 0))


def load(folder: pathlib.Path) -> Counter:
    """The counter of a model folder."""
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string((folder / "chat_template.jinja").read_text())
    return Counter(tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")), template, settings["eos_token"])
