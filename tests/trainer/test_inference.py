"""Memory of baseline, evaluation and serving, judged before training, in the shapes of the catalogue's models."""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import pytest
import yaml

from finetune_api import basemodel, job, reasons, run
from finetune_operator.manifests import sidecar
from finetune_trainer.planning import architecture, inference, parallelism, workload
from finetune_trainer.process import errors
from finetune_trainer.stages import preflight
from support import templates

World = Callable[..., run.Run]
CHART = pathlib.Path(__file__).parents[2] / "charts/finetune-operator/values.yaml"
CATALOGUE: dict[str, Any] = yaml.safe_load(CHART.read_text())["catalogue"]


def case(name: str, method: str = "LoRA") -> workload.Workload:
    numbers = basemodel.Architecture.model_validate(CATALOGUE[name]["architecture"])
    training = job.Training.model_validate({"method": method})
    examples = workload.Examples.of_one_kind(2048, 16)
    return workload.Workload(architecture.Shape(numbers), training, examples, workload.Device("cuda"))


def short(world: World, of: workload.Workload, **places: Any) -> list[inference.Shortage]:
    return list(inference.shortages(world(**places), of))


def test_a_70b_trained_in_4_bits_can_be_evaluated_on_one_gpu_and_served_on_two(world: World) -> None:
    places = {
        "evaluation": {"engine": "InProcess"},
        "evaluating": {"gpus": 1, "memory": "79Gi"},
        "serving": {"gpus": 2, "memory": "79Gi", "arguments": ["--max-model-len=8192"]},
    }
    assert short(world, case("llama-3.1-70b-instruct", "QLoRA"), **places) == []


def test_a_70b_in_bfloat16_does_not_fit_the_one_gpu_of_an_evaluation(world: World) -> None:
    """Training over two GPUs shards it; an evaluation in process loads it whole."""
    place, engine = {"gpus": 2, "memory": "79Gi"}, {"engine": "InProcess"}
    (found,) = short(world, case("llama-3.1-70b-instruct"), evaluating=place, evaluation=engine)
    assert found.fatal
    for part in ("evaluation", "one GPU", "79Gi", "QLoRA"):
        assert part in found.text


def test_a_70b_fits_two_gpus_of_80_gib_in_every_stage_and_each_pod_requests_them(world: World) -> None:
    context = ["--max-model-len=8192"]
    two = {"gpus": 2, "memory": "80Gi"}
    wanted = world(**two, evaluating={**two, "arguments": context}, serving={**two, "arguments": context})
    of = dataclasses.replace(case("llama-3.1-70b-instruct", "QLoRA"), device=workload.Device("cuda", processes=2))
    assert parallelism.choose(of, 80 * 2**30).fits
    assert (list(inference.shortages(wanted, of)), inference.evaluation_gpus(wanted, of)) == ([], 2)
    chart = templates.chart(gpuTypes={"h100": {"memoryGiB": 80, "nodeSelector": {"gpu": "h100"}}})
    for which in (reasons.Stage.BASELINE, reasons.Stage.TRAIN, reasons.Stage.EVALUATE, None):
        asks = which in sidecar.STAGES
        beside = sidecar.Plan(None, tuple(context), 16) if asks else None
        pod = templates.of(which, chart, {"gpus": 2, "gpuType": "h100"}, beside=beside)
        gpus = {c["name"]: c["resources"]["limits"]["nvidia.com/gpu"] for c in templates.containers(pod)
                if "nvidia.com/gpu" in c["resources"]["limits"]}  # fmt: skip
        own = "finetune" if which is reasons.Stage.TRAIN else "server"
        assert (gpus, pod["spec"]["nodeSelector"]) == ({own: "2"}, {"gpu": "h100"}), which
        [holder] = [c for c in templates.containers(pod) if c["name"] == own]
        assert ("--tensor-parallel-size=2" in holder["args"]) is (own == "server")


@pytest.mark.parametrize("method", ["LoRA", "QLoRA"])
def test_the_server_beside_an_evaluation_splits_a_70b_over_two_gpus(world: World, method: str) -> None:
    model = case("llama-3.1-70b-instruct", method)
    assert short(world, model, evaluating={"gpus": 2, "memory": "79Gi"}) == []
    (found,) = short(world, model, evaluating={"gpus": 1, "memory": "79Gi"})
    assert found.fatal
    assert "evaluation.resources.gpus" in found.text
    assert ("evaluation.engine: InProcess" in found.text) is (method == "QLoRA")


