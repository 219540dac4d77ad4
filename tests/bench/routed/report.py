"""The page: what was seen, and whether it is as it should be. Pure."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from bench.routed import program, shares
from support import machine
from support.site import Job, condition

LEVEL = 0.001
"""Shares that are less likely by chance are wrong."""


@dataclasses.dataclass(frozen=True)
class Finding:
    what: str
    seen: str
    passed: bool


def share(rollout: str, seen: shares.Share) -> Finding:
    wanted = ", ".join(f"{weight} %" for weight in seen.weights.values())
    total = sum(seen.answers.values())
    parts = [f"{count} ({100 * count / total:.1f} %) by {name}" for name, count in seen.answers.items() if total]
    text = f"{total} answers in {seen.seconds:.0f} s: {', '.join(parts)}"
    chance = f"; p = {seen.chance:.2g}" if len(seen.weights) > 1 else ""
    return Finding(f"{rollout}: weights {wanted}", text + chance, seen.chance >= LEVEL and total > 0)


def streamed(events: Sequence[float]) -> Finding:
    """`events`: seconds until each came."""
    text = f"{len(events)} events"
    if events:
        text += f", the first after {events[0]:.2f} s, the last after {events[-1]:.2f} s"
    return Finding("a streamed answer there", text, len(events) > 3 and events[0] < events[-1])


def weights(rollout: str, seen: Sequence[shares.Share], steps: Sequence[int] | None) -> Finding:
    """`steps`: the shares of the new revision that a promoted rollout goes through; None: of one that goes back."""
    found = [list(one.weights.values()) for one in seen]
    text = " → ".join("/".join(map(str, one)) for one in found)
    if steps is None:
        back = len(found) >= 3 and found[-1] == [100] and seen[0].weights == seen[-1].weights
        return Finding(f"{rollout}: the route's weights, in order", text, back)
    wanted = [[100], *([100 - step, step] for step in steps), [100]]
    new = seen[0].weights != seen[-1].weights
    return Finding(f"{rollout}: the route's weights, in order", text, found == wanted and new)


def look(rollout: str, number: int, seen: dict[str, Any]) -> Finding:
    """A comparison of the operator's, from vLLM's metrics."""
    first = seen["findings"][0]
    text = f"step {seen['step']}, {seen['requests']} requests of the new revision: {first['seen']} (p = {first['p']})"
    return Finding(f"{rollout}: comparison {number}", text, seen["requests"] > 0)


def end(rollout: str, job: Job, *, promoted: bool) -> Finding:
    state = job["status"]
    if promoted:
        text = f"Deployed: {condition(job, 'Deployed').get('message', '')}"
        return Finding(f"{rollout}: its end", text, state["deployment"]["revision"] == state["revision"])
    failed = condition(job, "Failed")
    text = f"Failed, {failed.get('reason')}: {state.get('failure', {}).get('message', '')}"
    return Finding(f"{rollout}: its end", text, failed.get("reason") == "RolledBack")


def page(found: Sequence[Finding]) -> str:
    facts, version = ", ".join(machine.facts().values()), program.version()
    return "\n".join(
        [
            "# A Gateway and Ingress controller in front of the servers",
            "",
            f"Traefik v{version} with the CRDs of Gateway API, on the local node, with vLLM's CPU build and",
            f"the tests' tiny model; {facts}. Written by `make gateway-check`.",
            "",
            "Answers are counted by release in the controller's own log; p: how likely shares this far from the weights are if",
            f"each request goes by them. The first {shares.MARGIN:.0f} s after new weights do not count in the shares, but every",
            "request in them had to be answered. Traefik sends requests to the releases in turns, so that its shares are exact.",
            "",
            "| what | seen | as it should be |",
            "|---|---|---|",
            *(f"| {one.what} | {_cell(one.seen)} | {'yes' if one.passed else '**no**'} |" for one in found),
            "",
        ]
    )


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
