"""ServingPools behind a Gateway with an endpoint picker: InferencePool, HTTPRoute, InferenceModelRewrite, the condition."""

import pytest

from finetune_operator import index
from flow.fakecluster import Raw
from flow.test_pools import job_in, servingpool, state, world_of
from flow.world import World

CHART: Raw = {
    "gatewayApi": {
        "enabled": True,
        "gateway": {"name": "public", "namespace": "gateways", "sectionName": "https"},
        "inference": {"enabled": True, "modelRewrites": True},
    }
}
ROUTE: Raw = {
    "spec.keysSecret": "keys",
    "spec.route": {"host": "models.example.com", "endpointPicker": {"service": "chat-epp"}},
}
KINDS = ("HTTPRoute", "InferencePool", "InferenceModelRewrite")


def present(world: World) -> list[str]:
    return [kind for kind in KINDS if world.cluster.names(kind)]


def routed(world: World) -> tuple[str, str, str]:
    (found,) = [c for c in state(world)["conditions"] if c["type"] == "Routed"]
    return found["status"], found["reason"], found["message"]


def answer(world: World, kind: str, value: str, message: str = "") -> None:
    condition = {"type": "Accepted", "status": value, "reason": "NotAllowed", "message": message}
    world.cluster.edit(kind, "chat", lambda one: one.update({"status": {"parents": [{"conditions": [condition]}]}}))


async def test_a_route_is_an_inferencepool_of_the_servers_and_a_host_at_the_gateway() -> None:
    world = await world_of(servingpool(**ROUTE), chart=CHART)
    assert present(world) == list(KINDS)
    await world.nothing_is_left_to_do()
    pool: Raw = world.cluster.get("InferencePool", "chat")["spec"]
    assert pool["selector"]["matchLabels"] == world.cluster.get("Service", "chat")["spec"]["selector"]
    assert (pool["targetPorts"], pool["endpointPickerRef"]["name"]) == ([{"number": 8000}], "chat-epp")
    assert (pool["endpointPickerRef"]["port"], pool["endpointPickerRef"]["failureMode"]) == (
        {"number": 9002},
        "FailClose",
    )
    route: Raw = world.cluster.get("HTTPRoute", "chat")["spec"]
    assert route["hostnames"] == ["models.example.com"]
    assert route["parentRefs"][0]["sectionName"] == "https"
    (rule,) = route["rules"]
    assert rule["matches"] == [{"path": {"type": "PathPrefix", "value": "/v1"}}]
    (backend,) = rule["backendRefs"]
    assert (backend["group"], backend["kind"], backend["name"]) == (
        "inference.networking.k8s.io",
        "InferencePool",
        "chat",
    )
    assert world.cluster.get("InferencePool", "chat")["metadata"]["ownerReferences"][0]["kind"] == "ServingPool"


async def test_what_others_change_or_delete_is_written_again_and_all_goes_with_the_field() -> None:
    world = await world_of(servingpool(**ROUTE), chart=CHART)

    def elsewhere(raw: Raw) -> None:
        raw["spec"]["endpointPickerRef"]["name"] = "mine"

    world.cluster.edit("InferencePool", "chat", elsewhere)
    all_elsewhere = {"matches": [], "targets": [{"modelRewrite": "mine"}]}
    world.cluster.edit("InferenceModelRewrite", "chat", lambda raw: raw["spec"].update(rules=[all_elsewhere]))
    world.cluster.remove("HTTPRoute", "chat")
    await world.settle()
    assert present(world) == list(KINDS)
    assert world.cluster.get("InferencePool", "chat")["spec"]["endpointPickerRef"]["name"] == "chat-epp"
    assert rules(world) == {}

    def fewer(raw: Raw) -> None:
        raw["spec"]["selector"]["matchLabels"]["app"] = "other"

    world.cluster.edit("InferencePool", "chat", fewer)
    await world.settle()
    assert "app" not in world.cluster.get("InferencePool", "chat")["spec"]["selector"]["matchLabels"]
    world.cluster.put(servingpool())
    await world.settle()
    assert present(world) == []
    assert "Routed" not in {c["type"] for c in state(world)["conditions"]}
    await world.nothing_is_left_to_do()


