"""How a whole run shares the machine (`make test`, pytest -n): the tests that start clusters are one process's, one after
another, and begin at once, since they wait most of the time; the other tests go file by file to whoever is free."""

import pytest

CLUSTERS = ("e2e", "cluster")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("numprocesses", None):
        return
    for item in items:
        alone = any(item.get_closest_marker(name) for name in CLUSTERS)
        item.add_marker(pytest.mark.xdist_group("clusters" if alone else item.path.stem + item.path.parent.name))
    items.sort(key=lambda item: not any(item.get_closest_marker(name) for name in CLUSTERS))
