"""What training needs, before it begins: for preflight, for train, and for `finetune-trainer estimate`.

run file, config.json (or the catalogue's numbers), lengths of the examples -> workload.Workload -> what fits, and what to change
"""

import dataclasses
import json
import pathlib
import re
from collections.abc import Iterator, Mapping

from finetune_api import job, run
from finetune_trainer.data import corpus
from finetune_trainer.planning import architecture, memory, parallelism, workload
from finetune_trainer.process import machine

UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}

UNKNOWN = 2**62
"""Bytes of memory, where the run file has no limit."""


def examples(source: corpus.Corpus, batch_size: int) -> workload.Examples:
    """The estimate's input about training examples, for steps of `batch_size`."""
    rows = source.lengths
    totals = rows.reshape(-1, 2 if source.pairs else 1).sum(1)
    learned = float(source.trainable.sum()) / max(1, int(rows.sum()))
    return workload.Examples(int(totals.max()), int(rows.max()), float(totals.mean()), source.step(batch_size), learned)


def of_folder(
    folder: pathlib.Path, training: job.Training, measured: workload.Examples, device: workload.Device
) -> workload.Workload | None:
    """Training of the model in a folder; None where its config.json uses other names."""
    shape = architecture.of(json.loads((folder / "config.json").read_text()))
    return None if shape is None else workload.Workload(shape, training, measured, device)


def of_run(spec: run.Run, folder: pathlib.Path | None, measured: workload.Examples) -> workload.Workload | None:
    """The same for a run file, `folder` being that of the base model, where there is one; else by the catalogue's numbers."""
    at = device(spec)
    made = None if folder is None else of_folder(folder, spec.training, measured, at)
    if made is None and (shape := architecture.of_catalogue(spec.base_model)) is not None:
        made = workload.Workload(shape, spec.training, measured, at)
    return made and dataclasses.replace(made, counted=spec.base_model.parameters)


def device(spec: run.Run) -> workload.Device:
    """Where the run trains: on GPUs, or on CPUs such as this process's."""
    full = spec.training.precision is job.Precision.FLOAT32
    if spec.training.precision is job.Precision.AUTO:
        full = not spec.gpus and not machine.bfloat16()
    kind = "cuda" if spec.gpus else "cpu"
    processes = spec.nodes * max(1, spec.gpus)
    return workload.Device(kind, 4 if full else 2, processes)


def size(quantity: str) -> int:
    """Bytes of a Kubernetes quantity: 22Gi, 24G, 512Mi. Raises ValueError."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([kMGT]|[KMGT]i)?", quantity)
    if match is None:
        raise ValueError(f"{quantity!r} is not a size of memory; write 22Gi, 24G or 512Mi")
    return int(float(match[1]) * UNITS[match[2] or ""])


def available(spec: run.Run) -> int:
    """Bytes that training may use by the run file; UNKNOWN where it has no limit."""
    return size(spec.memory) if spec.memory else UNKNOWN


# -- what to change --


def larger(field: str, needed: int, types: Mapping[str, float] | None) -> str:
    """The change of a gpuType to one with so many bytes: the smallest of the chart's, where these are known (GiB)."""
    if not types:
        return f"a larger {field} ({memory.text(needed)} is enough)"
    name = min(
        (name for name in types if types[name] * 2**30 >= needed), key=lambda name: (types[name], name), default=None
    )
    if name is None:
        return f"a larger {field} ({memory.text(needed)} is enough, which none in the chart has)"
    return f"{field} {name} ({types[name]:g}Gi; {memory.text(needed)} is enough)"


def advice(case: workload.Workload, capacity: int, types: Mapping[str, float] | None = None) -> str | None:
    """A sentence for a run that does not fit by the estimate: what it needs at least, and single changes that help. types: GiB of
    one GPU of each gpuType."""
    plan = parallelism.choose(case, capacity)
    if plan.fits:
        return None
    measured = plan.setup
    needs, has = memory.text(measured.memory.needed), memory.text(capacity)
    helps = [text for text, other in _changes(case) if _fits(other, capacity)]
    enough = _sufficient(measured, case)
    more = f"more resources.requests.memory ({memory.text(enough)} is enough)"
    ways = ", or ".join([*helps, more if case.device.cpu else larger("resources.gpuType", enough, types)])
    share = f"{memory.SHARE[case.device.kind]:.0%}"
    return (
        f"training needs about {needs} with its smallest micro-batch of {measured.tokens} tokens, and may use {share} of "
        f"{has}: choose {ways}."
    )


def _fits(case: workload.Workload, capacity: int) -> bool:
    return parallelism.choose(case, capacity).fits


def _sufficient(measured: memory.Setup, case: workload.Workload) -> int:
    return int(measured.memory.needed / memory.SHARE[case.device.kind]) + 1


def _changes(case: workload.Workload) -> Iterator[tuple[str, workload.Workload]]:
    """Changes of the spec that save memory, the mildest first."""
    training = case.training

    def changed(**fields: object) -> workload.Workload:
        return dataclasses.replace(case, training=training.model_copy(update=fields))

    if training.gradient_checkpointing is job.GradientCheckpointing.DISABLED:
        yield "training.gradientCheckpointing Auto", changed(gradient_checkpointing=job.GradientCheckpointing.AUTO)
    if training.precision is job.Precision.FLOAT32:
        smaller = dataclasses.replace(case, device=dataclasses.replace(case.device, width=2))
        yield "training.precision BFloat16", smaller
    if training.method is not job.Method.QLORA:
        yield "training.method QLoRA", changed(method=job.Method.QLORA)
    if training.lora.rank > 16:
        yield "training.lora.rank 16", changed(lora=training.lora.model_copy(update={"rank": 16}))
    measured, half = case.examples, max(16, case.examples.row // 2)
    shorter = dataclasses.replace(
        measured,
        longest=min(measured.longest, half * measured.longest // measured.row),
        row=half,
        average=min(measured.average, float(half)),
    )
    yield f"training.maxSequenceLength {half}", dataclasses.replace(case, examples=shorter)
