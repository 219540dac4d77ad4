"""A pool with a thousand models on a real API server: `make bench-pool-scale` writes docs/benchmarks/pool-scale.md.

The API server, the operator and the pool's gateway are real; the engine is a double, and nothing trains. One job lives until the
pool serves it; its status is copied to the others, each with an adapter of its own, which lies on the gateway's volume.
"""

import argparse
import asyncio
import concurrent.futures
import contextlib
import json
import os
import pathlib
import signal
import statistics
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections import Counter
from typing import Any

from aiohttp import web

REPOSITORY = pathlib.Path(__file__).resolve().parents[3]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "hack"), str(REPOSITORY / "tests"), str(REPOSITORY / "tests/trainer")]

from tests.bench import gateway  # noqa: E402
from tests.trainer.gateway import double  # noqa: E402

from finetune_api import serving  # noqa: E402
from finetune_operator.observe import label  # noqa: E402
from flow import world  # noqa: E402
from support import audit, controlplane, installed, manifests, ports  # noqa: E402

PAGE = REPOSITORY / "docs" / "benchmarks" / "pool-scale.md"
NAMESPACE, NAME, FIRST, CHANGES = "bench", "pool", "first", 20
Raw = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=1000)
    wanted = parser.parse_args().models
    with contextlib.ExitStack() as stack:
        folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        plane = stack.enter_context(controlplane.running("pool-scale"))
        rows = measure(plane, folder, wanted, stack)
    text = page(wanted, rows)
    PAGE.write_text(text)
    print(text)


def measure(
    plane: controlplane.ControlPlane, folder: pathlib.Path, wanted: int, stack: contextlib.ExitStack
) -> list[tuple[str, str]]:
    files = installed.install(plane, folder)
    user, log = installed.user_of(files[0]), pathlib.Path(plane.facts["auditLog"])
    plane.kubectl("apply", "--server-side", "-f", "-", stdin=json.dumps(manifests.ENTRY))
    plane.kubectl("create", "namespace", NAMESPACE)
    replica = installed.start("scale-0", folder, *files)
    stack.callback(lambda: replica.end(signal.SIGKILL))
    installed.eventually(replica.leads, 25)
    scene = installed.Stage(
        stack.enter_context(plane.client()),
        NAMESPACE,
        lambda labels: world.World._usual(labels[label.STAGE], labels).message,
    )
    pool = {"baseModel": {"name": manifests.ENTRY["metadata"]["name"]}, "adapters": {"inMemory": 64}}
    meta = {"name": NAME, "namespace": NAMESPACE}
    kind = {"apiVersion": "finetune.dev/v1alpha1", "kind": "ServingPool"}
    plane.kubectl("apply", "-f", "-", stdin=json.dumps({**kind, "metadata": meta, "spec": pool}))
    scene.apply(world.finetunejob(FIRST, **{"spec.deployment": {"pool": NAME, "servedModelName": FIRST}}))
    installed.eventually(lambda: scene.step() or scene.job(FIRST).get("status", {}).get("serving"), 60)
    first = scene.job(FIRST)
    print("the first job is served", flush=True)
    before = len(scene.names("Deployment")), len(scene.names("Service"))

    volume = folder / "adapters"
    volume.mkdir()
    adapters = [gateway.adapter(volume, number) for number in range(wanted + CHANGES)]
    engine, clients = ports.free(), ports.free()
    stack.enter_context(gateway.engine_process(engine, serve_engine))
    command = gateway.gateway(volume, engine, replica.index_port, clients, serving.DELIVERY_PORT)

    def state() -> Raw:
        found: Raw = read(f"http://127.0.0.1:{serving.DELIVERY_PORT}/state")
        return found

    def models() -> int:
        return len(read(f"http://127.0.0.1:{replica.index_port}/pools/{NAMESPACE}/{NAME}")["models"])

    # a thousand jobs
    asked = requests(log, user)
    begun = time.monotonic()
    names = [f"job-{number}" for number in range(wanted)]
    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda one: put(scene, first, one[0], one[1], new=True), zip(names, adapters, strict=False)))
    written = time.monotonic() - begun
    installed.eventually(lambda: models() == wanted + 1, 60)
    known = time.monotonic() - begun - written
    cost = settled(log, user) - asked
    index = urllib.request.urlopen(f"http://127.0.0.1:{replica.index_port}/pools/{NAMESPACE}/{NAME}").read()

    print(f"{wanted} jobs are in the index", flush=True)

    # a gateway comes, and its pool changes
    begun = time.monotonic()
    stack.enter_context(gateway.process(command, folder / "gateway.log"))
    installed.eventually(lambda: ready(state()) >= wanted, 300)
    came = time.monotonic() - begun
    changes = [changed(scene, first, clients, names[number], adapters[wanted + number]) for number in range(CHANGES)]

    print("the gateway has followed", flush=True)

    # another leader
    replica.end(signal.SIGKILL)
    begun = time.monotonic()
    other = installed.start("scale-1", folder, *files)
    stack.callback(lambda: other.end(signal.SIGKILL))
    installed.eventually(other.leads, 60)
    replica.index_port = other.index_port
    installed.eventually(lambda: models() == wanted + 1, 60)
    back = time.monotonic() - begun
    after = len(scene.names("Deployment")), len(scene.names("Service"))
    each = ", ".join(f"{verb} {count / wanted:.2f}" for verb, count in sorted(cost.items()))
    return [
        ("Deployments, Services with 1 model; with all", f"{before[0]}, {before[1]}; {after[0]}, {after[1]}"),
        ("the operator's requests for each further job, by verb", each),
        ("time to write all jobs and statuses, 4 at once", f"{written:.0f} s"),
        ("then, until the index had all models", f"{known:.1f} s"),
        ("size of the index", f"{len(index) / 1000:.0f} kB"),
        ("a gateway starts, its adapters on the volume, until all are loaded", f"{came:.1f} s"),
        (
            f"a status changes, until a client gets the other adapter, {CHANGES} times, p50, longest",
            f"{statistics.median(changes):.2f} s, {max(changes):.2f} s",
        ),
        ("an operator is killed, until another one answers with all models", f"{back:.1f} s"),
        ("memory of that operator; of the gateway", f"{resident(other.process.pid)}; {resident(named('gateway'))}"),
    ]


