"""Examples as token ids, and which of them are learned.

The model's own chat template renders an example; the learned tokens are those of the answers, the stop token included,
found without any mark in the template: the rendering of the turns before an answer must be a prefix of the
rendering of the whole chat, in text and in tokens, since the server has nothing else when it must answer.
"""

import dataclasses
import hashlib
import importlib.metadata
import itertools
import json
import pathlib
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from finetune_api import job
from finetune_trainer.data import dataset, prompted, spans, templates
from finetune_trainer.store import origin


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
class Details:
    """An example as rows of tokens, with what the data checks need to know about them."""

    rows: tuple[Encoded, ...]
    merged: bool = False
    """Whether an answer would have merged with its prompt's end, so that each side was tokenized on its own."""
    unended: bool = False
    """Whether a learned answer has no stop token before the next one begins, or at the end."""
    omitted: tuple[str, ...] = ()
    """Fields of the example that the chat template does not render."""


@dataclasses.dataclass(frozen=True)
class Script:
    """An example as the text to tokenize. The answers to learn begin where the prompts, which are prefixes of the text, end."""

    text: str
    prompts: tuple[str, ...] = ()
    plain: bool = False
    """Plain text: learned whole, with the special tokens that the tokenizer adds."""
    everything: bool = False
    """Whether prompts are learned too."""


