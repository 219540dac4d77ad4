"""The split into train, validation and test, by groups of examples that share a prompt, so that none leaks.

Pure: works on hashes that `preflight` gathered while it read the files. A group's place depends on the seed and on the
prompt alone, not on the order of rows or files.
"""

import dataclasses
import hashlib
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class Prompts:
    """The prompt hashes of one example: `last` of its last answer, `all` of every answer in the chat."""

    last: int
    all: tuple[int, ...]


def assign(prompts: Sequence[Prompts], validation: float | None, test: float | None, seed: int) -> list[int]:
    """The split of each example: 0 train, 1 validation, 2 test.

    Fractions are of all examples and None where the split has files of its own. Whole groups move, in the order of their
    seeded hash, until the fraction is reached; a group never moves when fewer than three would be left to train on.
    """
    groups = group(prompts)
    sizes: dict[int, int] = {}
    for number in groups:
        sizes[number] = sizes.get(number, 0) + 1
    order = sorted(sizes, key=lambda number: hashlib.blake2b(f"{seed}:{number}".encode(), digest_size=8).digest())
    places: dict[int, int] = {}
    position = 0
    for split, fraction in ((2, test), (1, validation)):
        wanted = max(1, round(fraction * len(prompts))) if fraction else 0
        taken = 0
        while taken < wanted and len(order) - position > 3:
            places[order[position]] = split
            taken += sizes[order[position]]
            position += 1
    return [places.get(number, 0) for number in groups]


def group(prompts: Sequence[Prompts]) -> list[int]:
    """A group number of each example: equal where the prompt of one's last answer is among the other's prompts."""
    asked = {prompt.last for prompt in prompts}
    parents = {last: last for last in asked}

    def root(number: int) -> int:
        while parents[number] != number:
            parents[number] = parents[parents[number]]
            number = parents[number]
        return number

    for prompt in prompts:
        for key in prompt.all:
            if key in asked:
                one, other = sorted((root(prompt.last), root(key)))
                parents[other] = one  # the smaller hash leads, so that the order of the rows does not matter
    return [root(prompt.last) for prompt in prompts]
