"""A split as token ids in memory-mapped files: the input of training, which may be larger than memory.

preflight, which encodes every example anyway, writes the training and validation splits next to their frozen text; train
takes them from there, and encodes the text again only where tokenizer, settings or versions differ from preflight's.
A corpus is complete when it has its corpus.json, which is written last.
"""

import array
import dataclasses
import hashlib
import itertools
import json
import pathlib
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from finetune_api import job, reasons
from finetune_trainer.data import dataset, rows, tokens
from finetune_trainer.engine import prefixes
from finetune_trainer.process import errors, log, machine, signals
from finetune_trainer.store import folders, storage

Array = np.ndarray[Any, np.dtype[Any]]

INFO = "corpus.json"

DRAWS = 8
"""Steps drawn at random to estimate how much their examples share."""

EXAMPLES, CHARACTERS = 1024, 2**22
"""How many examples are tokenized at once, and how long they may be together."""


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Rows of tokens. With `pairs` example i is the two rows 2i (chosen) and 2i + 1 (rejected), else it is row i."""

    all_ids: Array
    """int32: the ids of all rows, one after the other."""
    all_learned: Array
    """bool: whether each of them is learned."""
    starts: Array
    ends: Array
    """int64 [rows]: where each row begins and ends in them."""
    trainable: Array
    """int32 [rows]: how many tokens of a row are learned; its first one is never predicted."""
    truncated: Array
    """bool [rows]: whether a row was cut at the maximum length."""
    pairs: bool = False

    def __len__(self) -> int:
        """The number of rows."""
        return len(self.starts)

    def __getitem__(self, row: int) -> tokens.Encoded:
        if not 0 <= row < len(self):
            raise IndexError(row)
        return tokens.Encoded(self.ids(row).tolist(), self.learned(row).tolist(), bool(self.truncated[row]))

    @property
    def examples(self) -> int:
        return len(self) // 2 if self.pairs else len(self)

    @property
    def lengths(self) -> Array:
        """int64 [rows]: tokens of each row."""
        return self.ends - self.starts

    def ids(self, row: int) -> Array:
        """int32 [length], a view."""
        return self.all_ids[self.starts[row] : self.ends[row]]

    def learned(self, row: int) -> Array:
        """bool [length], a view."""
        return self.all_learned[self.starts[row] : self.ends[row]]

    def select(self, examples: Any) -> "Corpus":
        """These examples, in this order; the tokens stay where they are."""
        rows = np.asarray(examples, dtype=np.int64)
        if self.pairs:
            rows = np.stack([2 * rows, 2 * rows + 1], axis=1).reshape(-1)
        parts = {name: getattr(self, name)[rows] for name in ("starts", "ends", "trainable", "truncated")}
        return dataclasses.replace(self, **parts)

    def taught(self) -> "Corpus":
        """The examples to learn from: those with a learned token, of a pair in both rows."""
        teaching = self.teaching
        return self if teaching.all() else self.select(np.flatnonzero(teaching))

    @property
    def teaching(self) -> Array:
        """bool [examples]: whether an example has something to learn."""
        found: Array = np.min((self.trainable > 0).reshape(-1, 2 if self.pairs else 1), axis=1)
        return found

    def step(self, count: int, seed: int = 0) -> float:
        """Tokens of `count` examples drawn at random, those that rows begin with together counted once: the mean of DRAWS."""
        each, number = 2 if self.pairs else 1, np.random.default_rng(seed)
        found, taken = 0, min(count, self.examples)
        for _ in range(DRAWS):
            chosen = number.choice(self.examples, taken, replace=False)
            rows = [self.ids(example * each + at) for example in chosen for at in range(each)]
            rows.sort(key=prefixes.key)
            found += sum(map(len, rows)) - sum(prefixes.shared(*two) for two in itertools.pairwise(rows))
        return found / DRAWS * count / taken


class Writer:
    """Writes a corpus row by row. Only a few numbers of each row are held in memory."""

    def __init__(self, folder: pathlib.Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._ids = (folder / "ids.bin").open("wb")
        self._learned = (folder / "learned.bin").open("wb")
        self._lengths, self._trainable, self._truncated = array.array("q"), array.array("i"), array.array("b")

    def add(self, ids: Any, learned: Any, truncated: bool) -> None:
        marks = np.asarray(learned, dtype=bool)
        self._ids.write(np.asarray(ids, dtype=np.int32).tobytes())
        self._learned.write(marks.tobytes())
        self._lengths.append(len(marks))
        self._trainable.append(int(np.count_nonzero(marks[1:])))
        self._truncated.append(bool(truncated))

    @property
    def written(self) -> int:
        """Tokens so far."""
        return sum(self._lengths)

    def finish(self, key: str, *, pairs: bool, template: str | None) -> Corpus:
        """Completes the folder. `key`: what it was made from; `template`: the chat template, stored for readers without a
        tokenizer."""
        self._ids.close()
        self._learned.close()
        ends = np.cumsum(np.array(self._lengths, dtype=np.int64), dtype=np.int64)
        np.save(self._folder / "ends.npy", ends)
        np.save(self._folder / "trainable.npy", np.array(self._trainable, dtype=np.int32))
        np.save(self._folder / "truncated.npy", np.array(self._truncated, dtype=bool))
        document = {"key": key, "pairs": pairs, "template": template, "files": hashes(self._folder)}
        (self._folder / INFO).write_text(json.dumps(document, indent=1))
        return read(self._folder)


def read(folder: pathlib.Path) -> Corpus:
    """A complete corpus, mapped into memory. Raises OSError, ValueError or KeyError when there is none."""
    ends = np.load(folder / "ends.npy")
    return Corpus(
        _map(folder / "ids.bin", np.dtype(np.int32)),
        _map(folder / "learned.bin", np.dtype(bool)),
        np.concatenate([np.zeros(1, dtype=np.int64), ends])[:-1],
        ends,
        np.load(folder / "trainable.npy"),
        np.load(folder / "truncated.npy"),
        bool(info(folder)["pairs"]),
    )


def info(folder: pathlib.Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / INFO).read_text())
    return found


def _map(path: pathlib.Path, kind: np.dtype[Any]) -> Array:
    # An empty file cannot be mapped.
    return np.memmap(path, dtype=kind, mode="r") if path.stat().st_size else np.zeros(0, dtype=kind)


def hashes(folder: pathlib.Path) -> dict[str, str]:
    """The SHA-256 of each file besides corpus.json."""
    return {path.name: folders.sha256(path) for path in sorted(folder.iterdir()) if path.name != INFO}


# --- From text to tokens ---


def encode(
    found: Iterable[dataset.Example | rows.Bad], encoder: tokens.Encoder
) -> Iterator[tuple[dataset.Example, tokens.Details] | rows.Bad]:
    """Each example with its tokens, many at once, in their order; Bad where the template refuses one."""
    waiting: list[dataset.Example | rows.Bad] = []
    characters = 0
    for one in found:
        waiting.append(one)
        characters += one.size if isinstance(one, dataset.Example) else 0
        if len(waiting) == EXAMPLES or characters > CHARACTERS:
            yield from _encoded(waiting, encoder)
            waiting, characters = [], 0
    yield from _encoded(waiting, encoder)


def _encoded(
    found: list[dataset.Example | rows.Bad], encoder: tokens.Encoder
) -> Iterator[tuple[dataset.Example, tokens.Details] | rows.Bad]:
    encoded = iter(encoder.details([one for one in found if isinstance(one, dataset.Example)]))
    for one in found:
        signals.check()
        if isinstance(one, rows.Bad):
            yield one
            continue
        made = next(encoded)
        yield rows.Bad(one.source, str(made), "template") if isinstance(made, dataset.Wrong) else (one, made)


def key(split_sha256: str, identity: str) -> str:
    """What a corpus is made from, as a hash: a split's text and how it is encoded."""
    return hashlib.sha256(f"{split_sha256} {identity}".encode()).hexdigest()


