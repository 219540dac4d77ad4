"""`finetune run`: all stages of a real, tiny job, again, stopped in the middle, resumed; and its report."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import pytest
from tests.cli import conftest
from tests.trainer import tiny

from finetune_api import exits, outcome, reasons, run
from finetune_cli import __main__, answer, jobs, show, stages
from finetune_cli import run as verb
from finetune_trainer.process import errors
from support import warm


@pytest.fixture
def started(tmp_path: pathlib.Path) -> Callable[..., warm.Forked]:
    """As `conftest.start`, at once, its stages too."""

    def make(*words: Any) -> warm.Forked:
        place = pathlib.Path(tempfile.mkdtemp(dir=tmp_path))
        return warm.start("finetune_cli", [*map(str, words)], dict(os.environ), place / "out", place / "err")

    return make


def ended(process: "subprocess.Popen[str] | warm.Forked", seconds: float = 600) -> tuple[int, Any, str]:
    """The exit code, the document, and what was told on the way."""
    out, err = process.communicate(timeout=seconds)
    return process.returncode, json.loads(out) if out else None, err


def folder_of(file: pathlib.Path) -> pathlib.Path:
    """Where the results of a job's revision go."""
    return pathlib.Path(jobs.read(file).summary().output)


def cache_of(file: pathlib.Path) -> pathlib.Path:
    return verb.cache(jobs.read(file).run)


def logged(file: pathlib.Path, stage: str) -> list[dict[str, Any]]:
    """The lines of a stage's log, of all its attempts."""
    lines = (cache_of(file) / f"{stage}.log").read_text().splitlines()
    return [json.loads(line) for line in lines if line.startswith("{")]


def steps(file: pathlib.Path) -> list[int]:
    """The optimizer steps that were done, in their order."""
    return [line["step"] for line in logged(file, "train") if line["message"] == "step"]


GATE = {"metric": "Loss", "maximum": 100, "confidence": 0.5}


@pytest.mark.slow
def test_a_job_goes_through_all_stages_and_what_is_done_is_not_done_again(
    job, finetune, started, tmp_path: pathlib.Path
) -> None:
    file = job(evaluation={"gates": [GATE]})
    code, first, progress = ended(started("run", file, "--output", "json"))
    assert (code, first["passed"]) == (0, True), progress
    assert [one["exitCode"] for one in first["stages"]] == [0] * len(first["stages"])
    names = [one["stage"] for one in first["stages"]]
    assert [name for name in names if name != "baseline"] == ["preflight", "train", "evaluate"]
    assert first["counts"]["examples"] == 51
    assert pathlib.Path(first["report"]).is_file()
    assert (pathlib.Path(first["adapter"]) / "adapter_model.safetensors").is_file()
    assert "train: 100% step 12/12 loss" in progress
    assert steps(file) == list(range(1, 13))

    code, again, _ = ended(started("run", file, "--output", "json"))
    assert (code, again["gates"], again["contenders"]) == (0, first["gates"], first["contenders"])
    assert steps(file) == list(range(1, 13)), "no training is needed twice"

    code, found = finetune("report", file)
    assert (code, found["gates"], found["report"]) == (0, first["gates"], first["report"])
    code, found = finetune("report", tmp_path / "my jobs" / "out")
    assert (code, found["report"]) == (0, first["report"])

    file = job(evaluation={"gates": [GATE | {"maximum": 0.0001}]})
    code, found, _ = ended(started("run", file, "--output", "json"))
    assert (code, found["passed"], found["reason"]) == (answer.Exit.GATES, False, "EvaluationBelowGate")
    assert steps(file) == list(range(1, 13)), "a new gate trains nothing"


@pytest.mark.slow
def test_a_stopped_training_resumes_from_its_checkpoint(job, started) -> None:
    """Ctrl-C first, SIGTERM later, and then to the end: no step is lost, none is done twice."""
    last = 300
    file = job(tiny.examples(200), training={"maxSteps": last, "earlyStopping": {"patience": 100}})
    text = file.read_text()
    done = 0
    for number in (signal.SIGINT, signal.SIGTERM):
        process = started("run", file, "--output", "json")
        deadline = time.monotonic() + 300
        while not ((cache_of(file) / "train.log").is_file() and len(steps(file)) >= done + 3):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(number)
        code, found, _ = ended(process)
        assert code == answer.Exit.STOPPED, number
        assert found["stages"][-1]["stage"] == "train"
        assert re.search(r"finetune run .*job\.yaml", found["message"])
        saved = max(int(checkpoint.name) for checkpoint in (folder_of(file) / "checkpoints").iterdir())
        assert done + 3 <= saved < last
        assert steps(file)[-1] == saved, "what was done is saved"
        done = saved

    code, found, _ = ended(started("run", file, "--output", "json"))
    assert code == 0
    assert file.read_text() == text
    assert steps(file) == list(range(1, last + 1)), "no step is lost, none is done twice"


