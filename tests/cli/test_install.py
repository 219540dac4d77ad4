"""What is installed works without the checkout: a wheel, and `pip install '.[cli]'`, each in a clean environment."""

import json
import os
import pathlib
import subprocess

import pytest
from tests.trainer import tiny

from toolbox import cache, uv

LOCK = cache.REPOSITORY / "requirements" / "dev.txt"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("dist")
    uv.run("build", "--quiet", "--wheel", "--out-dir", folder, cache.REPOSITORY)
    [made] = folder.glob("*.whl")
    return made


def installed(what: str, folder: pathlib.Path) -> pathlib.Path:
    """The program `finetune` in an environment of its own."""
    uv.run("venv", "--quiet", folder / "environment")
    python = folder / "environment" / "bin" / "python"
    uv.run("pip", "install", "--quiet", "--python", python, "--constraint", LOCK, what)
    return python.with_name("finetune")


def ended(folder: pathlib.Path, *words: str | pathlib.Path) -> tuple[int, str]:
    """Its exit code and what it printed, with nothing of the tests' own environment."""
    rest = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV", "FINETUNE"))
    }
    environment = rest | {"XDG_CACHE_HOME": str(folder / "cache"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    found = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True)
    return found.returncode, found.stdout + found.stderr


@pytest.mark.slow
def test_a_wheel_runs_a_whole_job_in_a_clean_environment(wheel: pathlib.Path, job, tmp_path: pathlib.Path) -> None:
    finetune = installed(f"finetune-operator[cli] @ {wheel.as_uri()}", tmp_path)
    file = job()
    code, printed = ended(file.parent, finetune, "run", file, "--output", "json")
    assert code == 0, printed
    assert list((file.parent / "out").rglob("report.html")), "templates and data files are in the wheel"
    code, printed = ended(file.parent, finetune, "report", file)
    assert code == 0, printed
    assert "Tuned" in printed


@pytest.mark.slow
def test_a_checkout_is_installed_with_its_extra(tmp_path: pathlib.Path) -> None:
    finetune = installed(f"{cache.REPOSITORY}[cli]", tmp_path)
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
