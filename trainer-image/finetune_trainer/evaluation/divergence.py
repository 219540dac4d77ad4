"""Divergence: how far the tuned model has moved from the base model, in nats per token.

    KL(tuned || base) = E[log p_tuned(y | x) - log p_base(y | x)], y drawn from the tuned model

The estimate is the mean of that logarithm over answers that the tuned model draws at temperature 1, two for each prompt, divided
by the mean of their tokens. An answer ends after LENGTH tokens at the latest: what is measured is the divergence of the first
LENGTH tokens. Both engines can give it, since it needs samples and the log-probabilities of given tokens, not those of the whole
vocabulary. The sum has no bias; the ratio of two means has one of the order of 1 / n. It varies more than a sum over the
vocabulary would, and an estimate near 0 can be negative: its interval says how far to trust it. Greedy answers would have a bias
that no number of prompts removes.

Shenfeld et al. (arXiv 2509.04259) find that the divergence on the new task's prompts predicts what is forgotten elsewhere. They
take the other direction, KL(base || tuned), on the base model's answers; ours needs only the tuned model's, which are short
where the task's are.
"""

from collections.abc import Sequence

import numpy as np

from finetune_api import job
from finetune_trainer.data import dataset, tokens
from finetune_trainer.evaluation import answers, contenders, engines, evidence

DRAWN = job.Consistency(samples=2, temperature=1.0)
"""How answers are drawn."""

PROMPTS = {job.EvaluationEngine.SERVER: 48, job.EvaluationEngine.IN_PROCESS: 12}
"""How many prompts get some, by what answers: a CPU draws slowly."""

LENGTH = 32
"""Tokens of an answer, at most."""


def measure(runner: answers.ModelRunner, examples: Sequence[dataset.Example], seed: int) -> evidence.Column | None:
    """The divergence on the prompts of some of these examples, drawn by the seed; None where none has a prompt."""
    asked = [example for example in examples if example.answer is not None]
    prompts = [runner.encoder.prompt(one) for one in contenders.choose(asked, PROMPTS[runner.engine.kind], seed)]
    return of_prompts(runner.engine, prompts, runner.encoder.stops, DRAWN, seed) if prompts else None


def of_prompts(
    engine: engines.Engine, prompts: Sequence[list[int]], stops: frozenset[int], rules: job.Consistency, seed: int
) -> evidence.Column:
    """A row for each prompt: the sum of the log-ratios of its answers, and their tokens."""
    drawn = engine.sample(job.Contender.TUNED, prompts, engines.Ending(stops, LENGTH), rules, seed)
    encoded = [
        tokens.Encoded([*prompt, *answer], [False] * len(prompt) + [True] * len(answer))
        for prompt, several in zip(prompts, drawn, strict=True)
        for answer in several
    ]
    tuned, base = (
        np.array([total for total, _ in engine.likelihoods(which, encoded)])
        for which in (job.Contender.TUNED, job.Contender.BASE)
    )
    counts = np.array([one.trainable for one in encoded], dtype=np.float64)
    parts = np.stack([tuned - base, counts], 1).reshape(len(prompts), -1, 2).sum(1)
    return evidence.Column(parts, evidence.ratio, parts[:, 1] > 0)