@dataclasses.dataclass(frozen=True)
class Encoder:
    """A tokenizer with the rules of one run."""

    tokenizer: Any
    stops: frozenset[int]
    max_length: int
    loss_on: job.LossOn = job.LossOn.ASSISTANT
    files: str = ""
    """The SHA-256 of the tokenizer's files."""
    system: str | None = None
    """The system prompt of training examples (`details`) in place of their own; None: their own."""

    @property
    def identity(self) -> str:
        """Encoders of equal identity encode equally."""
        return identity(self.files, self.max_length, self.loss_on, self.system)

    def encode(self, example: dataset.Example) -> Encoded:
        """Ids and learned tokens of a whole example. Raises dataset.Wrong when the template cannot render it."""
        return self._one(self._script(example))

    def rows(self, example: dataset.Example) -> tuple[Encoded, ...]:
        """The example as rows of tokens: one, or of a preference pair two that begin with the same prompt."""
        return tuple(map(self._one, self._scripts(example)))

    def batch(self, examples: Sequence[dataset.Example]) -> list[tuple[Encoded, ...] | dataset.Wrong]:
        """`rows` of many examples, tokenized at once and in parallel; of an example that cannot be rendered, the reason."""
        return [found.rows if isinstance(found, Details) else found for found in self.details(examples)]

    def details(self, examples: Sequence[dataset.Example]) -> list[Details | dataset.Wrong]:
        """As `batch`, with more details."""
        if (system := self.system) is not None:
            inline = not self.takes_system
            examples = [prompted.with_system(one, system, inline=inline) for one in examples]
        made: list[list[Script] | dataset.Wrong] = []
        for example in examples:
            try:
                made.append(self._scripts(example))
            except dataset.Wrong as wrong:
                made.append(wrong)
        encoded = self._many([script for one in made if isinstance(one, list) for script in one])
        return [
            _details(itertools.islice(encoded, len(one)), _omitted(example, one[0].text))
            if isinstance(one, list)
            else one
            for example, one in zip(examples, made, strict=True)
        ]

    def prompt(self, example: dataset.Example) -> list[int]:
        """The ids that the server gets when it must write the last answer."""
        return self._ids(self.render(example.prompt, answer=True, tools=example.tools))

    def answered(self, example: dataset.Example) -> Encoded:
        """The example with only its last answer as target (all of a plain text), uncut: for the loss of an evaluation."""
        return dataclasses.replace(self, loss_on=job.LossOn.LAST_ASSISTANT).encode(example)

    def render(self, turns: Sequence[dataset.Message], *, answer: bool = False, tools: str | None = None) -> str:
        """The turns as text; with `answer`, up to where the assistant begins. Raises dataset.Wrong."""
        if not self.tokenizer.chat_template:
            return self._plain(turns, tools)
        if tools is not None and (problem := self.tool_support.problem):
            raise dataset.Wrong(problem)
        try:
            return templates.applied(self.tokenizer, turns, answer, tools)
        except Exception as error:
            renamed = templates.renamed(turns)
            if renamed == list(turns):
                raise dataset.Wrong(f"the model's chat template refuses it: {type(error).__name__}: {error}") from None
        return self.render(renamed, answer=answer, tools=tools)

    @property
    def tool_support(self) -> templates.ToolSupport:
        """What the chat template does with tools."""
        return templates.tool_support(self.tokenizer, json.dumps(self.tokenizer.chat_template), self.stop_texts)

    @property
    def takes_system(self) -> bool:
        """Whether the model's chat template renders a system turn."""
        try:
            self.render([dataset.Message("system", "s"), dataset.Message("user", "u")], answer=True)
        except dataset.Wrong:
            return False
        return True

    @property
    def closed(self) -> bool:
        """Whether the base model's own chat template opens a reasoning block in the prompt, which this one leaves out."""
        return templates.is_closed(self.tokenizer.chat_template)

    @property
    def stop_texts(self) -> tuple[str, ...]:
        """The tokens that end an answer, as texts."""
        return tuple(filter(None, (self.tokenizer.convert_ids_to_tokens(stop) for stop in sorted(self.stops))))

    @property
    def turn_end(self) -> str:
        """What the chat template writes after an answer, where the server does not stop at its beginning; "" where it does.

        Base models have such templates: the tokenizer's end is not that of the template. The last answer of an example is learned
        without this text and with the tokenizer's end, so that clients receive the answer alone."""
        if not self.tokenizer.chat_template:
            return ""
        return templates.turn_end(self.tokenizer, json.dumps(self.tokenizer.chat_template), self.stop_texts)

    def _plain(self, turns: Sequence[dataset.Message], tools: str | None) -> str:
        if len(turns) > 2 or turns[0].role != "user" or tools is not None:
            raise dataset.Wrong(
                "the base model has no chat template, so only a single prompt and completion can be learned; choose an "
                "instruct model"
            )
        return "".join(turn.content for turn in turns)

    # --- An example as text ---

    def _scripts(self, example: dataset.Example) -> list[Script]:
        if example.rejected is None:
            return [self._script(example)]
        # Of a pair only the answers are learned, whatever training.lossOn says.
        answers = dataclasses.replace(self, loss_on=job.LossOn.LAST_ASSISTANT)
        return [answers._script(side) for side in example.sides()]

    def _script(self, example: dataset.Example) -> Script:
        if example.text is not None:
            return Script(example.text, plain=True)
        text = self.render(example.messages, tools=example.tools)
        chosen = self._chosen(example)
        prompts = [self.render(example.messages[:index], answer=True, tools=example.tools) for index in chosen]
        for index, prompt in zip(chosen, prompts, strict=True):
            if text.startswith(prompt):
                continue
            tail = self._tail(example) if chosen == [len(example.messages) - 1] else None
            if tail is None:
                raise dataset.Wrong(
                    f"the chat template renders turn {index + 1} differently once the answer follows, so that "
                    "training and serving would see different prompts; try training.lossOn: LastAssistant"
                )
            text = prompt + tail
        text = _without_empty_block(text, prompts, [example.messages[index] for index in chosen])
        if chosen[-1:] == [len(example.messages) - 1]:
            text = text.removesuffix(self.turn_end)
        self._check_answers(example, chosen, text, prompts)
        return Script(text, tuple(prompts), everything=self.loss_on is job.LossOn.ALL)

    def _check_answers(
        self, example: dataset.Example, chosen: Sequence[int], text: str, prompts: Sequence[str]
    ) -> None:
        """Raises dataset.Wrong where the template omits an answer that is learned, or its reasoning."""
        begins = [*map(len, prompts), len(text)]
        for index, (begin, end) in zip(chosen, itertools.pairwise(begins), strict=True):
            turn = example.messages[index]
            within = _BLOCK.match(turn.content)
            for place, reasoning in (("reasoning_content", turn.reasoning), ("<think> block", within and within[1])):
                if reasoning and reasoning.strip() not in text[begin:end]:
                    raise dataset.Wrong(
                        f"the model's chat template does not render the {place} of turn {index + 1}, so that it would not be "
                        "learned; remove it, choose a base model whose template renders it (as reasoning_content, or as <think> "
                        "in the content), or try training.lossOn: LastAssistant"
                    )
            content = turn.content[within.end() :] if within else turn.content
            if not turn.calls and content.strip() not in text[begin:end]:  # beside calls some templates omit it
                raise dataset.Wrong(
                    f"the model's chat template does not render the content of turn {index + 1} as it is, so that something "
                    "else would be learned; it may expect a list of parts, as models that see images do: choose a base model for "
                    "text"
                )

    def _tail(self, example: dataset.Example) -> str | None:
        """The last answer as the template writes it when the last question begins the chat: for templates that move text
        while a chat grows (Mistral's have the system turn before a question only as long as that is the last turn).
        None: even there the question changes once it is answered."""
        asked = max((i for i, turn in enumerate(example.messages) if turn.role == "user"), default=0)
        short = example.messages[asked:]
        text = self.render(short, tools=example.tools)
        prompt = self.render(short[:-1], answer=True, tools=example.tools)
        return text[len(prompt) :] if text.startswith(prompt) else None

    def _chosen(self, example: dataset.Example) -> list[int]:
        """The turns to learn."""
        answers = [i for i, turn in enumerate(example.messages) if turn.role == "assistant" and turn.learned]
        return answers[-1:] if self.loss_on is job.LossOn.LAST_ASSISTANT else answers

    # --- A text as tokens ---

    def _one(self, script: Script) -> Encoded:
        return self._encoded(script, *self._alone(script))[0]

    def _alone(self, script: Script) -> spans.Found:
        """The result of `spans.find` for one text."""
        ids = self._ids(script.text, special=script.plain)
        starts: list[int | None] = []
        for prompt in script.prompts:
            begin = self._ids(prompt)
            starts.append(len(begin) if ids[: len(begin)] == begin else None)
        return ids, starts

    def _many(self, scripts: Sequence[Script]) -> Iterator[Details]:
        """The same as `_one` of each script, in their order, with more details."""
        found: dict[int, spans.Found] = {}
        for special in (False, True):
            part = [index for index, script in enumerate(scripts) if self._special(script.plain) is special]
            if getattr(self.tokenizer, "is_fast", False):
                texts = [(scripts[index].text, scripts[index].prompts) for index in part]
                found |= zip(part, spans.find(self.tokenizer, texts, special=special), strict=True)
            else:
                found |= ((index, self._alone(scripts[index])) for index in part)
        for index, script in enumerate(scripts):
            ids, starts = found.pop(index)
            encoded, ended = self._encoded(script, ids, starts)
            yield Details((encoded,), merged=None in starts, unended=not ended)

    def _encoded(self, script: Script, ids: list[int], starts: Sequence[int | None]) -> tuple[Encoded, bool]:
        """The learned tokens of a tokenized text, and whether all answers end; `starts` has None for a prompt whose ids the
        text's do not begin with."""
        if script.plain:
            ids = [*ids, *self._end()]
            learned, ended = [True] * len(ids), bool(self._end())
        else:
            if None in starts:
                ids, starts = self._pieces(script)
            ids, learned, ended = self._learned(ids, [start for start in starts if start is not None])
        if script.everything:
            learned = [True] * len(ids)
        return Encoded(ids[: self.max_length], learned[: self.max_length], len(ids) > self.max_length), ended

    def _pieces(self, script: Script) -> tuple[list[int], list[int]]:
        """Prompts and answers tokenized separately, as the server does: for answers whose tokens would merge with the
        prompt's end."""
        ids: list[int] = []
        starts, position = [], 0
        for prompt in script.prompts:
            ids += self._ids(script.text[position : len(prompt)], first=not position)
            position = len(prompt)
            starts.append(len(ids))
        return ids + self._ids(script.text[position:], first=False), starts

    def _learned(self, ids: list[int], starts: list[int]) -> tuple[list[int], list[bool], bool]:
        """Each answer from its start to its stop token; an answer at the end without one gets it. Also whether all have one."""
        learned, ended = [False] * len(ids), True
        for start, following in zip(starts, [*starts[1:], None], strict=False):
            limit = len(ids) if following is None else following
            stop = next((i for i in range(start, limit) if ids[i] in self.stops), None)
            if stop is None and following is None:
                ids, learned = [*ids, *self._end()], [*learned, *[False for _ in self._end()]]
                stop = len(ids) - 1 if self._end() else None
            ended = ended and stop is not None
            for i in range(start, limit if stop is None else stop + 1):
                learned[i] = True
        return ids, learned, ended

    def _end(self) -> list[int]:
        return [] if self.tokenizer.eos_token_id is None else [self.tokenizer.eos_token_id]

    def _ids(self, text: str, *, first: bool = True, special: bool = False) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=first and self._special(special))["input_ids"]
        return ids

    def _special(self, plain: bool) -> bool:
        """Whether the tokenizer adds its special tokens: a chat template writes its own begin-of-sequence token, and a second
        one would be wrong."""
        return plain or not self.tokenizer.chat_template


