"""The preflight stage: is everything there and right, before an accelerator is requested?

Reachability of output, model and data; every row's format; tokens; the split, frozen in storage for all later stages; a
memory estimate; a verdict with advice. Runs on a CPU without the model's weights. An attempt repeated gives the same.
"""

import dataclasses
import functools
import json
import pathlib
import shutil
import tempfile
from typing import Any

import numpy as np

from finetune_api import job, outcome, reasons, run, status
from finetune_trainer import (
    corpus,
    dataset,
    errors,
    estimate,
    folders,
    log,
    machine,
    objects,
    rows,
    sources,
    split,
    storage,
    tokens,
    verdict,
)

FINDINGS = 20
"""Broken rows after which reading stops: enough to see the pattern."""


@dataclasses.dataclass
class Part:
    """What was read for one split, or for all that is to be split: the rows are on the disk, here are their numbers."""

    path: pathlib.Path
    writer: corpus.Writer
    inputs: list[objects.Entry]
    prompts: list[split.Prompts] = dataclasses.field(default_factory=list)
    pairs: bool = False
    """Whether the examples are preference pairs."""
    untrainable: list[str] = dataclasses.field(default_factory=list)
    """Places of examples without a token to learn."""

    @classmethod
    def of(cls, work: pathlib.Path, name: str, inputs: list[objects.Entry]) -> "Part":
        return cls(work / f"{name}.rows", corpus.Writer(work / f"{name}.corpus"), inputs)

    @functools.cached_property
    def corpus(self) -> corpus.Corpus:
        """The tokens of all examples, once all are taken."""
        return self.writer.finish("", pairs=bool(self.pairs), template=None)

    def take(self, example: dataset.Example, encoded: tuple[tokens.Encoded, ...]) -> None:
        """Notes an example's numbers."""
        self.pairs = example.rejected is not None
        for row in encoded:
            self.writer.add(row.ids, row.learned, row.truncated)
        if not all(row.trainable for row in encoded) and len(self.untrainable) < FINDINGS:
            self.untrainable.append(example.source)
        self.prompts.append(split.Prompts(example.key(), tuple(example.keys())))


FIRST_CONTACT = 20.0
"""Seconds of patience with a store that does not answer: nothing is lost yet, and the user should hear of it soon."""


def preflight(spec: run.Run) -> outcome.Outcome:
    """Checks everything and freezes the split. Raises Failure."""
    store = storage.of(spec.storage, FIRST_CONTACT)
    if store.exists(spec.layout.preflight):
        log.info("preflight was done before", uri=spec.layout.preflight)
        document = json.loads(store.read(spec.layout.preflight))
        return answer(spec, store, verdict.Facts(**document["facts"]), document["inputs"])
    writable(spec, store)
    with tempfile.TemporaryDirectory(dir=machine.work()) as temporary:
        work = pathlib.Path(temporary)
        folder = sources.resolve(spec.base_model, store, work / "base", weights=False)
        encoder = load(spec, folder)
        parts = gather(spec, store, encoder, work)
        fractions = spec.dataset.validation.fraction, spec.dataset.test.fraction
        places = split.assign(parts["train"].prompts, *fractions, spec.training.seed)
        facts = measure(spec, parts, places, folder)
        freeze(spec, store, parts, places, encoder, work)
    return answer(spec, store, facts, inputs(parts))


def answer(spec: run.Run, store: storage.Storage, facts: verdict.Facts, files: list[dict[str, Any]]) -> outcome.Outcome:
    """The outcome, kept with the facts it follows from."""
    result = verdict.judge(spec, facts)
    document = {"outcome": result.wire(), "facts": dataclasses.asdict(facts), "inputs": files}
    store.write(spec.layout.preflight, (json.dumps(document, indent=1) + "\n").encode())
    log.info("preflight", **(result.preflight.wire() if result.preflight else {}))
    return result


