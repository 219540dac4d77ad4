"""The plan of a training: whether every process holds the base model or a part of it, as a table of the catalogue's models."""

import dataclasses
import pathlib
import types
from typing import Any

import pytest
import yaml

from finetune_api import job, reasons, run
from finetune_trainer.planning import architecture, memory, parallelism, workload
from finetune_trainer.process import errors
from finetune_trainer.stages import train

CHART = pathlib.Path(__file__).parents[2] / "charts/finetune-operator/values.yaml"
CATALOGUE: dict[str, Any] = yaml.safe_load(CHART.read_text())["catalogue"]
GIB = 2**30
EXAMPLES = workload.Examples(longest=2048, row=2048, average=500, step=8000)


def case_of(name: str, method: str, processes: int, kind: str = "cuda") -> workload.Workload:
    base = run.ResolvedBaseModel.model_validate(
        {"name": name, "source": f"hf://org/{name}", "architecture": CATALOGUE[name]["architecture"]}
    )
    shape = architecture.of_catalogue(base)
    assert shape is not None
    training = job.Training.model_validate({"method": method})
    return workload.Workload(shape, training, EXAMPLES, workload.Device(kind, processes=processes))


TABLE = {
    # model, method, processes, GiB of each device: parallelism, checkpointing, fits
    ("llama-3.1-8b-instruct", "LoRA", 1, 24): ("OneProcess", True, True),
    ("llama-3.1-8b-instruct", "LoRA", 1, 80): ("OneProcess", False, True),
    ("llama-3.1-8b-instruct", "LoRA", 2, 24): ("Replicated", True, True),
    ("llama-3.1-8b-instruct", "LoRA", 2, 16): ("Sharded", True, True),
    ("llama-3.1-8b-instruct", "QLoRA", 2, 24): ("Replicated", False, True),
    ("gemma-2-9b-it", "LoRA", 1, 24): ("OneProcess", True, False),
    ("gemma-2-9b-it", "LoRA", 2, 24): ("Sharded", True, True),
    ("gemma-2-27b-it", "LoRA", 2, 48): ("Sharded", True, True),
    ("llama-3.1-70b-instruct", "QLoRA", 1, 80): ("OneProcess", True, True),
    ("llama-3.1-70b-instruct", "QLoRA", 2, 80): ("Replicated", True, True),
    ("llama-3.1-70b-instruct", "QLoRA", 2, 48): ("Sharded", True, True),
    ("llama-3.1-70b-instruct", "LoRA", 2, 80): ("Sharded", True, False),
    ("llama-3.1-70b-instruct", "LoRA", 4, 80): ("Sharded", True, True),
    ("llama-3.1-70b-instruct", "LoRA", 8, 48): ("Sharded", True, True),
}


@pytest.mark.parametrize("model, method, processes, gib", TABLE)
def test_the_base_is_sharded_only_where_a_device_does_not_hold_it(
    model: str, method: str, processes: int, gib: int
) -> None:
    plan = parallelism.choose(case_of(model, method, processes), gib * GIB)
    assert (plan.parallelism, plan.setup.checkpointing, plan.fits) == TABLE[model, method, processes, gib]


@pytest.mark.parametrize("method", ["LoRA", "QLoRA"])
@pytest.mark.parametrize("model", CATALOGUE)
def test_loading_a_part_needs_no_more_than_training(model: str, method: str) -> None:
    """So that the estimate has no term for it: one weight as it is read, in float32 and in the device's precision, against what
    training holds besides the weights. Linear layers of one input count as one here."""
    case = case_of(model, method, 2)
    case = dataclasses.replace(case, device=dataclasses.replace(case.device, shards=2))
    held = memory.memory(case, EXAMPLES.longest, checkpointing=True).terms
    others = (memory.Purpose.WEIGHTS, memory.Purpose.OVERHEAD)
    training = sum(one.bytes for one in held if one.purpose not in others or one.name == "gathered layers")
    assert max(one.weights for one in case.linears) * (4 + 2) < training


def test_a_plan_that_shards_counts_the_passes_of_transformers() -> None:
    plan = parallelism.choose(case_of("llama-3.1-70b-instruct", "QLoRA", 2), 48 * GIB)
    assert not plan.case.fast
    names = {term.name for term in plan.setup.memory.terms}
    assert {"linear layers in 4 bits, sharded", "gathered layers", "activations saved by autograd"} <= names


@pytest.mark.parametrize("model", CATALOGUE)
def test_every_model_of_the_catalogue_has_a_plan_that_fits_two_gpus_of_80_gib(model: str) -> None:
    assert any(parallelism.choose(case_of(model, method, 2), 80 * GIB).fits for method in ("LoRA", "QLoRA"))


@pytest.mark.parametrize("processes, other", [(1, None), (2, "Sharded")])
def test_a_plan_is_made_again_where_the_trainers_own_passes_did_not_prove_themselves(
    processes: int, other: str | None
) -> None:
    """On GPUs that hold the model under these passes alone."""
    case = case_of("llama-3.1-8b-instruct", "LoRA", processes)
    training = case.training.model_copy(update={"gradient_checkpointing": job.GradientCheckpointing.DISABLED})
    case = dataclasses.replace(case, training=training)
    unproven = dataclasses.replace(case, chosen=False)
    kinds = {
        gib: (parallelism.choose(case, gib * GIB), parallelism.choose(unproven, gib * GIB)) for gib in range(20, 80)
    }
    gib = next(
        gib
        for gib, (own, standard) in kinds.items()
        if own.fits and not own.sharded and (standard.sharded and standard.fits if other else not standard.fits)
    )
    planned, _ = kinds[gib]
    data: Any = None
    note = "through transformers' passes, since states differ"
    proven: Any = types.SimpleNamespace(shares=True, note=None)
    failed: Any = types.SimpleNamespace(shares=False, note=note)
    assert train.reconsidered(planned, train.Prepared(None, proven, data, case), gib * GIB) is None
    prepared = train.Prepared(None, failed, data, unproven)
    if other:
        plan = train.reconsidered(planned, prepared, gib * GIB)
        assert plan is not None
        assert (plan.parallelism, plan.fits) == (other, True)
        return
    with pytest.raises(errors.Failure, match=r"states differ.*gradientCheckpointing Auto") as reported:
        train.reconsidered(planned, prepared, gib * GIB)
    assert reported.value.reason is reasons.Reason.INSUFFICIENT_GPU_MEMORY


def test_processes_on_cpus_follow_the_same_rule() -> None:
    case = case_of("llama-3.1-8b-instruct", "LoRA", 2, kind="cpu")
    assert parallelism.choose(case, 64 * GIB).parallelism == "Replicated"
    assert parallelism.choose(case, 16 * GIB).parallelism == "Sharded"
