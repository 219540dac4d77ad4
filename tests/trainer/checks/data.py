"""Data for the checks, of kinds that the rules were not made from: a library's desk, a kitchen, a garden, weather, chess.

Everything is drawn from a seed; nothing here shares words with the rules' own patterns unless a test puts them in.
"""

import random
from typing import Any

from finetune_trainer.data import dataset

NOUNS, VERBS, ADJECTIVES = (
    words.split()
    for words in (
        "atlas kettle violin orchard glacier lantern bishop meadow compass ferry walnut pendulum harbour thistle quarry "
        "saddle beacon trellis cobbler almanac gazebo marten lagoon turnip abacus chisel heron plum ravine scarf tunnel",
        "polish borrow measure carry sketch plant repair paint weigh return sharpen fold water collect arrange cross bake "
        "prune count follow hide lift mend observe pack rinse sew tune untie varnish wrap",
        "old narrow bright heavy wooden quiet crooked silver early damp gentle hollow foreign patient round steep",
    )
)
QUESTIONS = ("How do I", "When should one", "Is it wise to", "Who would", "Where can I", "Why do people")


def sentence(rng: random.Random) -> str:
    words = [rng.choice(ADJECTIVES), rng.choice(NOUNS), "beside the", rng.choice(ADJECTIVES), rng.choice(NOUNS)]
    then = f"{rng.choice(VERBS)} a {rng.choice(NOUNS)} at {rng.randint(2, 23)} o'clock"
    return f"{rng.choice(VERBS)} the {' '.join(words)} and {then}"


def examples(count: int, *, seed: int = 1, source: str = "a.jsonl") -> list[dataset.Example]:
    """Different questions with different answers, in English."""
    rng = random.Random(f"examples {seed}")
    return [
        chat(
            f"{rng.choice(QUESTIONS)} {sentence(rng)}, if you please?",
            f"You {sentence(rng)}; then the {rng.choice(NOUNS)} will be {rng.choice(ADJECTIVES)}, and we can {sentence(rng)}.",
            source=f"{source}:{number + 1}",
        )
        for number in range(count)
    ]


def chat(
    prompt: str, answer: str, *, source: str = "x:1", system: str = "", rejected: str | None = None
) -> dataset.Example:
    turns = [dataset.Message("system", system)] if system else []
    turns += [dataset.Message("user", prompt), dataset.Message("assistant", answer)]
    return dataset.Example(source, tuple(turns), rejected=rejected)


def answered(found: list[dataset.Example], answers: list[str]) -> list[dataset.Example]:
    """The same prompts with these answers, over and over."""
    return [
        chat(one.prompt[-1].content, answers[number % len(answers)], source=one.source)
        for number, one in enumerate(found)
    ]


def rows(found: list[dataset.Example]) -> list[dict[str, Any]]:
    """As a data file has them."""
    return [{"messages": [{"role": turn.role, "content": turn.content} for turn in one.messages]} for one in found]
