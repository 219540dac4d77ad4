"""The faults: each strikes once, lasts a while, is healed, and says in words what it did."""

import contextlib
import dataclasses
import os
import random
import signal
import time
from collections.abc import Callable, Iterator

from chaos import api, clock, watch
from demo import install
from finetune_operator.observe import label
from localcluster import cluster, plan
from support import site as sites
from toolbox import say

OPERATORS = f"/api/v1/namespaces/{install.SYSTEM}/pods"
SELECTOR = "app.kubernetes.io/name=finetune-operator"
WORD = "finetune_operator"
STORE = "s3"
CLOCK = "operator's clock"
POOLS = "pool's pod"
"""The fault of fleets that have a pool."""
PATIENT = 15.0
"""Seconds for which every stage waits for S3; preflight gives up first, after 20, and is repeated until the deadline."""
STAGES = ("preflight", "baseline", "train", "evaluate", "verify")
JUMPS = (-259_200, -3_600, -90, 90, 3_600, 259_200)
"""Seconds: the longest are beyond `activeDeadlineSeconds` and most certificates' beginnings, the shortest beyond a lease."""


class NotNow(Exception):
    """There is nothing to strike at this moment."""


@dataclasses.dataclass(frozen=True)
class Struck:
    """What was done. `job`: whose pod it hit; None: everybody's world. `kills`: as a failure, and not as a disruption."""

    words: str
    job: str | None = None
    kills: bool = False
    delays: bool = False
    """Whether it may cost anybody an attempt, since it lasted longer than a stage is patient. That is no failure either."""


@dataclasses.dataclass(frozen=True)
class World:
    """Where faults strike. `local`: the cluster's plan, where it runs on this machine by hack/localcluster."""

    server: api.Api
    seen: watch.Watch
    local: plan.Plan | None


Strike = Callable[[World, random.Random], Struck]


def _process(name: str, longest: float) -> Strike:
    """A process of the cluster: killed and back at once, killed and away for a while, or hanging."""

    def strike(world: World, dice: random.Random) -> Struck:
        assert world.local is not None
        how, seconds = dice.choice(("restarted", "away", "hangs")), dice.uniform(1, longest)
        if how == "hangs":
            cluster.pause(world.local, [name])
            time.sleep(seconds)
            cluster.resume(world.local, [name])
            return Struck(f"SIGSTOP for {seconds:.1f} s", delays=name == STORE and seconds > PATIENT)
        cluster.kill(world.local, [name])
        if how == "away":
            time.sleep(seconds)
        heal(world.local)
        if how == "restarted":
            return Struck("SIGKILL, back at once")
        return Struck(f"SIGKILL, back after {seconds:.1f} s", delays=name == STORE and seconds > PATIENT)

    return strike


def heal(local: plan.Plan) -> None:
    """Starts whatever is dead, also what another's death took along."""
    for patience in range(5):
        try:
            cluster.restart(local, cluster.dead(local))
        except say.Problem:
            if patience == 4:
                raise
        if not cluster.dead(local):
            return


def _operator(world: World, dice: random.Random) -> Struck:
    """The pod is deleted at once, or its process is killed."""
    name, uid = operators(world, dice)[0]
    if world.local and dice.random() < 0.5:
        os.kill(int(sites.processes(uid, WORD)[0].name), signal.SIGKILL)
        return Struck("SIGKILL")
    world.server.delete(f"{OPERATORS}/{name}", gracePeriodSeconds=0)
    return Struck("pod deleted, without grace")


def _operator_hangs(world: World, dice: random.Random) -> Struck:
    """Its process is stopped, mostly for longer than its lease, and then resumed."""
    pid = int(sites.processes(operators(world, dice)[0][1], WORD)[0].name)
    seconds = dice.uniform(6, 30)
    os.kill(pid, signal.SIGSTOP)
    time.sleep(seconds)
    with contextlib.suppress(ProcessLookupError):  # its probe may have ended it
        os.kill(pid, signal.SIGCONT)
    return Struck(f"SIGSTOP for {seconds:.1f} s")


def operators(world: World, dice: random.Random) -> list[tuple[str, str]]:
    """Names and uids of the operator's running pods, the victim first: more often the leader than not."""
    pods = [
        (pod["metadata"]["name"], pod["metadata"]["uid"])
        for pod in world.server.items(OPERATORS, SELECTOR)
        if pod["status"]["phase"] == "Running" and not pod["metadata"].get("deletionTimestamp")
    ]
    if not pods:
        raise NotNow("no operator pod runs")
    lease = f"/apis/coordination.k8s.io/v1/namespaces/{install.SYSTEM}/leases/finetune-operator"
    leader = (world.server.ask("GET", lease)["spec"].get("holderIdentity") or "").rpartition("_")[0]
    leads = dice.random() < 0.75
    return sorted(pods, key=lambda pod: (pod[0] == leader) != leads)


