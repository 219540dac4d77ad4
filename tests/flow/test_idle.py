"""A ServingPool that goes to zero and comes back, in the in-memory cluster, with pods that report when clients asked."""

import datetime
from typing import Any

import pytest

from finetune_api import metrics, serving
from finetune_api.reasons import Phase
from finetune_operator import cluster, series
from finetune_operator.observe import label, pools
from flow import recorder, test_rollouts, world
from flow.fakecluster import Hangs, Raw
from flow.test_rollouts import IN_POOL, NEW

AFTER = 30 * 60
IDLE: dict[str, Any] = {"spec.idle": {"after": "30m"}, "spec.adapters": {"claimName": "adapters"}}
POOL = {label.POOL: "shared"}
ACTIVATOR = {label.ACTIVATOR: "shared"}


class Gateways(test_rollouts.Gateways):
    """`asked`: the last request at the servers, which count from when they became ready; `knocked`: at the activator."""

    def __init__(self, played: world.World) -> None:
        super().__init__(played)
        self.since: dict[str, datetime.datetime] = {}
        self.asked: datetime.datetime | None = None
        self.knocked: datetime.datetime | None = None
        self.silent = False
        """Whether pods are of a version that does not report when clients asked."""

    def step(self) -> None:
        facts, now, held = self.played.cache, self.played.cluster.now, set[str]()
        for (uid, name), pod in facts.pods_of_pools().items():
            known = facts.pools[uid]
            index = self.played.indexes.of(known)
            held |= {one.revision for one in index.adapters}
            if pod.activator:
                state = serving.State(pool=known.key, etag=index.etag, engine_ready=False)
                facts.put_pool_state(uid, name, pools.Reading(state, last_request=self.knocked, read_at=now))
            elif pod.ready:
                last = max(filter(None, (self.since.setdefault(name, now), self.asked)))
                state = self.state(known.key, index)
                last = None if self.silent else last
                facts.put_pool_state(uid, name, pools.Reading(state, last_request=last, read_at=now))
        recorder.pooled[self.played.cluster] = held


class Played(test_rollouts.Played):
    """A pool that may sleep."""

    def __init__(self, script: dict[str, Any] | None = None, **changes: Any) -> None:
        super().__init__(script, test_rollouts.servingpool(**IDLE | changes))
        self.world.cluster.controllers.remove(self.gateways.step)
        self.gateways: Gateways = Gateways(self.world)

    async def ready(self) -> "Played":
        await self.passes(60)
        assert self.says() == ("True", "Serving", "1/1")
        assert self.leads(POOL)
        return self

    async def asleep(self) -> "Played":
        await self.ready()
        await self.passes(AFTER + 30)
        assert self.says() == ("True", "Asleep", "0/0")
        return self

    def knock(self) -> None:
        """A client asks while the pool sleeps, and the operator reads it."""
        self.gateways.knocked = self.world.cluster.now
        self.gateways.step()

    async def falls_asleep(self) -> None:
        """To the moment in which the Service changes."""
        await self.passes(AFTER - 90)
        assert (self.says()[1], self.replicas) == ("Serving", 1)
        end = self.world.cluster.now + datetime.timedelta(seconds=120)
        while "asleepSince" not in self.status:
            assert self.world.cluster.now < end, self.status
            await self.passes(1)

    @property
    def status(self) -> Raw:
        found: Raw = self.world.cluster.get("ServingPool", "shared")["status"]
        return found

    def says(self) -> tuple[str, str, str]:
        (ready,) = [one for one in self.status["conditions"] if one["type"] == "Ready"]
        return ready["status"], ready["reason"], self.status["pods"]

    def leads(self, to: dict[str, str]) -> bool:
        """Whether the clients' Service selects these pods."""
        selector = self.world.cluster.get("Service", "shared")["spec"]["selector"]
        return to.items() <= selector.items() and len(selector) == 2

    @property
    def requested(self) -> float:
        """The servers of its job that FineTuneEndpointDown expects."""
        (found,) = [value for metric, _, value in series.samples(self.world.job, ()) if metric is metrics.REPLICAS]
        return found

    @property
    def replicas(self) -> int:
        return int(self.world.cluster.get("Deployment", "shared")["spec"]["replicas"])

    def spec(self, **changes: Any) -> None:
        self.world.cluster.put(test_rollouts.servingpool(**changes))