async def test_the_condition_says_what_the_gateway_says_of_both_and_the_pool_is_ready_anyway() -> None:
    world = await world_of(servingpool(**ROUTE), chart=CHART)
    assert routed(world)[:2] == ("Unknown", "Starting")
    answer(world, "HTTPRoute", "True")
    await world.settle()
    assert routed(world)[0] == "Unknown", "the InferencePool has no answer yet"
    answer(world, "InferencePool", "False", "no such Service")
    await world.settle()
    assert routed(world)[:2] == ("False", "RouteUnavailable")
    assert "no such Service" in routed(world)[2]
    answer(world, "InferencePool", "True")
    await world.settle()
    assert routed(world)[:2] == ("True", "Serving")
    assert "models.example.com/v1 go by Gateway gateways/public, and Service chat-epp" in routed(world)[2]
    (ready,) = [c for c in state(world)["conditions"] if c["type"] == "Ready"]
    assert ready["status"] == "True"


@pytest.mark.parametrize(
    ("chart", "lacking", "words", "left"),
    [
        ({}, "", "inference.enabled is false", []),
        (CHART, "InferencePool", "no InferencePools", []),
        (CHART, "HTTPRoute", "no HTTPRoutes", []),
        (CHART, "InferenceModelRewrite", "CRDs of llm-d's router", ["HTTPRoute", "InferencePool"]),
    ],
    ids=["chart", "InferencePool", "HTTPRoute", "InferenceModelRewrite"],
)
async def test_the_condition_names_what_the_chart_or_the_cluster_lacks(
    chart: Raw, lacking: str, words: str, left: list[str]
) -> None:
    world = World(chart=chart)
    if lacking:
        world.cache.lacks(lacking, True)
    world.cluster.put(
        {
            "kind": "BaseModel",
            "metadata": {"name": "llama"},
            "spec": {"source": "hf://meta/llama", "revision": "a" * 40},
        }
    )
    world.cluster.put(servingpool(**ROUTE))
    await world.settle()
    assert present(world) == left
    assert words in routed(world)[2]
    if lacking:
        world.cache.lacks(lacking, False)
        await world.settle()
        assert present(world) == list(KINDS)


async def test_a_pools_route_goes_with_its_value_where_jobs_keep_theirs() -> None:
    world = await world_of(servingpool(**ROUTE), chart=CHART)
    world.boot({"gatewayApi": CHART["gatewayApi"] | {"inference": {"enabled": False}}})
    await world.settle()
    assert "HTTPRoute" not in present(world)
    assert "inference.enabled is false" in routed(world)[2]


def rules(world: World) -> dict[str, dict[str, int]]:
    """Name -> adapter -> weight."""
    found: dict[str, dict[str, int]] = {}
    for rule in world.cluster.get("InferenceModelRewrite", "chat")["spec"]["rules"]:
        (match,) = rule["matches"]
        found[match["model"]["value"]] = {one["modelRewrite"]: one["weight"] for one in rule["targets"]}
    return found


async def test_models_are_rewritten_to_their_adapters_with_the_shares_of_a_step() -> None:
    world = await world_of(servingpool(**ROUTE), chart=CHART)
    assert rules(world) == {}
    old, new = "a" * 64, "b" * 64
    job = job_in("ml/chat", "tone", old)
    (pool,) = world.cache.pools.values()

    async def written(raw: Raw) -> dict[str, dict[str, int]]:
        world.cache.put_parent(raw)
        await world.reconcile(pool.uid)
        return rules(world)

    assert await written(job) == {"tone": {old: 100}}
    candidate = job_in("ml/chat", "tone", new)["status"]["serving"].replace("tone-r1", "tone-r2")
    step = {"release": "tone-r2", "revision": "r2", "weight": 10, "step": 1}
    stepped = job_in("ml/chat", "tone", old, version=2)
    stepped["status"] |= {"candidate": candidate, "rollout": step}
    assert await written(stepped) == {"tone": {new: 10, old: 90}}
    assert await written(job_in("ml/chat", "tone", new, version=3)) == {"tone": {new: 100}}
    assert index.build(pool, world.cache.members["ml/chat"].values()).rewritten


async def test_a_pool_of_several_namespaces_is_not_rewritten() -> None:
    """A name that only another tenant has would be refused with the adapter in place of it, and so show that it is there."""
    world = await world_of(servingpool(**ROUTE | {"spec.allowedNamespaces": ["other"]}), chart=CHART)
    assert present(world) == ["HTTPRoute", "InferencePool"]
    assert "allowedNamespaces" in routed(world)[2]
    (pool,) = world.cache.pools.values()
    assert index.build(pool, ()).rewritten is None
