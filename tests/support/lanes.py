"""Which tests share a process, and in which order, when a whole run is spread over several (`make test`, pytest -n auto).

Two processes use the real node at once, one the control plane beside it; all other tests go file by file to whoever is free, slow
files first. On the node most tests wait for their pods, so that two of them fit beside each other, except those that strike the
node or the operator: they come last, and have it for themselves.
"""

STRIKING = (
    "tests/e2e/test_chaos.py",
    "tests/e2e/test_faults.py",
    "tests/e2e/test_machines.py",
    "tests/e2e/test_upgrade.py",
)
"""In this order: the last one takes all jobs and the operator away."""
NODE = ("tests/e2e/test_observed.py", "tests/e2e/test_nodes.py", "tests/e2e/", *STRIKING)
BESIDE = (
    "tests/e2e/test_revisions.py",
    "tests/e2e/test_refusals.py",
    "tests/e2e/test_road.py",
    "tests/e2e/test_secrets.py",
)
CONTROL_PLANE = ("tests/cluster/",)
SLOW = ("tests/cli/test_run.py", "tests/scenarios/", "tests/trainer/", "tests/bench/", "tests/flow/test_any_order.py")
"""What must not begin last."""

_ORDER = (*BESIDE, *NODE, *CONTROL_PLANE, *SLOW)


def of(nodeid: str) -> str:
    """What has to run in one process with this test: a lane of the node, the control plane's tests, or its file."""
    if nodeid.startswith(BESIDE):
        return "beside"
    if nodeid.startswith(NODE):
        return "node"
    if nodeid.startswith(CONTROL_PLANE):
        return "control plane"
    return nodeid.partition("::")[0]


def turn(nodeid: str) -> int:
    """When it is its turn: the longest name in our lists that the test's begins with tells."""
    fits = [(len(name), number) for number, name in enumerate(_ORDER) if nodeid.startswith(name)]
    return max(fits)[1] if fits else len(_ORDER)
