"""The training stage, as one story: data -> model -> adapter -> steps -> adapter in storage.

Every random choice comes from the seed, every number that a later step needs is in `checkpoint.State`: N steps are the
same as k steps, a kill, and N - k steps of the next attempt.
"""

import contextlib
import dataclasses
import hashlib
import json
import math
import pathlib
import time
from collections.abc import Iterator
from typing import Any

import torch

from finetune_api import job, outcome, reasons, run, status
from finetune_trainer import (
    adapter,
    batches,
    checkpoint,
    dataset,
    errors,
    estimate,
    folders,
    log,
    lora,
    loss,
    machine,
    model,
    progress,
    signals,
    sources,
    storage,
    tokens,
)

WARM_UP, FLOOR, CLIP = 0.05, 0.1, 1.0
"""Share of the steps with a rising learning rate; the share of the peak it ends at; the longest gradient."""

HURRY = 12.0
"""Seconds that the store may take to answer when a pod must end: of the 30 that it has, the upload needs some too."""

VALIDATIONS = 5
"""A run validates at least so often, however few epochs it has."""


@dataclasses.dataclass(frozen=True)
class Data:
    """The frozen split as token ids."""

    train: list[tokens.Encoded]
    validation: list[tokens.Encoded]
    sha256: str


def train(spec: run.Run, attempt: int, scale: float) -> outcome.Outcome:
    """Trains the revision's adapter, or goes on where an earlier attempt stopped. Raises Failure, Stopped."""
    store = storage.of(spec.storage)
    if done := finished(spec, store):
        return done

    # data and model
    torch.set_num_threads(machine.threads())
    where = model.device()
    folder = sources.resolve(spec.base_model, store, machine.work() / "base")
    encoder = tokens.load(folder, spec.training)
    data = read(spec, store, encoder)
    fits(spec, folder, where)
    base = model.load(folder, spec.training.precision, where)
    head = model.head(base)

    # adapter and optimizer
    torch.manual_seed(spec.training.seed)
    tuned = lora.add(base, spec.training.lora, spec.base_model.name)
    weights = lora.parameters(tuned)
    optimizer = torch.optim.AdamW(weights.values(), lr=0.0, weight_decay=0.0, fused=True)

    # plan
    plan = batches.plan(
        len(data.train),
        batch_size=spec.training.batch_size,
        seed=spec.training.seed,
        epochs=spec.training.epochs,
        max_steps=spec.training.max_steps,
    )
    setup = arrange(base, folder, spec.training, data, where, scale)
    report = progress.Progress(spec, "train", attempt)
    fingerprint = identity(spec, data)
    saver = checkpoint.Saver(store, spec.layout, fingerprint, spec.training.checkpoints.keep, report.saved)
    loop = Loop(spec, data, plan, setup, tuned, head, weights, optimizer, saver, report, where)

    # steps
    found = checkpoint.newest(store, spec.layout, fingerprint)
    if found is not None:
        loop.resume(found)
    log.info(
        "training",
        steps=plan.steps,
        from_step=loop.state.step,
        examples=len(data.train),
        parameters=sum(weight.numel() for weight in weights.values()),
        micro_batch_tokens=setup.tokens,
        gradient_checkpointing=setup.checkpointing,
        threads=torch.get_num_threads(),
    )
    resumed_from = loop.state.step or None
    with loop.nothing_lost():
        loop.run()

        # adapter
        result = deliver(spec, store, loop, encoder, base.dtype, resumed_from)
    report.end()
    return result


def finished(spec: run.Run, store: storage.Storage) -> outcome.Outcome | None:
    """The outcome of an earlier attempt that uploaded the whole adapter."""
    manifest = folders.manifest(store, spec.layout.adapter)
    if manifest is None or "training" not in manifest.extra:
        return None
    described = adapter.described(spec.layout.adapter, manifest, spec.training.lora.rank)
    log.info("the adapter is already there", adapter=spec.layout.adapter)
    return answer(spec, outcome.Training(adapter=described, **manifest.extra["training"]))


def answer(spec: run.Run, training: outcome.Training) -> outcome.Outcome:
    validation = "" if training.validation_loss is None else f", validation loss {training.validation_loss:.3f}"
    text = f"{training.steps} steps in {progress.duration(training.seconds)}, loss {training.loss:.3f}{validation}"
    return outcome.Outcome(stage=reasons.Stage.TRAIN, message=text, training=training)


