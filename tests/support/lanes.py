"""Which tests share a process, and in which order, when a whole run is spread over several (`make test`, pytest -n auto).

One process uses the real node from the beginning on, another one the control plane; other tests go file by file to whoever is
free, long files first. Tests that strike the node or the operator have the node for themselves. They mostly wait (a kubelet, a
lease, a heartbeat), so that they come first, while the other processes have the trainer's tests to do. When these are done, a
second process joins on the node, whose tests start pods and take all that the cores have.
"""

FIRST = ("tests/e2e/test_chaos.py", "tests/e2e/test_machines.py")
LAST = ("tests/e2e/test_upgrade.py",)
"""It takes all jobs and the operator away."""
STRIKING = (*FIRST, *LAST)
NODE = (*FIRST, "tests/e2e/test_observed.py", "tests/e2e/test_nodes.py", "tests/e2e/", *LAST)
CONTROL_PLANE = ("tests/cluster/",)
LONG = (
    "tests/trainer/test_kills.py",
    "tests/scenarios/test_training.py",
    "tests/cli/test_run.py",
    "tests/trainer/test_train.py",
    "tests/trainer/test_again.py",
    "tests/trainer/test_generate.py",
    "tests/flow/test_any_order.py",
    "tests/trainer/test_harness.py",
)
"""The longest files without a cluster: about as long as the tests that strike the node."""
BESIDE = (
    "tests/e2e/test_revisions.py",
    "tests/e2e/test_refusals.py",
    "tests/e2e/test_road.py",
    "tests/e2e/test_secrets.py",
)
SLOW = ("tests/scenarios/", "tests/trainer/", "tests/bench/")
"""What must not begin last."""

_ORDER = (*NODE, *CONTROL_PLANE, *LONG, *BESIDE, *SLOW)


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