_BLOCK = re.compile(r"\s*<think>(.*?)</think>", re.DOTALL)
_EMPTY_BLOCK = re.compile(r"\s*<think>\s*</think>\s*")


def _without_empty_block(text: str, prompts: Sequence[str], learned: Sequence[dataset.Message]) -> str:
    """The text without the empty reasoning block that some templates write before the last answer only, and no prompt has.

    Learned, the block would be part of what clients of the server receive as the answer.
    """
    blocks = [_EMPTY_BLOCK.match(text, len(prompt)) for prompt in prompts]
    if not blocks or blocks[-1] is None or any(blocks[:-1]):
        return text
    if learned[-1].reasoning or _EMPTY_BLOCK.match(learned[-1].content):
        return text
    return text[: len(prompts[-1])] + text[blocks[-1].end() :]


def _omitted(example: dataset.Example, text: str) -> tuple[str, ...]:
    """Fields of an example that are not in its rendering: the names of who speaks, which most templates have no place for, and
    turns that some leave out."""
    names = (turn.name for turn in example.messages if turn.name and turn.role != "tool")
    systems = (turn.content.strip() for turn in example.messages[:1] if turn.role == "system")
    users = (turn.content.strip() for turn in example.messages if turn.role == "user")
    found = {"messages[].name": names, "the system turn": systems, "turns of the user": users}
    return tuple(field for field, texts in found.items() if any(one not in text for one in texts))


