"""`finetune-trainer estimate`: what it prints, and what its exit code says."""

import json
import pathlib
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import yaml

from finetune_api import reasons, run
from finetune_trainer import __main__
from finetune_trainer.process import errors
from finetune_trainer.stages import estimate, preflight

World = Callable[..., run.Run]

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]

LLAMA = {
    "layers": 32,
    "hiddenSize": 4096,
    "intermediateSize": 14336,
    "attentionHeads": 32,
    "keyValueHeads": 8,
    "headDim": 128,
    "vocabularySize": 128256,
    "maxPositions": 131072,
}
HUB = {
    "name": "llama-3.1-8b",
    "source": "hf://meta-llama/Llama-3.1-8B",
    "parameters": 8030261248,
    "architecture": LLAMA,
}


def written(spec: run.Run, folder: pathlib.Path) -> str:
    path = folder / "run.json"
    path.write_text(spec.model_dump_json(by_alias=True, exclude_none=True))
    return str(path)


def document(spec: run.Run, folder: pathlib.Path, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, Any]:
    code = __main__.main(["estimate", "--run", written(spec, folder), "--output", "json", *words])
    return code, json.loads(capsys.readouterr().out)


def test_before_preflight_every_example_is_taken_to_be_as_long_as_allowed(
    world: World, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, found = document(world(training={"maxSequenceLength": 96}), tmp_path, capsys)
    assert code == 0
    assert found["examples"]["measured"] is False
    assert (found["examples"]["longest"], found["examples"]["average"]) == (96, 96)


def test_after_preflight_the_message_is_about_the_data(
    world: World, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = world()
    answer = preflight.preflight(spec)
    code, found = document(spec, tmp_path, capsys)
    assert code == 0
    assert found["examples"]["measured"] is True
    assert answer.preflight is not None
    assert found["examples"]["average"] == pytest.approx(answer.preflight.tokens / answer.preflight.examples)
    assert found["examples"]["step"] < found["examples"]["average"] * spec.training.batch_size, (
        "chats share a system line"
    )
    assert found["chosen"]["bytes"] == sum(term["bytes"] for term in found["chosen"]["terms"])
    assert [row["gradientCheckpointing"] for row in found["variants"]] == [False, True, False, True]


def test_a_catalogue_model_needs_no_files(
    world: World, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = world(baseModel=HUB, gpus=1, memory="22Gi")
    code, found = document(spec, tmp_path, capsys)
    assert (code, found["chosen"]["fits"], found["memory"]) == (0, True, 22 << 30)
    assert found["chosen"]["gradientCheckpointing"] is True
    fitting = [row["name"] for row in found["gpuTypes"] if row["fits"]]
    assert "nvidia-h200" in fitting
    assert found["device"] == "cuda"


def test_what_does_not_fit_ends_with_code_2_and_says_what_to_change(
    world: World, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = world(baseModel=HUB, gpus=1)
    code = __main__.main(["estimate", "--run", written(spec, tmp_path), "--memory", "16Gi"])
    printed = capsys.readouterr().out
    assert code == 2
    assert "of 16Gi: does not fit" in printed
    assert "training.method QLoRA" in printed


def test_an_unknown_limit_is_reported_to_be_unknown(
    world: World, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = __main__.main(["estimate", "--run", written(world(baseModel=HUB, gpus=1), tmp_path)])
    printed = capsys.readouterr().out
    assert code == 0
    assert "unknown" in printed
    for name in estimate.GPUS:
        assert name in printed


@pytest.mark.parametrize(
    "changes, words, text",
    [
        ({"baseModel": {"name": "x", "source": "file:///nowhere"}}, [], "/nowhere"),
        ({}, ["--memory", "plenty"], "'plenty' is not a size of memory"),
    ],
)
def test_errors_are_reported_on_stderr(
    changes: dict[str, Any],
    words: list[str],
    text: str,
    world: World,
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert __main__.main(["estimate", "--run", written(world(**changes), tmp_path), *words]) == 2
    assert text in capsys.readouterr().err


def test_it_needs_no_torch(world: World, tmp_path: pathlib.Path) -> None:
    script = (
        "import sys; from finetune_trainer import __main__; code = __main__.main(sys.argv[1:]); "
        "sys.exit(code or ('torch' in sys.modules))"
    )
    command = [sys.executable, "-c", script, "estimate", "--run", written(world(), tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


def test_the_gpu_types_are_those_of_the_chart() -> None:
    values = yaml.safe_load((REPOSITORY / "charts/finetune-operator/values.yaml").read_text())
    theirs = {name: kind["memoryGiB"] for name, kind in values["gpuTypes"].items()}
    assert estimate.GPUS.items() <= theirs.items()
    assert set(estimate.GPUS.values()) == set(theirs.values()), "each size is there once"


def test_preflight_ends_a_job_whose_weights_no_gpu_of_it_can_hold(world: World) -> None:
    spec = world(gpus=1, memory="1Mi")
    with pytest.raises(errors.Failure) as caught:
        preflight.preflight(spec)
    assert caught.value.reason is reasons.Reason.INSUFFICIENT_GPU_MEMORY
    assert "resources.gpuType" in caught.value.message


def test_preflight_advises_where_memory_is_short(world: World) -> None:
    found = preflight.preflight(world(memory="768Mi")).preflight
    assert found is not None
    assert found.verdict == "Caution"
    assert any("resources.requests.memory" in line for line in found.advice)
