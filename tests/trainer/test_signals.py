"""SIGTERM at any moment of a stage is an exit code and a word of what happened, never a traceback."""

import json
import pathlib
import signal
from collections.abc import Callable
from typing import Any

import pytest
from tests.trainer import tiny

from finetune_api import exits, run
from finetune_trainer import __main__
from finetune_trainer.process import log

World = Callable[..., run.Run]


@pytest.fixture
def ended(world: World, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Any]:
    """Runs preflight as its pod would; the exit code, and what the operator reads of it."""
    file, written = tmp_path / "run.json", tmp_path / "termination"
    file.write_text(world(tiny.examples(60)).model_dump_json(by_alias=True, exclude_none=True))
    monkeypatch.setenv("FINETUNE_TERMINATION_PATH", str(written))
    return lambda: (__main__.main(["preflight", "--run", str(file)]), json.loads(written.read_text()))


def test_before_the_stage_began(ended: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "about", lambda **_: signal.raise_signal(signal.SIGTERM))
    code, written = ended()
    assert code == exits.Exit.STOPPED
    assert written["message"] == "stopped on request"


def test_when_the_stage_is_over(ended: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "info", lambda text, **_: text == "end" and signal.raise_signal(signal.SIGTERM))
    code, written = ended()
    assert code == exits.Exit.DONE
    assert written["stage"] == "preflight"


def test_while_a_failure_is_reported(ended: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(spec: run.Run, options: Any) -> Any:
        raise ValueError("a defect")

    monkeypatch.setitem(__main__.STAGES, "preflight", (broken, ""))
    monkeypatch.setattr(log, "exception", lambda text: signal.raise_signal(signal.SIGTERM))
    code, _ = ended()
    assert code == exits.Exit.STOPPED, "it is run again, as after any stop, and then fails for its own reason"
