"""What must hold for the two images: the slim one has no torch, and --help needs nothing heavy."""

import importlib.metadata
import json
import pathlib
import re
import subprocess
import sys
from collections.abc import Callable

import pytest
from tests.trainer import tiny

from finetune_api import outcome, run

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
HEAVY = (
    "torch",
    "transformers",
    "peft",
    "numpy",
    "safetensors",
    "pyarrow",
    "zstandard",
    "rapidfuzz",
    "kopf",
    "jinja2",
)

REFUSE = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {names!r}:
            raise ImportError(f"{{name}} is not in this image")
sys.meta_path.insert(0, Refuse())
"""

GUARD = f"""{REFUSE.format(names=HEAVY)}
from finetune_trainer import __main__
sys.argv[0] = "finetune-trainer"
raise SystemExit(__main__.main(sys.argv[1:]))
"""


def slim(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-c", GUARD, *arguments], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    "arguments", [["--help"], *([stage, "--help"] for stage in ("preflight", "train", "evaluate"))]
)
def test_help_needs_no_heavy_import(arguments: list[str]) -> None:
    done = slim(*arguments)
    assert done.returncode == 0, done.stderr
    assert "usage: finetune-trainer" in done.stdout


def test_unknown_arguments_are_bad_configuration() -> None:
    assert slim("train", "--nonsense").returncode == 2


def test_fetch_runs_in_the_slim_image(world: Callable[..., run.Run], tmp_path: pathlib.Path) -> None:
    from finetune_trainer.store import folders, storage

    (tmp_path / "run.json").write_text(world().model_dump_json(by_alias=True, exclude_none=True))
    (tmp_path / "local").mkdir()
    (tmp_path / "local" / "chat_template.jinja").write_text(tiny.CHAT_TEMPLATE)
    saved = folders.save(storage.Storage(), tmp_path / "local", f"file://{tmp_path}/adapter")
    done = slim(
        *("fetch", "--run", str(tmp_path / "run.json"), "--adapter", f"file://{tmp_path}/adapter"),
        *("--sha256", saved.sha256, "--adapter-to", str(tmp_path / "to"), "--base-to", str(tmp_path / "base")),
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "to" / "chat_template.jinja").is_file()
    assert all(json.loads(line)["level"] == "INFO" for line in done.stderr.splitlines())


@pytest.mark.parametrize("scheme", ["s3", "file"])
def test_verify_runs_in_the_slim_image(
    scheme: str, world: Callable[..., run.Run], tmp_path: pathlib.Path, s3_server: str
) -> None:
    """It gets as far as asking for the canary, which is not there."""
    spec = world(storage={"endpoint": s3_server})
    (tmp_path / "run.json").write_text(spec.model_dump_json(by_alias=True, exclude_none=True))
    done = slim(
        *("verify", "--run", str(tmp_path / "run.json"), "--endpoint", "http://127.0.0.1:9"),
        *("--canary", f"{scheme}://nowhere/canary.json", "--patience", "0"),
    )
    assert done.returncode == 2, done.stderr
    answer = outcome.Outcome.model_validate_json((tmp_path / "termination").read_text())
    assert answer.stage == "verify"
    assert "does not exist" in answer.message


def test_verify_and_fetch_import_only_what_their_lock_holds() -> None:
    """They run with all other packages of this environment out of reach."""
    locked = set(re.findall(r"^([\w.-]+)==", (REPOSITORY / "requirements" / "fetch.txt").read_text(), re.MULTILINE))
    foreign = tuple(
        top
        for top, names in importlib.metadata.packages_distributions().items()
        if not {name.lower().replace("_", "-") for name in names} & {*locked, "finetune-operator"}
    )
    assert set(HEAVY) <= set(foreign)
    code = (
        f"{REFUSE.format(names=foreign)}\nfrom finetune_trainer import __main__\n"
        "from finetune_trainer.stages import fetch, verify\nfrom finetune_trainer.store import storage\n"
        "import boto3, botocore.config, boto3.s3.transfer, huggingface_hub, httpx, prometheus_client"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_outcomes_fit_the_termination_message(world: Callable[..., run.Run]) -> None:
    text = "x" * 100_000
    message = outcome.Outcome(stage="train", message=text).termination_message()
    assert len(message.encode()) <= 4096
