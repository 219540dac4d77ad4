"""Jobs with servers of their own behind a Gateway: their HTTPRoute, and traffic in steps by its weights."""

from typing import Any

import pytest

from finetune_api import serving
from finetune_api.reasons import Phase, Reason
from finetune_operator.observe import label, shared
from flow import world
from flow.fakecluster import Raw

CHART: dict[str, Any] = {
    "gatewayApi": {"enabled": True, "gateway": {"name": "public", "namespace": "gateways", "sectionName": "https"}}
}
ROUTE: dict[str, Any] = {"spec.deployment.route": {"host": "tone.example.com"}, "spec.deployment.apiKeySecret": "key"}
STEPS: dict[str, Any] = ROUTE | {
    "spec.deployment.rollout.steps": [{"weight": 10, "pause": "10m"}, {"weight": 50, "pause": "10m"}]
}
NEW: dict[str, Any] = {"spec.training.seed": 1}


class Played:
    """A job whose Gateway accepts its route, and whose servers count what `answer` says of a revision."""

    def __init__(self, chart: dict[str, Any] | None = None) -> None:
        self.world = world.World(chart=CHART if chart is None else chart)
        self.counts: dict[str, dict[str, Any]] = {}
        self.problem = ""
        self.world.add_model()
        self.world.cluster.controllers += [self._accept, self._count]

    def _accept(self) -> None:
        for raw in self.world.cluster.of("HTTPRoute"):
            if not raw.get("status"):
                answer = {"type": "Accepted", "status": "True", "reason": "Accepted", "message": ""}
                state = {"status": {"parents": [{"conditions": [answer]}]}}
                self.world.cluster.edit("HTTPRoute", raw["metadata"]["name"], lambda one, new=state: one.update(new))

    def _count(self) -> None:
        for (uid, name), (pod, compared) in self.world.cache.compared_pods().items():
            revision = dict(compared.revisions)[pod.parent]
            about = {"namespace": "ml", "job": compared.job, "name": "", "revision": revision, "step": compared.step}
            found = about | {"since": "2026-05-04T12:00:00Z"} | self.counts.get(revision, {})
            self.world.cache.put_counted(uid, name, shared.Counted(serving.Traffic.model_validate(found), self.problem))

    def answer(self, revision: str, requests: int, **more: Any) -> None:
        self.counts[revision] = {"requests": requests, **more}

    async def served(self, **changes: Any) -> "Played":
        self.world.apply(**changes)
        await self.world.settle(until=lambda: self.world.phase == Phase.READY)
        await self.world.wait(60)
        return self

    @property
    def revision(self) -> str:
        return str(self.world.state.revision)

    @property
    def weights(self) -> dict[str, int]:
        """Revision -> percent, by the route's backends; empty without a route."""
        if not self.world.cluster.names("HTTPRoute"):
            return {}
        (rule,) = self.world.cluster.get("HTTPRoute", world.NAME)["spec"]["rules"]
        return {one["name"].split("-")[-2]: one["weight"] for one in rule["backendRefs"]}

    def routed(self) -> tuple[str, str, str]:
        found = self.world.condition("Routed")
        return (found.status, found.reason, found.message) if found is not None else ("", "", "")


async def rolling() -> tuple[Played, str, str]:
    """The second revision in its first step; and the former revision, and the new one."""
    played = await Played().served(**STEPS)
    former = played.revision
    played.world.apply(**STEPS | NEW)
    await played.world.settle(until=lambda: len(played.weights) == 2)
    return played, former, played.revision


