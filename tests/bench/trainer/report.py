"""trainer.md: the results for people. Pure; every number and every "not ahead" comes from the runs."""

import statistics
from collections.abc import Sequence
from typing import Any

from tests.bench.trainer import course, models, ours, peers, recipe, results, search, workloads

GOALS = {"shared-system": 15.0}
GOAL = 5.0
"""How many times a peer's tokens per second are wanted: where a long prompt is shared, and elsewhere."""
MEMORY = 0.5
"""The share of a peer's memory that is wanted."""

CLOSE = 0.01
"""Final losses this share apart are called equal: both sides round to bfloat16, in different orders."""

AXOLOTL = (
    "- Axolotl 0.19.0 is missing since it does not train without a GPU: in bfloat16 its configuration is refused (it cannot say "
    "`use_cpu`), in float32 the first step asks for an NVIDIA driver."
)

METHOD = """\
## What is the same, and what is not

The same on both sides: model files, examples, the {batch} examples of each optimizer step (those that our seeded shuffle
draws), tokens and learned tokens (counted on both sides and compared; a difference ends the run), LoRA of rank {rank}, alpha
{alpha}, no dropout, on all linear layers, AdamW without weight decay, clipping at {clip:g}, the learning rate of each step
(peak {rate:g}), loss on the assistant's tokens only, divided by the learned tokens of the step. Each run is a process of its own
that starts at the public entry: `finetune-trainer train` with a run file on our side (after `finetune-trainer preflight`, which
is not measured), `SFTTrainer.train()` on TRL's, `run_exp()` on LLaMA-Factory's. TRL has our versions of torch, transformers
and peft, LLaMA-Factory those that it allows.

Not the same: how each side loads, batches, pads, computes and stores. Each side draws its initial adapter from the seed (its
effect is zero at the first step). Our side also does what its users get: a validation on one example after
every step, an adapter that is checked, hashed and stored at the end. The peers read the examples of a step sorted by length, so
that they pad little; LLaMA-Factory gets them as tokens, since its own template learns the line break after an answer too.

- **Tokens per second**: real tokens (no padding; a token that examples share counts for each of them) of all optimizer steps
  but the first two, divided by the time from the end of the second step to the end of the last. The first step is a batch of
  {batch} short chats, the same for all workloads; in the second, the workload's first, both sides make code and buffers.
- **Ratio**: the median over the repetitions of ours divided by the peer's rate of the same repetition; the sides take turns.
- **Memory**: the largest resident set of the process that the kernel saw (`ru_maxrss`), over all repetitions.
- **First step**: from the execution of the process to the end of its first optimizer step: imports, model, data, warm-up batch.
- **Loss**: of the last step's batch, before its update; nats per learned token.
- **Share of the matrix rate**: 4 operations for each weight of the linear layers and token, and 4 for each weight of the output
  head and learned token, divided by the time and by the rate that the machine reached in plain bfloat16 matrix products in
  this run. Tokens that we compute once for many examples count for each example: the share may pass 100 %.

### Why the losses differ

In float32 they do not: on the same examples, at the same rates, TRL and we have the same loss and gradient norm at each step,
to 1e-4 and 1e-3 (`tests/trainer/test_objective.py`; here 5.2947, then 4.7134 on both sides for the first two steps of
`short`). What differs is bfloat16. PEFT, on which the peers are built, adds the adapter's part to an output of the frozen
layer that is rounded already, so that whatever is smaller than half a unit in the last place of that output vanishes. AdamW's
first step is about 1e-4 of the output: on five layers of SmolLM2, 13 to 21 % of it arrived by PEFT's passes and 93 to 105 %
by ours, which round the sum once. So the peers learn more slowly at the beginning, and our losses in bfloat16 are those of
float32: 4.7134, 4.6485, 4.5130, 4.5358 and 4.7134, 4.6495, 4.5124, 4.5325 after the first step of `short`. The larger the
adapter's part becomes, the less of it is lost.
"""


