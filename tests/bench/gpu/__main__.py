"""`make gpu-check`; see the package."""

import argparse
import pathlib
import sys

import torch
from tests.bench.gpu import equality, report, speed, together

DOCS = pathlib.Path(__file__).parents[3] / "docs" / "benchmarks"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="make gpu-check", description=__doc__)
    parser.add_argument("--seconds", type=float, default=8.0, help="duration of a cell")
    parser.add_argument("--output", type=pathlib.Path, default=DOCS, help="folder of gpu.md and gpu.json")
    given = parser.parse_args(arguments)
    on_gpu = torch.cuda.is_available()
    where = torch.device("cuda", 0) if on_gpu else torch.device("cpu")
    device = torch.cuda.get_device_name(where) if on_gpu else "no GPU: everything shrunk, on the CPU"
    rate = speed.matmul_rate(where, 8192 if on_gpu else 256)
    checks = list(equality.checks(where))
    seconds = given.seconds if on_gpu else 0.0
    cells = list(speed.cells(where, rate, seconds, shrunk=not on_gpu))
    if not on_gpu or torch.cuda.device_count() > 1:
        cells += together.cells(on_gpu=on_gpu, seconds=seconds)
    table = report.text(device, rate, checks, cells)
    print(table)
    if on_gpu:
        (given.output / "gpu.md").write_text(table)
        (given.output / "gpu.json").write_text(report.document(device, rate, checks, cells))
    failed = [check.name for check in checks if not check.passed]
    if failed:
        print(f"gpu-check: own passes differ from transformers': {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
