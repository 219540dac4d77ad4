"""Answers: greedy ones, and sampled ones, for many prompts at a time.

`decoding` generates them where it knows the model's family: the prompts' common prefix is read once, a waiting prompt takes the
place of an answer that ends, and where answers outgrow the memory some of them wait. Any other model goes through
transformers: left-padded batches, from which finished rows are removed.
"""

import collections
import dataclasses
import random
from collections.abc import Callable, Sequence
from typing import Any

import torch

from finetune_trainer.engine import decoding, grammar, kv_cache, lora, loss, model
from finetune_trainer.process import signals

CACHED = {"cuda": 65_536, "cpu": 8_192}
"""Positions in the KV cache of one of transformers' batches."""

SHORTEST = 24
"""The shortest common prefix that is stored once for all prompts; a shorter one is part of each row."""

AHEAD = 64
"""Tokens of an answer for which memory is reserved at first; longer ones reserve more as they grow."""

REFILL = 4
"""Prompts wait until one n-th of the places is free: reading a few costs as many calls as reading many."""

DRAWN = 32
"""Rows whose probabilities are summed up at a time."""


@dataclasses.dataclass
class Completion:
    """An answer that is being generated."""

    number: int
    """Of its prompt."""
    prompt: list[int]
    answer: list[int] = dataclasses.field(default_factory=list)
    generator: random.Random | None = None
    """Draws the tokens of a sampled answer."""
    matcher: grammar.Matcher | None = None
    """Knows which tokens may follow, where answers are held to a schema."""

    @property
    def ids(self) -> list[int]:
        return self.prompt + self.answer


Choose = Callable[[torch.Tensor, Sequence[Completion]], list[int]]
"""The next token of each row, from logits [n, vocabulary] in float32."""

Ended = Callable[[list[int]], bool]
"""Whether an answer is over for another reason than a stop token or its length; called after each token."""


@dataclasses.dataclass
class _Run:
    """Answers in progress: how their tokens are chosen, and when they end."""

    rows: list[Completion]
    choose: Choose
    stops: frozenset[int]
    limit: int
    done: Callable[[int], None]
    ended: Ended | None = None
    scale: float = 1.0
    finished: int = 0

    def __post_init__(self) -> None:
        self._open = collections.Counter(row.number for row in self.rows)

    def take(self, logits: torch.Tensor, rows: Sequence[Completion]) -> list[int]:
        """Appends a token to each row; returns the places among `rows` of those that have not ended."""
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
    *,
    scale: float = 1.0,
    rules: grammar.Grammar | None = None,
) -> list[list[int]]:
    """The most likely continuation of each prompt, up to and including the stop token, or until `ended`, at most `limit` tokens.

    `done` is called with the number of prompts answered so far. scale: the share of the usual rows and tokens that is taken at
    once, where memory is short. rules: what answers are held to; one that is cut at `limit` is the beginning of one that
    conforms.
    """
    rows = [
        Completion(number, prompt, matcher=rules.matcher() if rules else None) for number, prompt in enumerate(prompts)
    ]
    _write(tuned, head, _Run(rows, _held(rules, _likeliest), stops, limit, done, ended, scale), where)
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
    scale: float = 1.0,
    rules: grammar.Grammar | None = None,
) -> list[list[list[int]]]:
    """`samples` continuations of each prompt, drawn from the model's probabilities at a temperature above 0. rules: as in
    `greedy`.

    What is drawn depends on the seed and the prompt's place in the list, not on the other prompts.
    """

    def drawn(logits: torch.Tensor, rows: Sequence[Completion]) -> list[int]:
        return _drawn(logits / temperature, rows)

    rows = [
        Completion(
            number,
            prompt,
            generator=random.Random(f"{seed}:{number}:{repetition}"),  # noqa: S311
            matcher=rules.matcher() if rules else None,
        )
        for number, prompt in enumerate(prompts)
        for repetition in range(samples)
    ]
    _write(tuned, head, _Run(rows, _held(rules, drawn), stops, limit, done, scale=scale), where)
    return [[row.answer for row in rows[begin : begin + samples]] for begin in range(0, len(rows), samples)]


def _held(rules: grammar.Grammar | None, choose: Choose) -> Choose:
    """`choose` among the tokens that the rules allow each row."""
    if rules is None:
        return choose

    def chosen(logits: torch.Tensor, rows: Sequence[Completion]) -> list[int]:
        matchers = [row.matcher for row in rows if row.matcher is not None]
        tokens = choose(rules.masked(logits, matchers), rows)
        for matcher, token in zip(matchers, tokens, strict=True):
            matcher.consume_token(token)
        return tokens

    return chosen


def _likeliest(logits: torch.Tensor, rows: Sequence[Completion]) -> list[int]:
    chosen: list[int] = logits.argmax(-1).tolist()
    return chosen


def _drawn(logits: torch.Tensor, rows: Sequence[Completion]) -> list[int]:
    """The token at which the cumulative probability passes a random number: one draw for each token, whatever the batch."""
    chosen: list[int] = []
    for begin in range(0, len(rows), DRAWN):
        sums = torch.softmax(logits[begin : begin + DRAWN], -1, dtype=torch.float64).cumsum(-1)
        draws = [row.generator.random() if row.generator else 0.5 for row in rows[begin : begin + DRAWN]]
        thresholds = torch.tensor(draws, dtype=torch.float64, device=sums.device)[:, None] * sums[:, -1:]
        chosen += torch.searchsorted(sums, thresholds, right=True).clamp_(max=sums.shape[1] - 1)[:, 0].tolist()
    return chosen


