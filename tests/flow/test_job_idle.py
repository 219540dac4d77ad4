"""Servers of one job that go to zero and come back, in the in-memory cluster, with pods that say when clients asked."""

import datetime
from typing import Any

import pytest

from finetune_api import metrics, serving
from finetune_api.reasons import Phase
from finetune_operator import cluster, series
from finetune_operator.observe import label, pools
from flow import test_rollouts, test_routes, world
from flow.fakecluster import Ends, Hangs, Raw

AFTER = 3 * 60
IDLE: dict[str, Any] = {"spec.deployment.idle": {"after": "3m"}}
NEW = test_routes.NEW
ACTIVATOR, SERVERS = f"{world.NAME}-activator", f"{world.NAME}-servers"


class Played(test_routes.Played):
    """A job whose servers may sleep. `asked`: the last request at the servers; `knocked`: at the activator."""

    def __init__(self, script: dict[str, Any] | None = None, chart: dict[str, Any] | None = None) -> None:
        super().__init__(chart)
        self.world.script.update(script or {})
        self.since: dict[str, datetime.datetime] = {}
        self.asked: datetime.datetime | None = None
        self.knocked: datetime.datetime | None = None
        self.problem = {"servers": "", "activators": ""}
        self.reads = True
        """Whether the operator gets to read pods."""
        self.world.cluster.controllers.append(self._read)

    def _read(self) -> None:
        facts, now = self.world.cache, self.world.cluster.now
        if not self.reads:
            return
        for (uid, name), _ in facts.activators().items():
            state = serving.State(pool=f"ml/{world.NAME}", etag="", engine_ready=False)
            self._put(
                uid, name, pools.Reading(state, last_request=self.knocked, read_at=now), self.problem["activators"]
            )
        for (uid, name), _ in facts.sleepers().items():
            last = max(filter(None, (self.since.setdefault(name, now), self.asked)))
            self._put(uid, name, pools.Reading(last_request=last, read_at=now), self.problem["servers"])

    def _put(self, uid: str, name: str, found: pools.Reading, problem: str) -> None:
        before = self.world.cache.pool_states.get(uid, {}).get(name, pools.Reading())
        reading = before.failed(problem, self.world.cluster.now) if problem else found
        self.world.cache.put_pool_state(uid, name, reading)

    async def awake(self, **changes: Any) -> "Played":
        await self.served(**IDLE | changes)
        assert self.says() == ("True", "Serving")
        assert self.leads_to(self.release)
        return self

    async def asleep(self, **changes: Any) -> "Played":
        await self.awake(**changes)
        await self.passes(AFTER + 30)
        assert (self.says(), self.replicas) == (("True", "Asleep"), 0)
        return self

    async def passes(self, seconds: float) -> None:
        """Time goes by, in which pods are read."""
        end = self.world.cluster.now + datetime.timedelta(seconds=seconds)
        while (left := (end - self.world.cluster.now).total_seconds()) > 0:
            self._read()
            await self.world.wait(min(left, 5.0 if left < 60 else 60.0))
        self._read()
        await self.world.wait(1)

    async def knock(self) -> None:
        """A client asks while the servers sleep, and the operator reads it."""
        self.knocked = self.world.cluster.now
        self._read()
        await self.world.wait(2)

    def says(self) -> tuple[str, str]:
        found = self.world.condition("Ready")
        return (found.status, found.reason) if found is not None else ("", "")

    @property
    def message(self) -> str:
        found = self.world.condition("Ready")
        return found.message if found is not None else ""

    @property
    def activators(self) -> list[str]:
        metadata = [pod["metadata"] for pod in self.world.cluster.of("Pod")]
        return [one["name"] for one in metadata if label.ACTIVATOR in one["labels"]]

    @property
    def release(self) -> str:
        deployed = self.world.state.deployment
        assert deployed is not None
        return deployed.release

    @property
    def replicas(self) -> int:
        return int(self.world.cluster.get("Deployment", self.release)["spec"]["replicas"])

    @property
    def requested(self) -> float:
        """The servers that FineTuneEndpointDown expects."""
        return self._counted(metrics.REPLICAS)

    @property
    def ready(self) -> float:
        """Those that it finds."""
        return self._counted(metrics.READY_REPLICAS)

    def _counted(self, which: metrics.Metric) -> float:
        (found,) = [value for metric, _, value in series.samples(self.world.job, ()) if metric is which]
        return found

    def leads_to(self, release: str, service: str = world.NAME) -> bool:
        return self._selector(service).get(label.RELEASE) == release

    def holds(self) -> bool:
        """Whether clients reach the activator."""
        return self._selector(world.NAME).get(label.ACTIVATOR) == world.NAME

    def _selector(self, service: str) -> Raw:
        found: Raw = self.world.cluster.get("Service", service)["spec"]["selector"]
        return found

    def events(self) -> list[tuple[str, str]]:
        return [(level, reason) for level, reason, _ in self.world.cluster.events]