def read(spec: run.Run, store: storage.Storage, encoder: tokens.Encoder) -> Data:
    """The frozen split, encoded. Examples without a learned token teach nothing and are left out."""
    local = machine.work() / "data"
    try:
        manifest = folders.load(store, spec.layout.data, local, only={"train.jsonl", "validation.jsonl"})
    except errors.NotFound:
        raise errors.Failure(
            reasons.Reason.DATASET_NOT_FOUND,
            f"{spec.layout.data} holds no frozen split; run the preflight stage of this revision first",
        ) from None
    found = {}
    for split in ("train", "validation"):
        examples = dataset.frozen(local / f"{split}.jsonl")
        try:
            encoded = [encoder.encode(example) for example in examples]
        except dataset.Wrong as wrong:
            raise errors.Failure(
                reasons.Reason.DATASET_INVALID, f"{spec.layout.data}/{split}.jsonl: {wrong}"
            ) from wrong
        found[split] = [example for example in encoded if example.trainable]
    if not found["train"]:
        raise errors.Failure(
            reasons.Reason.DATASET_INVALID,
            "no training example has a token to learn; raise training.maxSequenceLength or check training.lossOn",
        )
    return Data(found["train"], found["validation"], manifest.sha256)


def fits(spec: run.Run, folder: pathlib.Path, where: torch.device) -> None:
    """Raises Failure(InsufficientGpuMemory) when weights and adapter alone are more than the GPU has."""
    arch = estimate.architecture(json.loads((folder / "config.json").read_text()))
    if where.type != "cuda" or arch is None:
        return
    if spec.gpus > 1:
        log.warning("one GPU is used; training over several is not there yet", gpus=spec.gpus)
    least = estimate.memory(arch, spec.training, 1, checkpointing=True, device="cuda")
    if least.weights + least.adapter > model.memory(where):
        raise errors.Failure(
            reasons.Reason.INSUFFICIENT_GPU_MEMORY,
            f"weights and adapter take {estimate.text(least.weights + least.adapter)}, the GPU has "
            f"{estimate.text(model.memory(where))}; choose a larger resources.gpuType or a smaller base model",
        )


def arrange(
    base: Any, folder: pathlib.Path, training: job.Training, data: Data, where: torch.device, scale: float
) -> estimate.Setup:
    """Micro-batch and gradient checkpointing by the memory estimate; `scale` is below 1 after an out-of-memory."""
    lengths = [len(example.ids) for example in data.train]
    config = json.loads((folder / "config.json").read_text())
    arch = estimate.architecture(config)
    if arch is None:
        setup = estimate.Setup(max(lengths), True, estimate.Memory(0, 0, 0, 0, 0))
    else:
        setup = estimate.setup(
            arch,
            training,
            longest=max(lengths),
            average=sum(lengths) / len(lengths),
            available=model.memory(where),
            device=where.type,
            weights=sum(weight.numel() for weight in base.parameters()),
            width=base.dtype.itemsize,
        )
    if scale < 1:
        wanted = training.gradient_checkpointing is not job.GradientCheckpointing.DISABLED
        setup = dataclasses.replace(
            setup, tokens=max(1, int(setup.tokens * scale)), checkpointing=setup.checkpointing or wanted
        )
    if setup.checkpointing:
        lora.checkpoint_activations(base)
    return setup


def identity(spec: run.Run, data: Data) -> str:
    """What a checkpoint must have been made with to be resumed: data, model and every setting that shapes the weights."""
    settings = {**spec.training.wire(exclude={"checkpoints", "retries"}), "peak": learning_rate(spec)}
    parts = [data.sha256, spec.base_model.source, spec.base_model.revision, settings]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def learning_rate(spec: run.Run) -> float:
    """The peak: the job's, else the catalogue's, else 2e-4, or 1e-4 from 30 billion parameters on."""
    given = spec.training.learning_rate or spec.base_model.learning_rate
    if given is not None:
        return given
    return 1e-4 if (spec.base_model.parameters or 0) >= 30e9 else 2e-4


def schedule(step: int, steps: int) -> float:
    """The share of the peak learning rate at a step, counted from 0: a linear rise, then half a cosine to FLOOR."""
    warm = max(1, round(WARM_UP * steps))
    if step < warm:
        return (step + 1) / warm
    along = (step - warm) / max(1, steps - 1 - warm)
    return FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * min(1.0, along)))


