"""The training stage: data -> model -> adapter -> steps -> adapter in storage.

Every random choice comes from the seed, every number that a later step needs is in `checkpoint.State`: N steps equal
k steps, a kill, and N - k steps of the next attempt.
"""

import dataclasses
import gc
import hashlib
import json
import pathlib
import sys
from typing import Any

import torch

from finetune_api import job, outcome, reasons, run
from finetune_trainer.data import corpus, prompted, tokens
from finetune_trainer.engine import decoding, devices, lora, model, passes, sharded
from finetune_trainer.evaluation import feasible, validation
from finetune_trainer.planning import forecast, learning_rate, memory, parallelism, workload
from finetune_trainer.process import errors, log, machine, progress
from finetune_trainer.store import folders, sources, storage
from finetune_trainer.training import adapter, batches, checkpoint, loop, objective, processes, replay, trials


def train(spec: run.Run, attempt: int, scale: float) -> outcome.Outcome:
    """Trains the revision's adapter, or resumes where an earlier attempt stopped. Raises Failure, Stopped."""
    store = storage.of(spec.storage)
    if done := finished(spec, store):
        return done
    feasible.check_frozen(spec, store)

    # processes, data and model
    torch.set_num_threads(machine.threads())
    gpus = min(spec.gpus, devices.count())
    siblings = processes.start_siblings(gpus, [sys.executable, "-m", "finetune_trainer", *sys.argv[1:]])
    siblings.watch()
    where = devices.of(processes.number("LOCAL_RANK", 0))
    try:
        with processes.collectives(siblings):
            group = processes.join(where, siblings)
            return run_process(spec, store, group, where, attempt, scale)
    finally:
        processes.leave()
        siblings.stop()


def run_process(
    spec: run.Run,
    store: storage.Storage,
    group: processes.ProcessGroup,
    where: torch.device,
    attempt: int,
    scale: float,
) -> outcome.Outcome:
    """The work of one process of the group."""
    # Before the model is loaded, so that the port answers from the start.
    file = spec.progress_file if group.first else None
    reporter = progress.Progress(spec.model_copy(update={"progress_file": file}), "train", attempt)
    if group.local:
        group.wait()  # the first process of the node downloads the base model for all
    folder = sources.resolve(spec.base_model, store, processes.shared_folder() / "base")
    if not group.local:
        group.wait()
    data = corpus.load(store, spec.examples, folder, spec.training, spec.trained_prompt)
    planned = parallel(spec, folder, data, group, where)
    prepared = prepare(spec, store, group, folder, where, data, planned)
    if planned is not None and (again := reconsidered(planned, prepared, -group.maximum(-model.memory(where)))):
        planned, data, whole = again, prepared.data, prepared.engine.note
        del prepared
        gc.collect()
        if where.type == "cuda":
            torch.cuda.empty_cache()
        log.warning("each process held the base model, and these passes do not fit so; it is sharded", passes=whole)
        prepared = prepare(spec, store, group, folder, where, data, planned)
        prepared.engine.note = f"{prepared.engine.note}; whole, it would not fit {whole}"
    data, tuned, engine, case, shares = (
        prepared.data,
        prepared.tuned,
        prepared.engine,
        prepared.case,
        planned is not None and planned.sharded,
    )
    weights = lora.parameters(tuned)
    optimizer = torch.optim.AdamW(weights.values(), lr=0.0, weight_decay=0.0, fused=True)

    # plan
    plan = batches.plan(data.train.examples, spec.training)

    def set_up(engine: passes.Engine) -> tuple[passes.Engine, memory.Setup]:
        known = case and dataclasses.replace(case, chosen=engine.shares)
        setup = micro_batch(spec.training, data, known, model.memory(where), scale)
        if setup.checkpointing:
            engine.checkpoint()
        return engine, setup

    def standard() -> tuple[passes.Engine, memory.Setup]:
        decoding.withdraw(model.decoder(tuned))
        return set_up(passes.Plain(tuned, engine.head, where, passes.FAILED, group.every))

    _, setup = set_up(engine)
    goal = objective.of(spec.training)
    config = json.loads((folder / "config.json").read_text())
    rate = learning_rate.choose(spec, learning_rate.width(config), data.train.examples)
    fingerprint = identity(spec, data, rate.value)
    saver = checkpoint.Saver(store, spec.layout, fingerprint, spec.training.checkpoints.keep, reporter.saved)
    scored = None if shares else scorer(spec, store, folder, data, plan, tuned, engine, where)
    if not group.every(scored is not None):
        scored = None  # whoever scores waits for all others to do so
    training_loop = loop.Loop(
        spec,
        data,
        plan,
        setup,
        engine,
        goal,
        group,
        weights,
        optimizer,
        saver,
        reporter,
        rate.value,
        where,
        score=scored,
        standard=standard if engine.shares else None,
        search=trials.of(spec.training, rate.value),
        sharded=shares,
    )

    # steps
    found = checkpoint.newest(store, spec.layout, fingerprint)
    if found is not None:
        training_loop.resume(found)
    check_same_checkpoint(group, training_loop.number)
    log.info(
        "training",
        steps=plan.steps,
        from_step=training_loop.number,
        examples=data.train.examples,
        learning_rate=rate.text,
        general_examples=data.replay and data.replay.examples,
        parameters=sum(weight.numel() for weight in weights.values()),
        micro_batch_tokens=setup.tokens,
        gradient_checkpointing=setup.checkpointing,
        engine=type(engine).__name__.lower(),
        processes=group.size,
        parallelism=planned and planned.parallelism,
        threads=torch.get_num_threads(),
    )
    resumed_from = training_loop.number or None
    with training_loop.saving_at_the_end():
        training_loop.run()

        # adapter
        if group.first:
            result = deliver(spec, store, training_loop, scored, tuned, tuned.get_base_model().dtype, resumed_from)
        else:
            result = outcome.Outcome(stage=reasons.Stage.TRAIN, message=f"process {group.rank} of {group.size} is done")
    reporter.end()
    return result