async def test_a_pool_without_requests_sleeps_once_requests_have_somewhere_to_go() -> None:
    played = await Played().ready()
    await played.falls_asleep()
    assert played.leads(ACTIVATOR)
    assert played.replicas == 1, "the servers answer who still reaches them"
    await played.passes(20)
    assert (played.replicas, played.says()) == (0, ("True", "Asleep", "0/0"))
    assert played.status["gpus"] == 0
    assert played.status["replicas"] == 0
    assert world.kstatus(played.world.cluster.get("ServingPool", "shared")) == "Current"
    await played.world.nothing_is_left_to_do()
    assert [(level, reason) for level, reason, _ in played.world.cluster.events][-1] == ("Normal", "Asleep")


async def test_a_request_starts_the_servers_and_clients_reach_them_once_they_are_ready() -> None:
    played = await Played({"server": []}).asleep()
    played.world.script["server"] = [Hangs()]
    played.knock()
    await played.passes(3)
    assert (played.replicas, played.says()) == (1, ("False", "Waking", "0/1"))
    assert "asleepSince" not in played.status
    assert played.leads(ACTIVATOR)
    played.world.let_go("server")
    await played.ready()
    reasons = [(level, reason) for level, reason, _ in played.world.cluster.events]
    assert reasons[-3:] == [("Normal", "Asleep"), ("Normal", "Waking"), ("Normal", "Serving")]
    await played.passes(AFTER + 60)
    assert played.says() == ("True", "Asleep", "0/0"), "and again"


async def test_a_request_in_the_last_moment_keeps_the_servers() -> None:
    for where in ("asked", "knocked"):
        played = await Played().ready()
        await played.falls_asleep()
        setattr(played.gateways, where, played.world.cluster.now + datetime.timedelta(seconds=3))
        await played.passes(20)
        assert (played.replicas, played.says()) == (1, ("True", "Serving", "1/1")), where
        assert played.leads(POOL)


async def test_a_pool_that_clients_use_stays_awake() -> None:
    played = await Played().ready()
    for _ in range(6):
        played.gateways.asked = played.world.cluster.now
        await played.passes(AFTER / 2)
    assert (played.replicas, played.says()[1]) == (1, "Serving")


async def test_what_cannot_say_when_clients_asked_does_not_sleep() -> None:
    """Gateways of an earlier version, and a pod that the operator cannot read."""
    played = Played()
    played.gateways.silent = True
    await played.ready()
    await played.passes(2 * AFTER)
    assert (played.replicas, played.says()[1]) == (1, "Serving")


async def test_a_pool_without_an_activator_does_not_sleep() -> None:
    played = Played()
    played.world.cluster.refused_pods["shared-activator"] = "exceeded quota"
    await played.ready()
    await played.passes(2 * AFTER)
    assert (played.replicas, played.leads(POOL)) == (1, True)


async def test_an_operator_that_starts_again_lets_the_pool_sleep_on() -> None:
    played = await Played().asleep()
    played.world.boot()
    await played.passes(60)
    assert played.says() == ("True", "Asleep", "0/0")
    played.knock()
    await played.ready()


async def test_an_autoscaler_wakes_nobody_and_has_its_replicas_afterwards() -> None:
    played = await Played().asleep()
    played.spec(**IDLE | {"spec.replicas": 2})
    await played.passes(60)
    assert (played.replicas, played.says()) == (0, ("True", "Asleep", "0/0"))
    played.knock()
    await played.passes(60)
    assert (played.replicas, played.says()) == (2, ("True", "Serving", "2/2"))


async def test_a_pool_that_may_not_sleep_any_more_wakes_and_has_no_activator() -> None:
    played = await Played().asleep()
    played.spec(**IDLE | {"spec.idle": None})
    await played.ready()
    assert played.world.cluster.names("Deployment") == ["shared"]
    await played.world.nothing_is_left_to_do()


async def test_requests_are_held_from_the_beginning_and_when_all_servers_are_away() -> None:
    played = Played({"server": [Hangs(), Hangs()]})
    await played.passes(10)
    for pod in played.world.pods("server"):
        if label.ACTIVATOR in pod["metadata"]["labels"]:
            played.world._cast[pod["metadata"]["uid"]] = world.World._usual("server", pod["metadata"]["labels"])
    await played.passes(30)
    assert played.leads(ACTIVATOR)
    assert played.says() == ("False", "Starting", "0/1")
    played.world.let_go("server")
    await played.ready()


