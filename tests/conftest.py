"""How a whole run shares the machine: support/lanes.py says which tests go together, and in which order."""

import os
import signal
import sys
from collections.abc import Iterator
from typing import Any

import hypothesis
import pytest

from demo import needs
from finetune_trainer.process import signals
from support import lanes

# Without bytecode each of the many processes that tests start compiles torch and transformers again: 14 s of a core, not 6.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
# The models of the tests are tiny, and threads that wait for each other on busy cores take five times as long as one.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# How long an example takes says more of what else the machine does than of the code.
hypothesis.settings.register_profile(
    "unhurried", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("unhurried")

PROCESS = 2.5 * needs.GIB
"""Memory of a process of tests that has torch loaded, with what it starts."""


@pytest.fixture(autouse=True)
def unstopped(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What one test did with SIGTERM (handled, held, ignored) is nothing to the next, and to the processes that it forks."""
    monkeypatch.setattr(signals, "_stop", signals._Stop())
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: lanes.turn(item.nodeid))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """One for each core, as far as the memory reaches, and one more in a run where two of them wait for the node."""
    machine = needs.look()
    waiting = "not e2e" not in config.option.markexpr
    return waiting + max(1, min(machine.cores, int(machine.memory // PROCESS)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from xdist.scheduler import LoadScopeScheduling

    class Lanes(LoadScopeScheduling):
        """Not the groups of pytest-xdist: 3.8 does not tell the scheduler of them under pytest 9.2."""

        def _split_scope(self, nodeid: str) -> str:
            return lanes.of(nodeid)

    config.option.loadscopereorder = False  # the order is that of the collection
    return Lanes(config, log)