def scorer(
    spec: run.Run,
    store: storage.Storage,
    folder: pathlib.Path,
    data: corpus.Splits,
    plan: batches.Plan,
    tuned: Any,
    engine: passes.Engine,
    where: torch.device,
) -> validation.Scorer | None:
    """What scores the answers of the adapter while it trains; None where the validation loss alone decides which one is kept."""
    if not len(data.validation):
        return None
    trained = plan.total * float(data.train.lengths.mean())
    validations = plan.steps // loop.validation_interval(plan)
    encoder = tokens.load(folder, spec.training)
    return validation.of(spec, store, encoder, tuned, engine.head, where, trained, validations)


def check_same_checkpoint(group: processes.ProcessGroup, step: int) -> None:
    """Raises Failure when the processes would resume from different checkpoints: a new one may appear while they choose."""
    (total,) = group.add([], [step])
    if total != step * group.size:
        raise errors.Failure(
            reasons.Reason.TRAINER_ERROR, "the training processes chose different checkpoints; the next attempt resumes"
        )


def finished(spec: run.Run, store: storage.Storage) -> outcome.Outcome | None:
    """The outcome of an earlier attempt that uploaded the whole adapter."""
    manifest = folders.manifest(store, spec.layout.adapter)
    if manifest is None or "training" not in manifest.extra or not folders.made_of(store, manifest, spec.examples):
        return None
    described = adapter.described(spec.layout.adapter, manifest, spec.training.lora.rank)
    log.info("the adapter was trained before", adapter=spec.layout.adapter)
    return answer(spec, outcome.Training(adapter=described, **manifest.extra["training"]))


def answer(spec: run.Run, training: outcome.Training) -> outcome.Outcome:
    rate = "" if training.learning_rate is None else f", learning rate {training.learning_rate:g}"
    validation = "" if training.validation_loss is None else f", validation loss {training.validation_loss:.3f}"
    notes = "".join(f"; {note}" for note in (training.search, training.passes, training.left_behind) if note)
    text = f"{training.steps} steps in {progress.duration(training.seconds)}{rate}, loss {training.loss:.3f}{validation}{notes}"
    return outcome.Outcome(stage=reasons.Stage.TRAIN, message=text, training=training)


