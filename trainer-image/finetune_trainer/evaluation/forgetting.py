"""Forgetting: general questions that the training is not about, asked before and after in the same way.

The questions that ship with the trainer are easy enough for small models; each has four answers. The job's own
(evaluation.forgetting.uris) are examples in any format of dataset.train, of which only the loss is measured.
"""

import dataclasses
import json
import pathlib
from collections.abc import Sequence

import numpy as np

from finetune_api import job, run
from finetune_trainer.data import dataset, rows
from finetune_trainer.evaluation import contenders, evidence, metrics
from finetune_trainer.process import log
from finetune_trainer.store import storage

BUILT_IN = pathlib.Path(__file__).with_name("forgetting.jsonl")


@dataclasses.dataclass(frozen=True)
class Questions:
    """Questions as examples: for each question one example per answer, the right one first."""

    examples: list[dataset.Example]
    choices: int

    @property
    def questions(self) -> int:
        return len(self.examples) // self.choices

    @property
    def prompts(self) -> list[dataset.Example]:
        """Each question once, with its right answer."""
        return self.examples[:: self.choices]


def load(spec: run.Run, store: storage.Storage) -> Questions:
    """The job's own questions, or those that ship. Raises Failure when a file cannot be read."""
    uris = spec.evaluation.forgetting.uris
    if not uris:
        return built_in()
    examples: list[dataset.Example] = []
    for entry in rows.find(store, uris):
        for one in dataset.parse(rows.read(store, entry.uri), job.Format.AUTO):
            if isinstance(one, rows.Bad):
                log.warning("a row of evaluation.forgetting.uris is left out", source=one.source, problem=one.problem)
            else:
                examples.append(dataclasses.replace(one, rejected=None))
    return Questions(contenders.choose(examples, spec.evaluation.maximum_examples, spec.training.seed), 1)


def built_in() -> Questions:
    examples = []
    with BUILT_IN.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            one = json.loads(line)
            asked = dataset.Message("user", one["question"])
            for answer in (one["right"], *one["wrong"]):
                examples.append(
                    dataset.Example(f"{BUILT_IN.name}:{number}", (asked, dataset.Message("assistant", answer)))
                )
    return Questions(examples, 4)


def measure(
    questions: Questions, base: Sequence[tuple[float, int]], tuned: Sequence[tuple[float, int]]
) -> dict[job.Contender, metrics.Columns]:
    """How much the tuned model forgot, and the share of right answers of both; nats and tokens of every example are given."""
    before, after = (np.array(one, dtype=np.float64).reshape(-1, questions.choices, 2) for one in (base, tuned))
    # The same tokens on both sides, so that the ratio of sums is that of the losses.
    losses = np.stack([after[:, 0, 0], before[:, 0, 0]], 1)
    forgotten = evidence.Column(losses, _rise, before[:, 0, 1] > 0)
    examples: dict[job.Contender, metrics.Columns] = {job.Contender.TUNED: {job.Metric.FORGETTING: forgotten}}
    if questions.choices > 1:
        for which, values in ((job.Contender.BASE, before), (job.Contender.TUNED, after)):
            each = values[..., 0] / np.maximum(values[..., 1], 1)
            right = evidence.mean((each[:, 0] < each[:, 1:].min(1)).astype(np.float64), share=True)
            examples.setdefault(which, {})[job.Metric.GENERAL_ACCURACY] = right
    return examples


def _rise(sums: evidence.Array) -> evidence.Array:
    return sums[..., 0] / np.where(sums[..., 1] == 0, np.nan, sums[..., 1]) - 1
