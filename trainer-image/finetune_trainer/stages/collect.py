"""Reads every row of every file of a job's data, encodes and checks it once."""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Iterator

from finetune_api import job, reasons, run
from finetune_trainer.checks import review, rule, sample
from finetune_trainer.data import corpus, dataset, questions, rows, tokens
from finetune_trainer.process import errors
from finetune_trainer.store import objects, storage


@dataclasses.dataclass
class Collected:
    """All examples of all files: text and tokens on disk, numbers in the review."""

    path: pathlib.Path
    writer: corpus.Writer
    review: review.Review
    sample: sample.Sampler
    inputs: list[objects.Entry] = dataclasses.field(default_factory=list)
    pairs: bool | None = None
    """Whether the examples are preference pairs; None before the first one."""

    @functools.cached_property
    def corpus(self) -> corpus.Corpus:
        """The tokens of all examples, after the last one was added."""
        return self.writer.finish("", pairs=bool(self.pairs), template=None)

    def take(self, part: int, example: dataset.Example, details: tokens.Details) -> None:
        self.pairs = example.rejected is not None
        for row in details.rows:
            self.writer.add(row.ids, row.learned, row.truncated)
        if part == 0:
            self.sample.take(self.review.taken, example)
        self.review.take(part, example, details)

    def examples(self, wanted: rule.Rows) -> dict[int, dataset.Example]:
        """A few examples, read again."""
        numbers = set(wanted.tolist())
        found: dict[int, dataset.Example] = {}
        with self.path.open("rb") as spool:
            for number, line in enumerate(spool):
                if len(found) == len(numbers):
                    break
                if number in numbers:
                    found[number] = dataset.from_record(json.loads(line))
        return found


def read_all(spec: run.Run, store: storage.Storage, encoder: tokens.Encoder, work: pathlib.Path) -> Collected:
    """Every row of every file, encoded and checked. Raises Failure(DatasetInvalid) when there is none."""
    files = listed(spec, store)  # all of them first: it is quick
    found = Collected(
        work / "rows.jsonl",
        corpus.Writer(work / "corpus"),
        review.Review(spec.dataset.checks, encoder),
        sample.Sampler(spec.training.seed),
    )
    with found.path.open("w", encoding="utf-8") as spool:
        for name, entries in files.items():
            found.inputs += entries
            before, broken = found.review.taken, False
            for one in corpus.encode(dataset.of_one_kind(read(spec, store, entries), found.pairs), encoder):
                if isinstance(one, rows.Bad):
                    broken = True
                    found.review.broken(one)
                    if found.review.will_fail:
                        return found
                else:
                    spool.write(one[0].line())
                    found.take(dataset.SPLITS.index(name), *one)
            if found.review.taken == before and not broken:
                raise no_examples(name, entries)
    return found


def read(spec: run.Run, store: storage.Storage, entries: list[objects.Entry]) -> Iterator[dataset.Example | rows.Bad]:
    asked = questions.example if spec.training.teacher else None
    for entry in entries:
        yield from dataset.parse(rows.read(store, entry.uri), spec.dataset.format, spec.dataset.group_by, asked)


def listed(spec: run.Run, store: storage.Storage) -> dict[str, list[objects.Entry]]:
    """The files of each part of the data. Raises Failure(DatasetNotFound)."""
    wanted = {"train": spec.dataset.train}
    held_out = {"validation": spec.dataset.validation, "test": spec.dataset.test}
    wanted |= {name: chosen.uris for name, chosen in held_out.items() if chosen.uris}
    return {name: [tagged(store, entry) for entry in rows.find(store, patterns)] for name, patterns in wanted.items()}


def tagged(store: storage.Storage, entry: objects.Entry) -> objects.Entry:
    """A local file is identified by its contents, as an object of S3 by its ETag, not by its modification time."""
    if entry.uri.startswith("s3://"):
        return entry
    return dataclasses.replace(entry, etag=store.sha256(entry.uri))


def no_examples(name: str, entries: list[objects.Entry]) -> errors.Failure:
    names = ", ".join(entry.uri for entry in entries[:3])
    return errors.Failure(
        reasons.Reason.DATASET_INVALID,
        f"{names}: no examples, the {name} files are empty ({sum(entry.size for entry in entries)} bytes). Upload "
        f"examples such as {dataset.EXPECTED[job.Format.CHAT]}, one per line.",
    )
