"""Whether a new revision answers worse than the former one, from the traffic of both: pure, exact where that is possible.

    Traffic of each pod -> their sum (new, old) -> one one-sided test for each measure -> Holm over the measures -> what is worse

Shares (errors, requests that clients gave up, empty and cut answers, invalid JSON) by Fisher's exact test; durations by a rank
test (Wilcoxon, Mann, Whitney) on the histograms, against the old revision's slowed down by a margin. A share must also be higher
by a relevant amount.

Whoever looks often enough finds something: the looks of one rollout are numbered, and look k has the level LEVEL / (k (k + 1)),
which add up to LEVEL. So a revision that answers like the former one is rolled back in at most LEVEL of all rollouts, however
long they take. See docs/adr/0051-rollout-by-evidence.md.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence

from finetune_api import serving, status

LEVEL = 0.05
"""Share of the rollouts of an equal revision that may be rolled back by chance, over all measures, steps and looks."""
FIRST_LOOK = 10
"""Requests of the new revision before the first look: below, no test can find anything."""
GROWTH = 1.5
"""The next look is at this many times the requests of the one before."""
FEWEST_DURATIONS = 10
"""On each side, for the normal approximation of the rank test."""


@dataclasses.dataclass(frozen=True)
class Rules:
    """What counts as worse. `margin`: a revision that takes this many times as long is still as good. `relevant`: a share that is
    higher by less than this is no reason to go back, however certain it is. `answers`: whether their content is compared."""

    margin: float
    relevant: float
    answers: bool
    empty: bool = True
    """Whether empty answers are counted."""


IN_STEPS = Rules(margin=1.25, relevant=0.01, answers=True)
"""Both revisions answer at the same time, on the same pods."""
BY_ENGINE = Rules(margin=2.5, relevant=0.01, answers=True, empty=False)
"""Both answer at the same time, each on servers of its own, counted by vLLM: its histograms' bounds are up to 2.5 times apart, so
that a smaller margin would take the two sides of a bound for slower. It says nothing of what is in an answer."""
AFTERWARDS = Rules(margin=2.0, relevant=0.05, answers=False)
"""The former revision answered at another time, perhaps under another load."""


def text(finding: status.Finding) -> str:
    """A finding in words."""
    return f"{finding.seen} (p {f'{finding.p:.2g}' if finding.p >= 1e-6 else 'below 1e-6'})"


def side(parts: Iterable[serving.Traffic]) -> serving.Counts:
    """The sum over the pods of a pool. A gateway is not trusted to count sensibly: no part is larger than its whole."""
    found = list(parts)
    requests = sum(max(one.requests, 0) for one in found)
    errors = min(sum(max(one.errors, 0) for one in found), requests)
    given_up = [one.abandoned for one in found if one.abandoned is not None]
    abandoned = min(sum(max(number, 0) for number in given_up), requests - errors)
    checked = min(sum(max(one.checked, 0) for one in found), requests)

    def of_answers(numbers: Iterable[int]) -> int:
        return min(sum(max(number, 0) for number in numbers), requests - errors - abandoned)

    return serving.Counts(
        requests=requests,
        errors=errors,
        abandoned=abandoned if len(given_up) == len(found) else None,
        empty=of_answers(one.empty for one in found),
        cut=of_answers(one.cut for one in found),
        checked=checked,
        invalid=min(sum(max(one.invalid, 0) for one in found), checked),
        seconds=_summed(one.seconds for one in found),
        first_token=_summed(one.first_token for one in found),
    )


def total(parts: Sequence[serving.Traffic]) -> serving.Traffic | None:
    """The sum of one revision's traffic; None: nothing was counted."""
    if not parts:
        return None
    since = min(one.since for one in parts)
    return parts[0].model_copy(update={**dict(side(parts)), "since": since, "prompt_tokens": 0, "answer_tokens": 0})


def _summed(histograms: Iterable[serving.Histogram]) -> serving.Histogram:
    total = [0] * (len(serving.BOUNDS) + 1)
    for histogram in histograms:
        for index, count in enumerate(histogram.counts[: len(total)]):
            total[index] += max(count, 0)
    return serving.Histogram(counts=total)


# -- when to look, and at which level --


def due(requests: int, looked: int) -> bool:
    """Whether the requests since the step began are enough for another look; `looked`: those at the last look of this step."""
    return requests >= (max(FIRST_LOOK, math.ceil(looked * GROWTH)) if looked else FIRST_LOOK)


def level(look: int) -> float:
    """The level of the look-th look of a rollout, from 1."""
    return LEVEL / (look * (look + 1))


# -- the tests --


def findings(new: serving.Counts, old: serving.Counts, rules: Rules = IN_STEPS) -> list[status.Finding]:
    """Every measure with the p-value of "the new revision is not worse", adjusted by Holm, the smallest first."""
    tests = [test for test in (*_shares(new, old, rules), *_durations(new, old, rules)) if test is not None]
    found, before = list[status.Finding](), 0.0
    for place, test in enumerate(sorted(tests, key=lambda one: one.p)):
        before = max(before, min(1.0, test.p * (len(tests) - place)))
        found.append(test.model_copy(update={"p": float(f"{before:.4g}")}))
    return found