def build(split: pathlib.Path, encoder: tokens.Encoder, cache: pathlib.Path) -> Corpus:
    """A file of the frozen split as a corpus below `cache`; read from there if it exists and is undamaged.

    Raises Failure(DatasetInvalid) when the chat template refuses an example.
    """
    made_of = key(folders.sha256(split), encoder.identity)
    target = cache / made_of[:32]
    if intact(target, made_of):
        return read(target)
    shutil.rmtree(target, ignore_errors=True)
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix=".making-") as temporary:
        folder = pathlib.Path(temporary, "corpus")
        writer, pairs = Writer(folder), False
        for one in encode(dataset.stream(split), encoder):
            if isinstance(one, rows.Bad):
                raise errors.Failure(reasons.Reason.DATASET_INVALID, f"{one.source}: {one.problem}")
            example, encoded = one
            pairs = example.rejected is not None
            for row in encoded.rows:
                writer.add(row.ids, row.learned, row.truncated)
        writer.finish(made_of, pairs=pairs, template=encoder.tokenizer.chat_template)
        folder.rename(target)
    return read(target)


def intact(folder: pathlib.Path, made_of: str) -> bool:
    """Whether the folder has a complete, undamaged corpus of this key."""
    try:
        found = info(folder)
        return bool(found["key"] == made_of and found["files"] == hashes(folder))
    except (OSError, ValueError, KeyError, TypeError):
        return False


