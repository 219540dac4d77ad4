"""Answers: greedy ones, and sampled ones, for many prompts at a time.

`decoding` writes them where it knows the model's family: what all prompts begin with is read once, an answer that ends gives its
place to a waiting prompt, and where answers outgrow the memory some of them wait again. Any other model goes through
transformers: left-padded batches, from which finished rows are taken.
"""

import collections
import dataclasses
import random
from collections.abc import Callable, Sequence
from typing import Any

import torch

from finetune_trainer.engine import decoding, kv_cache, lora, loss, model
from finetune_trainer.process import signals

CACHED = {"cuda": 65_536, "cpu": 8_192}
"""Positions of the key-value cache of one batch of transformers'."""

SHORTEST = 24
"""Tokens of a beginning that is worth being held once for all prompts; a shorter one is every row's own."""

AHEAD = 64
"""Tokens of an answer for which memory is taken at once; longer ones take more as they grow."""

REFILL = 4
"""Prompts wait until the n-th part of the places is free: reading a few costs as many calls as reading many."""

DRAWN = 32
"""Rows whose probabilities are summed up at a time."""


@dataclasses.dataclass
class Row:
    """An answer that is written."""

    number: int
    """Of its prompt."""
    prompt: list[int]
    answer: list[int] = dataclasses.field(default_factory=list)
    chance: random.Random | None = None
    """Draws the tokens of a sampled answer."""

    @property
    def ids(self) -> list[int]:
        return self.prompt + self.answer


Choose = Callable[[torch.Tensor, Sequence[Row]], list[int]]
"""The next token of each row, from logits [n, vocabulary] in float32."""

Ended = Callable[[list[int]], bool]
"""Whether an answer is over for another reason than a stop token or its length; asked after each token."""


@dataclasses.dataclass
class _Course:
    """Rows on their way: how they go on, and when they end."""

    rows: list[Row]
    choose: Choose
    stops: frozenset[int]
    limit: int
    done: Callable[[int], None]
    ended: Ended | None = None
    finished: int = 0

    def __post_init__(self) -> None:
        self._open = collections.Counter(row.number for row in self.rows)

    def take(self, logits: torch.Tensor, rows: Sequence[Row]) -> list[int]:
        """Lets rows grow by a token; the places among `rows` of those that go on."""
        before, going = self.finished, []
        for place, (row, token) in enumerate(zip(rows, self.choose(logits, rows), strict=True)):
            row.answer.append(token)
            if token not in self.stops and len(row.answer) < self.limit and not (self.ended and self.ended(row.answer)):
                going.append(place)
                continue
            self._open[row.number] -= 1
            self.finished += not self._open[row.number]
        if self.finished > before:
            self.done(self.finished)
        return going


def greedy(
    tuned: Any,
    head: loss.Head,
    prompts: list[list[int]],
    stops: frozenset[int],
    limit: int,
    where: torch.device,
    done: Callable[[int], None] = lambda count: None,
    ended: Ended | None = None,
) -> list[list[int]]:
    """The most likely continuation of each prompt, up to and with the stop token or where it has `ended`, at most `limit` tokens.

    `done` is called with the number of prompts answered so far.
    """
    rows = [Row(number, prompt) for number, prompt in enumerate(prompts)]
    _write(tuned, head, _Course(rows, _likeliest, stops, limit, done, ended), where)
    return [row.answer for row in rows]


def sample(
    tuned: Any,
    head: loss.Head,
    prompts: list[list[int]],
    stops: frozenset[int],
    limit: int,
    where: torch.device,
    *,
    samples: int,
    temperature: float,
    seed: int,
    done: Callable[[int], None] = lambda count: None,
) -> list[list[list[int]]]:
    """`samples` continuations of each prompt, drawn from the model's probabilities at a temperature above 0.

    What is drawn depends on the seed and the prompt's place in the list, not on what is written beside it.
    """

    def drawn(logits: torch.Tensor, rows: Sequence[Row]) -> list[int]:
        return _drawn(logits / temperature, rows)

    rows = [
        Row(number, prompt, chance=random.Random(f"{seed}:{number}:{again}"))  # noqa: S311
        for number, prompt in enumerate(prompts)
        for again in range(samples)
    ]
    _write(tuned, head, _Course(rows, drawn, stops, limit, done), where)
    return [[row.answer for row in rows[begin : begin + samples]] for begin in range(0, len(rows), samples)]


def _likeliest(logits: torch.Tensor, rows: Sequence[Row]) -> list[int]:
    found: list[int] = logits.argmax(-1).tolist()
    return found


def _drawn(logits: torch.Tensor, rows: Sequence[Row]) -> list[int]:
    """The token at which the summed probability passes a random number: one number for a token, whoever else is drawn."""
    found: list[int] = []
    for begin in range(0, len(rows), DRAWN):
        sums = torch.softmax(logits[begin : begin + DRAWN], -1, dtype=torch.float64).cumsum(-1)
        chances = [row.chance.random() if row.chance else 0.5 for row in rows[begin : begin + DRAWN]]
        wanted = torch.tensor(chances, dtype=torch.float64, device=sums.device)[:, None] * sums[:, -1:]
        found += torch.searchsorted(sums, wanted, right=True).clamp_(max=sums.shape[1] - 1)[:, 0].tolist()
    return found


def _write(tuned: Any, head: loss.Head, course: _Course, where: torch.device) -> None:
    """Writes all answers."""
    if not course.rows:
        return
    found = None if head.weight is None else decoding.of(model.decoder(tuned), where)
    if found is None:
        _write_plainly(tuned, head, course, where)
        return
    try:
        _write_together(found, lora.active(tuned), head, course)
    finally:
        found.end()


