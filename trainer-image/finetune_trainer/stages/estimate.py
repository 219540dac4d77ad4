"""`finetune-trainer estimate --run FILE`: what training will take, as a table for people or as JSON for programs. No torch.

The lengths of the examples are those that preflight noted; before preflight every example is taken to be as long as
training.maxSequenceLength allows, which is the most it can be.
"""

import dataclasses
import json
import pathlib
import tempfile
from collections.abc import Iterator
from typing import Any

from finetune_api import job, reasons, run
from finetune_trainer.planning import architecture, forecast, memory, workload
from finetune_trainer.process import errors, machine
from finetune_trainer.store import sources, storage

GPUS = {
    "nvidia-l4": 22,
    "nvidia-a10g": 22,
    "nvidia-a100-40gb": 40,
    "nvidia-l40s": 44,
    "nvidia-h100-80gb": 79,
    "nvidia-a100-80gb": 80,
    "nvidia-h200": 140,
    "nvidia-b200": 179,
}
"""GiB of the chart's gpuTypes (charts/finetune-operator/values.yaml); a test compares them."""

PATIENCE = 20.0
"""Seconds for a store that does not answer."""


@dataclasses.dataclass(frozen=True)
class Row:
    """What a variant of the run would take."""

    name: str
    setup: memory.Setup
    fits: bool | None
    """None where nobody told how much memory there is."""

    def document(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "microBatchTokens": self.setup.tokens,
            "gradientCheckpointing": self.setup.checkpointing,
            "bytes": self.setup.memory.total,
            "fits": self.fits,
        }


@dataclasses.dataclass(frozen=True)
class Sizing:
    """The answer."""

    run: run.Run
    case: workload.Workload
    measured: bool
    """Whether preflight measured the examples."""
    there: int
    chosen: Row
    variants: tuple[Row, ...]
    gpus: tuple[Row, ...]
    advice: str | None

    def document(self) -> dict[str, Any]:
        """As JSON; sizes in bytes, lengths in tokens."""
        terms = [dataclasses.asdict(term) for term in self.chosen.setup.memory.terms]
        return {
            "job": self.run.name,
            "baseModel": self.run.base_model.name,
            "method": self.run.training.method,
            "device": self.case.device.kind,
            "precision": "Float32" if self.case.device.width == 4 else "BFloat16",
            "engine": "fast" if self.case.fast else "plain",
            "examples": {**dataclasses.asdict(self.case.examples), "measured": self.measured},
            "memory": None if self.there == forecast.UNKNOWN else self.there,
            "chosen": {**self.chosen.document(), "terms": terms},
            "variants": [row.document() for row in self.variants],
            "gpuTypes": [row.document() for row in self.gpus],
            "advice": self.advice,
        }


def size(spec: run.Run, memory: str | None = None) -> Sizing:
    """memory: what training may use, as a quantity; absent: as the run file says, on CPUs else what this machine has.

    Raises Failure, ValueError.
    """
    lengths, measured = examples(spec)
    with tempfile.TemporaryDirectory() as temporary:
        wanted = forecast.of_run(spec, folder(spec, pathlib.Path(temporary)), lengths)
    if wanted is None:
        raise errors.Failure(
            reasons.Reason.MODEL_INVALID,
            f"{spec.base_model.source}: neither its config.json nor the catalogue tells layers, hidden_size and the like; "
            "give the BaseModel an architecture",
        )
    if memory is not None:
        spec = spec.model_copy(update={"memory": memory})
    there = forecast.available(spec)
    if there == forecast.UNKNOWN and not spec.gpus:
        there = machine.memory()
    return Sizing(
        run=spec,
        case=wanted,
        measured=measured,
        there=there,
        chosen=row("as asked", wanted, there),
        variants=tuple(row(name, one, there) for name, one in variants(wanted)),
        gpus=tuple(row(name, wanted, gib << 30) for name, gib in GPUS.items()) if spec.gpus else (),
        advice=forecast.advice(wanted, there),
    )


