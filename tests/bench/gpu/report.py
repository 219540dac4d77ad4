"""docs/benchmarks/gpu.md and gpu.json, from checks and cells."""

import dataclasses
import json
from collections.abc import Sequence

from tests.bench.gpu import equality, speed


def document(device: str, rate: float, checks: Sequence[equality.Check], cells: Sequence[speed.Cell]) -> str:
    found = {
        "device": device,
        "matmul": rate,
        "checks": [{**dataclasses.asdict(one), "passed": one.passed} for one in checks],
        "cells": [dataclasses.asdict(one) for one in cells],
    }
    return json.dumps(found, indent=1) + "\n"


def text(device: str, rate: float, checks: Sequence[equality.Check], cells: Sequence[speed.Cell]) -> str:
    lines = [
        "# The trainer on a GPU",
        "",
        f"{device}; {rate / 1e12:.1f} TFLOP/s in bfloat16 matrix products. Random weights; LoRA of rank 16 on all linear layers, "
        "bfloat16. Written by `make gpu-check`.",
        "",
        "| model | workload | engine | tokens/s | of the matrix rate | peak, GiB | estimated, GiB | first step, s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for cell in cells:
        speed_of = _in_a_cell(cell.fault) or f"{cell.tokens_per_second:,.0f}"
        engine = cell.engine + (", with gradient checkpointing" if cell.checkpointing else "")
        lines.append(
            f"| {cell.model} | {cell.workload} | {engine} | {speed_of} | "
            f"{cell.share_of_matmul_rate:.0%} | {cell.peak / 2**30:.1f} | {cell.estimated / 2**30:.1f} | "
            f"{cell.seconds_to_first_step:.1f} |"
        )
    lines += [
        "",
        "Own passes against autograd through transformers in float32, loss and gradients. The bound in bfloat16 is twice what "
        "autograd differs there:",
        "",
    ]
    lines += ["| check | difference | bound | |", "|---|---|---|---|"]
    for check in checks:
        verdict = "ok" if check.passed else f"FAILS {_in_a_cell(check.fault)}".strip()
        lines.append(f"| {check.name} | {check.difference:.1e} | {check.bound:.1e} | {verdict} |")
    return "\n".join(lines) + "\n"


def failures(checks: Sequence[equality.Check], cells: Sequence[speed.Cell]) -> list[str]:
    """What the exit code stands for: too little memory and a peer's exception do not count."""
    found = [f"{one.name}: {one.fault or f'differs by {one.difference:.1e}'}" for one in checks if not one.passed]
    return found + [f"{one.model}, {one.workload}, {one.engine}: {one.fault}" for one in cells if not one.allowed]


def _in_a_cell(text: str) -> str:
    return " ".join(text.replace("|", "/").split())
