"""The guide to data: each of its examples is read as the page says."""

import json
import pathlib
import re

import pytest

from finetune_trainer.data import dataset

PAGE = pathlib.Path(__file__).parents[2] / "docs/guides/what-your-data-may-look-like.md"
BLOCKS = re.findall(r"^```json ?(\w*)\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
ROWS = [(kind, json.loads(line)) for kind, text in BLOCKS for line in text.splitlines()]


def test_the_page_has_examples_of_every_kind() -> None:
    assert {kind for kind, _ in ROWS} == {"", "unused", "refused"}
    formats = {dataset.detect(row) for kind, row in ROWS if not kind}
    assert formats == set(dataset.FIELDS)


@pytest.mark.parametrize("row", [row for kind, row in ROWS if kind != "refused"], ids=str)
def test_an_accepted_row_is_an_example(row: dict[str, object]) -> None:
    found = dataset.example(row, dataset.detect(row), "page:1")
    assert bool(found.unused) is (("unused", row) in ROWS)


@pytest.mark.parametrize("row", [row for kind, row in ROWS if kind == "refused"], ids=str)
def test_a_refused_row_is_none(row: dict[str, object]) -> None:
    with pytest.raises(dataset.Wrong):
        dataset.example(row, dataset.detect(row), "page:1")
