"""The training loop: optimizer steps, validations, checkpoints, and the progress reports about them.

Everything that a step needs from earlier steps is in `checkpoint.State` and the tensors beside it, so that training can stop
after any step and resume in another process.
"""

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from finetune_api import reasons, run
from finetune_trainer.data import corpus
from finetune_trainer.engine import model, passes, prefix_tree
from finetune_trainer.planning import learning_rate, memory
from finetune_trainer.process import errors, log, progress, signals
from finetune_trainer.store import objects
from finetune_trainer.training import batches, checkpoint, objective, processes, shortage, trials, watchdogs

WARM_UP, FLOOR, CLIP = 0.05, 0.1, 1.0
"""Share of the steps with a rising learning rate; share of the peak at the end; maximum norm of the gradient."""

HURRY = 12.0
"""Seconds that the store may take to answer when a pod must end: the upload needs the rest of the pod's 30."""

BUNDLE = 256
"""Examples of a validation that are sorted and cut together."""

VALIDATIONS = 5
"""Validations of a run, at least, however few epochs it has."""


def schedule(step: int, steps: int) -> float:
    """The share of the peak learning rate at a step, counted from 0: a linear rise, then half a cosine to FLOOR."""
    warm = max(1, round(WARM_UP * steps))
    if step < warm:
        return (step + 1) / warm
    along = (step - warm) / max(1, steps - 1 - warm)
    return FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * min(1.0, along)))


