"""What is trained on: chats made from a seed, of promised lengths. Pure; nothing is copied from anywhere.

The sentences come from a small grammar, so that there is something to learn; each private text opens with a word of its
own, so that two examples share no more than the template's words and what the workload says that they share.
"""

import dataclasses
import random
from collections.abc import Callable, Iterator

Chat = list[dict[str, str]]
Measure = Callable[[str], int]
"""The tokens of a text."""

SPREAD = 0.3
"""Texts are up to this share shorter or longer than the workload's number, evenly spread."""


@dataclasses.dataclass(frozen=True)
class Workload:
    """A kind of chat. Numbers are tokens of the texts alone: the template adds its own words and marks."""

    name: str
    title: str
    prompt: int
    answer: int
    turns: int = 1
    system: int = 0
    """A system prompt that all examples share; 0: none, so that the template says what it says without one."""
    large: bool = False
    """Whether the larger model trains on it too."""


ALL = (
    Workload("short", "short prompts, short answers", prompt=48, answer=40, large=True),
    Workload("long-prompts", "long private prompts, short answers", prompt=300, answer=36),
    Workload("long-answers", "short prompts, long answers", prompt=50, answer=270),
    Workload("shared-system", "a shared system prompt of 400 tokens", prompt=56, answer=46, system=400, large=True),
    Workload("multi-turn", "chats of four turns", prompt=34, answer=34, turns=4),
)
BY_NAME = {workload.name: workload for workload in ALL}

WARM_UP = Workload("warm-up", "the first step, which is not counted", prompt=12, answer=8)


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


NOUNS = _words(
    "lamp ladder kettle harbor meadow engine basket pillow tunnel mirror bridge candle garden hammer island jacket "
    "needle orchard pencil quarry ribbon saddle ticket umbrella valley wagon blanket compass drawer feather"
)
ADJECTIVES = _words(
    "quiet heavy golden narrow broken early gentle hollow modern polite rapid silver tidy wooden yellow"
)
VERBS = _words("follows carries repairs answers borrows covers delivers enters finds guards holds joins measures opens")
PLACES = _words("under behind near above beside inside around before after across")


@dataclasses.dataclass
class Writer:
    """Writes texts of a wanted length."""

    rng: random.Random
    measure: Measure

    def private(self, tokens: int) -> str:
        """A text about as long as that, which begins with a word that no other has."""
        low, high = round(tokens * (1 - SPREAD)), round(tokens * (1 + SPREAD))
        return self.text(self.rng.randint(low, high), opening=self.code())

    def text(self, tokens: int, opening: str = "") -> str:
        """The longest beginning of endless sentences that has no more than so many tokens."""
        words = [opening] if opening else []
        sentences = self.sentences()
        while self.measure(" ".join(words)) <= tokens:
            words += next(sentences)
        while self.measure(" ".join(words)) > tokens and len(words) > 1:
            words.pop()
        return " ".join(words)

    def sentences(self) -> Iterator[list[str]]:
        pick = self.rng.choice
        while True:
            yield [
                *("The", pick(ADJECTIVES), pick(NOUNS), pick(VERBS), "the", pick(NOUNS), pick(PLACES), "the"),
                f"{pick(NOUNS)}.",
            ]

    def code(self) -> str:
        syllables = (self.rng.choice("BDFGKLMNPRSTVZ") + self.rng.choice("aeiou").upper() for _ in range(3))
        return f"{''.join(syllables)}{self.rng.randint(1000, 9999)}:"


def chats(workload: Workload, count: int, seed: int, measure: Measure) -> list[Chat]:
    """The examples; the same for the same seed and tokenizer."""
    writer = Writer(random.Random(f"{workload.name}:{seed}"), measure)
    shared = [{"role": "system", "content": writer.text(workload.system)}] if workload.system else []
    made = []
    for _ in range(count):
        chat = list(shared)
        for _ in range(workload.turns):
            chat.append({"role": "user", "content": writer.private(workload.prompt)})
            chat.append({"role": "assistant", "content": writer.private(workload.answer)})
        made.append(chat)
    return made