async def test_servers_sleep_once_requests_have_somewhere_to_go_and_a_request_starts_them() -> None:
    played = await Played().asleep()
    assert played.holds()
    assert played.leads_to(played.release, SERVERS)
    assert played.world.state.deployment is not None
    assert played.world.state.deployment.asleep_since is not None
    assert (played.world.state.deployment.replicas, played.world.phase) == (0, Phase.READY)
    assert world.kstatus(played.world.job) == "Current"
    assert played.events()[-1] == ("Normal", "Asleep")
    await played.world.nothing_is_left_to_do()
    played.world.script["server"] = [Hangs()]
    await played.knock()
    assert (played.says(), played.replicas, played.holds()) == (("False", "Waking"), 1, True)
    assert "asleepSince" not in played.world.job["status"]["deployment"]
    played.world.let_go("server")
    await played.passes(60)
    assert (played.says(), played.leads_to(played.release)) == (("True", "Serving"), True)
    assert played.events()[-2:] == [("Normal", "Waking"), ("Normal", "Serving")]
    await played.passes(AFTER + 30)
    assert (played.says(), played.replicas) == (("True", "Asleep"), 0), "and again"


async def test_a_request_in_the_last_moment_keeps_the_servers() -> None:
    for where in ("asked", "knocked"):
        played = await Played().awake()
        while not played.holds():
            await played.passes(5)
        assert played.replicas == 1, "the servers answer who still reaches them"
        setattr(played, where, played.world.cluster.now + datetime.timedelta(seconds=1))
        await played.passes(20)
        assert (played.replicas, played.says()) == (1, ("True", "Serving")), where
        assert played.leads_to(played.release)


async def test_servers_end_only_after_every_pod_was_read() -> None:
    played = await Played().awake()
    while not played.holds():
        await played.passes(5)
    played.problem["servers"] = "10.0.0.1: no answer"
    await played.passes(30)
    assert played.replicas == 1, "somebody may have asked them"
    played.reads, played.problem["servers"] = False, ""
    played.world.boot()
    await played.passes(30)
    assert played.replicas == 1, "another leader knows nothing yet"
    played.reads = True
    await played.passes(10)
    assert (played.replicas, played.says()) == (0, ("True", "Asleep"))


async def test_servers_that_are_used_or_cannot_be_read_stay_awake() -> None:
    played = await Played().awake()
    for _ in range(4):
        played.asked = played.world.cluster.now
        await played.passes(AFTER / 2)
    assert (played.replicas, played.says()) == (1, ("True", "Serving"))
    played.problem["servers"] = "10.0.0.1: no answer"
    await played.passes(2 * AFTER)
    assert played.replicas == 1
    assert "10.0.0.1: no answer" in played.message
    assert "8000 and 8002" in played.message


async def test_a_pod_that_cannot_be_read_is_named_if_it_is_ready_and_once_that_lasts() -> None:
    played = await Played().awake()
    for which in ("servers", "activators"):
        played.problem[which] = "10.0.0.1: no answer"
        await played.passes(20)
        assert "10.0.0.1" not in played.message
        await played.world.wait(60)
        assert "10.0.0.1: no answer" in played.message, "without a further answer"
        played.problem[which] = ""
        await played.passes(5)
        assert "10.0.0.1" not in played.message
    played.world.script["server"] = [Hangs()]
    played.problem["activators"], played.asked = "10.0.0.1: no answer", played.world.cluster.now
    for name in played.activators:
        played.world.cluster.remove("Pod", name)
    await played.passes(90)
    assert "10.0.0.1" not in played.message