# --- The splits of a run ---


@dataclasses.dataclass(frozen=True)
class Splits:
    """What training reads."""

    train: Corpus
    validation: Corpus
    template: str | None
    """The chat template that the examples were rendered with."""
    sha256: str
    """Identifies the frozen split as a whole."""
    replay: Corpus | None = None
    """General examples (training.replay); None where the job wants none."""


def write(data: pathlib.Path, name: str, source: Corpus, encoder: tokens.Encoder) -> None:
    """Puts the corpus of data/<name>.jsonl next to it."""
    writer = Writer(data / "corpus" / name)
    for row in range(len(source)):
        writer.add(source.ids(row), source.learned(row), source.truncated[row])
    made_of = key(folders.sha256(data / f"{name}.jsonl"), encoder.identity)
    writer.finish(made_of, pairs=source.pairs, template=encoder.tokenizer.chat_template)


def load(
    store: storage.Storage, uri: str, base: pathlib.Path, training: job.Training, system: str | None = None
) -> Splits:
    """The training and validation examples of a frozen split that have something to learn. Raises Failure.

    uri: the folder that preflight wrote; base: the local folder of the base model; system: as of `tokens.load`.
    """
    local = machine.work() / "data"
    names = ("train", "validation")
    try:
        found = folders.manifest(store, uri)
        if found is None:
            raise errors.NotFound(uri)
        identity = tokens.identity(tokens.files(base), tokens.limit(base, training), training.loss_on, system)
        ready = found.extra.get("encoder") == identity
        wanted = {
            file.path
            for file in found.files
            for name in names
            if (file.path.startswith(f"corpus/{name}/") if ready else file.path == f"{name}.jsonl")
        }
        folders.load(store, uri, local, expected=found.sha256, only=wanted)
    except errors.NotFound:
        raise errors.Failure(
            reasons.Reason.DATASET_NOT_FOUND,
            f"{uri} has no frozen split; run the preflight stage of this revision first, and with training.teacher the "
            "baseline stage",
        ) from None
    if ready:
        parts = {name: read(local / "corpus" / name) for name in names}
        template = info(local / "corpus" / "train")["template"]
    else:
        log.info("encoding the examples again: tokenizer, settings or versions differ from preflight's")
        encoder = tokens.load(base, training, system)
        parts = {name: build(local / f"{name}.jsonl", encoder, machine.work() / "corpus") for name in names}
        template = encoder.tokenizer.chat_template
    if not len(parts["train"].taught()):
        raise errors.Failure(
            reasons.Reason.DATASET_INVALID,
            "no training example has a token to learn; raise training.maxSequenceLength or check training.lossOn",
        )
    return Splits(parts["train"].taught(), parts["validation"].taught(), template, found.sha256)
