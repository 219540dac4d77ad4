"""The preflight stage: is everything available and correct, before an accelerator is requested?

Reaches output, model and data; reads, encodes and checks every row once; freezes the split in storage for all later
stages; estimates memory; gives a verdict with advice. Runs on a CPU without the model's weights. A repeated attempt gives the
same.
"""

import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np

from finetune_api import job, outcome, reasons, revision, run, status
from finetune_trainer.checks import novelty, purpose, review, rule, sample, variety
from finetune_trainer.data import corpus, dataset, questions, rows, split, tokens
from finetune_trainer.evaluation import contenders, documents, feasible, metrics, task_gates
from finetune_trainer.planning import (
    advisor,
    architecture,
    effort,
    forecast,
    inference,
    learning_rate,
    measurements,
    memory,
    parallelism,
    verdict,
    workload,
)
from finetune_trainer.process import errors, imports, log, machine
from finetune_trainer.store import folders, objects, sources, storage

PATIENCE = 20.0
"""Seconds for which an unreachable store is retried: nothing is lost yet, and the user should learn of it soon."""


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


def preflight(spec: run.Run) -> outcome.Outcome:
    """Checks everything and freezes the split. Raises Failure."""
    store, data = storage.of(spec.storage, PATIENCE), storage.of_data(spec, PATIENCE)
    may_list(spec, store)
    if done := finished(spec, store, data):
        return done
    check_schema(spec)
    writable(spec, store)
    with tempfile.TemporaryDirectory(dir=machine.work()) as temporary:
        work = pathlib.Path(temporary)
        folder = sources.resolve(spec.base_model, store, work / "base", weights=False)
        encoder = load(spec, folder)
        width = learning_rate.width(sources.check(folder, spec.base_model.source, weights=False))
        model = adapted_layers(spec, folder) | {
            "closed": encoder.closed,
            "width": width and dataclasses.asdict(width),
        }
        check_documents(spec, data)
        model |= {"benchmarks": check_benchmarks(spec, data, encoder)}
        collected = read_all(spec, data, encoder, work)
        reviewed = collected.review.apply_rules(collected.corpus, collected.examples)
        place = reviewed.after_split(assign(spec, reviewed))
        files = [dataclasses.asdict(entry) for entry in collected.inputs]
        check_policies(spec, store, collected.pairs, reviewed, place, files)
        found = measure(spec, collected, reviewed, place, folder, model)
        freeze(spec, store, collected, place, encoder, work / "data")
    return answer(spec, store, found, files)


def finished(spec: run.Run, store: storage.Storage, data: storage.Storage) -> outcome.Outcome | None:
    """The outcome of an earlier attempt that froze the split, judged again by the job's present settings.

    The first attempt of a job freezes its data. The split of an earlier job of this name, or of a run without a cluster,
    counts only if the files are the same by name, size and tag.
    """
    try:
        document = json.loads(store.read(spec.layout.preflight))
    except errors.NotFound:
        return None
    except ValueError as error:
        log.warning("an earlier result of preflight cannot be read", uri=spec.layout.preflight, problem=str(error))
        return None
    if "facts" not in document:  # the data did not pass
        return None
    if spec.uid is None or document.get("job") != spec.uid:
        available = [dataclasses.asdict(entry) for entries in listed(spec, data).values() for entry in entries]
        if available != document["inputs"]:
            changed = next((one for one in available if one not in document["inputs"]), document["inputs"][0])
            log.info("the data changed since an earlier run, so that its split is not used", file=changed["uri"])
            return None
    log.info("preflight was done before", uri=spec.layout.preflight)
    feasible.check_frozen(spec, store)
    return answer(spec, store, measurements.Measurements(**document["facts"]), document["inputs"])


def answer(
    spec: run.Run, store: storage.Storage, found: measurements.Measurements, files: list[dict[str, Any]]
) -> outcome.Outcome:
    """The outcome, stored with the measurements and the rules behind it."""
    rules = spec.evaluation.harness
    found = dataclasses.replace(
        found,
        short_gates=feasible.short(spec.evaluation, feasible.frozen(spec, store)),
        short_benchmarks=task_gates.short(rules, task_gates.of_record(found.benchmarks)) if rules else [],
    )
    data = same_files(files)
    spec = spec.model_copy(update={"measured": [one for one in spec.measured or [] if one.data == data]})
    result = verdict.decide(spec, found)
    if result.preflight is not None:
        result = result.model_copy(update={"preflight": result.preflight.model_copy(update={"data": data})})
    advice = [one.document() for one in advisor.advise(spec, found)]
    known = {"outcome": result.wire(), "advice": advice, "facts": dataclasses.asdict(found), "inputs": files}
    write(spec, store, known)
    log.info("preflight", **(result.preflight.wire() if result.preflight else {}))
    return result