async def test_without_an_activator_nothing_sleeps() -> None:
    played = Played()
    played.world.cluster.refused_pods[ACTIVATOR] = "exceeded quota"
    await played.awake()
    await played.passes(2 * AFTER)
    assert (played.replicas, played.leads_to(played.release)) == (1, True)


async def test_an_activator_that_the_api_server_refuses_keeps_the_servers_awake_and_reachable() -> None:
    played = Played()
    played.world.cluster.refuse = lambda verb, kind, name: (
        cluster.Failure(403, "policy: replicas") if (verb, name) == ("apply", ACTIVATOR) else None
    )
    await played.awake()
    ready = played.world.condition("Ready")
    assert ready is not None
    assert f"Deployment {ACTIVATOR}" in ready.message
    assert "policy: replicas" in ready.message
    await played.passes(AFTER + 30)
    assert (played.replicas, played.leads_to(played.release)) == (1, True)
    tries = len(played.world.cluster.requests)
    for replicas in (2, 3, 4, 5, 6, 7):
        played.world.apply(**IDLE | {"spec.deployment.replicas": replicas})
        await played.passes(10)
    asked = [one for one in played.world.cluster.requests[tries:] if ACTIVATOR in str(one)]
    assert len(asked) <= 3, "it is not asked in every pass"
    played.world.cluster.refuse = lambda verb, kind, name: None
    await played.passes(2 * AFTER)
    assert played.says() == ("True", "Asleep")


@pytest.mark.parametrize("later", [0, 70], ids=["at once", "when it is tried again"])
async def test_a_job_with_a_refused_activator_whose_deletion_was_missed_gets_no_children(later: float) -> None:
    played = Played()
    played.world.cluster.refuse = lambda verb, kind, name: (
        cluster.Failure(403, "policy: replicas") if (verb, name) == ("apply", ACTIVATOR) else None
    )
    await played.awake()
    await played.passes(later)
    asked = len(played.world.cluster.requests)
    played.world.cluster.remove("Service", world.NAME)
    played.world.cluster.remove("FineTuneJob", world.NAME)
    played.world.cluster.undelivered = [news for news in played.world.cluster.undelivered if news[1] != "FineTuneJob"]
    await played.world.settle()
    assert [verb for verb, _, _ in played.world.cluster.requests[asked:]] == ["exists"]
    assert not played.world.cache.parents


@pytest.mark.parametrize(
    ("status", "words"), [(409, "conflict"), (422, "Only one reference can have Controller set to true")]
)
async def test_a_service_of_somebody_else_keeps_the_servers_awake(status: int, words: str) -> None:
    played = Played()
    played.world.cluster.refuse = lambda verb, kind, name: (
        cluster.Failure(status, words) if (verb, name) == ("apply", SERVERS) else None
    )
    await played.awake()
    await played.passes(AFTER + 30)
    assert (played.replicas, played.leads_to(played.release)) == (1, True)
    assert played.world.cluster.names("Deployment") == [played.release], "no pod asks a Service of somebody else"
    assert f"Service {SERVERS} exists and is not this job's" in str(played.world.condition("Ready"))


async def test_a_candidate_that_the_api_server_refuses_does_not_keep_the_servers_asleep() -> None:
    played = await Played().asleep()
    former = played.release
    played.world.cluster.refuse = lambda verb, kind, name: (
        cluster.Failure(422, "policy: no more servers")
        if (verb, kind) == ("apply", "Deployment") and name not in {former, ACTIVATOR}
        else None
    )
    played.world.apply(**IDLE | NEW)
    await played.world.settle(until=lambda: "no more servers" in str(played.world.condition("Ready")))
    await played.knock()
    await played.passes(30)
    assert (played.release, played.replicas, played.leads_to(former)) == (former, 1, True)