def examples(spec: run.Run) -> tuple[workload.Examples, bool]:
    """The training examples, and whether they were measured."""
    try:
        text = storage.of(spec.storage, PATIENCE).read(spec.layout.preflight)
        found = json.loads(text).get("facts", {}).get("lengths")
    except errors.Failure:
        found = None
    if found is not None:
        return workload.Examples(**found), True
    rows = 2 if spec.training.objective is job.Objective.DPO else 1
    longest = spec.training.max_sequence_length
    assumed = workload.Examples.of_one_kind(longest * rows, spec.training.batch_size)
    return dataclasses.replace(assumed, row=longest), False


def folder(spec: run.Run, work: pathlib.Path) -> pathlib.Path | None:
    """A folder with the model's config.json; None where it cannot be had but the catalogue has the numbers. Raises Failure."""
    known = architecture.of_catalogue(spec.base_model) is not None
    if known and spec.base_model.source.startswith("hf://"):
        return None
    try:
        return sources.resolve(spec.base_model, storage.of(spec.storage, PATIENCE), work, weights=False)
    except errors.Failure:
        if known:
            return None
        raise


def row(name: str, wanted: workload.Workload, there: int) -> Row:
    setup = memory.setup(wanted, there)
    fits = None if there == forecast.UNKNOWN else memory.fits(setup.memory, there, wanted.device)
    return Row(name, setup, fits)


def variants(wanted: workload.Workload) -> Iterator[tuple[str, workload.Workload]]:
    """Both methods, with and without gradient checkpointing."""
    for method in job.Method:
        for mode in (job.GradientCheckpointing.DISABLED, job.GradientCheckpointing.ENABLED):
            training = wanted.training.model_copy(update={"method": method, "gradient_checkpointing": mode})
            yield f"{method}, checkpointing {mode}", dataclasses.replace(wanted, training=training)


# -- as text --


def text(found: Sizing) -> str:
    wanted, lengths, chosen = found.case, found.case.examples, found.chosen.setup
    training, numbers = wanted.training, wanted.shape.numbers
    origin = "as preflight measured them" if found.measured else "assumed: preflight has not measured them yet"
    where = (
        "CPUs" if wanted.device.cpu else "a GPU" if wanted.device.processes == 1 else f"{wanted.device.processes} GPUs"
    )
    has = "" if found.there == forecast.UNKNOWN else f" of {memory.text(found.there)}"
    verdict = {None: "", True: ": fits", False: ": does not fit"}[found.chosen.fits]
    lines = [
        f"{found.run.name}: {training.method} of rank {training.lora.rank} on {found.run.base_model.name} "
        f"({numbers.layers} layers, {wanted.parameters / 1e9:.3g} billion weights), {where}",
        f"{training.batch_size} examples a step, the longest of {lengths.longest} tokens, {lengths.average:.0f} on average, "
        f"{lengths.step:.0f} different ones a step ({origin})",
        "",
        f"Micro-batches of {chosen.tokens} tokens, {'with' if chosen.checkpointing else 'without'} gradient checkpointing:",
        *_terms(chosen.memory),
        _line("", "total", memory.text(chosen.memory.total) + has + verdict),
        "",
        *_table("variant", found.variants),
    ]
    if found.gpus:
        lines += ["", *_table("gpuType", found.gpus, {name: f"{gib}Gi" for name, gib in GPUS.items()})]
    if found.advice:
        lines += ["", found.advice[0].upper() + found.advice[1:]]
    return "\n".join(lines)


def _terms(parts: memory.Memory) -> Iterator[str]:
    before = None
    for term in parts.terms:
        yield _line("" if term.purpose is before else term.purpose, term.name, f"{term.bytes / memory.MIB:,.0f} MiB")
        before = term.purpose


def _line(purpose: str, name: str, amount: str) -> str:
    return f"  {purpose:<12} {name:<40} {amount:>12}"


def _table(title: str, rows: tuple[Row, ...], has: dict[str, str] | None = None) -> Iterator[str]:
    yield f"  {title:<32} {'memory' if has else '':>7} {'micro-batch':>12} {'checkpointing':>14} {'total':>8}  fits"
    for one in rows:
        fits = {None: "unknown", True: "yes", False: "no"}[one.fits]
        kept = "yes" if one.setup.checkpointing else "no"
        total = memory.text(one.setup.memory.total)
        there = has[one.name] if has else ""
        yield f"  {one.name:<32} {there:>7} {one.setup.tokens:>12,} {kept:>14} {total:>8}  {fits}"
