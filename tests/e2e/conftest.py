"""One site for all end-to-end tests: the real node with our images and chart. Without it they fail, never skip."""

import fcntl
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import lanes
from support import site as sites
from toolbox import cache
from trainer import tiny


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.e2e)


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sites.Site]:
    folder = tmp_path_factory.mktemp("tiny")
    tiny.make_tiny_model(folder)
    with sites.running(folder) as running:
        yield running


_floor = (cache.folder("e2e") / ".floor").open("a")
"""Held by each process from its first test on the node to its last: together with others, or alone."""


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tests that strike the node or the operator begin when nobody else has tests to run there."""
    fcntl.flock(_floor, fcntl.LOCK_EX if item.nodeid.startswith(lanes.STRIKING) else fcntl.LOCK_SH)


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    if nextitem is None or Path(__file__).parent not in nextitem.path.parents:
        fcntl.flock(_floor, fcntl.LOCK_UN)
