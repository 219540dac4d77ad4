"""A review of examples in memory, with one of the small tokenizers: judged.judge(train, test=..., checks={...})."""

import copy
import dataclasses
import functools
import pathlib
import tempfile
from typing import Any

import numpy as np
from tests.trainer import families

from finetune_api import checks as api
from finetune_trainer.checks import review
from finetune_trainer.data import corpus, dataset, tokens


@functools.cache
def encoder(
    template: str = "ChatML", tokenizer: str = "bytes", stops: frozenset[int] = frozenset({2, 4})
) -> tokens.Encoder:
    made = copy.copy(families.TOKENIZERS[tokenizer]())
    made.chat_template = families.TEMPLATES.get(template, template)
    return tokens.Encoder(made, stops, 100_000)


@dataclasses.dataclass(frozen=True)
class Judged:
    findings: dict[str, review.Finding]
    left: list[dataset.Example]
    reviewed: review.Reviewed

    def __getitem__(self, rule: str) -> review.Finding:
        return self.findings[rule]

    def places(self, rule: str) -> list[str]:
        """Sources without what is said of them."""
        return [place.partition(" (")[0] for place in self.findings[rule].places]


def judge(
    train: list[dataset.Example],
    *,
    validation: list[dataset.Example] = [],  # noqa: B006
    test: list[dataset.Example] = [],  # noqa: B006
    checks: dict[str, str] | None = None,
    with_encoder: tokens.Encoder | None = None,
    place: list[int] | None = None,
) -> Judged:
    """place: the split, for rules that wait for it; absent: by part."""
    chosen = with_encoder or encoder()
    every = [*train, *validation, *test]
    parts = [0] * len(train) + [1] * len(validation) + [2] * len(test)
    made = review.Review({id: api.Policy(policy) for id, policy in (checks or {}).items()}, chosen)
    with tempfile.TemporaryDirectory() as folder:
        writer = corpus.Writer(pathlib.Path(folder))
        for part, example, details in zip(parts, every, chosen.details(every), strict=True):
            assert isinstance(details, tokens.Details), details
            for row in details.rows:
                writer.add(row.ids, row.learned, row.truncated)
            made.take(part, example, details)
        found = writer.finish("", pairs=any(one.rejected is not None for one in every), template=None)
        reviewed = made.apply_rules(found, lambda wanted: {int(row): every[row] for row in wanted})
        where = np.where(reviewed.keep, np.array(parts if place is None else place, dtype=np.int8), np.int8(-1))
        where = reviewed.after_split(where)
    left = [one for one, spot in zip(every, where.tolist(), strict=True) if spot >= 0]
    return Judged({finding.rule: finding for finding in reviewed.findings}, left, reviewed)


def rules(*given: Any, **named: Any) -> set[str]:
    """The ids of the rules that fire."""
    return set(judge(*given, **named).findings)
