"""The page: what was seen, and whether it is as it should be. Pure."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

from bench.scale import watch
from support import machine


@dataclasses.dataclass(frozen=True)
class Finding:
    what: str
    seen: str
    passed: bool


def course(seen: watch.Seen) -> str:
    """1 → 2 (after 9 s) → 3 (after 130 s)"""
    first, *others = watch.course(seen)
    return " → ".join([str(first[1]), *(f"{count} (after {at:.0f} s)" for at, count in others)])


def scaled(what: str, seen: watch.Seen, wanted: Sequence[int], pauses: float = 0) -> Finding:
    """`wanted`: the replicas, in order; `pauses`: seconds that a change comes at least after the one before."""
    found = watch.course(seen)
    steps = [after - before for (before, _), (after, _) in itertools.pairwise(found)][1:]
    passed = [count for _, count in found] == list(wanted) and all(step >= pauses for step in steps)
    return Finding(what, f"replicas {course(seen)}", passed)


def lowered(what: str, seen: watch.Seen, most: int, least: int) -> Finding:
    """From `most` replicas to `least`, in any steps down: the last requests are answered one after the other."""
    counts = [count for _, count in watch.course(seen)]
    passed = (counts[0], counts[-1], seen[-1][1].servers) == (most, least, least)
    passed = passed and counts == sorted(counts, reverse=True)
    return Finding(what, f"replicas {course(seen)}", passed)


def steady(what: str, seen: watch.Seen, seconds: float) -> Finding:
    """Nobody edits the pool, and the Deployment follows it."""
    edits = seen[-1][1].generation - seen[0][1].generation
    followed = all(look.servers == look.wanted for _, look in seen)
    text = f"for {seconds:.0f} s: replicas {course(seen)}, {edits} edits of the pool's spec"
    return Finding(what, text, edits == 0 and followed)


def untouched(autoscaler: int, others: Mapping[str, int], changes: int) -> Finding:
    """Writes of the pool's scale by the HPA controller, and of its spec by anybody else; `changes` of replicas were seen."""
    made = {"the HPA controller": autoscaler} | others
    text = ", ".join(f"{count} by {who}" for who, count in made.items()) + f"; {changes} changes of replicas"
    return Finding("writes of the pool's spec until then", text, sum(made.values()) == autoscaler == changes)


def asleep(seen: watch.Seen, seconds: float) -> Finding:
    last = seen[-1][1]
    still = all(look.asleep and look.servers == 0 for _, look in seen)
    edits = last.generation - seen[0][1].generation
    text = f"for {seconds:.0f} s: {'no server' if still else 'servers'}, {edits} edits of the pool's spec, "
    text += f"spec.replicas {last.wanted}; the HPA's ScalingActive: {last.active}"
    return Finding("the pool sleeps", text, still and edits == 0 and last.active.startswith("False"))


def page(found: Sequence[Finding], versions: Mapping[str, str], command: str, about: str) -> str:
    facts, named = ", ".join(machine.facts().values()), ", ".join(f"{name} {text}" for name, text in versions.items())
    return "\n".join(
        [
            "# A real autoscaler of a ServingPool",
            "",
            f"{named}; {facts}. Written by `{command}`.",
            "",
            about,
            "",
            "| what | seen | as it should be |",
            "|---|---|---|",
            *(f"| {one.what} | {_cell(one.seen)} | {'yes' if one.passed else '**no**'} |" for one in found),
            "",
        ]
    )


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