@pytest.mark.parametrize(
    ("name", "gpus", "memory", "engine", "needed"),
    [
        ("llama-3.1-8b-instruct", 4, "22Gi", "Auto", 1),
        ("llama-3.1-8b-instruct", 4, "15Gi", "Auto", 2),
        ("llama-3.1-70b-instruct", 8, "79Gi", "Auto", 2),
        ("llama-3.1-70b-instruct", 8, "79Gi", "InProcess", 1),
        ("qwen2.5-7b-instruct", 8, "4Gi", "Auto", None),  # its 28 heads are not split over 8
        ("llama-3.1-70b-instruct", 1, "79Gi", "Auto", None),
        ("llama-3.1-8b-instruct", 2, None, "Auto", None),
        ("qwen2.5-7b-instruct", 8, None, "Auto", 4),  # over no more GPUs can its heads be split
        ("qwen2.5-7b-instruct", 8, None, "InProcess", None),
        ("llama-3.1-8b-instruct", 0, "64Gi", "Auto", None),
    ],
)
def test_an_evaluation_needs_no_more_gpus_than_hold_the_model(
    world: World, name: str, gpus: int, memory: str | None, engine: str, needed: int | None
) -> None:
    spec = world(gpus=gpus, memory=memory, evaluation={"engine": engine})
    assert inference.evaluation_gpus(spec, case(name)) == needed


def test_the_server_beside_an_evaluation_takes_a_context_that_fits(world: World) -> None:
    assert short(world, case("llama-3.1-8b-instruct"), evaluating={"gpus": 1, "memory": "22Gi"}) == []


def test_an_8b_serves_on_a_small_gpu_with_a_shorter_context(world: World) -> None:
    """vLLM refuses to start where one context of the model's full length has no room."""
    serving = {"gpus": 1, "memory": "22Gi"}
    (found,) = short(world, case("llama-3.1-8b-instruct"), serving=serving)
    assert not found.fatal
    assert "131072 tokens" in found.text
    proposed = found.text.partition("--max-model-len=")[2].split()[0]
    assert 16_384 < int(proposed) < 40_000
    shorter = serving | {"arguments": ["--max-model-len=131072", f"--max-model-len={proposed}"]}
    assert short(world, case("llama-3.1-8b-instruct"), serving=shorter) == []


def test_every_copy_of_a_model_needs_gpus_of_its_own(world: World) -> None:
    place = {"gpus": 4, "memory": "80Gi", "arguments": ["--max-model-len=4096"]}
    copies = {**place, "arguments": ["--max-model-len=4096", "--data-parallel-size=4"]}
    model = case("llama-3.1-70b-instruct", "QLoRA")
    assert short(world, model, serving=place) == []
    (found,) = short(world, model, serving=copies)
    assert found.fatal


def test_a_server_whose_weights_do_not_fit_is_refused_whatever_the_context(world: World) -> None:
    serving = {"gpus": 1, "memory": "22Gi", "arguments": ["--max-model-len", "1024"]}
    (found,) = short(world, case("gemma-2-27b-it"), serving=serving)
    assert found.fatal
    assert "deployment.resources" in found.text
    four = serving | {"gpus": 4}
    assert short(world, case("gemma-2-27b-it"), serving=four) == []


def test_quantised_servers_and_unknown_gpus_are_not_judged(world: World) -> None:
    model = case("llama-3.1-70b-instruct")
    quantised = {"gpus": 1, "memory": "22Gi", "arguments": ["--quantization=fp8"]}
    assert short(world, model, serving=quantised) == []
    assert short(world, model, serving={"gpus": 1}, evaluating={"gpus": 1}) == []


def test_preflight_ends_a_job_whose_evaluation_cannot_load_the_model(world: World) -> None:
    with pytest.raises(errors.Failure) as found:
        preflight.preflight(world(evaluating={"gpus": 1, "memory": "512Ki"}))
    assert found.value.reason is reasons.Reason.INSUFFICIENT_GPU_MEMORY
    assert "evaluation.resources" in found.value.message


def test_preflight_says_that_a_server_needs_a_shorter_context(world: World) -> None:
    spec = world(serving={"gpus": 1, "memory": "4Gi", "arguments": ["--max-model-len=90000000"]})
    found = preflight.preflight(spec).preflight
    assert found is not None
    assert any("--max-model-len=" in sentence for sentence in found.advice)


# -- over how many GPUs --


@pytest.mark.parametrize(
    ("name", "gpus", "splits"),
    [
        ("qwen2.5-7b-instruct", 8, [1, 2, 4]),  # 28 query heads
        ("qwen2.5-7b-instruct", 7, [1, 2, 4]),  # 28 are divided by 7, its 4 KV heads are not
        ("llama-3.1-70b-instruct", 8, [1, 2, 4, 8]),
        ("llama-3.1-70b-instruct", 1, [1]),
        ("llama-3.1-70b-instruct", 0, [1]),
    ],
)
def test_a_model_is_split_over_as_many_gpus_as_its_heads_allow(name: str, gpus: int, splits: list[int]) -> None:
    assert case(name).shape.numbers.splits(gpus) == splits


