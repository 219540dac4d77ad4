"""A real autoscaler of a ServingPool: `make scale-check` writes docs/benchmarks/scale-check.md.

On a control plane: Kubernetes' HPA controller, prometheus-adapter or KEDA by examples/autoscaling, a Prometheus with the chart's
scrape rules, the operator, and a pool whose pods are processes (pods.py).

The page is written with every finding, so that it has what was seen when something fails.

--keda     KEDA instead of prometheus-adapter
--short    a tenth of the example's times, 7 minutes
"""

import argparse
import contextlib
import json
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

# hack/ and tests/ have code shared by development tools and tests; they are not installable packages.
REPOSITORY = pathlib.Path(__file__).resolve().parents[3]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "hack"), str(REPOSITORY / "tests"), str(REPOSITORY / "tests/trainer")]

from tests.trainer.gateway import double  # noqa: E402

import finetune_api  # noqa: E402
from bench.scale import adapter, aggregated, clients, keda, pods, report, watch  # noqa: E402
from localcluster import binaries  # noqa: E402
from support import audit, controlplane, installed, manifests, prometheus  # noqa: E402
from toolbox import say  # noqa: E402

PAGES = REPOSITORY / "docs" / "benchmarks"
NAMESPACE, POOL = "ml", "chat"
"""Of the example."""
CLIENTS, BUSY = 16, 3
"""With so many clients BUSY servers are enough: 10 requests wait at 3 servers, fewer than the example's 4 at each."""
STEADY, ASLEEP = 60.0, 60.0
IDLE = {"spec": {"idle": {"after": "1m"}}}
CONTROLLER = "system:serviceaccount:kube-system:horizontal-pod-autoscaler"
ABOUT = f"""Real are {{}}, the HPA controller, the API server's aggregation, the operator, the pool's gateways, and
Prometheus with the chart's scrape rules. The engine is a double with a queue: {pods.BATCH} requests at a time, each in
{pods.SECONDS:.0f} s, the others wait; its `vllm:num_requests_waiting` is their number. {CLIENTS} clients ask again when they
have their answer. There is no node: pods are processes, and have no names in DNS. The HPA controller looks every 3 s
(Kubernetes: 15 s), Prometheus every 5 s. The example is that of `examples/autoscaling`, """
TIMES = {
    1.0: "as it stands.",
    0.1: "with a tenth of the times in `behavior` (12 s between two steps up, 90 s before a step down).",
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--keda", action="store_true")
    words = parser.parse_args()
    part = 0.1 if words.short else 1.0
    scaler: aggregated.Autoscaler = keda if words.keda else adapter
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # everything that was started ends with us
    scaler.programs()
    found: list[report.Finding] = []
    with tempfile.TemporaryDirectory() as work, contextlib.ExitStack() as stack:
        for one in check(pathlib.Path(work), scaler, part, stack):
            say.line(f"  {'ok   ' if one.passed else 'WRONG'} {one.what}: {one.seen}")
            found.append(one)
            (PAGES / scaler.PAGE).write_text(
                report.page(found, versions(scaler), scaler.COMMAND, ABOUT.format(scaler.ABOUT) + TIMES[part])
            )
    return 0 if all(one.passed for one in found) else 1


def versions(scaler: aggregated.Autoscaler) -> dict[str, str]:
    shown = subprocess.run([prometheus.program("prometheus"), "--version"], capture_output=True, text=True).stdout
    seen = re.search(r"version (\S+)", shown)
    return {
        "Kubernetes": binaries.version("k8s.io/kubernetes"),
        scaler.NAME: scaler.version(),
        "Prometheus": f"v{seen[1]}" if seen else "?",
    }


def check(
    work: pathlib.Path, scaler: aggregated.Autoscaler, part: float, stack: contextlib.ExitStack
) -> Iterator[report.Finding]:
    plane = stack.enter_context(controlplane.running("scale-check"))
    files = installed.install(plane, work)
    replica = installed.start("scale-0", work, *files)
    stack.callback(lambda: replica.end(signal.SIGKILL))
    base = manifests.changed(manifests.ENTRY, **{"metadata.name": double.BASE})
    plane.kubectl("apply", "--server-side", "-f", "-", stdin=json.dumps(base))
    plane.kubectl("create", "namespace", NAMESPACE)
    client = stack.enter_context(plane.client())
    index = f"http://127.0.0.1:{replica.index_port}"
    played = pods.Pods(client, NAMESPACE, index, work / "pods")
    stack.enter_context(pods.playing(played))
    discovery = stack.enter_context(prometheus.discovering(played.listed))
    config = prometheus.of_cluster(prometheus.chart(installed.CHART), discovery, interval="5s")
    server = stack.enter_context(prometheus.running(work, config))
    stack.enter_context(scaler.running(plane, server.url, work / "scaler"))
    installed.eventually(replica.leads, 25)
    others = {"the operator": installed.user_of(files[0]), scaler.NAME: scaler.USER}
    with watch.Watch(client, server, NAMESPACE, POOL, scaler.HPA) as seen:
        yield from loaded(plane, played, seen, scaler.autoscaler(part, server.url), part, others)
        yield from asleep(plane, played, seen)


def loaded(
    plane: controlplane.ControlPlane,
    played: pods.Pods,
    seen: watch.Watch,
    autoscaler: aggregated.Raw,
    part: float,
    others: dict[str, str],
) -> Iterator[report.Finding]:
    """Clients come, stay and go."""
    plane.kubectl("apply", "-f", "-", stdin=json.dumps(pool()))
    until(seen, lambda look: look.ready == 1, 120)
    plane.kubectl("apply", "-f", "-", stdin=json.dumps(autoscaler))
    until(seen, lambda look: look.active.startswith("True"), 240)
    first = begun = time.time()
    with clients.asking(played, CLIENTS) as answers:
        until(seen, lambda look: look.wanted == look.ready == BUSY, 300 * part + 120)
        yield report.scaled(f"{CLIENTS} clients ask", seen.since(begun), range(1, BUSY + 1), 100 * part)
        begun = time.time()
        time.sleep(STEADY)
        yield report.steady("they continue", seen.since(begun), STEADY)
    text = ", ".join(f"{count} of status {status}" for status, count in sorted(answers.items()))
    yield report.Finding("their answers", text, set(answers) == {200})
    begun = time.time()
    until(seen, lambda look: look.wanted == look.ready == 1, 1000 * part + 120)
    yield report.lowered("nobody asks any more", seen.since(begun), BUSY, 1)
    log = pathlib.Path(plane.facts["auditLog"])
    changes = len(watch.course(seen.since(first))) - 1
    yield report.untouched(writes(log, CONTROLLER), {who: writes(log, user) for who, user in others.items()}, changes)


def asleep(plane: controlplane.ControlPlane, played: pods.Pods, seen: watch.Watch) -> Iterator[report.Finding]:
    """The same pool goes to zero, and a request wakes it."""
    words = (f"--namespace={NAMESPACE}", f"servingpool/{POOL}", "--type=merge", f"--patch={json.dumps(IDLE)}")
    plane.kubectl("patch", *words)
    until(seen, lambda look: look.asleep and look.servers == 0 and look.active.startswith("False"), 240)
    begun = time.time()
    time.sleep(ASLEEP)
    yield report.asleep(seen.since(begun), ASLEEP)
    begun = time.time()
    status = clients.ask(played.front()[0], 300)
    waited = time.time() - begun
    until(seen, lambda look: look.ready == 1 and look.active.startswith("True"), 240)
    active = seen.last.active if seen.last else "unknown"
    text = f"answered with {status} after {waited:.0f} s; after {time.time() - begun:.0f} s ScalingActive is {active}"
    yield report.Finding("a request wakes the pool", text, status == 200 and active.startswith("True"))


def pool() -> dict[str, object]:
    """Without replicas, as docs/guides/gitops.md wants it where an autoscaler scales."""
    spec = {"baseModel": {"name": double.BASE}, "serveBaseModel": True, "adapters": {"claimName": "adapters"}}
    meta = {"name": POOL, "namespace": NAMESPACE}
    return {"apiVersion": finetune_api.API_VERSION, "kind": "ServingPool", "metadata": meta, "spec": spec}


def until(seen: watch.Watch, what: watch.Condition, seconds: float) -> None:
    """Waits at most so long: what was seen until then is the finding."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and not (seen.last and what(seen.last)):
        time.sleep(0.5)


def writes(log: pathlib.Path, user: str) -> int:
    """Of a pool's spec."""
    made = [one for one in audit.requests(log, user) if one.resource in {"servingpools", "servingpools/scale"}]
    return sum(one.verb in {"patch", "update"} and one.code < 300 for one in made)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except say.Problem as problem:
        say.line(f"scale-check: {problem}")
        sys.exit(1)
    except KeyboardInterrupt:
        say.line("scale-check: interrupted; all that it had started is ended")
        sys.exit(130)
