"""What training will take, before it begins: for preflight, for train, and as `finetune-trainer estimate` for people.

run file, config.json (or the catalogue's numbers), lengths of the examples -> workload.Workload -> what fits, and what to change
"""

import dataclasses
import json
import pathlib
import re
from collections.abc import Iterator

from finetune_api import job, run
from finetune_trainer.data import corpus
from finetune_trainer.planning import architecture, memory, workload
from finetune_trainer.process import machine

UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}

UNKNOWN = 2**62
"""Bytes of memory that nobody told of."""


def examples(source: corpus.Corpus, batch_size: int) -> workload.Examples:
    """What the estimate needs to know of training examples, for steps of so many."""
    rows = source.lengths
    whole = rows.reshape(-1, 2 if source.pairs else 1).sum(1)
    learned = float(source.trainable.sum()) / max(1, int(rows.sum()))
    return workload.Examples(int(whole.max()), int(rows.max()), float(whole.mean()), source.step(batch_size), learned)


def of_folder(
    folder: pathlib.Path, training: job.Training, found: workload.Examples, device: workload.Device
) -> workload.Workload | None:
    """Training of the model in a folder; None where its config.json names the numbers otherwise."""
    shape = architecture.of(json.loads((folder / "config.json").read_text()))
    return None if shape is None else workload.Workload(shape, training, found, device)


def of_run(spec: run.Run, folder: pathlib.Path | None, found: workload.Examples) -> workload.Workload | None:
    """The same for a run file, `folder` being that of the base model, where there is one; else by the catalogue's numbers."""
    at = device(spec)
    made = None if folder is None else of_folder(folder, spec.training, found, at)
    if made is None and (shape := architecture.of_catalogue(spec.base_model)) is not None:
        made = workload.Workload(shape, spec.training, found, at)
    return made and dataclasses.replace(made, counted=spec.base_model.parameters)


def device(spec: run.Run) -> workload.Device:
    """Where the run trains: on GPUs, or on CPUs like this machine's."""
    full = spec.training.precision is job.Precision.FLOAT32
    if spec.training.precision is job.Precision.AUTO:
        full = not spec.gpus and not machine.bfloat16()
    kind = "cuda" if spec.gpus else "cpu"
    processes = spec.nodes * max(1, spec.gpus)
    return workload.Device(kind, 4 if full else 2, processes, compiled=machine.c_compiler())


def size(quantity: str) -> int:
    """Bytes of a Kubernetes quantity: 22Gi, 24G, 512Mi. Raises ValueError."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([kMGT]|[KMGT]i)?", quantity)
    if match is None:
        raise ValueError(f"{quantity!r} is no size of memory; write 22Gi, 24G or 512Mi")
    return int(float(match[1]) * UNITS[match[2] or ""])


def available(spec: run.Run) -> int:
    """Bytes that the run file says training may use; UNKNOWN where it does not."""
    return size(spec.memory) if spec.memory else UNKNOWN


def hopeless(wanted: workload.Workload, there: int) -> bool:
    """Whether weights and adapter alone are more than the memory, also when all processes hold the layers together."""
    shared = dataclasses.replace(wanted, device=dataclasses.replace(wanted.device, shards=wanted.device.processes))
    return all(
        found.weights + found.adapter > there
        for found in (memory.memory(one, 1, checkpointing=True) for one in (wanted, shared))
    )


# -- what to change --


def advice(wanted: workload.Workload, there: int) -> str | None:
    """A sentence for a run that will not fit by the estimate: what it needs at least, and single changes that help."""
    found = memory.setup(wanted, there)
    if memory.fits(found.memory, there, wanted.device):
        return None
    needs, has = memory.text(found.memory.needed), memory.text(there)
    helps = [text for text, other in _changes(wanted) if _fits(other, there)]
    field = "a larger resources.gpuType" if not wanted.device.cpu else "more resources.requests.memory"
    ways = ", or ".join([*helps, f"{field} ({memory.text(_enough(found, wanted))} will do)"])
    share = f"{memory.SHARE[wanted.device.kind]:.0%}"
    return (
        f"training needs about {needs} with its smallest micro-batch of {found.tokens} tokens, and may plan with {share} of "
        f"{has}: choose {ways}."
    )


def _fits(wanted: workload.Workload, there: int) -> bool:
    return memory.fits(memory.setup(wanted, there).memory, there, wanted.device)


def _enough(found: memory.Setup, wanted: workload.Workload) -> int:
    return int(found.memory.needed / memory.SHARE[wanted.device.kind]) + 1


def _changes(wanted: workload.Workload) -> Iterator[tuple[str, workload.Workload]]:
    """Changes of the spec that lower memory, the mildest first."""
    training = wanted.training

    def changed(**fields: object) -> workload.Workload:
        return dataclasses.replace(wanted, training=training.model_copy(update=fields))

    if training.gradient_checkpointing is job.GradientCheckpointing.DISABLED:
        yield "training.gradientCheckpointing Auto", changed(gradient_checkpointing=job.GradientCheckpointing.AUTO)
    if training.precision is job.Precision.FLOAT32:
        smaller = dataclasses.replace(wanted, device=dataclasses.replace(wanted.device, width=2))
        yield "training.precision BFloat16", smaller
    if training.method is not job.Method.QLORA:
        yield "training.method QLoRA", changed(method=job.Method.QLORA)
    if training.lora.rank > 16:
        yield "training.lora.rank 16", changed(lora=training.lora.model_copy(update={"rank": 16}))
    found, half = wanted.examples, max(16, wanted.examples.row // 2)
    shorter = dataclasses.replace(
        found,
        longest=min(found.longest, half * found.longest // found.row),
        row=half,
        average=min(found.average, float(half)),
    )
    yield f"training.maxSequenceLength {half}", dataclasses.replace(wanted, examples=shorter)