def parallel(
    spec: run.Run, folder: pathlib.Path, data: corpus.Splits, group: processes.ProcessGroup, where: torch.device
) -> parallelism.Plan | None:
    """Whether every process holds the base model or a part of it, by the memory of the smallest device; None where config.json
    uses other names.

    Raises Failure(InsufficientGpuMemory) when weights and adapter fit in neither way.
    """
    width = devices.dtype(spec.training.precision, where).itemsize
    device = workload.Device(where.type, width, group.size, compiled=machine.c_compiler())
    examples = forecast.examples(data.train, spec.training.batch_size)
    wanted = forecast.of_folder(folder, spec.training, examples, device)
    if wanted is None:
        return None
    available = -group.maximum(-model.memory(where))
    plan = parallelism.choose(wanted, available)
    if where.type == "cuda" and parallelism.cannot_fit(wanted, available):
        needed = memory.memory(plan.case, 1, checkpointing=True)
        raise errors.Failure(
            reasons.Reason.INSUFFICIENT_GPU_MEMORY,
            f"weights and adapter need {memory.text(needed.weights + needed.adapter)} on each of {group.size} GPUs, which have "
            f"{memory.text(available)}; choose a larger resources.gpuType, more resources.gpus, training.method QLoRA, or a "
            "smaller base model",
        )
    if plan.sharded:
        log.info(
            "the base model is sharded over the processes (FSDP2) and trained through transformers",
            weights=memory.text(plan.setup.memory.weights),
            processes=group.size,
            memory=memory.text(available),
        )
    return plan


@dataclasses.dataclass(frozen=True)
class Prepared:
    """The model with its adapter and its passes, as planned."""

    tuned: Any
    engine: passes.Engine
    data: corpus.Splits
    """With the general examples."""
    case: workload.Workload | None
    """What is known now of the memory that it needs."""


def prepare(
    spec: run.Run,
    store: storage.Storage,
    group: processes.ProcessGroup,
    folder: pathlib.Path,
    where: torch.device,
    data: corpus.Splits,
    planned: parallelism.Plan | None,
) -> Prepared:
    """Loads the base model, adds the adapter, and compares the passes. Raises Failure."""
    shares = planned is not None and planned.sharded
    quantised = spec.training.method is job.Method.QLORA
    part = (group.rank, group.size) if shares else None
    base = model.load(folder, spec.training.precision, where, quantised, part)

    # general examples, before there is an adapter
    if data.replay is None:
        if shares and spec.training.replay is not None:
            raise errors.Failure(
                reasons.Reason.INVALID_SPEC,
                "training.replay lets the base model answer general prompts in one process, and no GPU holds this one; remove "
                "training.replay, and add general examples of your own to dataset.train",
            )
        general = replay.load(spec, store, group, base, folder, where, data.train.examples)
        data = dataclasses.replace(data, replay=general)

    # adapter
    torch.manual_seed(spec.training.seed)
    tuned = lora.add(base, spec.training.lora, spec.base_model.name)
    if shares:
        sharded.shard(tuned, where)
    for weight in lora.parameters(tuned).values():
        weight.data = weight.data.to(where)

    # engine
    counted = None if quantised else sum(weight.numel() for weight in base.parameters() if not weight.requires_grad)
    # The form takes the host's memory of some layers: once on a node, not once for each GPU.
    first = not group.local
    engine = passes.of(tuned, model.head(base), where, sharded=shares, agreed=group.every, proves_form=first)
    examples = measured(data, spec.training.batch_size)
    case = None
    if planned is not None:
        case = dataclasses.replace(planned.case, counted=counted, chosen=engine.shares, examples=examples)
    return Prepared(tuned, engine, data, case)


def reconsidered(planned: parallelism.Plan, prepared: Prepared, available: int) -> parallelism.Plan | None:
    """Another plan, where the trainer's own passes were planned and did not prove themselves, and those of transformers do not
    fit as planned; else None.

    available: bytes of the smallest device. Raises Failure(InsufficientGpuMemory) when they fit in no way.
    """
    if prepared.case is None or prepared.engine.shares or not planned.case.fast:
        return None
    plan = parallelism.choose(prepared.case, available)
    if not plan.fits and not plan.case.device.cpu:
        raise errors.Failure(
            reasons.Reason.INSUFFICIENT_GPU_MEMORY,
            f"training goes {prepared.engine.note}, and these need more memory: "
            f"{forecast.advice(prepared.case, available)}",
        )
    return plan if plan.sharded else None


