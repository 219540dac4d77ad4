"""What both sides train with, number for number. Where a side's own default differs, it is told; see `peers`.

Everything else (loops, kernels, precision of the frozen base, micro-batches, padding) is each side's own affair.
"""

import math

RANK, ALPHA, DROPOUT = 16, 32, 0.0
LEARNING_RATE = 2e-4
BATCH = 16
"""Examples of an optimizer step."""
CLIP, WEIGHT_DECAY = 1.0, 0.0
MAXIMUM_LENGTH = 2048
"""Tokens; no example comes near, so that nothing is cut."""
SEED = 42


def learning_rates(steps: int) -> list[float]:
    """The rate of each step: the product's schedule, a rise over 5 % of the steps, then half a cosine to a tenth."""
    warm = max(1, round(0.05 * steps))
    rates = []
    for step in range(steps):
        along = min(1.0, max(0, step - warm) / max(1, steps - 1 - warm))
        share = (step + 1) / warm if step < warm else 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * along))
        rates.append(LEARNING_RATE * share)
    return rates
