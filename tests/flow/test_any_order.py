"""Whatever happens in whatever order, and however late the operator learns of it: it converges, and nothing runs twice.

The actions are edits, suspensions, failures, evictions, queues, lost children, restarts and outages; watch events arrive late,
and those of one kind before those of another. After every action the invariants of `World.check` hold: never two active Jobs or
pods of a stage.
"""

import asyncio
import collections
import os
import random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from finetune_api.reasons import Phase
from finetune_operator.observe import label, projections
from flow import world
from flow.fakecluster import Ends, Evicted, Hangs, Play, Unschedulable, Waits
from support import queue

ROLES = ("preflight", "train", "evaluate", "verify", "server")
PLAYS: list[Play | None] = [
    *[None] * 8, Hangs(), Hangs(), Ends(1, "boom"), Ends(137, "", "OOMKilled"), Ends(5), Ends(0, "?"), Evicted(), Evicted(),
    Unschedulable(), Waits("ErrImagePull", "no such image"),
]  # fmt: skip
PLAYS_TOGETHER: list[Play | None] = [
    None, Hangs(), Hangs(), Hangs(), Ends(1, "boom"), Ends(137, "", "OOMKilled"), Ends(143), Ends(5), Evicted(), Evicted(),
    Unschedulable(), Waits("ErrImagePull", "no such image"),
]  # fmt: skip
"""Of several pods of an attempt: mostly one of them ends while the others are at work."""
ACTIONS = [
    *["step"] * 6, *["hear"] * 6, *["look"] * 6, *["pass"] * 4, "suspend", "resume", "data", "gates", "image", "replicas",
    "serve", "stop", "evict", "remove", "restart", "upgrade", "outage", "resources", "nodes", "nodes",
]  # fmt: skip


FATE = [
    *["step"] * 8, *["hear"] * 8, *["look"] * 8, *["pass"] * 4, "evict", "evict", "remove", "restart", "outage", "suspend",
    "resume", "resume", "nodes", "resources",
]  # fmt: skip
"""What happens to a job that nobody edits much: it gets as far as training, and further."""


FATE_IN_A_QUEUE = [*FATE, "preempt", "preempt", "room", "room", "queue"]


class Chaos(world.World):
    """A World that is driven by dice. Only the pods of `roles` fare badly."""

    def __init__(self, seed: int, roles: tuple[str, ...] = ROLES) -> None:
        super().__init__(chart=world.KUEUE)
        self.roles = roles
        self.dice = random.Random(seed)
        self.kueue = world.queues(self.cluster, {"team-a": 2})
        self.spec: dict[str, Any] = {"spec.training.retries": 20}
        self.number = 0
        self.removed: set[str] = set()
        self.deaf = False
        self.add_model()
        self.apply(**self.spec)

    def _usual(self, role: str, labels: dict[str, str]) -> Play:  # type: ignore[override]
        plays = PLAYS_TOGETHER if label.COMPLETION_INDEX in labels else PLAYS
        play = self.dice.choice(plays) if not self.deaf and role in self.roles else None
        if role == "server" and isinstance(play, Ends):
            play = Hangs()
        return play or world.World._usual(role, labels)

    def edit(self, **changes: Any) -> None:
        self.spec |= changes
        self.apply(**self.spec)

    async def act(self, action: str) -> None:
        self.number += 1
        match action:
            case "step":
                self.cluster.step()
            case "hear":
                kind = self.dice.choice(sorted(world.fakecluster.WATCHED))
                mine = [news for news in self.cluster.undelivered if news[1] == kind]
                for news in mine[: self.dice.randint(1, 5)]:
                    self.cluster.undelivered.remove(news)
                    self.deliver_one(*news)
            case "look":
                for uid in sorted(self.dirty) or list(self.cache.parents):
                    await self.reconcile(uid)
            case "pass":
                self.cluster.now += world.datetime.timedelta(seconds=self.dice.choice([1, 5, 30, 400]))
            case "suspend" | "resume":
                self.edit(**{"spec.suspend": action == "suspend"})
            case "data":
                self.edit(**{"spec.training.seed": self.number})
            case "gates":
                self.edit(**{"spec.evaluation.maximumExamples": self.number})
            case "image":
                self.edit(**{"spec.deployment.image": f"registry/vllm:{self.number}"})
            case "replicas":
                self.edit(**{"spec.deployment.replicas": self.dice.randint(1, 3)})
            case "resources":
                self.edit(**{"spec.resources.requests.memory": f"{64 + self.number}Gi"})
            case "queue":
                self.edit(**{"spec.resources.queueName": self.dice.choice(["team-a", "team-b"])})
            case "preempt":
                running = [job for job in self.cluster.of("Job") if job["spec"].get("suspend") is False]
                gone = running and (queue.over(running[-1]) or running[-1]["metadata"].get("deletionTimestamp"))
                if running and not gone:
                    self.kueue.evict(running[-1]["metadata"]["name"])
            case "room":
                self.kueue.held.clear()
                self.kueue.room = self.dice.choice([{}, {"team-a": 3}, {"team-a": 1, "team-b": 3}])
            case "nodes":
                self.edit(**{"spec.resources.nodes": self.dice.randint(1, 3)})
            case "serve" | "stop":
                self.edit(**{"spec.deployment.enabled": action == "serve"})
            case "evict":
                if pods := self.cluster.of("Pod"):
                    pod = self.dice.choice(pods)
                    self._cast[pod["metadata"]["uid"]] = Evicted()
            case "remove":
                children = [(kind, name) for kind, _, name in self.cluster.objects if kind in projections.PROJECTIONS]
                if children:
                    kind, name = self.dice.choice(sorted(children))
                    self.removed.add(name)
                    self.cluster.remove(kind, name)
            case "restart":
                self.boot()
            case "upgrade":
                self.boot(
                    world.KUEUE
                    | {"images": {"trainer": f"t:{self.number}", "fetch": "f:1", "serving": f"v:{self.number}"}}
                )
            case "outage":
                self.cluster.refuse = self._outage if self.dice.random() < 0.5 else lambda *_: None
        self.check()

    def _outage(self, verb: str, kind: str, name: str) -> None:
        if self.dice.random() < 0.5:
            raise ConnectionResetError

    async def calm_down(self) -> None:
        """No more mischief: everything is heard, nothing hangs, and the job is not suspended."""
        self.deaf = True
        self.cluster.refuse = lambda *_: None
        self.kueue.held.clear()
        self.kueue.room = {"team-a": 3, "team-b": 3}
        self.edit(**{"spec.suspend": False, "spec.deployment.enabled": True})
        for role in ROLES:
            self.let_go(role)
        await self.rest()