def measured(data: corpus.Splits, batch_size: int) -> workload.Examples:
    """The memory estimate's input; no general example is longer than its longest one."""
    found = forecast.examples(data.train, batch_size)
    if data.replay is None:
        return found
    longest = int(data.replay.lengths.max())
    return dataclasses.replace(found, longest=max(found.longest, longest), row=max(found.row, longest))


def micro_batch(
    training: job.Training, data: corpus.Splits, case: workload.Workload | None, available: int, scale: float
) -> memory.Setup:
    """Micro-batch and gradient checkpointing of the engine that was chosen, by the memory estimate.

    available: bytes of memory; scale: below 1 after an out-of-memory.
    """
    longest = measured(data, training.batch_size).longest
    setup = memory.Setup(longest, True, memory.Memory()) if case is None else memory.setup(case, available)
    if scale < 1:
        checkpointing = setup.checkpointing or training.gradient_checkpointing is not job.GradientCheckpointing.DISABLED
        setup = dataclasses.replace(setup, tokens=max(1, int(setup.tokens * scale)), checkpointing=checkpointing)
    return setup


def identity(spec: run.Run, data: corpus.Splits, peak: float) -> str:
    """A hash of everything that a checkpoint depends on: data, model and every setting that affects the weights."""
    # Without defaults: a field that a later version adds does not invalidate a checkpoint.
    selected = spec.training.model_dump(
        mode="json", by_alias=True, exclude_defaults=True, exclude={"checkpoints", "retries"}
    )
    settings = {**selected, "peak": peak}
    parts = [data.sha256, spec.base_model.source, spec.base_model.revision, settings]
    if spec.trained_prompt is not None:
        parts.append(spec.trained_prompt)
    if data.replay is not None:
        parts.append(hashlib.sha256(data.replay.all_ids.tobytes()).hexdigest())
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def deliver(
    spec: run.Run,
    store: storage.Storage,
    training_loop: loop.Loop,
    scored: validation.Scorer | None,
    tuned: Any,
    dtype: torch.dtype,
    resumed_from: int | None,
) -> outcome.Outcome:
    """Writes, checks and uploads the adapter. Deletes the checkpoints, which are no longer needed."""
    state, tried = training_loop.state, training_loop.search
    seconds = state.seconds + (tried.seconds if tried else 0)
    tokens = state.tokens + (tried.tokens if tried else 0)
    folder = machine.work() / "adapter"
    adapter.write(folder, tuned, training_loop.selected(), training_loop.data.template, dtype)
    adapter.check(folder, spec.base_model.name, tuned)
    numbers = {
        "steps": state.step,
        "learning_rate": training_loop.peak,
        "search": tried and tried.text(),
        "loss": state.history[-1]["loss"],
        "validation_loss": state.best_loss,
        "best_step": state.best_step or None,
        "tokens_per_second": round(tokens / max(seconds, 1e-9), 1),
        "seconds": round(seconds, 1),
        "peak_memory": model.peak(training_loop.where),
        "resumed_from": resumed_from,
        "passes": training_loop.engine.note,
    }
    training_loop.saver.settle(60)
    curves: dict[str, Any] = {"history": state.history, "validations": state.validations}
    if scored is not None and state.best_score is not None:
        curves |= scored.curve(state.validations)
    (folder / "training.json").write_text(json.dumps(curves | ({"search": tried.trials} if tried else {})))
    extra = {"training": numbers, prompted.KEY: spec.trained_prompt, folders.MADE_OF: training_loop.data.sha256}
    described = adapter.upload(store, folder, spec.layout.adapter, spec.training.lora.rank, extra)
    log.info("adapter uploaded", adapter=described.uri, bytes=described.bytes)
    left = remove_checkpoints(spec, store)
    return answer(spec, outcome.Training(adapter=described, left_behind=left, **numbers))


def remove_checkpoints(spec: run.Run, store: storage.Storage) -> str | None:
    """Deletes the checkpoints. Returns what stays behind where the key may not."""
    gone = [folders.remove(store, spec.layout.checkpoint(step)) for step in checkpoint.complete(store, spec.layout)]
    if all(gone):
        return None
    left = list(store.entries(f"{spec.layout.checkpoints}/"))
    size = sum(entry.size for entry in left) / 2**20
    return (
        f"{len(left)} objects of checkpoints ({size:.0f} MiB) stay at {spec.layout.checkpoints}, since the key may not delete "
        "(s3:DeleteObject)"
    )