async def test_an_operator_that_starts_again_lets_the_servers_sleep_on() -> None:
    played = await Played().asleep()
    played.world.boot()
    await played.passes(60)
    assert (played.says(), played.replicas) == (("True", "Asleep"), 0)
    await played.knock()
    await played.passes(60)
    assert played.says() == ("True", "Serving")


async def test_requests_are_held_while_all_servers_are_away() -> None:
    played = await Played().awake()
    played.world.script["server"] = [Hangs()]
    (name,) = [p["metadata"]["name"] for p in played.world.pods("server") if label.RELEASE in p["metadata"]["labels"]]
    played.world.cluster.remove("Pod", name)
    await played.world.wait(5)
    assert (played.holds(), played.says()) == (True, ("False", "Serving"))
    played.world.let_go("server")
    await played.passes(30)
    assert played.leads_to(played.release)


@pytest.mark.parametrize("how", [{"holdFor": "2m"}, {"requests": "Refuse"}])
async def test_servers_that_do_not_start_are_an_outage_once_requests_are_not_held_any_more(how: dict[str, str]) -> None:
    played = await Played().asleep(**{"spec.deployment.idle": {"after": "3m", **how}})
    played.world.script["server"] = [Hangs()]
    await played.knock()
    await played.passes(60)
    assert played.says() == ("False", "Waking")
    await played.passes(90)
    assert played.says() == ("False", "Serving")


async def test_a_job_whose_servers_may_sleep_is_placed_in_no_default_pool() -> None:
    played = Played()
    played.world.cluster.put(test_rollouts.servingpool(**{"spec.default": True}))
    await played.awake()
    assert played.world.state.deployment is not None
    assert played.world.state.deployment.pool is None


async def test_replicas_are_their_owners() -> None:
    played = await Played().asleep()
    played.world.apply(**IDLE | {"spec.deployment.replicas": 2})
    await played.passes(60)
    assert (played.replicas, played.says()) == (0, ("True", "Asleep"))
    await played.knock()
    await played.passes(30)
    assert (played.replicas, played.says()) == (2, ("True", "Serving"))


async def test_without_the_field_the_servers_are_awake_and_nothing_of_the_activator_is_left() -> None:
    played = await Played().asleep()
    release = played.release
    played.world.apply()
    await played.passes(60)
    assert (played.release, played.says()) == (release, ("True", "Serving"))
    assert played.world.cluster.names("Deployment") == [release]
    assert sorted(played.world.cluster.names("Service")) == [world.NAME, release]
    await played.world.nothing_is_left_to_do()


async def test_requests_are_held_until_servers_are_ready_also_without_the_field() -> None:
    played = await Played().asleep()
    played.world.script["server"] = [Hangs()]
    played.world.apply()
    await played.passes(30)
    assert (played.replicas, played.holds(), played.leads_to(played.release, SERVERS)) == (1, True, True)
    assert ACTIVATOR in played.world.cluster.names("Deployment")
    played.world.let_go("server")
    await played.passes(60)
    assert played.leads_to(played.release)
    assert played.world.cluster.names("Deployment") == [played.release]
    assert sorted(played.world.cluster.names("Service")) == [world.NAME, played.release]


async def test_a_route_leads_to_the_activator_until_servers_are_ready_also_without_the_field() -> None:
    played = await Played(chart=test_routes.CHART).asleep(**test_routes.STEPS)
    played.world.script["server"] = [Hangs()]
    played.world.apply(**test_routes.STEPS)
    await played.passes(30)
    assert (played.holds(), _backends(played)) == (True, {world.NAME: 100})
    played.world.let_go("server")
    await played.passes(60)
    assert _backends(played) == {played.release: 100}


async def test_requests_that_are_held_reach_the_release_that_takes_over_also_without_the_field() -> None:
    changes: dict[str, Any] = {"spec.deployment.rollout.strategy": "Recreate"}
    played = await Played().asleep(**changes)
    played.world.script["server"] = [Hangs()]
    former, before = played.release, len(played.world.cluster.requests)
    played.world.apply(**changes | NEW)
    await played.world.settle(until=lambda: played.release != former)
    await played.passes(60)
    assert ("apply", "Service", SERVERS) in played.world.cluster.requests[before:], (
        "the activator's pods had not ended yet"
    )
    assert played.leads_to(played.release)
    assert SERVERS not in played.world.cluster.names("Service")