@dataclasses.dataclass
class Loop:
    """The steps of a run."""

    spec: run.Run
    data: Data
    plan: batches.Plan
    setup: estimate.Setup
    tuned: Any
    head: loss.Head
    weights: dict[str, torch.nn.Parameter]
    optimizer: torch.optim.Optimizer
    saver: checkpoint.Saver
    report: progress.Progress
    where: torch.device
    state: checkpoint.State = dataclasses.field(default_factory=checkpoint.State)
    best: checkpoint.Tensors | None = None
    random: checkpoint.Tensors = dataclasses.field(default_factory=checkpoint.randomness)
    saved_step: int = 0
    pace: float = 0.0
    """Seconds of a step, averaged."""
    speed: float = 0.0
    """Tokens per second of this attempt, averaged."""

    def resume(self, found: checkpoint.Snapshot) -> None:
        checkpoint.restore(found, self.weights, self.optimizer)
        self.state, self.best, self.random = found.state, found.best, found.random
        self.saved_step = found.state.step
        log.info("resumed", step=found.state.step)

    @contextlib.contextmanager
    def nothing_lost(self) -> Iterator[None]:
        """On SIGTERM the last whole step is saved, and Stopped goes on."""
        try:
            yield
        except errors.Stopped:
            storage.hurry(HURRY)
            if self.state.step > self.saved_step:
                log.info("stopped; saving a checkpoint", step=self.state.step)
                self.saver.save(self.snapshot())
            self.report.end()
            raise

    def run(self) -> None:
        """All steps that are left."""
        last_saved = time.monotonic()
        while True:
            if self.validation_due():
                self.validate()
            if self.state.step >= self.plan.steps or self.exhausted():
                return
            self.step()
            if time.monotonic() - last_saved >= self.spec.training.checkpoints.every_minutes * 60:
                with signals.held():
                    self.saver.submit(self.snapshot())
                last_saved = time.monotonic()

    def step(self) -> None:
        """One optimizer step: gradients of micro-batches, divided by the tokens learned in the whole step."""
        begun = time.monotonic()
        self.random = checkpoint.randomness()
        chosen = self.plan.step(self.state.step)
        examples = self.data.train
        learned = sum(examples[index].trainable for index in chosen)
        self.tuned.train()
        self.optimizer.zero_grad(set_to_none=True)
        value = torch.zeros((), device=self.where)
        for part in batches.micro(chosen, [len(example.ids) for example in examples], self.setup.tokens):
            signals.check()
            rows = [examples[index] for index in part]
            states, targets = model.labelled(
                self.tuned, self.head, [row.ids for row in rows], [row.learned for row in rows], self.where
            )
            share = loss.total(states, targets, self.head) / learned
            share.backward()  # type: ignore[no-untyped-call]
            value += share.detach()
        norm = float(torch.nn.utils.clip_grad_norm_(self.weights.values(), CLIP))
        self.guard(float(value), norm)
        rate = learning_rate(self.spec) * schedule(self.state.step, self.plan.steps)
        with signals.held():
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            self.optimizer.step()
            self.account(chosen, float(value), rate, norm, time.monotonic() - begun)

    def guard(self, value: float, norm: float) -> None:
        if math.isfinite(value) and math.isfinite(norm):
            return
        raise errors.Failure(
            reasons.Reason.LOSS_DIVERGED,
            f"the loss is {value} and its gradient {norm} at step {self.state.step + 1}; lower training.learningRate (now "
            f"{learning_rate(self.spec):g}), or look for broken examples",
        )

    def account(self, chosen: list[int], value: float, rate: float, norm: float, seconds: float) -> None:
        """Notes a step that is done, and tells of it."""
        state, count = self.state, sum(len(self.data.train[index].ids) for index in chosen)
        state.step += 1
        state.tokens += count
        state.seconds += seconds
        state.history.append({"step": state.step, "loss": value, "learningRate": rate, "gradientNorm": norm})
        self.random = checkpoint.randomness()
        self.pace = seconds if not self.pace else 0.8 * self.pace + 0.2 * seconds
        self.speed = count / seconds if not self.speed else 0.8 * self.speed + 0.2 * count / seconds
        left = (self.plan.steps - state.step) * self.pace
        log.info(
            "step",
            step=state.step,
            steps=self.plan.steps,
            loss=round(value, 4),
            learning_rate=float(f"{rate:.3g}"),
            gradient_norm=round(norm, 3),
            tokens_per_second=round(count / seconds),
        )
        self.report.metrics.set(
            step=state.step,
            total_steps=self.plan.steps,
            epoch=self.plan.epoch(state.step),
            loss=value,
            learning_rate=rate,
            gradient_norm=norm,
            tokens_per_second=self.speed,
            eta_seconds=left,
            memory_bytes=model.peak(self.where),
        )
        self.tell(left)

    def tell(self, left: float) -> None:
        state = self.state
        percent = 100 * state.step // self.plan.steps
        self.report.tell(
            status.Progress(
                summary=f"{percent}%",
                percent=percent,
                step=state.step,
                total_steps=self.plan.steps,
                epoch=f"{self.plan.epoch(state.step):.2f}",
                loss=f"{state.history[-1]['loss']:.3f}",
                validation_loss=f"{state.validations[-1]['loss']:.3f}" if state.validations else None,
                tokens_per_second=round(self.speed),
                eta=progress.duration(left),
                updated_at=progress.now(),
            )
        )

    def validation_due(self) -> bool:
        """About once an epoch, at least VALIDATIONS times a run, and after the last step."""
        state = self.state
        if not self.data.validation or state.step == 0:
            return False
        every = max(1, min(math.ceil(self.plan.examples / self.plan.batch_size), self.plan.steps // VALIDATIONS))
        if state.validations and state.validations[-1]["step"] == state.step:
            return False
        return state.step % every == 0 or state.step == self.plan.steps

    def validate(self) -> None:
        """The loss of the validation split; the best adapter so far is kept."""
        begun = time.monotonic()
        value = mean_loss(self.tuned, self.head, self.data.validation, self.setup.tokens, self.where)
        state = self.state
        if not math.isfinite(value):
            self.guard(value, 0.0)
        with signals.held():
            state.validations.append({"step": state.step, "loss": value})
            if state.best_loss is None or value < state.best_loss:
                state.best_loss, state.best_step, state.worse = value, state.step, 0
                self.best = checkpoint.copy(self.weights)
            else:
                state.worse += 1
            seconds = round(time.monotonic() - begun, 2)
            log.info("validation", step=state.step, loss=round(value, 4), best_step=state.best_step, seconds=seconds)
            self.report.metrics.set(validation_loss=value)
            self.tell((self.plan.steps - state.step) * self.pace)

    def exhausted(self) -> bool:
        """Whether the validation loss has not improved for too long."""
        stop = self.state.worse >= self.spec.training.early_stopping.patience
        if stop:
            log.info("early stop", step=self.state.step, best_step=self.state.best_step)
        return stop

    def snapshot(self) -> checkpoint.Snapshot:
        return checkpoint.capture(self.weights, self.optimizer, self.state, self.random, self.best)

    def chosen(self) -> checkpoint.Tensors:
        """The adapter to keep: of the best validation, or of the last step where nothing was validated."""
        return self.best if self.best is not None else checkpoint.copy(self.weights)


def mean_loss(tuned: Any, head: loss.Head, examples: list[tokens.Encoded], budget: int, where: torch.device) -> float:
    """Nats per learned token over all examples."""
    tuned.eval()
    total = torch.zeros((), device=where)
    lengths = [len(example.ids) for example in examples]
    with torch.no_grad():
        for part in batches.micro(range(len(examples)), lengths, budget):
            signals.check()
            rows = [examples[index] for index in part]
            states, targets = model.labelled(
                tuned, head, [row.ids for row in rows], [row.learned for row in rows], where
            )
            total += loss.total(states, targets, head)
    return float(total) / sum(example.trainable for example in examples)


def deliver(
    spec: run.Run,
    store: storage.Storage,
    loop: Loop,
    encoder: tokens.Encoder,
    dtype: torch.dtype,
    resumed_from: int | None,
) -> outcome.Outcome:
    """Writes, checks and uploads the adapter. The checkpoints have done their work and go."""
    state = loop.state
    folder = machine.work() / "adapter"
    adapter.write(folder, loop.tuned, loop.chosen(), encoder.tokenizer.chat_template, dtype)
    adapter.check(folder, spec.base_model.name, loop.tuned)
    facts = {
        "steps": state.step,
        "loss": state.history[-1]["loss"],
        "validation_loss": state.best_loss,
        "best_step": state.best_step or None,
        "tokens_per_second": round(state.tokens / max(state.seconds, 1e-9), 1),
        "seconds": round(state.seconds, 1),
        "peak_memory": model.peak(loop.where),
        "resumed_from": resumed_from,
    }
    loop.saver.settle(60)
    (folder / "training.json").write_text(json.dumps({"history": state.history, "validations": state.validations}))
    described = adapter.upload(store, folder, spec.layout.adapter, spec.training.lora.rank, {"training": facts})
    for step in checkpoint.complete(store, spec.layout):
        folders.remove(store, spec.layout.checkpoint(step))
    log.info("adapter uploaded", adapter=described.uri, bytes=described.bytes)
    return answer(spec, outcome.Training(adapter=described, **facts))
