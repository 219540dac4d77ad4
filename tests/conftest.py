"""How a whole run shares the machine (`make test`, pytest -n): the tests that start clusters are one process's, one after
another, and begin at once, since they wait most of the time; the other tests go file by file to whoever is free."""

import pytest


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not hasattr(config, "workerinput"):
        return
    items.sort(key=lambda item: not on_clusters(item))
    for item in items:
        group = "clusters" if on_clusters(item) else f"{item.path.parent.name}-{item.path.stem}"
        item.add_marker(pytest.mark.xdist_group(group))


def on_clusters(item: pytest.Item) -> bool:
    return item.path.parent.name == "e2e" or item.get_closest_marker("cluster") is not None