async def test_servers_that_cannot_be_read_any_more_do_not_count_as_asleep() -> None:
    played = await Played().awake()
    while not played.holds():
        await played.passes(5)
    played.problem["servers"] = "10.0.0.1: no answer"
    await played.passes(90)
    assert (played.replicas, played.says()) == (1, ("True", "Serving"))
    assert played.leads_to(played.release)
    assert "10.0.0.1: no answer" in played.message


async def test_servers_that_sleep_are_no_outage_while_others_of_the_same_revision_start() -> None:
    played = await Played().asleep()
    played.world.script["server"] = [Hangs()]
    played.world.apply(**IDLE | {"spec.deployment.extraArgs": ["--max-num-seqs=4"]})
    await played.passes(30)
    assert (played.says()[1], played.replicas, played.requested) == ("Starting", 0, 0)


async def test_a_suspended_job_sleeps_and_one_that_is_not_served_any_more_has_no_activator() -> None:
    played = await Played().asleep()
    played.world.apply(**IDLE | {"spec.suspend": True})
    await played.passes(30)
    assert (played.says(), played.replicas) == (("True", "Asleep"), 0)
    played.world.apply(**IDLE | {"spec.deployment.enabled": False})
    await played.passes(30)
    assert played.world.cluster.names("Deployment") == []
    assert played.world.cluster.names("Service") == []


async def test_servers_that_sleep_are_no_outage_while_another_revision_trains_and_after_it_failed() -> None:
    played = await Played().asleep()
    played.world.script["train"] = [Hangs()]
    played.world.script["evaluate"] = [Ends(0, world.evaluate(passed=False))]
    played.world.apply(**IDLE | NEW)
    await played.world.settle(until=lambda: played.world.phase == Phase.TRAINING)
    assert (played.says()[1], played.replicas, played.requested) == ("Running", 0, 0)
    played.world.let_go("train")
    await played.world.settle(until=lambda: played.world.is_true("Failed"))
    assert (played.says()[1], played.replicas, played.requested) == ("EvaluationBelowGate", 0, 0)
    events = played.events()
    await played.knock()
    await played.passes(30)
    assert played.replicas == 1
    await played.passes(AFTER + 30)
    assert (played.says()[1], played.replicas, played.events()) == ("EvaluationBelowGate", 0, events)


async def test_servers_that_sleep_are_an_outage_while_no_activator_is_ready() -> None:
    played = await Played().asleep()
    played.world.cluster.refused_pods[ACTIVATOR] = "exceeded quota"
    for name in played.activators:
        played.world.cluster.remove("Pod", name)
    await played.world.wait(5)
    assert (played.says(), played.requested) == (("False", "Starting"), 1)


async def test_the_alert_counts_a_former_revision_that_wakes_once_requests_are_not_held_any_more() -> None:
    changes: dict[str, Any] = {"spec.deployment.idle": {"after": "3m", "holdFor": "2m"}}
    played = await Played().asleep(**changes)
    former = played.release
    played.world.script["train"] = [Hangs()]
    played.world.script["server"] = [Hangs()]
    played.world.apply(**changes | NEW)
    await played.world.settle(until=lambda: played.world.phase == Phase.TRAINING)
    await played.knock()
    await played.passes(60)
    assert (played.says()[1], played.release, played.replicas, played.requested) == ("Running", former, 1, 0)
    await played.passes(90)
    assert (played.says()[1], played.replicas, played.requested) == ("Running", 1, 1)
    played.world.let_go("server")
    await played.passes(30)
    assert (played.holds(), played.requested) == (False, 1)