def test_data_that_do_not_pass_end_the_job_before_training(job) -> None:
    file = job([*tiny.examples(20), {"messages": 1}])
    code, found, _ = ended(conftest.start("run", file, "--output", "json"))
    assert (code, found["reason"]) == (answer.Exit.INVALID, "DatasetInvalid")
    assert [one["stage"] for one in found["stages"]] == ["preflight"]
    assert "train.jsonl:21" in found["message"]


def test_a_manifest_that_is_wrong_starts_nothing(job, finetune) -> None:
    file = job(training={"epochs": 0})
    code, found = finetune("run", file)
    assert (code, found["problems"][0]["path"]) == (answer.Exit.INVALID, "spec.training.epochs")
    assert not cache_of_name(file).exists()


def cache_of_name(file: pathlib.Path) -> pathlib.Path:
    return file.parent.parent / "cache" / "finetune"


def test_a_revision_that_runs_is_not_started_twice(job, finetune) -> None:
    file = job()
    with stages.workplace(cache_of(file)):
        code, found = finetune("run", file)
    assert code == answer.Exit.INVALID
    assert "is already running" in found["problems"][0]["message"]


# -- decisions, with stages that only answer --


class Stages:
    """In the place of the child processes: gives prepared ends, and notes what it was asked."""

    def __init__(self, *ends: tuple[int, outcome.Outcome | None]) -> None:
        self.ends = list(ends)
        self.asked: list[tuple[str, int, list[str]]] = []

    def __call__(self, place, stage, attempt, arguments, stop, tell) -> stages.Ended:
        self.asked.append((stage, attempt, list(arguments)))
        code, result = self.ends.pop(0)
        return stages.Ended(code, result, 1.0, place.log(stage))


def decided(file: pathlib.Path, script: Stages, monkeypatch: pytest.MonkeyPatch) -> answer.Answer:
    monkeypatch.setattr(stages, "execute", script)
    monkeypatch.setattr(stages.Stop, "install", lambda self: None)
    return verb.run_all(jobs.read(file), None, show.Screen(), "finetune run job.yaml")


def outcome_of(stage: reasons.Stage, **more: Any) -> outcome.Outcome:
    return outcome.Outcome.model_validate({"stage": stage, **more})


PREFLIGHT = (0, outcome_of(reasons.Stage.PREFLIGHT))
NO_MEMORY = (
    exits.Exit.OUT_OF_MEMORY,
    outcome_of(reasons.Stage.TRAIN, reason="TrainerOutOfMemory", message="no memory"),
)


def test_out_of_memory_is_answered_once_with_half_the_micro_batch(job, monkeypatch: pytest.MonkeyPatch) -> None:
    script = Stages(PREFLIGHT, NO_MEMORY, NO_MEMORY)
    found = decided(job(), script, monkeypatch)
    assert [asked[:2] for asked in script.asked] == [("preflight", 1), ("train", 1), ("train", 2)]
    assert [asked[2] for asked in script.asked] == [
        [],
        ["--attempt", "1"],
        ["--micro-batch-scale", "0.5", "--attempt", "2"],
    ]
    assert (found.exit_code, found.reason) == (answer.Exit.OUT_OF_MEMORY, "TrainerOutOfMemory")
    assert found.stages[-1].attempts == 2


def test_a_baseline_that_runs_out_of_memory_is_answered_in_the_same_way(job, monkeypatch: pytest.MonkeyPatch) -> None:
    no_memory = (
        exits.Exit.OUT_OF_MEMORY,
        outcome_of(reasons.Stage.BASELINE, reason="TrainerOutOfMemory", message="no"),
    )
    script = Stages(PREFLIGHT, no_memory, no_memory)
    file = job(intent={"advice": "Warn"}, evaluation={"gates": [{"metric": "ExactMatch", "minimum": 0.5}]})
    found = decided(file, script, monkeypatch)
    assert [asked[:2] for asked in script.asked] == [("preflight", 1), ("baseline", 1), ("baseline", 2)]
    assert script.asked[-1][2] == ["--micro-batch-scale", "0.5", "--attempt", "2"]
    assert (found.exit_code, found.reason) == (answer.Exit.OUT_OF_MEMORY, "TrainerOutOfMemory")


@pytest.mark.parametrize(
    "code, reason, expected",
    [
        (4, "LossDiverged", answer.Exit.DIVERGED),
        (5, "StorageUnavailable", answer.Exit.STORAGE),
        (1, "TrainerError", answer.Exit.UNEXPECTED),
        (2, "DatasetNotFound", answer.Exit.INVALID),
    ],
)
def test_nothing_else_is_repeated(job, monkeypatch: pytest.MonkeyPatch, code: int, reason: str, expected: int) -> None:
    script = Stages(PREFLIGHT, (code, outcome_of(reasons.Stage.TRAIN, reason=reason, message="m")))
    found = decided(job(), script, monkeypatch)
    assert (found.exit_code, found.reason, len(script.asked)) == (expected, reason, 2)


