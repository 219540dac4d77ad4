"""`make gpu-check`: what the trainer does on a GPU, in one command, with random weights made on the device.

    models     models in the catalogue's shapes, plain or in 4 bits, with an adapter
    equality   the trainer's own passes against autograd through transformers, on this very device
    speed      cells of a few seconds: tokens per second, peak memory against the estimate
    peers      TRL on the same rows, with liger-kernel where it is installed
    together   two processes on two GPUs: the whole base model in each, and sharded
    report     docs/benchmarks/gpu.md and gpu.json

Without a GPU everything runs shrunk on the CPU, and nothing is written: so it does not rot, and shows nothing about GPUs.
"""