async def test_the_alert_counts_a_former_revision_whose_activator_is_not_ready() -> None:
    played = await Played().asleep()
    played.world.script["train"] = [Hangs()]
    played.world.apply(**IDLE | NEW)
    await played.world.settle(until=lambda: played.world.phase == Phase.TRAINING)
    assert played.requested == 0
    played.world.cluster.refused_pods[ACTIVATOR] = "exceeded quota"
    for name in played.activators:
        played.world.cluster.remove("Pod", name)
    await played.world.wait(5)
    assert (played.says()[1], played.requested) == ("Running", 1)


HOLDS: dict[str, Any] = {"spec.deployment.idle": {"after": "3m", "holdFor": "2m"}}


async def test_the_alert_counts_servers_that_the_api_server_refuses_once_requests_are_not_held_any_more() -> None:
    played = await Played().asleep(**HOLDS)
    played.world.cluster.refuse = lambda verb, kind, name: (
        cluster.Failure(403, "exceeded quota") if (verb, name) == ("apply", played.release) else None
    )
    await played.knock()
    await played.passes(60)
    assert (played.world.condition("Stalled") is not None, played.replicas, played.requested) == (True, 0, 0)
    await played.passes(90)
    assert ("exceeded quota" in played.message, played.replicas, played.requested) == (True, 0, 1)
    played.world.cluster.refuse = lambda verb, kind, name: None
    await played.passes(60)
    assert (played.says(), played.replicas) == (("True", "Serving"), 1)


async def test_a_former_revision_whose_candidate_is_refused_is_counted_as_it_is() -> None:
    played = await Played().asleep(**HOLDS)
    former = played.release
    played.world.cluster.refuse = lambda verb, kind, name: (
        cluster.Failure(422, "policy: no more servers")
        if (verb, kind) == ("apply", "Deployment") and name not in {former, ACTIVATOR}
        else None
    )
    played.world.apply(**HOLDS | NEW)
    await played.world.settle(until=lambda: "no more servers" in played.message)
    await played.passes(60)
    assert (played.replicas, played.requested) == (0, 0), "nobody asks"
    played.world.script["server"] = [Hangs()]
    await played.knock()
    await played.passes(60)
    assert (played.replicas, played.requested) == (1, 0)
    await played.passes(90)
    assert (played.replicas, played.requested) == (1, 1)
    assert played.ready == 0
    played.world.let_go("server")
    await played.passes(90)
    assert (played.release, played.ready, played.requested) == (former, 1, 1)
    await played.passes(AFTER + 60)
    assert (played.replicas, played.requested) == (1, 1), "nothing falls asleep by a pass that was refused"


async def test_a_former_revision_that_sleeps_is_an_outage_while_the_switch_to_its_successor_is_refused() -> None:
    played = await Played().asleep()
    played.world.cluster.refuse = lambda verb, kind, name: (
        cluster.Failure(422, "policy: selectors") if (verb, name) == ("apply", world.NAME) else None
    )
    played.world.apply(**IDLE | NEW)
    await played.world.settle(until=lambda: "policy: selectors" in played.message)
    await played.passes(30)
    assert (played.replicas, played.requested) == (0, 1), "nothing starts its servers"


async def test_servers_that_sleep_are_an_outage_while_the_spec_cannot_be_read() -> None:
    played = await Played().asleep()
    played.world.cluster.edit("FineTuneJob", world.NAME, lambda raw: raw["spec"]["training"].update(epochs="many"))
    await played.world.settle()
    assert (played.says(), played.requested) == (("False", "InvalidSpec"), 1), "nothing starts them"
    played.world.apply(**IDLE)
    await played.passes(30)
    assert (played.says(), played.requested) == (("True", "Asleep"), 0)


async def test_the_alert_counts_servers_that_wake_while_no_activator_is_ready() -> None:
    played = await Played().asleep()
    played.world.script["server"] = [Hangs()]
    await played.knock()
    assert (played.says(), played.requested) == (("False", "Waking"), 0)
    played.world.cluster.refused_pods[ACTIVATOR] = "exceeded quota"
    for name in played.activators:
        played.world.cluster.remove("Pod", name)
    await played.world.wait(5)
    assert (played.says(), played.requested) == (("False", "Serving"), 1)


