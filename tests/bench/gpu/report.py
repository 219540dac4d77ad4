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
        speed_of = f"{cell.tokens_per_second:,.0f}" if cell.tokens_per_second else "out of memory"
        lines.append(
            f"| {cell.model} | {cell.workload} | {cell.engine} | {speed_of} | "
            f"{cell.share_of_matmul_rate:.0%} | {cell.peak / 2**30:.1f} | {cell.estimated / 2**30:.1f} | "
            f"{cell.seconds_to_first_step:.1f} |"
        )
    lines += ["", "Own passes against autograd through transformers, loss and gradients:", ""]
    lines += ["| check | difference | bound | |", "|---|---|---|---|"]
    for check in checks:
        lines.append(
            f"| {check.name} | {check.difference:.1e} | {check.bound:.0e} | {'ok' if check.passed else 'FAILS'} |"
        )
    return "\n".join(lines) + "\n"