def _write(tuned: Any, head: loss.Head, run: _Run, where: torch.device) -> None:
    """Generates all answers."""
    if not run.rows:
        return
    chosen = None if head.weight is None else decoding.of(model.decoder(tuned), where)
    if chosen is None:
        _write_plainly(tuned, head, run, where)
        return
    try:
        _write_together(chosen, lora.active(tuned), head, run)
    finally:
        chosen.end()


# -- by the trainer's own engine --


def _write_together(engine: decoding.Decoding, adapted: bool, head: loss.Head, run: _Run) -> None:
    prefix = _common_prefix([row.prompt for row in run.rows])
    engine.begin(run.rows[0].prompt[:prefix], adapted, run.scale)
    longest = max(len(row.prompt) for row in run.rows) - prefix + run.limit
    # The longest first: neighbours have similar lengths, and a lack of memory shows early.
    waiting = collections.deque(sorted(run.rows, key=lambda row: (-len(row.prompt), row.number)))
    active: list[Completion] = []
    while waiting or active:
        signals.check()
        if fresh := _next(engine, waiting, len(active), prefix, run.limit):
            room = max(_room(row, prefix, run.limit) for row in fresh)
            states = engine.enter([row.ids[prefix:] for row in fresh], room)
            going = run.take(_logits(head, states), fresh)
            stay = [*range(len(active)), *(len(active) + place for place in going)]
            active += fresh
        else:
            room = engine.room
            if engine.longest == room:
                room = min(longest, room + room // 2)
                for _ in range(len(active) - engine.places(room)):
                    waiting.appendleft(active.pop())
                engine.keep(list(range(len(active))))
            stay = run.take(_logits(head, engine.step([row.answer[-1] for row in active], room)), active)
        if len(stay) < len(active):
            active = [active[place] for place in engine.keep(stay)]


@torch.no_grad()
def _logits(head: loss.Head, states: torch.Tensor) -> torch.Tensor:
    """[n, vocabulary] in float32, in reused memory: tensors this large are slow to allocate at each step."""
    if head.weight is None or head.memory is None:
        return head.logits(states)
    count, padded = len(states), kv_cache.even(len(states), decoding.STEP)
    hidden = head.memory.take("answers", padded, states.shape[1])
    hidden[:count] = states
    logits = head.memory.take("answers logits", padded, len(head.weight))
    torch.mm(hidden, head.weight.t(), out=logits)
    if head.bias is not None:
        logits += head.bias
    chosen = head.memory.take("answers float32", count, len(head.weight), dtype=torch.float32).copy_(logits[:count])
    return chosen if head.softcap is None else chosen.div_(head.softcap).tanh_().mul_(head.softcap)


def _next(
    engine: decoding.Decoding, waiting: collections.deque[Completion], active: int, prefix: int, limit: int
) -> list[Completion]:
    """The rows that start now, taken from the waiting ones."""
    if not waiting:
        return []
    places = engine.places(max(_room(row, prefix, limit) for row in waiting))
    free = places - active
    if free < 1 or (active and free < len(waiting) and free * REFILL < places):
        return []
    return [waiting.popleft() for _ in range(min(free, len(waiting)))]


def _room(row: Completion, prefix: int, limit: int) -> int:
    """Own tokens for which a row reserves memory when it starts."""
    return len(row.prompt) - prefix + min(len(row.answer) + AHEAD, limit)


def _common_prefix(prompts: list[list[int]]) -> int:
    """Tokens of the prompts' common prefix, 0 where it is too short; a prompt's last token is never part of it."""
    one, other = min(prompts), max(prompts)
    count = min(map(len, prompts)) - 1
    chosen = next((place for place in range(count) if one[place] != other[place]), count)
    return chosen if chosen >= SHORTEST and len(prompts) > 1 else 0


# -- by transformers --


def _write_plainly(tuned: Any, head: loss.Head, run: _Run, where: torch.device) -> None:
    order = sorted(run.rows, key=lambda row: (len(row.prompt), row.number))
    while order:
        longest, count = 0, 0
        for row in order:
            longest = max(longest, len(row.prompt))
            if count and (longest + run.limit) * (count + 1) > run.scale * CACHED[where.type]:
                break
            count += 1
        _batch(tuned, head, order[:count], run, where)
        order = order[count:]


@torch.inference_mode()
def _batch(tuned: Any, head: loss.Head, rows: list[Completion], run: _Run, where: torch.device) -> None:
    import transformers

    longest = max(len(row.prompt) for row in rows)
    padding = [longest - len(row.prompt) for row in rows]
    ids = torch.tensor([[0] * left + row.prompt for left, row in zip(padding, rows, strict=True)], device=where)
    mask = torch.tensor(
        [[0] * left + [1] * len(row.prompt) for left, row in zip(padding, rows, strict=True)], device=where
    )
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    cache = transformers.DynamicCache(config=tuned.config.get_text_config())
    while rows:
        signals.check()
        going = run.take(_last(tuned, head, ids, mask, positions, cache), rows)
        if len(going) < len(rows):
            rows = [rows[place] for place in going]
            if not rows:
                break
            chosen = torch.tensor(going, device=where)
            cache.batch_select_indices(chosen)
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