async def test_a_revision_that_is_to_be_verified_wakes_the_pool_and_its_job_stays_ready_while_it_sleeps() -> None:
    changes: dict[str, Any] = IN_POOL | {"spec.deployment.rollout.steps": []}
    played = Played()
    await played.served(**changes)
    before = played.revision
    await played.passes(AFTER + 700)
    assert played.says() == ("True", "Asleep", "0/0")
    assert played.world.phase == Phase.READY
    assert (played.world.is_true("Ready"), played.world.reason("Ready")) == (True, "Asleep")
    await played.world.nothing_is_left_to_do()
    played.world.apply(**changes | NEW)
    await played.until(lambda: played.revision != before and played.world.phase == Phase.READY)
    assert ("Normal", "Waking") in [(level, reason) for level, reason, _ in played.world.cluster.events]
    assert (played.says()[1], played.world.reason("Ready")) == ("Serving", "Serving")
    (waking,) = [text for _, reason, text in played.world.cluster.events if reason == "Waking"]
    assert "is verified" in waking
    await played.passes(AFTER + 60)
    assert played.says() == ("True", "Asleep", "0/0")


async def test_a_pool_that_sleeps_is_no_outage_of_its_jobs_also_while_another_revision_trains() -> None:
    played = Played()
    await played.served(**IN_POOL)
    played.world.script["train"] = [Hangs()]
    played.world.apply(**IN_POOL | NEW)
    await played.until(lambda: played.world.phase == Phase.TRAINING)
    await played.passes(AFTER + 700)
    assert (played.says()[1], played.world.reason("Ready")) == ("Asleep", "Running")
    assert played.requested == 0


@pytest.mark.parametrize("minutes", [15, 2])
async def test_a_pool_that_does_not_start_is_an_outage_of_its_jobs_once_requests_are_not_held_any_more(
    minutes: int,
) -> None:
    played = Played(**{"spec.idle": {"after": "30m", "holdFor": f"{minutes}m"}})
    await played.served(**IN_POOL)
    await played.passes(AFTER + 700)
    assert (played.says()[1], played.requested) == ("Asleep", 0)
    played.world.script["server"] = [Hangs()]
    played.knock()
    await played.passes((minutes - 1) * 60)
    assert (played.says()[1], played.world.reason("Ready"), played.requested) == ("Waking", "Asleep", 0)
    await played.passes(2 * 60)
    assert (played.says()[1], played.world.reason("Ready"), played.requested) == ("Waking", "Serving", 1)
    assert not played.world.is_true("Ready")
    played.world.let_go("server")
    await played.passes(60)
    assert (played.says()[1], played.world.is_true("Ready"), played.requested) == ("Serving", True, 1)


async def test_a_pool_that_wakes_and_starts_is_seen_by_a_job_whose_spec_cannot_be_read() -> None:
    played = Played(**{"spec.idle": {"after": "30m", "holdFor": "2m"}})
    await played.served(**IN_POOL)
    await played.passes(AFTER + 700)
    played.world.cluster.edit("FineTuneJob", world.NAME, lambda raw: raw["spec"]["training"].update(epochs="many"))
    await played.world.settle()
    assert (played.world.reason("Ready"), played.requested) == ("InvalidSpec", 0), "requests start the pool's servers"
    played.world.script["server"] = [Hangs()]
    played.knock()
    await played.passes(60)
    assert (played.says()[1], played.requested) == ("Waking", 0)
    await played.passes(120)
    assert (played.says()[1], played.requested) == ("Waking", 1)
    played.world.let_go("server")
    await played.passes(60)
    assert (played.says()[1], played.requested) == ("Serving", 1)


async def test_a_pool_that_does_not_start_is_seen_while_the_switch_to_servers_of_the_jobs_own_is_refused() -> None:
    played = Played(**{"spec.idle": {"after": "30m", "holdFor": "2m"}})
    await played.served(**IN_POOL)
    await played.passes(AFTER + 700)
    played.world.cluster.refuse = lambda verb, kind, name: (
        cluster.Failure(422, "policy: selectors") if (verb, name) == ("apply", world.NAME) else None
    )
    played.world.apply(**NEW)
    await played.until(lambda: "policy: selectors" in str(played.world.condition("Ready")))
    assert (played.says()[1], played.requested) == ("Asleep", 0)
    played.world.script["server"] = [Hangs()]
    played.knock()
    await played.passes(60)
    assert (played.says()[1], played.requested) == ("Waking", 0)
    await played.passes(120)
    assert (played.says()[1], played.requested) == ("Waking", 1)


async def test_a_revision_that_waits_for_a_person_lets_the_pool_sleep() -> None:
    changes: dict[str, Any] = IN_POOL | {"spec.deployment.approval": "Required"}
    played = Played()
    played.world.apply(**changes)
    await played.until(lambda: played.world.reason("Deployed") == "AwaitingApproval")
    await played.passes(AFTER + 60)
    assert played.says() == ("True", "Asleep", "0/0")
    assert played.world.reason("Deployed") == "AwaitingApproval"
