"""A job of a tiny model in a folder, as a user without a cluster would have it."""

import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import yaml
from tests.trainer import tiny

import finetune_api
from finetune_cli import __main__


@pytest.fixture(autouse=True)
def alone(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the user's machine is read or written."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # models this small lose time with more
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in ("FINETUNE_WORK", "FINETUNE_MODEL_PATH", "FINETUNE_TERMINATION_PATH", "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The folder of a tiny base model."""
    folder = tmp_path_factory.mktemp("model") / "base"
    tiny.make_tiny_model(folder)
    return folder


Job = Callable[..., pathlib.Path]


@pytest.fixture
def job(tmp_path: pathlib.Path, base: pathlib.Path) -> Job:
    """Writes job.yaml with its BaseModel and its data; changes complete sections of the spec."""

    def make(rows: list[Any] | None = None, **changes: Any) -> pathlib.Path:
        folder = tmp_path / "my jobs"  # people have spaces in their paths
        (folder / "data").mkdir(parents=True, exist_ok=True)
        (folder / "data" / "train.jsonl").write_text(tiny.jsonl(tiny.examples(60) if rows is None else rows))
        spec: dict[str, Any] = {
            "baseModel": {"name": "tiny-base"},
            "dataset": {"train": ["data/*.jsonl"], "minimumExamples": 1},
            "storage": {"output": "out"},
            "training": {"lora": {"rank": 8, "alpha": 16}, "learningRate": 0.01, "batchSize": 8, "maxSteps": 12},
            "resources": {"gpus": 0},
            "evaluation": {
                "baselines": tiny.SHORT,
                "maximumExamples": 4,
                "generation": {"maxNewTokens": 16},
                "gates": [],
            },
        }
        for key, value in changes.items():
            spec[key] = spec.get(key, {}) | value
        head = {"apiVersion": finetune_api.API_VERSION}
        entry = head | {"kind": "BaseModel", "metadata": {"name": "tiny-base"}, "spec": {"source": str(base)}}
        whole = head | {"kind": "FineTuneJob", "metadata": {"name": "tiny", "namespace": "ml"}, "spec": spec}
        file = folder / "job.yaml"
        file.write_text(yaml.safe_dump_all([whole, entry], sort_keys=False))
        return file

    return make


@pytest.fixture
def finetune(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, Any]]:
    """Runs a verb in this process with --output json: the exit code and the document."""

    def make(*words: Any) -> tuple[int, Any]:
        code = __main__.main([*map(str, words), "--output", "json"])
        return code, json.loads(capsys.readouterr().out)

    return make


def start(*words: Any, **environment: str) -> "subprocess.Popen[str]":
    """A verb as a process of its own."""
    path = os.pathsep.join(filter(None, sys.path))
    return subprocess.Popen(
        [sys.executable, "-m", "finetune_cli", *map(str, words)],
        env=os.environ | {"PYTHONPATH": path} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