def worse(found: Sequence[status.Finding], at: float) -> list[status.Finding]:
    """What is shown at this level."""
    return [one for one in found if one.p <= at]


def _shares(new: serving.Counts, old: serving.Counts, rules: Rules) -> Iterator[status.Finding | None]:
    def share(measure: str, bad: int, of: int, bad_before: int, before: int) -> status.Finding | None:
        """None where one side has not been measured."""
        if not of or not before:
            return None
        now, then = bad / of, bad_before / before
        p = fisher(bad, of, bad_before, before) if now >= then + rules.relevant else 1.0
        return status.Finding(p=p, seen=f"{measure}: {now:.1%} of {of}, former {then:.1%} of {before}")

    now, then = new.abandoned, old.abandoned
    if (now is None) == (
        then is None
    ) or rules.answers:  # else gateways of another version counted the former revision's
        yield share("errors", new.errors, new.requests, old.errors, old.requests)
    if now is not None and then is not None and now + then:  # without any, it would only make the others need more
        yield share("requests that clients gave up", now, new.requests, then, old.requests)
    if rules.answers:
        if rules.empty:
            yield share("empty answers", new.empty, new.answers, old.empty, old.answers)
        yield share("answers cut at the limit of tokens", new.cut, new.answers, old.cut, old.answers)
        yield share("answers that do not fit outputSchema", new.invalid, new.checked, old.invalid, old.checked)


def fisher(bad: int, of: int, bad_before: int, before: int) -> float:
    """Fisher's exact test, one-sided: the probability of at least `bad` of `of`, with the sums given, if both sides are equal."""
    total, marked = of + before, bad + bad_before
    last = min(of, marked)
    first = max(bad, of - (total - marked))
    if bad <= max(0, of - (total - marked)):
        return 1.0
    term = math.exp(_choose(marked, first) + _choose(total - marked, of - first) - _choose(total, of))
    tail = 0.0
    for x in range(first, last + 1):
        tail += term
        if x == last:
            break
        ratio = (marked - x) * (of - x) / ((x + 1) * (total - marked - of + x + 1))
        term *= ratio
        if ratio < 1 and term < tail * 1e-15:
            break
    return min(tail, 1.0)


def _choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def _durations(new: serving.Counts, old: serving.Counts, rules: Rules) -> Iterator[status.Finding | None]:
    def duration(measure: str, new: Sequence[float], old: Sequence[float]) -> status.Finding | None:
        if sum(new) < FEWEST_DURATIONS or sum(old) < FEWEST_DURATIONS:
            return None
        p, now, then = ranks(new, slowed(old, rules.margin)), median(new), median(old)
        return status.Finding(p=p, seen=f"{measure}: {now:.2g} s in the median of {sum(new):.0f}, former {then:.2g} s")

    yield duration("time of an answer", new.seconds.counts, old.seconds.counts)
    yield duration("time to the first token", new.first_token.counts, old.first_token.counts)


def ranks(new: Sequence[float], old: Sequence[float]) -> float:
    """The rank test, one-sided: the probability of durations that are longer than `old` by this much, if both sides are equal.
    Normal approximation with the correction for ties, which are the values of one interval of the histogram; exact tails are
    thinner, so that it errs towards "not shown"."""
    n, m = sum(new), sum(old)
    total = n + m
    below = wins = ties = 0.0
    for a, b in zip(new, old, strict=True):
        wins += a * (below + b / 2)
        below += b
        ties += (a + b) ** 3 - (a + b)
    variance = n * m / 12 * (total + 1 - ties / (total * (total - 1)))
    if variance <= 0:
        return 1.0
    z = (wins - n * m / 2 - 0.5) / math.sqrt(variance)
    return math.erfc(z / math.sqrt(2)) / 2


def _edges() -> list[tuple[float, float]]:
    """The intervals of a histogram; the first begins, and the last ends, where the next bound would be."""
    bounds = (serving.BOUNDS[0] / 2, *serving.BOUNDS, serving.BOUNDS[-1] * 2)
    return list(itertools.pairwise(bounds))


EDGES = _edges()


def slowed(counts: Sequence[float], factor: float) -> list[float]:
    """The histogram if everything had taken `factor` times as long; within an interval, equally often at each ratio."""
    moved = [0.0] * len(EDGES)
    for count, (low, high) in zip(counts, EDGES, strict=True):
        if not count:
            continue
        start, end = math.log(low * factor), math.log(high * factor)
        for index, (bottom, top) in enumerate(EDGES):
            above = math.inf if index == len(EDGES) - 1 else math.log(top)
            share = min(end, above) - max(start, math.log(bottom))
            moved[index] += count * max(share, 0.0) / (end - start)
    return moved


def median(counts: Sequence[float]) -> float:
    """Seconds; interpolated within its interval."""
    half, below = sum(counts) / 2, 0.0
    for count, (low, high) in zip(counts, EDGES, strict=True):
        if count and below + count >= half:
            return float(low * (high / low) ** ((half - below) / count))
        below += count
    return 0.0