async def test_a_route_leads_to_the_release_is_repaired_and_goes_with_its_field() -> None:
    played = await Played().served(**ROUTE)
    made: Raw = played.world.cluster.get("HTTPRoute", world.NAME)
    assert made["spec"]["hostnames"] == ["tone.example.com"]
    assert made["spec"]["parentRefs"][0]["namespace"] == "gateways"
    assert made["spec"]["parentRefs"][0]["sectionName"] == "https"
    assert made["spec"]["rules"][0]["matches"] == [{"path": {"type": "PathPrefix", "value": "/v1"}}]
    assert made["metadata"]["ownerReferences"][0]["uid"] == played.world.job["metadata"]["uid"]
    assert played.weights == {played.revision: 100}
    (backend,) = made["spec"]["rules"][0]["backendRefs"]
    service = played.world.cluster.get("Service", backend["name"])["spec"]
    assert service["selector"][label.RELEASE] == played.world.serving()
    assert played.routed()[:2] == ("True", Reason.SERVING)

    def drain(raw: Raw) -> None:
        raw["spec"]["rules"][0]["backendRefs"][0]["weight"] = 0

    played.world.cluster.edit("HTTPRoute", world.NAME, drain)
    await played.world.wait(30)
    assert played.weights == {played.revision: 100}
    played.world.cluster.remove("HTTPRoute", world.NAME)
    await played.world.wait(30)
    assert played.weights == {played.revision: 100}
    release = played.world.state.release
    await played.world.nothing_is_left_to_do()
    played.world.cluster.edit("FineTuneJob", world.NAME, without_route)
    await played.world.wait(30)
    assert (played.weights, played.routed()[0]) == ({}, "")
    assert played.world.state.release == release
    await played.world.nothing_is_left_to_do()


def without_route(raw: Raw) -> None:
    del raw["spec"]["deployment"]["route"]
    raw["metadata"]["generation"] += 1


async def test_a_gateway_that_refuses_a_route_is_quoted() -> None:
    played = await Played().served(**ROUTE)
    answer = {
        "type": "Accepted",
        "status": "False",
        "reason": "NotAllowedByListeners",
        "message": "no listener admits it",
    }
    state = {"status": {"parents": [{"conditions": [answer]}]}}
    played.world.cluster.edit("HTTPRoute", world.NAME, lambda raw: raw.update(state))
    await played.world.wait(30)
    status, reason, message = played.routed()
    assert (status, reason) == ("False", Reason.ROUTE_UNAVAILABLE)
    assert "gateways/public" in message
    assert "no listener admits it" in message


async def test_where_no_route_can_be_written_the_job_serves_and_says_so() -> None:
    played = await Played({}).served(**ROUTE)
    assert played.world.phase == Phase.READY
    assert played.weights == {}
    assert played.routed()[:2] == ("False", Reason.ROUTE_UNAVAILABLE)
    assert "gatewayAPI.enabled is false" in played.routed()[2]


@pytest.mark.parametrize(
    ("chart", "lacking", "changes", "words"),
    [
        ({}, False, STEPS, "gatewayAPI.enabled is false"),
        (CHART, True, STEPS, "install the CRDs of Gateway API"),
        (CHART, False, STEPS | {"spec.deployment.rollout.strategy": "Recreate"}, "needs both revisions"),
    ],
)
async def test_steps_without_a_route_are_reported_before_anything_starts(
    chart: dict[str, Any], lacking: bool, changes: dict[str, Any], words: str
) -> None:
    played = Played(chart)
    played.world.cache.lacks("HTTPRoute", lacking)
    played.world.apply(**changes)
    await played.world.wait(30)
    found = played.world.condition("Accepted")
    assert found is not None
    assert (found.status, found.reason) == ("False", Reason.ROUTE_UNAVAILABLE)
    assert words in found.message
    assert played.world.cluster.names("Job") == []
    if lacking:
        played.world.cache.lacks("HTTPRoute", False)
        await played.world.settle(until=lambda: played.world.phase == Phase.READY)


async def test_a_job_with_a_route_is_not_placed_in_the_default_pool() -> None:
    played = Played()
    pool = {"baseModel": {"name": "qwen2.5-7b-instruct"}, "default": True}
    played.world.cluster.put({"kind": "ServingPool", "metadata": {"name": "shared"}, "spec": pool})
    await played.served(**ROUTE)
    assert played.world.state.deployment is not None
    assert played.world.state.deployment.pool is None
    assert played.weights == {played.revision: 100}