def writable(spec: run.Run, store: storage.Storage) -> None:
    """Raises now what training would raise after its last step."""
    probe = f"{spec.layout.root}/.writable"
    store.write(probe, b"")
    store.delete(probe)


def load(spec: run.Run, folder: pathlib.Path) -> tokens.Encoder:
    """The encoder, after checking that the model is one we can train. Raises Failure(ModelInvalid)."""
    from transformers.models.auto import modeling_auto

    config = sources.check(folder, spec.base_model.source, weights=False)
    kind = config.get("model_type")
    if kind not in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise errors.Failure(
            reasons.Reason.MODEL_INVALID,
            f"{spec.base_model.source}: config.json says model_type {kind!r}, which is no causal language model that "
            "this trainer knows; choose another base model",
        )
    try:
        return tokens.load(folder, spec.training)
    except Exception as error:
        raise errors.Failure(
            reasons.Reason.MODEL_INVALID,
            f"{spec.base_model.source}: the tokenizer cannot be loaded ({errors.describe(error)}); the folder needs "
            "tokenizer.json and tokenizer_config.json",
        ) from error


def gather(spec: run.Run, store: storage.Storage, encoder: tokens.Encoder, work: pathlib.Path) -> dict[str, Part]:
    """Every row of every file, checked and tokenized. Raises Failure(DatasetInvalid), naming up to FINDINGS places."""
    wanted = {"train": spec.dataset.train}
    wanted |= {name: chosen.uris for name, chosen in held_out(spec).items() if chosen.uris}
    parts: dict[str, Part] = {}
    findings: list[str] = []
    files = {name: rows.find(store, patterns) for name, patterns in wanted.items()}  # all of them first: it is quick
    for name, entries in files.items():
        parts[name] = part = Part.of(work, name, entries)
        pairs = parts["train"].pairs if name != "train" else None
        kind = spec.dataset.format
        found = dataset.alike(
            (one for entry in entries for one in dataset.parse(rows.read(store, entry.uri), kind)), pairs
        )
        with part.path.open("w", encoding="utf-8") as spool:
            for one in corpus.encode(found, encoder):
                if isinstance(one, rows.Bad):
                    findings.append(f"{one.source}: {one.problem}")
                else:
                    spool.write(one[0].line())
                    part.take(*one)
                if len(findings) >= FINDINGS:
                    raise invalid(findings, parts, stopped=True)
        if not part.prompts and not findings:
            names = ", ".join(entry.uri for entry in entries[:3])
            raise errors.Failure(
                reasons.Reason.DATASET_INVALID,
                f"{names}: no examples, the {name} files are empty ({sum(entry.size for entry in entries)} bytes). Upload "
                f"examples such as {dataset.EXPECTED[job.Format.CHAT]}, one a line.",
            )
    if findings:
        raise invalid(findings, parts, stopped=False)
    return parts


def held_out(spec: run.Run) -> dict[str, job.Split]:
    return {"validation": spec.dataset.validation, "test": spec.dataset.test}


def invalid(findings: list[str], parts: dict[str, Part], *, stopped: bool) -> errors.Failure:
    """The failure of broken rows, the first ones in words."""
    more = len(findings) - 3
    tail = f" ... and {more} more{' (reading stopped there)' if stopped else ''}" if more > 0 else ""
    good = len(parts["train"].prompts)
    return errors.Failure(
        reasons.Reason.DATASET_INVALID,
        f"{len(findings)} broken rows: " + " | ".join(findings[:3]) + tail + ". Correct them and run again.",
        status.Preflight(
            verdict="NotRecommended",
            findings=findings,
            examples=good,
            tokens=parts["train"].writer.written,
            trainable_tokens=0,
        ),
    )


