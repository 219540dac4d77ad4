"""One site for all end-to-end tests: the real node with our images and chart. Without it they fail, never skip."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from support import site as sites
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
