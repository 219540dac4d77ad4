"""Prints the machine's rate of bfloat16 matrix products as JSON: GFLOP/s, by the product's own torch and threads.

The best of several shapes and repetitions: what the machine can do, not what a model gets out of it.
"""

import json
import os
import time

import torch

from finetune_trainer.process import machine

SIZES = (1024, 2048, 4096)
REPETITIONS = 5


def main() -> None:
    torch.set_num_threads(machine.threads())
    best = 0.0
    for size in SIZES:
        left, right = (torch.randn(size, size).to(torch.bfloat16) for _ in range(2))
        torch.mm(left, right)
        for _ in range(REPETITIONS):
            begun = time.perf_counter()
            torch.mm(left, right)
            best = max(best, 2 * size**3 / (time.perf_counter() - begun))
    print(json.dumps({"gflops": round(best / 1e9, 1), "threads": torch.get_num_threads(), "torch": torch.__version__}))


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    main()