def same_files(files: list[dict[str, Any]]) -> str:
    """A hash of the data files by URI, size and tag, whatever the base model."""
    return revision.digest(sorted([one["uri"], one["size"], one.get("etag", "")] for one in files), 16)


def write(spec: run.Run, store: storage.Storage, document: dict[str, Any]) -> None:
    document = {"job": spec.uid, **document}
    store.write(spec.layout.preflight, (json.dumps(document, indent=1, ensure_ascii=False) + "\n").encode())


def may_list(spec: run.Run, store: storage.Storage) -> None:
    """Raises Failure now where the key may not list the output. A missing object then looks like a forbidden one, and training
    could not find its checkpoints."""
    next(iter(store.entries(f"{spec.layout.root}/")), None)


def writable(spec: run.Run, store: storage.Storage) -> None:
    """Raises now the error that training would raise after its last step."""
    marker = f"{spec.layout.root}/.writable"
    try:
        store.write(marker, b"")
        store.read(marker)
    except errors.Failure as failure:
        if not marker.startswith("file://"):
            raise  # S3's messages say what to check
        message = f"storage.output cannot be written: {failure.message}"
        raise errors.Failure(failure.reason, message) from failure
    if not folders.discard(store, marker):
        log.warning(
            "the key may not delete objects (s3:DeleteObject): checkpoints and replaced files stay behind",
            output=spec.layout.root,
        )


def check_schema(spec: run.Run) -> None:
    """Raises Failure(InvalidSpec) now for a schema that the evaluation could not use."""
    if spec.evaluation.output_schema is None:
        return
    try:
        metrics.validator(spec.evaluation.output_schema)
    except ValueError as error:
        raise errors.Failure(
            reasons.Reason.INVALID_SPEC, f"evaluation.outputSchema is not a usable JSON Schema: {error}"
        ) from None


def check_documents(spec: run.Run, store: storage.Storage) -> None:
    """Raises Failure now for documents that the evaluation could not find."""
    if spec.intent.retrieval is not None:
        documents.find(store, spec.intent.retrieval.uris)


def check_benchmarks(spec: run.Run, store: storage.Storage, encoder: tokens.Encoder) -> dict[str, dict[str, Any]]:
    """What is known of each benchmark: the fields of task_gates.Known. Raises Failure now for benchmarks that the evaluation
    could not run, and for gates on them that it could not decide."""
    rules = spec.evaluation.harness
    if rules is None:
        return {}
    if rules.chat_template and not encoder.tokenizer.chat_template:
        raise errors.Failure(
            reasons.Reason.INVALID_SPEC,
            f"evaluation.harness.chatTemplate: {spec.base_model.source} has no chat template; leave it out",
        )
    from finetune_trainer.harness import measures, tasks

    known = {task.name: measures.known(task) for task in tasks.load(spec, rules, store)}
    feasible.check_benchmarks(rules, known)
    return {name: dataclasses.asdict(one) for name, one in known.items()}


def load(spec: run.Run, folder: pathlib.Path) -> tokens.Encoder:
    """The encoder, after checking that the model can be trained. Raises Failure(ModelInvalid)."""
    config = sources.check(folder, spec.base_model.source, weights=False)
    kind = config.get("model_type")
    known = kind in architecture.FAST
    if not known and not is_causal(kind):
        raise errors.Failure(
            reasons.Reason.MODEL_INVALID,
            f"{spec.base_model.source}: config.json says model_type {kind!r}, which is not a causal language model that "
            "this trainer knows; choose another base model",
        )
    if problem := architecture.tower(config):
        raise errors.Failure(reasons.Reason.MODEL_INVALID, f"{spec.base_model.source}: {problem}")
    if missing := architecture.missing_sizes(config):
        raise errors.Failure(
            reasons.Reason.MODEL_INVALID,
            f"{spec.base_model.source}: config.json does not say {', '.join(missing)}, without which the weights cannot be "
            "loaded; copy the config.json that belongs to them",
        )
    try:
        lean = known and spec.evaluation.harness is None  # the package of benchmarks may ask transformers for models
        with imports.without("torch", "transformers") if lean else contextlib.nullcontext(False) as absent:
            if absent:
                os.environ["TRANSFORMERS_NO_ADVISORY_WARNINGS"] = (
                    "1"  # it would advise to install torch; a tokenizer needs none
                )
            return tokens.load(folder, spec.training, spec.trained_prompt)
    except Exception as error:
        raise errors.Failure(
            reasons.Reason.MODEL_INVALID,
            f"{spec.base_model.source}: the tokenizer cannot be loaded ({errors.describe(error)}); the folder needs "
            "tokenizer.json and tokenizer_config.json",
        ) from error