# -- by the trainer's own passes --


def _write_together(passes: decoding.Decoding, adapted: bool, head: loss.Head, course: _Course) -> None:
    prefix = _shared([row.prompt for row in course.rows])
    passes.begin(course.rows[0].prompt[:prefix], adapted)
    longest = max(len(row.prompt) for row in course.rows) - prefix + course.limit
    # The longest first: neighbours are of one length, and what memory holds is known early.
    waiting = collections.deque(sorted(course.rows, key=lambda row: (-len(row.prompt), row.number)))
    active: list[Row] = []
    while waiting or active:
        signals.check()
        if fresh := _next(passes, waiting, len(active), prefix, course.limit):
            room = max(_room(row, prefix, course.limit) for row in fresh)
            states = passes.enter([row.ids[prefix:] for row in fresh], room)
            going = course.take(_logits(head, states), fresh)
            stay = [*range(len(active)), *(len(active) + place for place in going)]
            active += fresh
        else:
            room = passes.room
            if passes.longest == room:
                room = min(longest, room + room // 2)
                for _ in range(len(active) - passes.places(room)):
                    waiting.appendleft(active.pop())
                passes.keep(list(range(len(active))))
            stay = course.take(_logits(head, passes.step([row.answer[-1] for row in active], room)), active)
        if len(stay) < len(active):
            active = [active[place] for place in passes.keep(stay)]


@torch.no_grad()
def _logits(head: loss.Head, states: torch.Tensor) -> torch.Tensor:
    """[n, vocabulary] in float32, in memory that is used again: what is that large is slow to take anew at each step."""
    if head.weight is None or head.memory is None:
        return head.logits(states)
    count, padded = len(states), kv_cache.even(len(states), decoding.STEP)
    hidden = head.memory.take("answers", padded, states.shape[1])
    hidden[:count] = states
    logits = head.memory.take("answers logits", padded, len(head.weight))
    torch.mm(hidden, head.weight.t(), out=logits)
    if head.bias is not None:
        logits += head.bias
    found = head.memory.take("answers float32", count, len(head.weight), dtype=torch.float32).copy_(logits[:count])
    return found if head.softcap is None else found.div_(head.softcap).tanh_().mul_(head.softcap)


def _next(
    passes: decoding.Decoding, waiting: collections.deque[Row], active: int, prefix: int, limit: int
) -> list[Row]:
    """The rows that begin now, taken from those that wait."""
    if not waiting:
        return []
    places = passes.places(max(_room(row, prefix, limit) for row in waiting))
    free = places - active
    if free < 1 or (active and free < len(waiting) and free * REFILL < places):
        return []
    return [waiting.popleft() for _ in range(min(free, len(waiting)))]


def _room(row: Row, prefix: int, limit: int) -> int:
    """Own tokens for which a row takes memory when it begins."""
    return len(row.prompt) - prefix + min(len(row.answer) + AHEAD, limit)


def _shared(prompts: list[list[int]]) -> int:
    """Tokens that all prompts begin with, as far as they are worth holding once; the last token is each row's own."""
    one, other = min(prompts), max(prompts)
    count = min(map(len, prompts)) - 1
    found = next((place for place in range(count) if one[place] != other[place]), count)
    return found if found >= SHORTEST and len(prompts) > 1 else 0


# -- by transformers --


def _write_plainly(tuned: Any, head: loss.Head, course: _Course, where: torch.device) -> None:
    order = sorted(course.rows, key=lambda row: (len(row.prompt), row.number))
    while order:
        longest, count = 0, 0
        for row in order:
            longest = max(longest, len(row.prompt))
            if count and (longest + course.limit) * (count + 1) > CACHED[where.type]:
                break
            count += 1
        _batch(tuned, head, order[:count], course, where)
        order = order[count:]


@torch.inference_mode()
def _batch(tuned: Any, head: loss.Head, rows: list[Row], course: _Course, where: torch.device) -> None:
    import transformers

    longest = max(len(row.prompt) for row in rows)
    spare = [longest - len(row.prompt) for row in rows]
    ids = torch.tensor([[0] * left + row.prompt for left, row in zip(spare, rows, strict=True)], device=where)
    mask = torch.tensor(
        [[0] * left + [1] * len(row.prompt) for left, row in zip(spare, rows, strict=True)], device=where
    )
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    held = transformers.DynamicCache(config=tuned.config.get_text_config())
    while rows:
        signals.check()
        kept = course.take(_last(tuned, head, ids, mask, positions, held), rows)
        if len(kept) < len(rows):
            rows = [rows[place] for place in kept]
            if not rows:
                break
            chosen = torch.tensor(kept, device=where)
            held.batch_select_indices(chosen)
            mask, positions = mask[chosen], positions[chosen]
        ids = torch.tensor([row.answer[-1:] for row in rows], device=where)
        mask = torch.cat([mask, mask.new_ones(len(rows), 1)], 1)
        positions = positions[:, -1:] + 1


def _last(
    tuned: Any, head: loss.Head, ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, cache: Any
) -> torch.Tensor:
    """Logits of the next token, for each row."""
    inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": positions, "past_key_values": cache}
    if head.weight is None:
        logits: torch.Tensor = tuned(**inputs, use_cache=True).logits[:, -1].float()
        return logits
    return head.logits(model.decoder(tuned)(**inputs, use_cache=True).last_hidden_state[:, -1])
