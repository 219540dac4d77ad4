"""`make gpu-check`; see the package."""

import argparse
import itertools
import pathlib
import sys

import torch
from tests.bench.gpu import equality, report, speed, together

DOCS = pathlib.Path(__file__).parents[3] / "docs" / "benchmarks"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="make gpu-check", description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0, help="duration of a cell")
    parser.add_argument(
        "--output", type=pathlib.Path, help="folder of gpu.md and gpu.json; default: that of the docs, if on a GPU"
    )
    given = parser.parse_args(arguments)
    on_gpu = torch.cuda.is_available()
    where = torch.device("cuda", 0) if on_gpu else torch.device("cpu")
    device = torch.cuda.get_device_name(where) if on_gpu else "no GPU: everything shrunk, on the CPU"
    rate = speed.matmul_rate(where, 8192 if on_gpu else 256)
    seconds = given.seconds if on_gpu else 0.0
    output = given.output or (DOCS if on_gpu else None)
    checks: list[equality.Check] = []
    cells: list[speed.Cell] = []

    def save() -> None:
        """After each of them, so that what was measured before a crash or the end of a lease stays."""
        if output is not None:
            (output / "gpu.md").write_text(report.text(device, rate, checks, cells))
            (output / "gpu.json").write_text(report.document(device, rate, checks, cells))

    for check in equality.checks(where):
        checks.append(check)
        save()
    both = together.cells(on_gpu=on_gpu, seconds=seconds) if not on_gpu or torch.cuda.device_count() > 1 else ()
    for cell in itertools.chain(speed.cells(where, rate, seconds, shrunk=not on_gpu), both):
        cells.append(cell)
        save()
    print(report.text(device, rate, checks, cells))
    failed = report.failures(checks, cells)
    for text in failed:
        print(f"gpu-check: {text}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