def is_causal(kind: object) -> bool:
    """Whether transformers has a causal language model of this model_type."""
    from transformers.models.auto import modeling_auto

    return kind in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES


def adapted_layers(spec: run.Run, folder: pathlib.Path) -> dict[str, Any]:
    """What of the base model learns, as far as it is not that of every transformer. Raises Failure(MODEL_INVALID)."""
    if sources.check(folder, spec.base_model.source, weights=False).get("model_type") in architecture.FAST:
        return {}
    from finetune_trainer.engine import adapted

    found = adapted.find(folder, spec.training.lora.target_modules)
    if found is None:
        return {}
    if found.towers:
        raise errors.Failure(
            reasons.Reason.MODEL_INVALID,
            f"{spec.base_model.source}: training.lora.targetModules: {spec.training.lora.target_modules} would adapt "
            f"{len(found.towers)} layers that read images or sound, such as {found.towers[0]}; choose the model of the same "
            "family for text alone",
        )
    return {"experts": found.experts, "layers": list(found.names)}


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


def no_examples(name: str, entries: list[objects.Entry]) -> errors.Failure:
    names = ", ".join(entry.uri for entry in entries[:3])
    return errors.Failure(
        reasons.Reason.DATASET_INVALID,
        f"{names}: no examples, the {name} files are empty ({sum(entry.size for entry in entries)} bytes). Upload "
        f"examples such as {dataset.EXPECTED[job.Format.CHAT]}, one per line.",
    )


def assign(spec: run.Run, reviewed: review.Reviewed) -> split.Array:
    """int8 [rows]: the split of each example: 0 train, 1 validation, 2 test, -1 none."""
    place = np.where(reviewed.keep, reviewed.columns.part.astype(np.int8), np.int8(-1))
    training_rows = rule.rows(place == 0)
    fractions = spec.dataset.validation.fraction, spec.dataset.test.fraction
    together = reviewed.columns.group[training_rows] if spec.dataset.group_by else None
    prompts = reviewed.columns.prompts.take(training_rows)
    place[training_rows] = split.assign(prompts, *fractions, spec.training.seed, together)
    return place


def check_policies(
    spec: run.Run,
    store: storage.Storage,
    pairs: bool | None,
    reviewed: review.Reviewed,
    place: split.Array,
    files: list[dict[str, Any]],
) -> None:
    """Raises Failure(DatasetInvalid), with all findings in storage, when the examples are of another kind than the job needs, a
    rule ends the job, or no training example is left."""
    failing = reviewed.failing
    if problem := purpose.objective(spec, pairs):
        message = problem
    elif failing:
        shown = failing[:5]
        more = f" | and {len(failing) - 5} more rules" if len(failing) > 5 else ""
        message = (
            f"the data do not pass the checks: {' | '.join(finding.line() for finding in shown)}{more}. Correct the data, or set "
            f"dataset.checks ({', '.join(finding.rule for finding in shown)}) to another policy."
        )
    elif not (place == 0).any() or not reviewed.columns.teaching[place == 0].any():
        dropped = " | ".join(finding.line() for finding in reviewed.findings if finding.dropped)
        message = f"no training example with a token to learn remains: {dropped or 'raise training.maxSequenceLength'}"
    elif problem := purpose.evaluation(spec, reviewed.columns, place) or impossible_gates(spec, reviewed, place):
        message = problem
    else:
        return
    found = status.Preflight(
        verdict="NotRecommended",
        findings=[finding.line() for finding in [*failing, *(one for one in reviewed.findings if one not in failing)]],
        examples=int((place == 0).sum()),
        tokens=0,
        trainable_tokens=0,
    )
    failure = errors.Failure(reasons.Reason.DATASET_INVALID, message, found)
    result = outcome.Outcome(
        stage=reasons.Stage.PREFLIGHT, reason=failure.reason, message=message, preflight=failure.preflight
    )
    findings = [finding.document() for finding in reviewed.findings]
    write(spec, store, {"outcome": result.wire(), "findings": findings, "inputs": files})
    raise failure