def test_a_stage_that_is_killed_without_a_word_is_reported_with_its_log(job, monkeypatch: pytest.MonkeyPatch) -> None:
    file = job()
    cache_of(file).mkdir(parents=True)
    (cache_of(file) / "preflight.log").write_text("one\nTraceback: it fell over\n")
    found = decided(file, Stages((-11, None)), monkeypatch)
    assert found.exit_code == answer.Exit.UNEXPECTED
    assert "it fell over" in found.message


def test_an_internal_error_of_a_stage_is_a_defect_of_the_run(job, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = outcome_of(reasons.Stage.TRAIN, reason="TrainerError", message=errors.defect(KeyError("rank")))
    found = decided(job(), Stages(PREFLIGHT, (1, broken)), monkeypatch)
    assert (found.exit_code, found.reason) == (answer.Exit.DEFECT, "TrainerError")
    assert "KeyError" in found.message


def test_advice_that_ends_the_job_is_not_a_failure_of_the_stage(job, monkeypatch: pytest.MonkeyPatch) -> None:
    ends = outcome_of(reasons.Stage.PREFLIGHT, reason="FineTuningNotRecommended", message="use a prompt")
    found = decided(job(), Stages((0, ends)), monkeypatch)
    assert (found.exit_code, found.message) == (answer.Exit.INVALID, "preflight: use a prompt")


@pytest.mark.parametrize("advice, trains", [("Enforce", False), ("Warn", True)])
def test_a_prompt_that_is_enough_ends_the_job_well_under_enforce(
    job, monkeypatch: pytest.MonkeyPatch, advice: str, trains: bool
) -> None:
    from finetune_trainer import __main__ as trainer

    monkeypatch.setitem(trainer.STAGES, "baseline", trainer.STAGES["preflight"])
    enough = {"sufficient": "Prompt", "examples": 5, "message": "the prompt passes"}
    script = Stages(
        PREFLIGHT, (0, outcome_of(reasons.Stage.BASELINE, message="enough", baseline=enough)), NO_MEMORY, NO_MEMORY
    )
    file = job(intent={"advice": advice, "prompt": {"system": "Sort."}}, evaluation={"gates": [GATE]})
    found = decided(file, script, monkeypatch)
    assert ("train" in [asked[0] for asked in script.asked]) is trains
    if not trains:
        assert (found.exit_code, found.reason) == (0, "PromptAlreadySufficient")


@pytest.mark.parametrize("advice, gates", [("Ignore", [GATE]), ("Warn", [])])
def test_no_baseline_is_measured_where_it_decides_nothing(
    job, monkeypatch: pytest.MonkeyPatch, advice: str, gates: list[Any]
) -> None:
    from finetune_trainer import __main__ as trainer

    monkeypatch.setitem(trainer.STAGES, "baseline", trainer.STAGES["preflight"])
    script = Stages(PREFLIGHT, NO_MEMORY, NO_MEMORY)
    decided(job(intent={"advice": advice}, evaluation={"gates": gates}), script, monkeypatch)
    assert "baseline" not in [asked[0] for asked in script.asked]


def test_a_machine_without_a_gpu_trains_the_same_revision_on_its_cpu(job, monkeypatch: pytest.MonkeyPatch) -> None:
    from finetune_trainer.process import machine

    monkeypatch.setattr(machine, "accelerated", lambda: False)
    wanted = jobs.read(job(resources={"gpus": 2, "gpuType": "nvidia-l4"}))
    local = verb.for_this_machine(wanted)
    assert (wanted.run.gpus, local.run.gpus) == (2, 0)
    assert local.run.revision == wanted.run.revision
    assert "has none" in local.notes[-1]


def test_a_machine_says_that_it_has_no_server_to_evaluate_with(job) -> None:
    local = verb.for_this_machine(jobs.read(job(evaluation={"engine": "Server"})))
    assert "evaluation.engine is Server" in local.notes[-1]
    assert not any("evaluation.engine" in note for note in verb.for_this_machine(jobs.read(job())).notes)


def test_the_run_file_names_a_progress_file(job, tmp_path: pathlib.Path) -> None:
    spec = jobs.read(job()).run
    with stages.workplace(tmp_path / "place") as place:
        place.write_run_file(spec)
    written = run.Run.model_validate_json((tmp_path / "place" / "run.json").read_bytes())
    assert written.progress_file == str(tmp_path / "place" / "progress.json")
    assert written.model_copy(update={"progress_file": None}) == spec


def test_help_needs_no_model_library() -> None:

    probe = "import sys; from finetune_cli import __main__; __main__.parser().format_help(); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "transformers", "numpy", "boto3", "rich", "cel"} & set(loaded)
    assert set(__main__.VERBS) == {"validate", "advise", "estimate", "run", "report", "chat"}
