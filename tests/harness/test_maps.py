"""What a newcomer reads first is true: the map of each package, and the paths in CONTRIBUTING.md and README.md."""

import pathlib
import re

import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
SOURCES = (REPOSITORY / "operator", REPOSITORY / "trainer-image")
PACKAGES = [init for folder in SOURCES for init in sorted(folder.glob("finetune_*/**/__init__.py"))]
QUOTED = re.compile(r"`((?:operator|trainer-image|tests|docs|hack|charts|examples|finetune_\w+)/[\w./-]*)`")
LINKED = re.compile(r"\]\(([\w./-]+)(?:#[\w-]+)?\)")


@pytest.mark.parametrize("init", PACKAGES, ids=lambda init: init.parent.name)
def test_the_map_of_a_package_names_every_module(init: pathlib.Path) -> None:
    modules = {file.stem for file in init.parent.glob("*.py")} - {"__init__", "__main__"}
    assert {name for name in modules if not re.search(rf"\b{name}\b", init.read_text())} == set()


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "README.md"])
def test_every_path_that_a_page_names_exists(page: str) -> None:
    text = (REPOSITORY / page).read_text()
    named = {*QUOTED.findall(text), *LINKED.findall(text)}
    roots = (REPOSITORY, *SOURCES)
    assert named
    assert {path for path in named if not any((root / path).exists() for root in roots)} == set()
