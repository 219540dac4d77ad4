"""The preflight stage: is everything available and correct, before an accelerator is requested?

Reaches output, model and data; reads, encodes and checks every row once; freezes the split in storage for all later
stages; estimates memory; gives a verdict with advice. Runs on a CPU without the model's weights. A repeated attempt gives the
same.
"""

import dataclasses
import json
import pathlib
import tempfile
from typing import Any

import numpy as np

from finetune_api import job, outcome, reasons, revision, run, status
from finetune_trainer.checks import novelty, purpose, review, rule, table, variety
from finetune_trainer.data import corpus, dataset, split, tokens
from finetune_trainer.evaluation import contenders, doubt, feasible, task_gates
from finetune_trainer.planning import (
    advisor,
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
from finetune_trainer.process import errors, log, machine
from finetune_trainer.stages import collect, prerequisites
from finetune_trainer.store import folders, sources, storage

PATIENCE = 20.0
"""Seconds for which an unreachable store is retried: nothing is lost yet, and the user should learn of it soon."""


def preflight(spec: run.Run) -> outcome.Outcome:
    """Checks everything and freezes the split. Raises Failure."""
    store, data = storage.of(spec.storage, PATIENCE), storage.of_data(spec, PATIENCE)
    prerequisites.may_list(spec, store)
    if done := finished(spec, store, data):
        return done
    prerequisites.check_schema(spec)
    prerequisites.writable(spec, store)
    with tempfile.TemporaryDirectory(dir=machine.work()) as temporary:
        work = pathlib.Path(temporary)
        folder = sources.resolve(spec.base_model, store, work / "base", weights=False)
        encoder = prerequisites.load(spec, folder)
        width = learning_rate.width(sources.check(folder, spec.base_model.source, weights=False))
        model = prerequisites.adapted_layers(spec, folder) | {
            "closed": encoder.closed,
            "width": width and dataclasses.asdict(width),
        }
        prerequisites.check_documents(spec, data)
        model |= {"benchmarks": prerequisites.check_benchmarks(spec, data, encoder)}
        collected = collect.read_all(spec, data, encoder, work)
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
        available = [dataclasses.asdict(entry) for entries in collect.listed(spec, data).values() for entry in entries]
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
    tested = feasible.frozen(spec, store)
    found = dataclasses.replace(
        found,
        short_gates=feasible.short(spec.evaluation, tested),
        short_baseline=doubt.short(spec, feasible.shares(spec.evaluation, tested), found.validation),
        short_benchmarks=task_gates.short(rules, task_gates.of_record(found.benchmarks)) if rules else [],
    )
    data = same_files(files)
    spec = spec.model_copy(update={"measured": [one for one in spec.measured or [] if one.data == data]})
    result = verdict.decide(spec, found)
    if result.preflight is not None:
        result = result.model_copy(update={"preflight": result.preflight.model_copy(update={"data": data})})
    advice = [one.document() for one in advisor.advise(spec, found)]
    known = {
        "outcome": result.wire(),
        "advice": advice,
        "facts": dataclasses.asdict(found),
        "inputs": files,
        feasible.SCORING: scoring(spec, store).wire(exclude_defaults=True),
    }
    write(spec, store, known)
    log.info("preflight", **(result.preflight.wire() if result.preflight else {}))
    return result


def scoring(spec: run.Run, store: storage.Storage) -> job.Evaluation:
    """The rules by which training scores its adapters: the present ones, unless it has begun with others."""
    begun = any(store.entries(f"{spec.layout.checkpoints}/"))
    return (feasible.scoring(spec, store) if begun else spec.evaluation).scoring


def same_files(files: list[dict[str, Any]]) -> str:
    """A hash of the data files by URI, size and tag, whatever the base model."""
    return revision.digest(sorted([one["uri"], one["size"], one.get("etag", "")] for one in files), 16)


def write(spec: run.Run, store: storage.Storage, document: dict[str, Any]) -> None:
    document = {"job": spec.uid, **document}
    store.write(spec.layout.preflight, (json.dumps(document, indent=1, ensure_ascii=False) + "\n").encode())


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
    collected: collect.Collected,
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
    collected: collect.Collected,
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
        tools=int(((reviewed.columns.marks & table.TOOLS) > 0)[place >= 0].sum()),
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
    remedy = forecast.advice(wanted, available, spec.gpu_types)
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