def _clock(world: World, dice: random.Random) -> Struck:
    """The wall clock of one replica or of all of them jumps, and after a while jumps back."""
    pods = operators(world, dice)[: dice.choice((1, 1, 2))]
    jump, seconds = dice.choice(JUMPS), dice.uniform(4, 25)
    for _, uid in pods:
        clock.move(uid, jump)
    time.sleep(seconds)
    for _, uid in pods:
        with contextlib.suppress(LookupError):  # it may have ended meanwhile
            clock.move(uid, 0)
    whose = "of one replica" if len(pods) == 1 else "of both replicas"
    return Struck(f"{jump:+,d} s for {seconds:.1f} s, {whose}")


def stage_pod(world: World, dice: random.Random) -> api.Raw:
    """A pod of a stage that runs, training more often than others."""

    def runs(pod: api.Raw) -> bool:
        stage = pod["metadata"].get("labels", {}).get("finetune.dev/stage", "")
        waits = pod["status"]["phase"] != "Running" or pod["metadata"].get("deletionTimestamp")
        return stage in STAGES and not waits

    end = time.monotonic() + 20
    while not (running := world.seen.pods(runs)):
        if time.monotonic() > end:
            raise NotNow("no pod of a stage runs")
        time.sleep(0.2)
    weights = [4 if pod["metadata"]["labels"]["finetune.dev/stage"] == "train" else 1 for pod in running]
    return dice.choices(running, weights)[0]


def _stage_pod(world: World, dice: random.Random) -> Struck:
    """The process of a stage is killed, or its pod is deleted."""
    pod = stage_pod(world, dice)
    labels = pod["metadata"]["labels"]
    whom = f"{labels['finetune.dev/stage']} attempt {labels['finetune.dev/attempt']}"
    if world.local and dice.random() < 0.7:
        process = sites.processes(pod["metadata"]["uid"], labels["finetune.dev/stage"])[0]
        os.kill(int(process.name), signal.SIGKILL)
        return Struck(f"SIGKILL of {whom}", labels["finetune.dev/job"], kills=True)
    world.server.delete(f"{api.PODS}/{pod['metadata']['name']}")
    return Struck(f"pod of {whom} deleted", labels["finetune.dev/job"], kills=True)


def _eviction(world: World, dice: random.Random) -> Struck:
    """As a drain does: Kubernetes replaces the pod, and no attempt counts as failed."""
    pod = stage_pod(world, dice)
    meta, labels = pod["metadata"], pod["metadata"]["labels"]
    body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": meta["name"]}}
    world.server.ask("POST", f"{api.PODS}/{meta['name']}/eviction", body)
    return Struck(f"pod of {labels['finetune.dev/stage']} evicted", labels["finetune.dev/job"])


def _server(world: World, dice: random.Random) -> Struck:
    """The pool's engine or its gateway is killed, or its pod is deleted."""
    pods = [pod for pod in world.server.items(api.PODS, label.POOL) if not pod["metadata"].get("deletionTimestamp")]
    if not pods:
        raise NotNow("no pool has a pod")
    word = dice.choice(("", "gateway", "vllm.entrypoints.openai.api_server"))
    meta = dice.choice(pods)["metadata"]
    if word and world.local:
        os.kill(int(sites.processes(meta["uid"], word)[0].name), signal.SIGKILL)
        return Struck(f"SIGKILL of the {'gateway' if word == 'gateway' else 'engine'}", delays=True)
    world.server.delete(f"{api.PODS}/{meta['name']}")
    return Struck("pod deleted", delays=True)


FAULTS: dict[str, Strike] = {
    "operator": _operator,
    "operator hangs": _operator_hangs,
    "API server": _process("kube-apiserver", 15),
    "etcd": _process("etcd", 15),
    "kubelet": _process("kubelet", 20),
    "containerd": _process("containerd", 20),
    "S3": _process(STORE, 30),
    "stage's pod": _stage_pod,
    "eviction": _eviction,
    CLOCK: _clock,
    POOLS: _server,
}
ANYWHERE = ("operator", "stage's pod", "eviction")
"""What can be done to a cluster that is not this machine's own."""


def order(dice: random.Random, names: tuple[str, ...]) -> Iterator[str]:
    """Each as often as the others, in no order."""
    while True:
        yield from dice.sample(names, len(names))
