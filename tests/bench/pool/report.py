"""The page."""

import os
from collections import Counter

from bench.pool.adapters import RANK
from bench.pool.clients import Tally
from bench.pool.fleet import IN_MEMORY, ON_GPU

CLIENTS = 12


def report(
    count: int,
    tally: Tally,
    done: Counter[str],
    seconds: float,
    deliveries: tuple[int, float],
    releases: list[float],
    sizes: tuple[int, int],
    firsts: tuple[float, float],
) -> str:
    times = sorted(tally.seconds)
    gone = sum(number for status, number in tally.refused.items() if status < 0)
    away = sum(number for status, number in tally.refused.items() if status >= 0)
    alone, full = (size / 2**20 for size in sizes)
    rows = [
        ("wrong answers", f"**{len(tally.wrong)}** of {tally.answers:,}"),
        ("requests that were refused while the engine or the pod was away", f"{away:,}"),
        ("requests for a name that had just been removed, refused", f"{gone:,}"),
        ("adapters that came, changed, went meanwhile", f"{done['came']}, {done['changed']}, {done['went']}"),
        ("engine killed; pod deleted", f"{done['engine killed']}; {done['pod deleted']}"),
        (f"time for the requests, {CLIENTS} clients at once", f"{seconds:.0f} s"),
        ("answer of 8 tokens, p50, p95", f"{times[len(times) // 2]:.2f} s, {times[int(len(times) * 0.95)]:.2f} s"),
        (
            f"new release of an evaluated revision to verified and served, {len(releases)} times, p50, longest",
            f"{releases[len(releases) // 2]:.1f} s, {releases[-1]:.1f} s",
        ),
        (f"{deliveries[0]} deliveries, 6 at once, to ready in the engine", f"{deliveries[1]:.0f} s"),
        (
            "first byte, adapter in memory; adapter that had left it",
            f"{firsts[0] * 1000:.0f} ms; {firsts[1] * 1000:.0f} ms",
        ),
        (f"memory of the pod with 1 adapter, with {count}", f"{alone:.0f} MiB, {full:.0f} MiB"),
        (
            f"the same with {count} dedicated servers, each as the pod with one adapter",
            f"{alone * count / 1024:,.0f} GiB",
        ),
    ]
    lines = [
        "# Many adapters on one pod",
        "",
        f"A ServingPool with one replica on the real node, vLLM's CPU build, {os.cpu_count()} cores, the tests' tiny model, "
        f"{count} adapters of rank {RANK}; onGpu {ON_GPU}, inMemory {IN_MEMORY}; in float32. Written by `make bench-pool`.",
        "",
        "| what | seen |",
        "|---|---|",
        *(f"| {what} | {seen} |" for what, seen in rows),
        "",
        *(f"- wrong: {one}" for one in tally.wrong[:20]),
    ]
    return "\n".join(lines).rstrip() + "\n"
