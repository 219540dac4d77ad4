"""Examples as token ids, and which of them are learned.

The model's own chat template renders an example; the learned tokens are those of the answers, the stop token included,
found without any mark in the template: what the template renders for the turns before an answer must be the beginning of
what it renders for the whole chat, in text and in tokens, since that is all the server will have when it must answer.
"""

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Any

from finetune_api import job
from finetune_trainer import dataset


@dataclasses.dataclass(frozen=True)
class Encoded:
    """An example for the model. learned[i]: whether token i is a target, predicted from the tokens before it."""

    ids: list[int]
    learned: list[bool]
    truncated: bool = False

    @property
    def trainable(self) -> int:
        """How many tokens are learned; the first token is never predicted."""
        return sum(self.learned[1:])


@dataclasses.dataclass(frozen=True)
class Encoder:
    """A tokenizer with the rules of one run."""

    tokenizer: Any
    stops: frozenset[int]
    max_length: int
    loss_on: job.LossOn = job.LossOn.ASSISTANT

    def encode(self, example: dataset.Example) -> Encoded:
        """Ids and learned tokens of a whole example. Raises dataset.Wrong when the template cannot render it."""
        if example.text is not None:
            ids = [*self.tokenizer(example.text)["input_ids"], *self._end()]
            return self._cut(ids, [True] * len(ids))
        text = self.render(example.messages)
        chosen = self._chosen(example)
        prefixes = {index: self.render(example.messages[:index], answer=True) for index in chosen}
        for index, prefix in prefixes.items():
            if not text.startswith(prefix):
                raise dataset.Wrong(
                    f"the chat template renders turn {index + 1} differently once the answer follows, so that the answer "
                    "cannot be learned as it will be asked for; try training.lossOn: LastAssistant"
                )
        ids, starts = self._tokens(text, prefixes)
        ids, learned = self._learned(ids, [starts[index] for index in chosen])
        if self.loss_on is job.LossOn.ALL:
            learned = [True] * len(ids)
        return self._cut(ids, learned)

    def prompt(self, example: dataset.Example) -> list[int]:
        """The ids that the server gets when it must give the last answer."""
        return self._ids(self.render(example.prompt, answer=True))

    def answered(self, example: dataset.Example) -> Encoded:
        """The example with only its last answer as target (all of a plain text), uncut: for the loss of an evaluation."""
        return dataclasses.replace(self, loss_on=job.LossOn.LAST_ASSISTANT).encode(example)

    def render(self, turns: Sequence[dataset.Message], *, answer: bool = False) -> str:
        """The turns as text; with `answer`, up to where the assistant begins. Raises dataset.Wrong."""
        if not self.tokenizer.chat_template:
            return self._plain(turns)
        messages = [{"role": turn.role, "content": turn.content} for turn in turns]
        try:
            text: str = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=answer)
        except Exception as error:
            raise dataset.Wrong(f"the model's chat template refuses it: {type(error).__name__}: {error}") from None
        return text

    def _plain(self, turns: Sequence[dataset.Message]) -> str:
        if len(turns) > 2 or turns[0].role != "user":
            raise dataset.Wrong(
                "the base model has no chat template, so that only one prompt and one completion can be learned; choose an "
                "instruct model"
            )
        return "".join(turn.content for turn in turns)

    def _chosen(self, example: dataset.Example) -> list[int]:
        """The turns to learn."""
        answers = [i for i, turn in enumerate(example.messages) if turn.role == "assistant" and turn.learned]
        return answers[-1:] if self.loss_on is job.LossOn.LAST_ASSISTANT else answers

    def _tokens(self, text: str, prefixes: dict[int, str]) -> tuple[list[int], dict[int, int]]:
        """The ids of the text, and where each prefix ends in them."""
        ids = self._ids(text)
        starts = {}
        for index, prefix in prefixes.items():
            begin = self._ids(prefix)
            if ids[: len(begin)] != begin:
                return self._pieces(text, prefixes)
            starts[index] = len(begin)
        return ids, starts

    def _pieces(self, text: str, prefixes: dict[int, str]) -> tuple[list[int], dict[int, int]]:
        """Each side of a border on its own, as the server does: for answers that would merge with their prompt's end."""
        ids: list[int] = []
        starts, position = {}, 0
        for index, prefix in sorted(prefixes.items()):
            ids += self._ids(text[position : len(prefix)], special=not position)
            starts[index], position = len(ids), len(prefix)
        return ids + self._ids(text[position:], special=False), starts

    def _learned(self, ids: list[int], starts: list[int]) -> tuple[list[int], list[bool]]:
        """Each answer from its start to its stop token; an answer at the end without one gets it."""
        learned = [False] * len(ids)
        for start, following in zip(starts, [*starts[1:], None], strict=True):
            limit = len(ids) if following is None else following
            stop = next((i for i in range(start, limit) if ids[i] in self.stops), None)
            if stop is None and following is None:
                ids, learned = [*ids, *self._end()], [*learned, *[False for _ in self._end()]]
                stop = len(ids) - 1
            for i in range(start, limit if stop is None else stop + 1):
                learned[i] = True
        return ids, learned

    def _end(self) -> list[int]:
        return [] if self.tokenizer.eos_token_id is None else [self.tokenizer.eos_token_id]

    def _ids(self, text: str, *, special: bool = True) -> list[int]:
        # A chat template writes its own begin-of-sequence token; a second one would be one too many.
        special = special and not self.tokenizer.chat_template
        ids: list[int] = self.tokenizer(text, add_special_tokens=special)["input_ids"]
        return ids

    def _cut(self, ids: list[int], learned: list[bool]) -> Encoded:
        return Encoded(ids[: self.max_length], learned[: self.max_length], len(ids) > self.max_length)


def load(folder: pathlib.Path, training: job.Training) -> Encoder:
    """The encoder of a model folder. Examples are cut where the spec says, or where the model's positions end."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    config = json.loads((folder / "config.json").read_text())
    positions = config.get("text_config", config).get("max_position_embeddings") or training.max_sequence_length
    return Encoder(tokenizer, stops(tokenizer, folder), min(positions, training.max_sequence_length), training.loss_on)


def stops(tokenizer: Any, folder: pathlib.Path) -> frozenset[int]:
    """The tokens that end an answer: the tokenizer's, and those of generation_config.json, which the server reads too."""
    found: set[int] = set()
    path = folder / "generation_config.json"
    if path.is_file():
        ends = json.loads(path.read_text()).get("eos_token_id")
        found |= {ends} if isinstance(ends, int) else set(ends or ())
    if tokenizer.eos_token_id is not None:
        found.add(tokenizer.eos_token_id)
    return frozenset(found)