def play(seed: int, actions: list[str], roles: tuple[str, ...] = ROLES) -> Chaos:
    chaos = Chaos(seed, roles)

    async def story() -> None:
        for action in actions:
            await chaos.act(action)
        await chaos.calm_down()

    asyncio.run(story())
    return chaos


def judge(chaos: Chaos) -> None:
    assert chaos.phase in {Phase.READY, Phase.FAILED}, chaos.condition("Ready")
    names = collections.Counter(name for kind, name, _ in chaos.cluster.created if kind == "Job")
    twice = {name for name, count in names.items() if count > 1} - chaos.removed
    assert not twice, f"the same attempt twice: {twice}"
    active = [job for job in chaos.cluster.of("Job") if not world.fakecluster.over(job)]
    assert not active
    if chaos.phase == Phase.READY:
        state = chaos.state
        assert world.kstatus(chaos.job) == "Current"
        assert chaos.serving() == state.deployment.release == state.release
        assert chaos.cluster.names("Deployment") == [chaos.serving()]
        living = [
            pod for pod in chaos.pods("server") if pod["status"]["phase"] != "Failed"
        ]  # evicted ones stay as they ended
        assert len(living) == chaos.job["spec"]["deployment"]["replicas"]
        wanted = chaos.spec.get("spec.deployment.image")
        used = chaos.cluster.get("Deployment", chaos.serving())["spec"]["template"]["spec"]["containers"][0]["image"]
        assert used == wanted or wanted is None
        notified = chaos.run_file("Deployment", chaos.serving())
        assert notified["training"]["seed"] == chaos.spec.get("spec.training.seed", 42)
    assert {kind for kind, _, _ in chaos.cluster.created} <= world.KINDS | {"Workload"}
    assert not [name for name in chaos.cluster.names("Service") if name.endswith("-nodes")], "nothing trains any more"


SEEDS = 12
"""Lives of a kind that a run tries. Others in each run: FLOW_SEED=N tries those of a failure again."""


def lives(first: tuple[str, ...], fate: list[str], length: int, roles: tuple[str, ...] = ROLES) -> None:
    """Plays and judges long lives, of seeds that are printed."""
    begin = int(os.environ.get("FLOW_SEED") or random.SystemRandom().randrange(10**6))
    for seed in range(begin, begin + SEEDS):
        print(f"FLOW_SEED={seed}")
        dice = random.Random(seed)
        judge(play(seed, [*first, *(dice.choice(fate) for _ in range(length))], roles))


@pytest.mark.slow
def test_a_job_converges_after_a_life_in_queues() -> None:
    lives(("queue", "nodes"), FATE_IN_A_QUEUE, 400, roles=("train",))


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=False)
@given(seed=some.integers(0, 10**6), actions=some.lists(some.sampled_from(ACTIONS), max_size=60))
def test_a_job_converges_whatever_happens(seed: int, actions: list[str]) -> None:
    judge(play(seed, actions))


@pytest.mark.slow
def test_a_job_converges_after_a_long_life() -> None:
    lives((), ACTIONS, 300)


@pytest.mark.slow
def test_a_job_converges_after_many_attempts_to_train_on_several_nodes() -> None:
    lives(("nodes",), FATE, 400, roles=("train",))
