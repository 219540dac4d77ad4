"""The documented reasons are those that are reported."""

import pathlib
import re

import pytest

from finetune_api import reasons

ROOT = pathlib.Path(__file__).parents[3]
SOURCES = [
    file.read_text()
    for folder in ("operator", "trainer-image")
    for file in (ROOT / folder).rglob("*.py")
    if file.name != "reasons.py"
]


@pytest.mark.parametrize("reason", reasons.Reason, ids=lambda one: one.name)
def test_a_documented_reason_is_used_by_the_operator_or_a_stage(reason: reasons.Reason) -> None:
    assert any(re.search(rf"\.{reason.name}\b", text) for text in SOURCES)