def test_an_evaluation_that_is_to_have_more_gpus_than_the_heads_allow_is_refused_where_the_catalogue_lacks_the_numbers(
    world: World,
) -> None:
    model, resources = case("qwen2.5-7b-instruct"), {"resources": {"gpus": 8}}
    places = {"gpus": 8, "evaluating": {"gpus": 8}, "evaluation": resources}
    (found,) = short(world, model, **places)
    assert found.fatal
    for part in ("over 8 GPUs", "28 query heads", "4 KV heads", "choose 1, 2, 4 as evaluation.resources.gpus"):
        assert part in found.text
    assert short(world, model, gpus=8, evaluating={"gpus": 4}, evaluation={"resources": {"gpus": 4}}) == []
    assert short(world, model, **places | {"evaluation": resources | {"engine": "InProcess"}}) == []
    assert short(world, model, gpus=8, evaluating={"gpus": 8}) == [], "its pods request four GPUs"
    spec = world(**places)
    listed = spec.base_model.model_copy(update={"architecture": model.shape.numbers})
    assert list(inference.shortages(spec.model_copy(update={"base_model": listed}), model)) == [], "it is split over 4"
    known = {"gpus": 8, "memory": "22Gi", "evaluating": {"gpus": 8, "memory": "22Gi"}}
    assert short(world, model, **known) == [], "its pods request one GPU"


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ([], "choose 1, 2, 4 as deployment.resources.gpus"),
        (["--data-parallel-size=2"], None),
        (["--pipeline-parallel-size=2"], None),
        (["--tensor-parallel-size=4"], None),
        (["--tensor-parallel-size=8"], "choose 1, 2, 4 as --tensor-parallel-size"),
    ],
)
def test_a_server_on_more_gpus_than_the_heads_allow_is_refused(
    world: World, given: list[str], says: str | None
) -> None:
    found = short(world, case("qwen2.5-7b-instruct"), serving={"gpus": 8, "arguments": given})
    assert [one.fatal for one in found] == ([True] if says else [])
    assert (says or "") in "".join(one.text for one in found)


def test_the_choice_of_gpus_counts_copies_of_the_model(world: World) -> None:
    serving = {"gpus": 16, "arguments": ["--data-parallel-size=2"]}
    (found,) = short(world, case("qwen2.5-7b-instruct"), serving=serving)
    assert "over 8 GPUs" in found.text
    assert "choose 2, 4, 8 as deployment.resources.gpus" in found.text


# -- what a server holds besides --


def test_adapters_of_a_high_rank_leave_less_room_for_the_context(world: World) -> None:
    model = case("llama-3.1-8b-instruct")
    high = dataclasses.replace(model, training=job.Training.model_validate({"lora": {"rank": 128}}))
    place = run.Place(gpus=1, memory="22Gi")
    assert inference.slots(high, place, 1) == 2 * high.shape.adapter(high.training.lora), "all layers are adapted"
    of_attention = job.LoRA.model_validate({"rank": 128, "targetModules": "Attention"})
    few = dataclasses.replace(high, training=high.training.model_copy(update={"lora": of_attention}))
    assert inference.slots(few, place, 1) == inference.slots(high, place, 1), "vLLM reserves for all"
    assert inference.slots(high, place, 1) > inference.slots(high, place, 2) > inference.slots(high, place, 1) / 2
    twice = place.model_copy(update={"arguments": ["--max-loras=2"]})
    assert inference.slots(high, twice, 1) == 2 * inference.slots(high, place, 1)

    def context(of: workload.Workload) -> int:
        (found,) = short(world, of, serving={"gpus": 1, "memory": "22Gi"})
        return int(found.text.partition("--max-model-len=")[2].split()[0])

    fewer = inference.slots(high, place, 1) - inference.slots(model, place, 1)
    assert context(model) - context(high) == pytest.approx(fewer / inference.cache(model), abs=1024)


# -- a gpuType that would do --

TYPES = {"h100": 80.0, "l4": 22.0, "a100": 40.0, "h200": 141.0}


def test_the_smallest_gpu_type_of_the_chart_that_would_do_is_named(world: World) -> None:
    places = {"evaluating": {"gpus": 1, "memory": "22Gi"}, "serving": {"gpus": 1, "memory": "22Gi"}}
    texts = [one.text for one in short(world, case("gemma-2-27b-it"), gpuTypes=TYPES, **places)]
    assert "evaluation.resources.gpuType h100 (80Gi; " in texts[0]
    assert "deployment.resources.gpuType h100 (80Gi; " in texts[1]
    texts = [one.text for one in short(world, case("gemma-2-27b-it"), **places)]
    assert all("a larger" in text and "is enough)" in text for text in texts)
    (alone,) = short(
        world,
        case("gemma-2-27b-it"),
        gpuTypes=TYPES,
        evaluating=places["evaluating"],
        evaluation={"engine": "InProcess"},
    )
    assert "evaluation.resources.gpuType h100 (80Gi; " in alone.text


def test_a_job_learns_that_no_gpu_type_of_the_chart_would_do(world: World) -> None:
    (found,) = short(
        world, case("llama-3.1-70b-instruct"), gpuTypes=TYPES | {"h200": 100.0}, serving={"gpus": 1, "memory": "22Gi"}
    )
    assert "which none in the chart has" in found.text