def _details(found: Iterable[Details], omitted: tuple[str, ...]) -> Details:
    sides = list(found)
    rows = tuple(row for side in sides for row in side.rows)
    return Details(rows, any(side.merged for side in sides), any(side.unended for side in sides), omitted)


def load(folder: pathlib.Path, training: job.Training, system: str | None = None) -> Encoder:
    """The encoder of a model folder. Examples are cut where the spec says, or where the model's positions end. system: the system
    prompt of training examples in place of their own."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    tokenizer.chat_template = templates.one(tokenizer.chat_template)
    tokenizer.chat_template = templates.closed(tokenizer)
    maximum = limit(folder, training)
    return Encoder(tokenizer, stops(tokenizer, folder), maximum, training.loss_on, files(folder), system)


def limit(folder: pathlib.Path, training: job.Training) -> int:
    """Tokens of the longest example."""
    config = json.loads((folder / "config.json").read_text())
    positions = config.get("text_config", config).get("max_position_embeddings") or training.max_sequence_length
    return min(positions, training.max_sequence_length)


def files(folder: pathlib.Path) -> str:
    """The SHA-256 of everything that decides how a model folder tokenizes: tokenizer, template and configuration."""
    found = sorted({path for kind in origin.SMALL for path in folder.glob(kind) if path.is_file()})
    # The index of the weights does not matter, and is missing when only the tokenizer was downloaded.
    hashes = {path.name: _sha256(path) for path in found if not path.name.endswith(".index.json")}
    return hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()


def _sha256(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def identity(files: str, max_length: int, loss_on: job.LossOn, system: str | None = None) -> str:
    """A hash of what an encoder's result depends on besides the example; computed without loading a tokenizer."""
    versions = [importlib.metadata.version(name) for name in ("tokenizers", "transformers", "jinja2")]
    parts = [FORMAT, files, max_length, loss_on, versions, *([] if system is None else [system])]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


FORMAT = 3
"""Incremented whenever a change of this module encodes an example differently."""


def stops(tokenizer: Any, folder: pathlib.Path) -> frozenset[int]:
    """The tokens that end an answer: the tokenizer's, and those that the server reads from generation_config.json, or from
    config.json where there is none."""
    found: set[int] = set()
    path = next((path for name in ("generation_config.json", "config.json") if (path := folder / name).is_file()), None)
    if path is not None:
        ends = json.loads(path.read_text()).get("eos_token_id")
        found |= {ends} if isinstance(ends, int) else set(ends or ())
    if tokenizer.eos_token_id is not None:
        found.add(tokenizer.eos_token_id)
    return frozenset(found)
