"""What is installed works without the checkout: a wheel, and `pip install '.[cli]'`, each in a clean environment."""

import json
import os
import pathlib
import subprocess

import pytest
from tests.trainer import tiny

from toolbox import cache, uv

LOCK = cache.REPOSITORY / "requirements" / "dev.txt"
CHECKOUT = cache.REPOSITORY.as_uri()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("dist")
    uv.run("build", "--quiet", "--wheel", "--out-dir", folder, cache.REPOSITORY)
    [made] = folder.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def finetune(wheel: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The program `finetune` of the wheel in an environment of its own."""
    python = tmp_path_factory.mktemp("clean") / "environment" / "bin" / "python"
    uv.run("venv", "--quiet", python.parents[1])
    install(python, f"finetune-operator[cli] @ {wheel.as_uri()}")
    return python.with_name("finetune")


def install(python: pathlib.Path, *what: str) -> None:
    uv.run("pip", "install", "--quiet", "--python", python, "--constraint", LOCK, *what)


def ended(folder: pathlib.Path, *words: str | pathlib.Path) -> tuple[int, str]:
    """Its exit code and what it printed, with nothing of the tests' own environment."""
    rest = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV", "FINETUNE"))
    }
    environment = rest | {"XDG_CACHE_HOME": str(folder / "cache"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    found = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True)
    return found.returncode, found.stdout + found.stderr


@pytest.mark.slow
def test_a_wheel_runs_a_whole_job_in_a_clean_environment(finetune: pathlib.Path, job, tmp_path: pathlib.Path) -> None:
    file = job(training={"maxSteps": 2}, evaluation={"baselines": ["Base"]})
    code, printed = ended(file.parent, finetune, "run", file, "--output", "json")
    assert code == 0, printed
    assert list((file.parent / "out").rglob("report.html")), "templates and data files are in the wheel"
    code, printed = ended(file.parent, finetune, "report", file)
    assert code == 0, printed
    assert "Tuned" in printed


@pytest.mark.slow
def test_a_checkout_is_installed_with_its_extra(finetune: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """In the place of the wheel: torch and all else that it needs are there."""
    finetune.unlink()
    install(
        finetune.with_name("python"), "--reinstall-package", "finetune-operator", f"finetune-operator[cli] @ {CHECKOUT}"
    )
    (tmp_path / "train.jsonl").write_text(tiny.jsonl(tiny.examples(30)))
    code, printed = ended(tmp_path, finetune, "validate", "train.jsonl", "--output", "json")
    assert code == 0, printed
    assert json.loads(printed)["counts"]["examples"] == 30


def test_a_wheel_has_the_modules_of_every_program_and_their_files(wheel: pathlib.Path) -> None:
    import zipfile

    names = zipfile.ZipFile(wheel).namelist()
    for folder in (
        "operator/finetune_api",
        "operator/finetune_operator",
        "trainer-image/finetune_trainer",
        "trainer-image/finetune_cli",
    ):
        place = cache.REPOSITORY / folder
        files = (path for path in place.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
        assert {str(path.relative_to(place.parent)) for path in files} <= set(names)
