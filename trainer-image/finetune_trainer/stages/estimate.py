"""`finetune-trainer estimate --run FILE`: the memory that training needs, as a table or as JSON. No torch.

The lengths of the examples are those that preflight measured; before preflight every example is assumed to have
training.maxSequenceLength tokens, the maximum.
"""

import dataclasses
import json
import pathlib
import tempfile
from collections.abc import Iterator
from typing import Any

from finetune_api import job, reasons, run
from finetune_trainer.planning import architecture, forecast, memory, parallelism, workload
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

IMAGE = "GPUs: for the trainer image, whose C compiler FlexAttention needs; without one more memory is used, and less at once."
"""What the estimate assumes, whatever the machine has that it is made on."""

PATIENCE = 20.0
"""Seconds for a store that does not answer."""


@dataclasses.dataclass(frozen=True)
class Variant:
    """A variant of the run, and the memory that it needs."""

    name: str
    plan: parallelism.Plan
    fits: bool | None
    """None where the available memory is unknown."""

    @property
    def setup(self) -> memory.Setup:
        return self.plan.setup

    def document(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "microBatchTokens": self.setup.tokens,
            "gradientCheckpointing": self.setup.checkpointing,
            "parallelism": self.plan.parallelism,
            "bytes": self.setup.memory.total,
            "fits": self.fits,
        }


@dataclasses.dataclass(frozen=True)
class Estimate:
    """The memory estimate of a run, with variants."""

    run: run.Run
    case: workload.Workload
    measured: bool
    """Whether preflight measured the examples."""
    available: int
    chosen: Variant
    variants: tuple[Variant, ...]
    gpus: tuple[Variant, ...]
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
            "compiledAttention": self.case.device.compiled and not self.case.device.cpu,
            "engine": "fast" if self.chosen.plan.case.fast else "plain",
            "examples": {**dataclasses.asdict(self.case.examples), "measured": self.measured},
            "memory": None if self.available == forecast.UNKNOWN else self.available,
            "chosen": {**self.chosen.document(), "terms": terms},
            "variants": [variant.document() for variant in self.variants],
            "gpuTypes": [variant.document() for variant in self.gpus],
            "advice": self.advice,
        }


def estimate(spec: run.Run, memory: str | None = None) -> Estimate:
    """memory: what training may use, as a quantity; None: as the run file says, else, on CPUs, this machine's memory.

    Raises Failure, ValueError.
    """
    lengths, measured = examples(spec)
    with tempfile.TemporaryDirectory() as temporary:
        case = forecast.of_run(spec, folder(spec, pathlib.Path(temporary)), lengths)
    if case is None:
        raise errors.Failure(
            reasons.Reason.MODEL_INVALID,
            f"{spec.base_model.source}: neither its config.json nor the catalogue has layers, hidden_size and the like; "
            "give the BaseModel an architecture",
        )
    if memory is not None:
        spec = spec.model_copy(update={"memory": memory})
    available = forecast.available(spec)
    if available == forecast.UNKNOWN and not spec.gpus:
        available = machine.memory()
    return Estimate(
        run=spec,
        case=case,
        measured=measured,
        available=available,
        chosen=variant("as specified", case, available),
        variants=tuple(variant(name, one, available) for name, one in variants(case)),
        gpus=tuple(variant(name, case, gib << 30) for name, gib in GPUS.items()) if spec.gpus else (),
        advice=forecast.advice(case, available),
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
    """A folder with the model's config.json; None where it is not available but the catalogue has the numbers. Raises Failure."""
    known = architecture.of_catalogue(spec.base_model) is not None
    if known and spec.base_model.source.startswith("hf://"):
        return None
    try:
        return sources.resolve(spec.base_model, storage.of(spec.storage, PATIENCE), work, weights=False)
    except errors.Failure:
        if known:
            return None
        raise


def variant(name: str, case: workload.Workload, available: int) -> Variant:
    plan = parallelism.choose(case, available)
    return Variant(name, plan, None if available == forecast.UNKNOWN else plan.fits)


def variants(case: workload.Workload) -> Iterator[tuple[str, workload.Workload]]:
    """Both methods, with and without gradient checkpointing."""
    for method in job.Method:
        for mode in (job.GradientCheckpointing.DISABLED, job.GradientCheckpointing.ENABLED):
            training = case.training.model_copy(update={"method": method, "gradient_checkpointing": mode})
            yield f"{method}, checkpointing {mode}", dataclasses.replace(case, training=training)


# -- as text --


def text(found: Estimate) -> str:
    case, lengths, chosen = found.case, found.case.examples, found.chosen.setup
    training, numbers = case.training, case.shape.numbers
    origin = "measured by preflight" if found.measured else "assumed: preflight has not run yet"
    where = "CPUs" if case.device.cpu else "a GPU" if case.device.processes == 1 else f"{case.device.processes} GPUs"
    capacity = "" if found.available == forecast.UNKNOWN else f" of {memory.text(found.available)}"
    verdict = {None: "", True: ": fits", False: ": does not fit"}[found.chosen.fits]
    sharded = "; the layers are sharded over them (FSDP2)" if found.chosen.plan.sharded else ""
    lines = [
        f"{found.run.name}: {training.method} of rank {training.lora.rank} on {found.run.base_model.name} "
        f"({numbers.layers} layers, {case.parameters / 1e9:.3g} billion weights), {where}{sharded}",
        f"{training.batch_size} examples per step, the longest of {lengths.longest} tokens, {lengths.average:.0f} on average; "
        f"{lengths.step:.0f} tokens per step, with shared prompts counted once ({origin})",
        "",
        f"Micro-batches of {chosen.tokens} tokens, {'with' if chosen.checkpointing else 'without'} gradient checkpointing:",
        *_terms(chosen.memory),
        _line("", "total", memory.text(chosen.memory.total) + capacity + verdict),
        "",
        *_table("variant", found.variants),
    ]
    if found.gpus:
        lines += ["", *_table("gpuType", found.gpus, {name: f"{gib}Gi" for name, gib in GPUS.items()})]
    if not case.device.cpu and found.chosen.plan.case.fast:
        lines += ["", IMAGE]
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


def _table(title: str, rows: tuple[Variant, ...], capacity: dict[str, str] | None = None) -> Iterator[str]:
    yield f"  {title:<32} {'memory' if capacity else '':>7} {'micro-batch':>12} {'checkpointing':>14} {'total':>8}  fits"
    for one in rows:
        fits = {None: "unknown", True: "yes", False: "no"}[one.fits]
        checkpointing = "yes" if one.setup.checkpointing else "no"
        total = memory.text(one.setup.memory.total)
        available = capacity[one.name] if capacity else ""
        yield f"  {one.name:<32} {available:>7} {one.setup.tokens:>12,} {checkpointing:>14} {total:>8}  {fits}"
