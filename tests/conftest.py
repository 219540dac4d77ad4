"""How a whole run shares the machine (`make test`, pytest -n): the tests that start clusters are one process's, one after
another, and begin at once, since they wait most of the time; the other tests go file by file to whoever is free."""

import os
import sys
from typing import Any

import pytest

# Without bytecode each of the many processes that tests start compiles torch and transformers again: 14 s of a core, not 6.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

CLUSTERS = ("tests/cluster/", "tests/e2e/", "tests/harness/test_controlplane.py")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from xdist.scheduler import LoadScopeScheduling

    class Parts(LoadScopeScheduling):
        """Not the groups of pytest-xdist: 3.8 does not tell the scheduler of them under pytest 9.2."""

        def _split_scope(self, nodeid: str) -> str:
            return "clusters" if nodeid.startswith(CLUSTERS) else nodeid.partition("::")[0]

    return Parts(config, log)
