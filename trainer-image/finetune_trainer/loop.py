"""The loop of training: optimizer steps, validations, checkpoints, and what is told of them.

All that one step needs of the steps before lies in `checkpoint.State` and the tensors beside it, so that a loop can be
left after any step and be taken up by another process.
"""

import contextlib
import dataclasses
import math
import time
from collections.abc import Iterator
from typing import Any

import torch

from finetune_api import reasons, run, status
from finetune_trainer import (
    batches,
    checkpoint,
    errors,
    estimate,
    log,
    loss,
    model,
    objects,
    progress,
    signals,
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
        """Saves the last whole step when training ends early, and lets the reason go on; a loss that diverged is not kept."""
        try:
            yield
        except errors.Stopped:
            self.save_now()
            self.report.end()
            raise
        except Exception as error:
            if not (isinstance(error, errors.Failure) and error.reason is reasons.Reason.LOSS_DIVERGED):
                with contextlib.suppress(Exception):  # the first error is the one to tell
                    self.save_now()
            self.report.end()
            raise

    def save_now(self) -> None:
        """Saves the last whole step unless it is saved already. Raises Failure when the store does not answer soon."""
        objects.hurry(HURRY)
        if self.state.step > self.saved_step:
            log.info("ending early; saving a checkpoint", step=self.state.step)
            self.saver.save(self.snapshot())

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