def validation_interval(plan: batches.Plan) -> int:
    """Steps from one validation to the next."""
    return max(1, min(math.ceil(plan.examples / plan.batch_size), plan.steps // VALIDATIONS))


@dataclasses.dataclass
class Loop:
    """The steps of a run."""

    spec: run.Run
    data: corpus.Splits
    plan: batches.Plan
    setup: memory.Setup
    engine: passes.Engine
    objective: objective.Objective
    group: processes.ProcessGroup
    weights: dict[str, torch.nn.Parameter]
    optimizer: torch.optim.Optimizer
    saver: checkpoint.Saver
    reporter: progress.Progress
    peak: float
    """The learning rate after the warm-up."""
    where: torch.device
    state: checkpoint.State = dataclasses.field(default_factory=checkpoint.State)
    best: checkpoint.Tensors | None = None
    random: checkpoint.Tensors = dataclasses.field(default_factory=checkpoint.randomness)
    sharded: bool = False
    """Whether the frozen layers are sharded, so that the processes must run each pass together."""
    score: Callable[[], float | None] | None = None
    """How good the adapter's answers are now, higher is better: of several validations the best one is kept; None: the loss
    decides."""
    standard: Callable[[], tuple[passes.Engine, memory.Setup]] | None = None
    """Makes other passes, for the case that these fail before the first step; None: there are no others."""
    search: trials.Search | None = None
    """The learning rates that are tried first."""
    start: checkpoint.Snapshot | None = None
    """Where each candidate of the search starts."""
    leader: checkpoint.Snapshot | None = None
    """The best candidate that has ended, until the search is over."""
    saved_step: int = 0
    """Steps of all candidates, see `number`."""
    saved_at: float = dataclasses.field(default_factory=time.monotonic)
    spike: watchdogs.Spike = dataclasses.field(default_factory=watchdogs.Spike)
    pace: float = 0.0
    """Seconds per step, averaged."""
    speed: float = 0.0
    """Tokens per second of this attempt, averaged."""

    def resume(self, snapshot: checkpoint.Snapshot) -> None:
        """Continues from a checkpoint. The adapter must still be that of the first step, where a search starts again."""
        if snapshot.search is not None:
            if not snapshot.search.over:
                self.start = self.snapshot()
            self.search, self.leader, self.peak = snapshot.search, snapshot.leader, snapshot.search.rate
        self.load(snapshot)
        self.saved_step = self.number
        log.info("resumed", step=self.number)

    def load(self, snapshot: checkpoint.Snapshot) -> None:
        """Takes over the tensors and the state of one candidate."""
        checkpoint.restore(snapshot, self.weights, self.optimizer)
        self.engine.refresh()
        self.state, self.best, self.random = snapshot.state.copy(), snapshot.best, snapshot.random
        self.spike = watchdogs.Spike()
        for point in self.state.history:
            self.spike.add(int(point["step"]), point["loss"], point["learningRate"])

    @property
    def number(self) -> int:
        """Optimizer steps so far, of all candidates of a search."""
        return self.state.step + (self.search.steps if self.search else 0)

    @property
    def searching(self) -> bool:
        return self.search is not None and not self.search.over

    @property
    def total(self) -> int:
        """Optimizer steps that `number` reaches at the end."""
        return self.search.total(self.plan.steps) if self.search else self.plan.steps

    @contextlib.contextmanager
    def saving_at_the_end(self) -> Iterator[None]:
        """Saves the last whole step when training ends early, unless the loss diverged; the error is raised again."""
        try:
            yield
        except errors.Stopped:
            self.save_now()
            self.reporter.end()
            raise
        except Exception as error:
            if not (isinstance(error, errors.Failure) and error.reason is reasons.Reason.LOSS_DIVERGED):
                with contextlib.suppress(Exception):  # the first error is the one to report
                    self.save_now()
            self.reporter.end()
            raise

    def save_now(self) -> None:
        """Saves the last whole step unless it is saved already. Raises Failure when the store does not answer soon."""
        if self.group.first and self.number > self.saved_step:
            log.info("ending early; saving a checkpoint", step=self.number)
            with objects.hurried(HURRY):
                self.saver.save(self.snapshot())

    def run(self) -> None:
        """All remaining steps."""
        shortage.settle(self)
        self.saved_at = time.monotonic()
        with contextlib.ExitStack() as stack:
            if self.group.size > 1:  # all processes stop after the same step
                stack.enter_context(signals.held())
            if self.search is not None and self.searching:
                self.choose_rate(self.search)
            self.advance(self.plan.steps)

    def advance(self, steps: int) -> None:
        """Trains until so many steps are done, or until validations do not improve any more."""
        while True:
            if self.validation_due():
                self.validate()
            if self.state.step >= steps or self.should_stop():
                return
            self.step()
            if time.monotonic() - self.saved_at >= self.spec.training.checkpoints.every_minutes * 60:
                if self.group.first:
                    with signals.held():
                        self.saver.submit(self.snapshot())
                self.saved_at = time.monotonic()

    def choose_rate(self, tried: trials.Search) -> None:
        """Trains each candidate on the first steps and continues with the best one, from where it was. Raises Failure when all
        diverge."""
        self.start = self.start or self.snapshot()
        while not tried.over:
            self.peak = tried.rate
            log.info("learning rate tried", rate=tried.trial)
            loss, problem = self.trial()
            with signals.held():
                if tried.end(self.state.step, loss):
                    self.leader = None  # one at a time
                    self.leader = dataclasses.replace(self.snapshot(), search=None)
                following = self.leader if tried.over else self.start
                if following is None:
                    raise watchdogs.diverged(f"none of training.search can be used: {tried.text()}; {problem}")
                tried.steps = sum(trial["steps"] for trial in tried.trials) - following.state.step
                tried.tokens += self.state.tokens
                tried.seconds += self.state.seconds
                self.load(following)
                if tried.over:
                    tried.tokens -= self.state.tokens
                    tried.seconds -= self.state.seconds
                    self.peak, self.start, self.leader = tried.rate, None, None
        log.info("learning rate chosen", rate=self.peak, tried=tried.text())

    def trial(self) -> tuple[float | None, errors.Failure | None]:
        """The validation loss of a candidate after the first steps; or no loss, and why it diverged."""
        try:
            self.advance(learning_rate.trial_steps(self.plan.steps))
            last = self.state.validations[-1] if self.state.validations else {"step": 0}
            if last["step"] == self.state.step:
                return last["loss"], None
            # A training without a search does not validate here: it must not change the state, nor the generators.
            value = self.mean(self.data.validation)
            checkpoint.restore_randomness(self.random)
            watchdogs.check_step(self.state.step, value, 1.0, self.peak)
        except errors.Failure as failure:
            if failure.reason is not reasons.Reason.LOSS_DIVERGED:
                raise
            log.info("learning rate diverged", rate=self.peak, problem=failure.message)
            return None, failure
        return value, None

    def length(self, index: int, lengths: Any) -> int:
        """Tokens of an example."""
        each = self.objective.rows
        return int(lengths[index * each : (index + 1) * each].sum())

    def rows(self, source: corpus.Corpus, index: int) -> list[prefix_tree.TokenRow]:
        """The rows of an example."""
        each = self.objective.rows
        return [
            prefix_tree.TokenRow(source.ids(row), source.learned(row))
            for row in range(index * each, (index + 1) * each)
        ]

    def example(self, number: int) -> list[prefix_tree.TokenRow]:
        """The rows of an example of the plan: of the task, or after these a general one."""
        beyond = number - self.data.train.examples
        if beyond < 0 or self.data.replay is None:
            return self.rows(self.data.train, number)
        return self.rows(self.data.replay, beyond % self.data.replay.examples)

    def micro(self, units: list[list[prefix_tree.TokenRow]]) -> Iterator[list[prefix_tree.TokenRow]]:
        """Examples in micro-batches that fit into memory."""
        if self.engine.pads:
            lengths = [max(len(row.ids) for row in unit) * len(unit) for unit in units]
            parts = batches.micro(range(len(units)), lengths, self.setup.tokens)
        else:
            parts = batches.cut(units, self.setup.tokens, share=self.engine.shares)
        for part in parts:
            yield [row for index in part for row in units[index]]

    def in_lockstep(
        self, parts: list[list[prefix_tree.TokenRow]], filler: list[prefix_tree.TokenRow]
    ) -> Iterator[tuple[list[prefix_tree.TokenRow], float]]:
        """Micro-batches and their weight: where the frozen layers are sharded, all processes run the same number of passes."""
        yield from ((rows, 1.0) for rows in parts)
        if self.sharded:
            yield from ((filler, 0.0) for _ in range(self.group.maximum(len(parts)) - len(parts)))

    def step(self) -> None:
        """One optimizer step: gradients of micro-batches, divided by the units of the whole step."""
        begun = time.monotonic()
        self.random = checkpoint.randomness()
        selected = self.plan.step(self.state.step)
        examples = [self.example(index) for index in selected]
        total = sum(self.objective.units(example) for example in examples)
        mine = [examples[at] for at in batches.share_of(examples, self.group.rank, self.group.size)]
        while (value := self.all_reduce(self.gradients(mine, total, examples[0]))) is None:
            shortage.halve(self)
            checkpoint.restore_randomness(self.random)
        rate = self.peak * schedule(self.state.step, self.plan.steps)
        norm = float(torch.nn.utils.clip_grad_norm_(self.weights.values(), CLIP))
        watchdogs.check_step(self.state.step + 1, value, norm, rate)
        with signals.held():
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            self.optimizer.step()
            self.engine.refresh()
            self.record(sum(len(row.ids) for example in examples for row in example), value, rate, norm, begun)
        if self.state.step == watchdogs.MOVED_AFTER:
            watchdogs.check_moved(self.state.step, self.weights)
        self.spike.add(self.state.step, value, rate)

    def gradients(
        self, mine: list[list[prefix_tree.TokenRow]], total: int, filler: list[prefix_tree.TokenRow]
    ) -> float | None:
        """The gradients of this process's examples; returns their part of the loss, None where memory was short."""
        value = 0.0

        def learn() -> None:
            nonlocal value
            for rows, share in self.in_lockstep(list(self.micro(mine)), filler):
                signals.check()
                value += self.objective.learn(self.engine, rows, total, share)

        self.optimizer.zero_grad(set_to_none=True)
        return value if shortage.fits(self, learn) else None

    def all_reduce(self, value: float | None) -> float | None:
        """Sums the value and the gradients over all processes; None in all where one has none. Raises Stopped on all of them when
        one of them is to stop."""
        if self.group.size == 1:
            return value
        for weight in self.weights.values():
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
        gradients = [weight.grad for weight in self.weights.values() if weight.grad is not None]
        total, stop, short = self.group.add(gradients, [value or 0.0, float(signals.asked()), float(value is None)])
        if stop:
            raise errors.Stopped
        return None if short else total

    def record(self, count: int, value: float, rate: float, norm: float, begun: float) -> None:
        """Records a finished step of `count` tokens, and reports it."""
        state, seconds = self.state, time.monotonic() - begun
        state.step += 1
        state.tokens += count
        state.seconds += seconds
        state.history.append({"step": state.step, "loss": value, "learningRate": rate, "gradientNorm": norm})
        self.random = checkpoint.randomness()
        self.pace = seconds if not self.pace else 0.8 * self.pace + 0.2 * seconds
        self.speed = count / seconds if not self.speed else 0.8 * self.speed + 0.2 * count / seconds
        left = (self.total - self.number) * self.pace
        log.info(
            "step",
            step=state.step,
            steps=self.plan.steps,
            loss=round(value, 4),
            learning_rate=float(f"{rate:.3g}"),
            gradient_norm=round(norm, 3),
            tokens_per_second=round(count / seconds),
        )
        self.reporter.metrics.set(
            step=self.number,
            total_steps=self.total,
            epoch=self.plan.epoch(state.step),
            # Each candidate of a search begins with a high loss, which would look like divergence.
            loss=None if self.searching else value,
            learning_rate=rate,
            gradient_norm=norm,
            tokens_per_second=self.speed,
            eta_seconds=left,
            memory_bytes=model.peak(self.where),
        )
        self.report_progress(left)

    def report_progress(self, left: float) -> None:
        state = self.state
        self.reporter.update(
            progress.of(
                self.number,
                self.total,
                epoch=f"{self.plan.epoch(state.step):.2f}",
                trial=self.search.trial if self.search else None,
                loss=f"{state.history[-1]['loss']:.3f}",
                validation_loss=f"{state.validations[-1]['loss']:.3f}" if state.validations else None,
                tokens_per_second=round(self.speed),
                eta=progress.duration(left),
            )
        )

    def validation_due(self) -> bool:
        """About once an epoch, at least VALIDATIONS times a run, and after the last step."""
        state = self.state
        if not len(self.data.validation) or state.step == 0:
            return False
        every = validation_interval(self.plan)
        if state.validations and state.validations[-1]["step"] == state.step:
            return False
        return state.step % every == 0 or state.step == self.plan.steps

    def validate(self) -> None:
        """The loss of the validation split, and the score of the answers; the best adapter so far is copied."""
        begun = time.monotonic()
        value = self.mean(self.data.validation)
        state = self.state
        if not math.isfinite(value):
            watchdogs.check_step(state.step, value, 1.0, self.peak)
        score = self.scored()
        with signals.held():
            better = state.is_better(value, score)
            lower = all(value < one["loss"] for one in state.validations)
            state.validations.append({"step": state.step, "loss": value} | ({} if score is None else {"score": score}))
            state.worse = 0 if better or lower else state.worse + 1
            if better:
                state.best_loss, state.best_score, state.best_step = value, score, state.step
                self.best = checkpoint.copy(self.weights)
            seconds = round(time.monotonic() - begun, 2)
            log.info(
                "validation",
                step=state.step,
                loss=round(value, 4),
                score=None if score is None else round(score, 4),
                best_step=state.best_step,
                seconds=seconds,
            )
            self.reporter.metrics.set(validation_loss=None if self.searching else value)
            self.report_progress((self.total - self.number) * self.pace)

    def scored(self) -> float | None:
        """The score of the answers; the first process asks, the others wait for it."""
        if self.score is None:
            return None
        score = None
        if self.group.first:
            shortage.release(self)  # answers take the memory that activations had, and leave it to them
            score = self.score()
            self.engine.release()
        self.group.wait()
        checkpoint.restore_randomness(self.random)
        known, value = self.group.add([], [float(score is not None), score or 0.0])
        return value if known else None

    def mean(self, source: corpus.Corpus) -> float:
        """The objective's mean over all examples, each process taking every n-th."""
        mine = range(self.group.rank, source.examples, self.group.size)
        value, units = 0.0, 0
        for begin in range(0, -(-source.examples // self.group.size), BUNDLE):
            examples = [self.rows(source, index) for index in mine[begin : begin + BUNDLE]]
            units += sum(self.objective.units(example) for example in examples)
            for rows, share in self.in_lockstep(list(self.micro(examples)), self.rows(source, 0)):
                signals.check()
                value += share * self.objective.value(self.engine, rows)
        value, every = self.group.add([], [value, units])
        return value / every

    def should_stop(self) -> bool:
        """Whether neither validation loss nor score has improved for too long."""
        stop = self.state.worse >= self.spec.training.early_stopping.patience
        if stop:
            log.info("early stop", step=self.state.step, best_step=self.state.best_step)
        return stop

    def snapshot(self) -> checkpoint.Snapshot:
        return checkpoint.capture(
            self.weights, self.optimizer, self.state, self.random, self.best, self.search, self.leader
        )

    def selected(self) -> checkpoint.Tensors:
        """The adapter to save: that of the best validation, or of the last step where there was none."""
        return self.best if self.best is not None else checkpoint.copy(self.weights)
