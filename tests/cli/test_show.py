"""The progress of a run on the screen."""

import pytest

from finetune_api import status
from finetune_cli import show


def test_a_terminal_shows_a_bar_with_step_and_loss(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # a terminal to rich
    monkeypatch.setenv("COLUMNS", "150")
    with show.Screen().stage("train", 2) as update:
        update(status.Progress(summary="43%", percent=43, step=3, total_steps=7, loss="0.71"))
    seen = capsys.readouterr().err
    assert "train (attempt 2)" in seen
    assert "step 3/7 loss 0.71" in seen


def test_without_a_terminal_progress_is_a_line_for_every_tenth(capsys: pytest.CaptureFixture[str]) -> None:
    with show.Screen().stage("train", 1) as update:
        for percent in (10, 15, 20):
            update(status.Progress(summary="", percent=percent, step=percent, total_steps=100))
    assert capsys.readouterr().err.splitlines() == ["train ...", "train: 10% step 10/100", "train: 20% step 20/100"]