def freeze(
    spec: run.Run,
    store: storage.Storage,
    parts: dict[str, Part],
    places: list[int],
    encoder: tokens.Encoder,
    work: pathlib.Path,
) -> None:
    """Writes train, validation and test as they will be used, with the inputs' sizes and tags; what training reads also as
    tokens."""
    local = work / "data"
    local.mkdir()
    outputs = [(local / f"{name}.jsonl").open("wb") for name in dataset.SPLITS]
    try:
        with parts["train"].path.open("rb") as spool:
            for place, line in zip(places, spool, strict=True):
                outputs[place].write(line)
        for index, name in enumerate(dataset.SPLITS[1:], 1):
            if name in parts:
                with parts[name].path.open("rb") as spool:
                    shutil.copyfileobj(spool, outputs[index])
    finally:
        for output in outputs:
            output.close()
    for index, name in enumerate(dataset.SPLITS[:2]):
        own = index and name in parts
        found = parts[name].corpus if own else parts["train"].corpus.select(np.flatnonzero(np.equal(places, index)))
        corpus.write(local, name, found, encoder)
    folders.save(store, local, spec.layout.data, {"inputs": inputs(parts), "encoder": encoder.identity})


def inputs(parts: dict[str, Part]) -> list[dict[str, Any]]:
    return [dataclasses.asdict(entry) for part in parts.values() for entry in part.inputs]


def measure(spec: run.Run, parts: dict[str, Part], places: list[int], folder: pathlib.Path) -> verdict.Facts:
    """The numbers of the split. Raises Failure(DatasetInvalid) when nothing could be learned."""
    train = parts["train"].corpus.select(np.flatnonzero(np.equal(places, 0)))
    if not train.teaching.any():
        raise errors.Failure(
            reasons.Reason.DATASET_INVALID,
            "no training example has a token to learn within training.maxSequenceLength "
            f"({spec.training.max_sequence_length}): raise it, or check training.lossOn",
        )
    findings = [
        f"{source}: no token of the answer is learned: the prompt alone fills maxSequenceLength"
        for source in parts["train"].untrainable
    ]
    findings += leaks(parts, places)
    memory = estimated(spec, folder, train.lengths.tolist())
    counts = {
        name: len(parts[name].prompts) if index and name in parts else places.count(index)
        for index, name in enumerate(dataset.SPLITS)
    }
    return verdict.Facts(
        **counts,
        tokens=int(train.lengths.sum()),
        trainable=int(train.trainable.sum()),
        truncated=float(train.truncated.mean()),
        findings=findings[:FINDINGS],
        memory=estimate.text(memory.total) if memory else None,
    )


def leaks(parts: dict[str, Part], places: list[int]) -> list[str]:
    """Held-out examples of their own files whose prompt is learned in training."""
    learned = {
        key for prompts, place in zip(parts["train"].prompts, places, strict=True) if place == 0 for key in prompts.all
    }
    findings = []
    for name in dataset.SPLITS[1:]:
        if name not in parts:
            continue
        with parts[name].path.open(encoding="utf-8") as spool:
            found = [
                json.loads(line)["source"]
                for prompts, line in zip(parts[name].prompts, spool, strict=True)
                if prompts.last in learned
            ]
        findings += [f"{source}: the {name} example's prompt is also in the training data" for source in found[:5]]
        if len(found) > 5:
            findings.append(f"{len(found) - 5} more {name} examples have a prompt that is also in the training data")
    return findings


def estimated(spec: run.Run, folder: pathlib.Path, lengths: list[int]) -> estimate.Memory | None:
    """Memory of training, by the catalogue's numbers or those of config.json; None where neither tells."""
    config = json.loads((folder / "config.json").read_text())
    arch = spec.base_model.architecture or estimate.architecture(config)
    if arch is None:
        return None
    device = "cuda" if spec.gpus else "cpu"
    return estimate.setup(
        arch,
        spec.training,
        longest=max(lengths),
        average=sum(lengths) / len(lengths),
        available=2**62,
        device=device,
        weights=spec.base_model.parameters,
    ).memory