async def test_requests_of_a_sleep_that_an_earlier_version_recorded_are_held_as_well() -> None:
    played = await Played().asleep()
    played.world.script["server"] = [Hangs()]
    played.reads, played.knocked = False, played.world.cluster.now
    played.world.cluster.edit("FineTuneJob", world.NAME, lambda raw: raw["status"]["deployment"].pop("heldSince"))
    played.reads = True
    await played.knock()
    assert (played.says(), played.requested) == (("False", "Waking"), 0)


@pytest.mark.parametrize("strategy", ["BlueGreen", "Recreate"])
async def test_a_new_revision_is_verified_while_the_former_one_sleeps_and_serves_awake(strategy: str) -> None:
    changes: dict[str, Any] = {"spec.deployment.rollout.strategy": strategy}
    played = await Played().asleep(**changes)
    former = played.release
    played.world.apply(**IDLE | changes | NEW)
    await played.world.settle(until=lambda: len(played.world.attempts("verify")) == 2)
    assert (played.release, played.replicas, played.holds()) == (former, 0, True)
    await played.world.settle(until=lambda: played.release != former)
    await played.passes(60)
    assert (played.says(), played.replicas) == (("True", "Serving"), 1)
    assert played.leads_to(played.release)
    assert played.leads_to(played.release, SERVERS)
    await played.passes(AFTER + 30)
    assert played.says() == ("True", "Asleep")
    assert sorted(played.world.cluster.names("Deployment")) == sorted([ACTIVATOR, played.release])


async def test_requests_are_held_while_a_release_makes_room_for_the_next() -> None:
    changes: dict[str, Any] = {"spec.deployment.rollout.strategy": "Recreate"}
    played = await Played().awake(**changes)
    former = played.release
    played.world.apply(**IDLE | changes | NEW)
    await played.world.settle(until=lambda: played.world.runs("verify")())
    assert (played.release, played.holds()) == (former, True)
    await played.world.settle(until=lambda: played.release != former)
    await played.passes(30)
    assert played.leads_to(played.release, SERVERS)


async def test_a_step_of_a_rollout_wakes_the_former_revision_and_a_route_leads_to_the_activator() -> None:
    changes = test_routes.STEPS
    played = await Played(chart=test_routes.CHART).asleep(**changes)
    assert _backends(played) == {world.NAME: 100}
    former = played.release
    played.world.apply(**IDLE | changes | NEW)
    await played.world.settle(until=lambda: len(_backends(played)) == 2)
    await played.passes(30)
    assert (played.release, played.replicas, played.leads_to(former)) == (former, 1, True)
    assert _backends(played)[world.NAME] == 90
    await played.passes(AFTER + 30)
    assert played.replicas == 1, "it answers its share"


def _backends(played: Played) -> dict[str, int]:
    (rule,) = played.world.cluster.get("HTTPRoute", world.NAME)["spec"]["rules"]
    return {one["name"]: one["weight"] for one in rule["backendRefs"]}


@pytest.mark.parametrize(("requests", "hold"), [("Hold", 120), ("Refuse", 0)])
async def test_the_activator_has_the_key_and_the_names_of_the_servers(requests: str, hold: int) -> None:
    changes: dict[str, Any] = {
        "spec.deployment.idle": {"requests": requests, "holdFor": "2m"},
        "spec.deployment.apiKeySecret": "key",
        "spec.deployment.servedModelName": "tone",
    }
    played = await Played().served(**changes)
    for kind, name in (("Deployment", ACTIVATOR), ("Service", SERVERS)):
        (owner,) = played.world.cluster.get(kind, name)["metadata"]["ownerReferences"]
        assert owner["uid"] == played.world.job["metadata"]["uid"], "it goes with its job"
    spec = played.world.cluster.get("Deployment", ACTIVATOR)["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    assert {f"--hold={hold}", "--model=tone", f"--peers={SERVERS}.ml.svc", "--keys=/etc/finetune/keys"} <= set(
        container["args"]
    )
    assert container["image"] == "registry/fetch:1"
    (keys,) = [volume["secret"] for volume in spec["volumes"] if volume["name"] == "keys"]
    assert keys == {"secretName": "key", "items": [{"key": "API_KEY", "path": "ml"}]}