def impossible_gates(spec: run.Run, reviewed: review.Reviewed, place: split.Array) -> str | None:
    """Why a gate could not be passed by any model, on the test examples that the evaluation will choose; not known yet where a
    teacher will answer them."""
    if spec.training.teacher is not None:
        return None
    chosen = contenders.choose(rule.rows(place == 2).tolist(), spec.evaluation.maximum_examples, spec.training.seed)
    if not spec.evaluation.stated or not chosen:
        return None
    examples = reviewed.sources(np.array(chosen))
    return feasible.problem(spec.evaluation, [examples[row] for row in chosen])


def freeze(
    spec: run.Run,
    store: storage.Storage,
    collected: Collected,
    place: split.Array,
    encoder: tokens.Encoder,
    local: pathlib.Path,
) -> None:
    """Writes train, validation and test, with the inputs' sizes and tags; training and validation also as tokens."""
    local.mkdir()
    outputs = [(local / f"{name}.jsonl").open("wb") for name in dataset.SPLITS]
    try:
        with collected.path.open("rb") as spool:
            for where, line in zip(place.tolist(), spool, strict=True):
                if where >= 0:
                    outputs[where].write(line)
    finally:
        for output in outputs:
            output.close()
    for index, name in enumerate(dataset.SPLITS[:2]):
        corpus.write(local, name, collected.corpus.select(rule.rows(place == index)), encoder)
    inputs = [dataclasses.asdict(entry) for entry in collected.inputs]
    folders.save(store, local, spec.layout.data, {"inputs": inputs, "encoder": encoder.identity})


def measure(
    spec: run.Run,
    collected: Collected,
    reviewed: review.Reviewed,
    place: split.Array,
    folder: pathlib.Path,
    model: dict[str, Any],
) -> measurements.Measurements:
    """The numbers of the split, beside those of the base model. Raises Failure, see `estimate`."""
    training_rows = rule.rows(place == 0)
    train = collected.corpus.select(training_rows)
    lengths = forecast.examples(train, spec.training.batch_size)
    drawn = collected.sample.of_rows(place == 0)
    novel = novelty.measure(drawn)
    answers = reviewed.columns.answer[training_rows]
    counts: dict[str, Any] = {name: int((place == index).sum()) for index, name in enumerate(dataset.SPLITS)}
    return measurements.Measurements(
        **counts,
        tokens=int(train.lengths.sum()),
        trainable=int(train.trainable.sum()),
        truncated=float(train.truncated.mean()),
        findings=[finding.document() for finding in reviewed.findings],
        lengths=dataclasses.asdict(lengths),
        distinct=variety.distinct(drawn, len(training_rows)),
        top_answer=float(np.unique(answers, return_counts=True)[1].max() / len(answers)) if answers.all() else None,
        novelty=None if novel is None else dataclasses.asdict(novel),
        **model,
        **estimate(spec, folder, lengths, train.examples),
    )


def estimate(spec: run.Run, folder: pathlib.Path, lengths: workload.Examples, examples: int) -> dict[str, Any]:
    """Memory and work of training, and what to change where memory is short, then or in a later stage; None where neither
    config.json nor the catalogue has the model's numbers.

    Raises Failure(InsufficientGpuMemory) when weights and adapter alone are more than the GPUs of a stage have.
    """
    wanted = forecast.of_run(spec, folder, lengths)
    if wanted is None:
        return {"memory": None, "parameters": spec.base_model.parameters}
    available = forecast.available(spec)
    remedy = forecast.advice(wanted, available)
    later = list(inference.shortages(spec, wanted))
    fatal = [one.text for one in later if one.fatal]
    if remedy and spec.gpus and parallelism.cannot_fit(wanted, available):
        fatal.insert(0, remedy)
    if fatal:
        raise errors.Failure(reasons.Reason.INSUFFICIENT_GPU_MEMORY, " ".join(fatal))
    plan = parallelism.choose(wanted, available)
    return {
        "memory": memory.text(plan.setup.memory.total),
        "memory_advice": " ".join([*([remedy] if remedy else []), *(one.text for one in later)]) or None,
        "parameters": wanted.parameters,
        "evaluation_gpus": inference.evaluation_gpus(spec, wanted),
        "work": effort.work(plan.case, plan.setup, examples),
    }