def put(scene: installed.Stage, first: Raw, name: str, adapter: Raw, *, new: bool = False) -> None:
    """The job's status says that this adapter serves."""
    if new:
        deployment = {**first["spec"]["deployment"], "servedModelName": name}
        spec = {**first["spec"], "deployment": deployment, "suspend": True}
        kind = {"apiVersion": "finetune.dev/v1alpha1", "kind": "FineTuneJob"}
        scene.apply({**kind, "metadata": {"name": name, "namespace": NAMESPACE}, "spec": spec})
    state = json.loads(json.dumps(first["status"]).replace(FIRST, name))
    release = json.loads(state["serving"])
    release["name"] = f"{name}-{adapter['sha256'][:8]}"
    release["adapter"] |= {key: adapter[key] for key in ("sha256", "bytes", "rank")}
    state["serving"] = json.dumps(release, separators=(",", ":"))  # as the operator writes it
    state.pop("observedGeneration", None)
    scene.custom.patch_namespaced_custom_object_status(*scene.where, name, {"status": state})


def changed(scene: installed.Stage, first: Raw, port: int, name: str, adapter: Raw) -> float:
    """Seconds from a job's new adapter to a client's answer of it."""
    before = answer(port, name)
    begun = time.monotonic()
    put(scene, first, name, adapter)
    while (found := answer(port, name)) == before or found is None:
        if time.monotonic() > begun + 60:
            raise SystemExit(f"{name} still answers {before!r}")
        time.sleep(0.02)
    return time.monotonic() - begun


def answer(port: int, name: str) -> str | None:
    body = json.dumps({"model": name, "messages": [{"role": "user", "content": "?"}]}).encode()
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {gateway.KEY}"}
    request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/chat/completions", body, headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as found:
            return str(json.load(found)["choices"][0]["message"]["content"])
    except urllib.error.HTTPError:
        return None


def read(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=30) as found:
        return json.load(found)


def ready(state: Raw) -> int:
    return sum(one["state"] == "Ready" for one in state["adapters"])


def requests(log: pathlib.Path, user: str) -> Counter[str]:
    """The operator's requests by verb, without those for its lease."""
    return Counter(one.verb for one in audit.requests(log, user) if one.resource != "leases")


def settled(log: pathlib.Path, user: str) -> Counter[str]:
    """The same, once there are no more of them."""
    found = Counter[str]()
    while found != (now := requests(log, user)):
        found = now
        time.sleep(5)
    return found


def serve_engine(port: int) -> None:
    asyncio.set_event_loop(asyncio.new_event_loop())
    web.run_app(double.Engine().app(), host="127.0.0.1", port=port, print=None, access_log=None)


def named(word: str) -> int:
    """The process of this benchmark with this word on its command line."""
    for folder in pathlib.Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            words = (folder / "cmdline").read_bytes().split(b"\0") if folder.name.isdigit() else []
            if (
                word.encode() in words
                and int((folder / "stat").read_text().rpartition(")")[2].split()[1]) == os.getpid()
            ):
                return int(folder.name)
    raise LookupError(word)


def resident(pid: int) -> str:
    lines = pathlib.Path(f"/proc/{pid}/status").read_text().splitlines()
    return f"{int(next(line for line in lines if line.startswith('VmRSS')).split()[1]) / 1024:.0f} MiB"


def page(wanted: int, rows: list[tuple[str, str]]) -> str:
    return f"""# A pool with {wanted:,} models

Written by `make bench-pool-scale`: a real API server, operator and gateway on {os.cpu_count()} cores, an
engine that is a double; jobs whose statuses are copies of one that lived until it was served.

| what | seen |
|---|---|
{chr(10).join(f"| {what} | {seen} |" for what, seen in rows)}
"""


if __name__ == "__main__":
    main()
