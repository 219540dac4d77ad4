"""A training on a tiny model of which memory runs out in the midst of a step, in one process or in several of their own.

train(...)       steps, of which the second one is interrupted in a backward pass, or takes half the micro-batch from the start
together(...)    the same in two processes of which the second one is interrupted
"""

import copy
import itertools
import os
import pathlib
import types
import weakref
from typing import Any

import numpy as np
import torch
from tests.trainer import processes as started_processes
from tests.trainer import tiny

from finetune_api import job, run
from finetune_trainer.data import corpus
from finetune_trainer.engine import decoder, lora, model, passes
from finetune_trainer.planning import memory
from finetune_trainer.process import log, progress
from finetune_trainer.store import storage
from finetune_trainer.training import batches, checkpoint, loop, objective, processes
from support import ports
from support.warm import context

CPU = torch.device("cpu")

TOKENS, HALF = 160, 80
"""Of a micro-batch: some of both follow in a step, also in that of one process of two."""

SHORT = torch.OutOfMemoryError("CUDA out of memory")

CPU_SHORT = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")


def examples(count: int = 24) -> corpus.Corpus:
    """Rows of 30 to 60 tokens of which the second half is learned."""
    random = np.random.default_rng(0)
    ids = [random.integers(1, 384, size) for size in random.integers(30, 60, count)]
    lengths = np.array([len(row) for row in ids])
    learned = [np.arange(len(row)) > len(row) // 2 for row in ids]
    ends = lengths.cumsum()
    trainable = np.array([int(row[1:].sum()) for row in learned], dtype=np.int32)
    flat = np.concatenate(ids).astype(np.int32)
    return corpus.Corpus(
        flat, np.concatenate(learned), ends - lengths, ends, trainable, np.zeros(count, dtype=bool), False
    )


def made(folder: pathlib.Path, base: pathlib.Path, group: processes.ProcessGroup, own: bool) -> loop.Loop:
    """own: by the trainer's own passes, which have no dropout; else by those of transformers, with dropout."""
    settings = {"precision": "Float32", "batchSize": 12, "lora": {"rank": 8, "alpha": 16, "dropout": 0 if own else 0.2}}
    document = tiny.run_document(f"file://{base}", ["file:///none"], f"file://{folder}", training=settings)
    spec = run.Run.model_validate(document)
    torch.manual_seed(spec.training.seed)
    tuned = lora.add(model.load(base, job.Precision.FLOAT32, CPU), spec.training.lora, "base")
    head = model.head(tuned.get_base_model())
    engine: passes.Engine = passes.Plain(tuned, head, CPU)
    if own:
        engine = passes.Fast(decoder.Decoder(model.decoder(tuned), CPU), head, CPU)
    weights = lora.parameters(tuned)
    data: Any = types.SimpleNamespace(train=examples(), validation=())
    return loop.Loop(
        spec,
        data,
        batches.plan(data.train.examples, spec.training),
        memory.Setup(TOKENS, False, memory.Memory()),
        engine,
        objective.of(spec.training),
        group,
        weights,
        torch.optim.AdamW(weights.values(), lr=0.0, weight_decay=0.0, fused=True),
        checkpoint.Saver(storage.of(spec.storage), spec.layout, "loops", 1, lambda _: None),
        progress.Progress(spec, "train", 1),
        0.01,
        CPU,
    )


def computes_again(engine: Any) -> bool:
    """Whether activations are computed again in the backward pass."""
    if isinstance(engine, passes.Fast):
        return engine._inner.checkpointing
    again: bool = engine._tuned.get_base_model().is_activation_checkpointing
    return again


class Interruption:
    """Raises an error once, in the second backward pass from now on, when but the first layer's gradients were added."""

    def __init__(self, training: loop.Loop, error: Exception) -> None:
        self._training, self._error, self._passes = training, error, itertools.count()
        self._failed: weakref.ref[torch.Tensor] | None = None
        self.left: bool | None = None
        """Whether the next pass found memory in use that the failed one had taken; None: there was none yet."""
        engine: Any = training.engine
        if isinstance(engine, passes.Fast):
            self._layer = engine._inner._layer_backward
            engine._inner._layer_backward = self._layer_backward  # type: ignore[method-assign]
        else:
            next(iter(training.weights.values())).register_hook(lambda _: self.strike())
        self._forward = engine.forward
        engine.forward = self.forward

    def _layer_backward(self, layer: Any, *given: Any) -> torch.Tensor:
        if layer.number == 0:
            self.strike()
        return self._layer(layer, *given)

    def strike(self) -> None:
        activations = torch.ones(8)
        if next(self._passes) == 1:
            self._failed = weakref.ref(activations)
            raise copy.copy(self._error)  # one that is raised keeps the frames it went through

    def forward(self, *given: Any, **named: Any) -> passes.Labelled:
        if self._failed is not None and self.left is None:
            engine: Any = self._training.engine
            held = engine._inner.memory.bytes if isinstance(engine, passes.Fast) else engine._states.numel()
            self.left = bool(held) or self._failed() is not None
        found: passes.Labelled = self._forward(*given, **named)
        return found


def train(training: loop.Loop, error: Exception | None, halved: bool) -> Interruption | None:
    """Three steps. error: raised in the second one; halved: whether this one takes half the micro-batch from the start."""
    training.step()
    interruption = Interruption(training, error) if error else None
    if halved:
        training.setup = memory.Setup(HALF, True, memory.Memory())
        training.engine.checkpoint()
    training.step()
    training.step()
    return interruption


# -- in processes of their own --


def together(folder: pathlib.Path, base: pathlib.Path) -> None:
    """Two processes, twice three steps: undisturbed, and one of them is interrupted; then a step that nothing can help."""
    port = ports.free()
    started = []
    for rank in range(2):
        process = context.Process(target=_main, args=(folder, base, rank, port))
        process.start()
        started.append(process)
    assert [started_processes.ended(process, 120) for process in started] == [0, 0]


def of(folder: pathlib.Path, rank: int, disturbed: bool) -> checkpoint.Snapshot:
    """What a process had at the end."""
    return checkpoint.read(place(folder, rank, disturbed), "loops")


def place(folder: pathlib.Path, rank: int, disturbed: bool) -> pathlib.Path:
    return folder / f"{rank}-{disturbed}"


def _main(folder: pathlib.Path, base: pathlib.Path, rank: int, port: int) -> None:
    os.environ |= {run.NODES: "2", run.NODE: str(rank), run.RENDEZVOUS: f"127.0.0.1:{port}", "OMP_NUM_THREADS": "1"}
    os.environ |= {"FINETUNE_METRICS_PORT": "0", "FINETUNE_WORK": str(folder / f"work{rank}")}
    log.configure()
    torch.set_num_threads(1)
    group = processes.join(CPU, processes.SiblingProcesses([]))
    for disturbed in (False, True):
        training = made(folder, base, group, own=False)
        interruption = train(training, SHORT if disturbed and rank == 1 else None, halved=not disturbed)
        assert interruption is None or interruption.left is False
        place(folder, rank, disturbed).mkdir()
        checkpoint.write(training.snapshot(), place(folder, rank, disturbed), "loops")
    if rank == 1:  # the other one could halve its micro-batch
        training.setup = memory.Setup(1, True, memory.Memory())
        Interruption(training, SHORT)
    try:
        training.step()
    except torch.OutOfMemoryError:
        assert training.state.step == 3
    else:
        raise AssertionError("a step without memory")
    processes.leave()