async def test_a_revision_that_answers_as_well_gets_the_traffic_step_by_step() -> None:
    played, former, new = await rolling()
    assert played.weights == {former: 90, new: 10}
    service, candidate = played.world.serving(), played.world.state.release
    assert f"gateways/public: 90 % to {service}, 10 % to {candidate}" in played.routed()[2]
    assert former in str(service)  # the job's own Service changes at the end
    await played.world.wait(900)
    assert played.weights == {former: 90, new: 10}
    assert "waits for 50 more requests" in played.world.condition("Deployed").message  # type: ignore[union-attr]
    played.answer(former, 500, errors=2)
    played.answer(new, 60)
    await played.world.wait(60)
    assert played.weights == {former: 50, new: 50}
    played.answer(former, 70)
    played.answer(new, 70)
    await played.world.settle(until=lambda: played.world.phase == Phase.READY)
    assert played.weights == {new: 100}
    state = played.world.state.rollout
    assert state is not None
    assert (state.weight, state.watched_until) == (100, None)
    assert new in str(played.world.serving())
    await played.world.wait(60)
    assert all(former not in name for name in played.world.cluster.names("Deployment"))
    await played.world.nothing_is_left_to_do()


async def test_a_revision_that_is_shown_to_be_worse_loses_its_traffic_at_once() -> None:
    played, former, new = await rolling()
    played.answer(former, 400, errors=1)
    played.answer(new, 40, errors=20)
    await played.world.wait(30)
    assert played.weights == {former: 100}
    failed = played.world.condition("Failed")
    assert failed is not None
    assert failed.reason == Reason.ROLLED_BACK
    assert "errors: 50.0% of 40, former 0.2% of 400" in failed.message
    assert former in str(played.world.serving())
    await played.world.wait(60)
    assert all(new not in name for name in played.world.cluster.names("Deployment"))
    await played.world.nothing_is_left_to_do()


async def test_what_the_servers_do_not_say_is_not_compared() -> None:
    played, former, new = await rolling()
    played.answer(former, 400, cut=1)
    played.answer(new, 12)
    await played.world.wait(30)
    seen = [one.seen for one in played.world.state.rollout.findings]  # type: ignore[union-attr]
    assert [one.partition(":")[0] for one in seen] == ["errors", "answers cut at the limit of tokens"]


async def test_servers_that_cannot_be_read_are_named_and_the_step_waits() -> None:
    played, former, new = await rolling()
    played.problem = "10.0.0.7: no answer within 2 s"
    await played.world.wait(1200)
    assert played.weights == {former: 90, new: 10}
    deployed = played.world.condition("Deployed")
    assert deployed is not None
    assert "10.0.0.7: no answer within 2 s" in deployed.message
    assert "TCP port 8000" in deployed.message


async def test_a_person_can_hold_promote_and_roll_back() -> None:
    for verb, share in (("hold", 10), ("promote", 100), ("rollback", 0)):
        played, former, new = await rolling()

        def annotate(raw: Raw, value: str = verb if verb == "hold" else f"{verb} {new}") -> None:
            raw["metadata"].setdefault("annotations", {})["finetune.dev/rollout"] = value

        played.world.cluster.edit("FineTuneJob", world.NAME, annotate)
        played.answer(former, 500)
        played.answer(new, 60)
        await played.world.wait(1200)
        assert played.weights.get(new, 0) == share
        assert played.weights.get(former, 0) == 100 - share


async def test_a_server_that_loses_its_pod_in_a_step_gets_no_traffic_and_begins_again() -> None:
    played, former, new = await rolling()
    (pod,) = [p["metadata"]["name"] for p in played.world.pods("server") if new in p["metadata"]["name"]]
    played.world.cluster.remove("Pod", pod)
    await played.world.settle(until=lambda: played.weights == {former: 100})
    await played.world.settle(until=lambda: played.weights == {former: 90, new: 10})
    assert len(played.world.attempts("verify")) == 3


async def test_a_suspended_job_takes_the_step_back() -> None:
    played, former, new = await rolling()
    played.world.apply(**STEPS | NEW | {"spec.suspend": True})
    await played.world.wait(30)
    assert played.weights == {former: 100}
    played.world.apply(**STEPS | NEW | {"spec.suspend": False})
    await played.world.settle(until=lambda: played.weights == {former: 90, new: 10})