def render(found: results.Results, searched: Sequence[search.Found] = ()) -> str:
    """The whole page; `searched`: what is known of TRL's settings."""
    rows = results.rows(found)
    parts = [
        "# The trainer against its peers",
        "Made by the command below; do not edit. Every single run is in [trainer-runs.json](trainer-runs.json), the rows of the "
        "table in [trainer.json](trainer.json).",
        _surroundings(found),
        *(_table(found, name, rows) for name in models.TITLES if any(row.model == name for row in rows)),
        _behind(found, rows),
        _workloads(found),
        METHOD.format(
            batch=recipe.BATCH, rank=recipe.RANK, alpha=recipe.ALPHA, clip=recipe.CLIP, rate=recipe.LEARNING_RATE
        ).rstrip(),
        _settings(found),
        _searched(searched),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _surroundings(found: results.Results) -> str:
    machine = found.machine
    repetitions = 1 + max((record.repetition for record in found.records), default=0)
    lines = [
        f"- Machine: {machine.model}, {machine.cores} cores, {machine.memory / 2**30:.0f} GiB, {machine.system}; "
        f"{', '.join(machine.instructions) or 'no instruction sets for matrices'}; "
        f"{machine.gflops:.0f} GFLOP/s in bfloat16 matrix products",
        *(
            f"- {side}: {', '.join(f'{name} {version}' for name, version in versions.items())}; Python {machine.python}"
            for side, versions in found.versions.items()
        ),
        f"- Command: `{found.command}`; repetitions: {repetitions}",
    ]
    return "\n".join(lines)


def _table(found: results.Results, model: str, rows: Sequence[results.Row]) -> str:
    head = [
        f"## {models.TITLES[model]}",
        "",
        "| workload | peer | ours, tokens/s | peer's | ratio | ours, MiB | peer's | ours, first step | peer's | ours, loss | "
        "peer's | share of the matrix rate |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        if row.model != model:
            continue
        mine, theirs = _first_steps(found, row)
        head.append(
            f"| {row.workload} | {row.peer} | {row.ours_tokens_per_second:.0f} | {row.peer_tokens_per_second:.0f} "
            f"| **{row.ratio:.1f}x** | {row.ours_peak_mib} | {row.peer_peak_mib} | {mine:.1f} s | {theirs:.1f} s "
            f"| {row.ours_final_loss:.4f} | {row.peer_final_loss:.4f} | {row.share_of_matmul_rate:.0%} |"
        )
    return "\n".join(head)


def _first_steps(found: results.Results, row: results.Row) -> tuple[float, float]:
    """Median seconds to the first step, ours and the peer's."""
    both = results.pairs(found, row.model, row.workload, row.peer)
    mine, theirs = zip(*both, strict=True)
    return statistics.median(one.first_step for one in mine), statistics.median(one.first_step for one in theirs)


def _behind(found: results.Results, rows: Sequence[results.Row]) -> str:
    lines = [f"- {line}" for row in rows for line in shortfalls(found, row)]
    lines += [f"- {one.workload}, {one.model}: {one.side} did not finish: {one.problem}" for one in found.missing]
    lines_ = lines or ["Nowhere: every row reaches the goal."]
    return "\n".join(
        [
            "## Where we are not ahead",
            "",
            f"The goal is {GOAL:g} times the peer's tokens per second, {GOALS['shared-system']:g} times where a system prompt is "
            f"shared, at no more than {MEMORY:.0%} of its memory.",
            "",
            *lines_,
        ]
    )


def shortfalls(found: results.Results, row: results.Row) -> list[str]:
    """What a row misses of the goal, or is behind the peer in; a sentence each."""
    where = f"{row.workload}, {row.model}, {row.peer}"
    goal = GOALS.get(row.workload, GOAL)
    lines_ = []
    if row.ratio < 1:
        lines_.append(f"{where}: slower than the peer, {row.ratio:.2f}x.")
    if row.peer == peers.STANDARD_PATH.name:
        return lines_  # the goals are for peers
    if 1 <= row.ratio < goal:
        lines_.append(f"{where}: {row.ratio:.1f}x instead of {goal:g}x.")
    if row.ours_peak_mib > MEMORY * row.peer_peak_mib:
        lines_.append(f"{where}: {row.ours_peak_mib / row.peer_peak_mib:.0%} of the peer's memory.")
    mine, theirs = _first_steps(found, row)
    if mine > theirs:
        lines_.append(f"{where}: {mine - theirs:.1f} s later at the first step.")
    if abs(row.ours_final_loss - row.peer_final_loss) > CLOSE * row.peer_final_loss:
        lines_.append(f"{where}: the final losses differ, {row.ours_final_loss:.4f} and {row.peer_final_loss:.4f}.")
    return lines_


def _workloads(found: results.Results) -> str:
    """Lengths as they were."""
    lines = [
        "## Workloads",
        "",
        "Chats of sentences that a program wrote from a seed; no two share more than the template's words and what the row says.",
        "",
        "| workload | examples | tokens an example | learned | counted steps |",
        "|---|---|---|---|---|",
    ]
    seen = set()
    for record in found.records:
        if record.side != ours.NAME or (record.workload, record.model) in seen:
            continue
        seen.add((record.workload, record.model))
        counted = slice(course.UNCOUNTED, None)
        tokens, labelled = sum(record.course.tokens[counted]), sum(record.course.labelled[counted])
        steps = len(record.course.tokens) - course.UNCOUNTED
        note = "" if record.model == models.SMALL else f", {record.model}"
        lines.append(
            f"| {record.workload}{note} | {workloads.BY_NAME[record.workload].title} | {tokens / steps / recipe.BATCH:.0f} "
            f"| {labelled / tokens:.0%} | {steps} |"
        )
    return "\n".join(lines)


def _settings(found: results.Results) -> str:
    used = dict.fromkeys(record.side for record in found.records if record.side != ours.NAME)
    lines = ["## Settings of the peers", "", "Beside what is the same on both sides:", ""]
    for name in used:
        peer = peers.BY_NAME[name]
        shown = _text(peer.settings | peer.environment) or "none: its own defaults"
        if peer.long:
            shown += f"; for examples of more than {peers.LONG} tokens {_text(peer.long)}, nearly as fast with far less memory"
        lines.append(f"- **{name}**, {peer.title}: {shown}.")
    lines.append(AXOLOTL)
    return "\n".join(lines)


def _text(settings: dict[str, Any]) -> str:
    return ", ".join(f"`{key}={value}`" for key, value in settings.items())


def _searched(searched: Sequence[search.Found]) -> str:
    if not searched:
        return ""
    lines = [
        "## How TRL's best settings were found",
        "",
        f"On {models.TITLES[models.SMALL]}, one run each (`make bench-trainer ARGS=--search`). What `trl` takes is bold.",
        "",
        "| variant | workload | tokens/s | MiB | loss |",
        "|---|---|---|---|---|",
    ]
    for one in sorted(searched, key=lambda one: (one.workload, -one.tokens_per_second)):
        mark = "**" if search.chosen(one) else ""
        lines.append(
            f"| {mark}{one.variant}{mark} | {one.workload} | {one.tokens_per_second:.0f} | {one.peak_mib} "
            f"| {one.final_loss:.4f} |"
        )
    return "\n".join(lines)
