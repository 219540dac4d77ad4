"""ServingPools in the in-memory cluster: their objects, their status, and the index that follows from the jobs."""

import json
from typing import Any

import pytest

from finetune_api import serving, status
from finetune_operator import cluster, index
from finetune_operator.observe import label, members, pools, records
from flow.fakecluster import Crashes, Ends, Hangs, Raw, Unschedulable
from flow.world import World
from support import manifests

BASE = {"kind": "BaseModel", "metadata": {"name": "llama"}, "spec": {"source": "hf://meta/llama", "revision": "a" * 40}}


def servingpool(name: str = "chat", **changes: Any) -> Raw:
    pool = {"kind": "ServingPool", "metadata": {"name": name}, "spec": {"baseModel": {"name": "llama"}, "replicas": 2}}
    return manifests.changed(pool, **changes)


async def world_of(pool: Raw | None = None, **options: Any) -> World:
    world = World(**options)
    world.cluster.put(BASE)
    world.cluster.put(pool or servingpool())
    await world.settle()
    return world


def state(world: World, name: str = "chat") -> Raw:
    found: Raw = world.cluster.get("ServingPool", name)["status"]
    return found


def conditions(world: World) -> dict[str, tuple[str, str]]:
    return {c["type"]: (c["status"], c["reason"]) for c in state(world)["conditions"]}


def job_in(pool: str, name: str, sha256: str, namespace: str = "ml", version: int = 1) -> Raw:
    """A FineTuneJob whose status records a release in a pool."""
    job: Raw = json.loads(json.dumps(manifests.MINIMAL))
    release = records.Release.model_validate(
        {
            "name": f"{name}-r1",
            "revision": "r1",
            "pool": pool,
            "baseModel": {"name": "llama", "source": "hf://meta/llama"},
            "adapter": status.Adapter(uri="s3://acme/a", sha256=sha256, bytes=1000, rank=16).wire(),
            "deployment": {},
            "storage": {"output": "s3://acme/finetune"},
            "servedModelName": name,
            "image": "",
            "fetchImage": "",
        }
    )
    job["metadata"] = {
        "name": name,
        "namespace": namespace,
        "uid": f"{namespace}-{name}",
        "resourceVersion": str(version),
    }
    job["status"] = {"phase": "Ready", "serving": release.model_dump_json(by_alias=True, exclude_none=True)}
    return job


async def test_a_pool_is_a_deployment_two_services_and_a_budget_and_then_it_rests() -> None:
    world = await world_of()
    assert world.cluster.names("Deployment") == ["chat"]
    assert world.cluster.names("Service") == ["chat", "chat-pods"]
    assert world.cluster.names("PodDisruptionBudget") == ["chat"]
    assert conditions(world)["Ready"] == ("True", "Serving")
    assert (state(world)["pods"], state(world)["observedGeneration"]) == ("2/2", 1)
    await world.nothing_is_left_to_do()


async def test_what_is_deleted_is_created_again() -> None:
    world = await world_of()
    for kind, name in (("Deployment", "chat"), ("Service", "chat-pods"), ("PodDisruptionBudget", "chat")):
        world.cluster.remove(kind, name)
    await world.settle()
    assert world.cluster.names("Deployment") == ["chat"]
    assert world.cluster.names("Service") == ["chat", "chat-pods"]
    assert world.cluster.names("PodDisruptionBudget") == ["chat"]


async def test_the_objects_go_with_the_pool() -> None:
    world = await world_of()
    world.cluster.remove("ServingPool", "chat")
    await world.settle()
    for kind in ("Deployment", "Service", "PodDisruptionBudget", "Pod"):
        assert world.cluster.names(kind) == []


WAY_IN: Raw = {"spec.keysSecret": "keys", "spec.ingress": {"host": "models.example.com"}}


async def test_an_ingress_is_made_changed_made_again_and_goes_with_its_field() -> None:
    world = await world_of(servingpool(**WAY_IN), chart={"ingress": {"enabled": True}})
    assert world.cluster.names("Ingress") == ["chat"]
    await world.nothing_is_left_to_do()
    world.cluster.remove("Ingress", "chat")
    world.cluster.put(servingpool(**WAY_IN | {"spec.ingress.host": "other.example.com"}))
    await world.settle()
    assert world.cluster.get("Ingress", "chat")["spec"]["rules"][0]["host"] == "other.example.com"
    world.cluster.put(servingpool())
    await world.settle()
    assert world.cluster.names("Ingress") == []
    await world.nothing_is_left_to_do()


async def test_where_the_chart_has_no_ingresses_the_pool_says_so() -> None:
    world = await world_of(servingpool(**WAY_IN))
    assert world.cluster.names("Ingress") == []
    (ready,) = [c for c in state(world)["conditions"] if c["type"] == "Ready"]
    assert (ready["status"], "ingress.enabled is false" in ready["message"]) == ("True", True)


async def test_a_pool_is_scaled_by_its_replicas() -> None:
    world = await world_of()
    world.cluster.put(servingpool(**{"spec.replicas": 3}))
    await world.settle()
    assert world.cluster.get("Deployment", "chat")["spec"]["replicas"] == 3
    assert state(world)["pods"] == "3/3"
    assert state(world)["gpus"] == 3


async def test_the_status_says_why_pods_do_not_start_and_stalls_when_somebody_has_to_do_something() -> None:
    world = await world_of(script={"server": [Unschedulable("0/3 nodes are available: 3 node(s) had taints")] * 2})
    assert conditions(world)["Ready"] == ("False", "Unschedulable")
    assert conditions(world)["Stalled"][0] == "False"
    await world.wait(1000)
    assert conditions(world)["Stalled"][0] == "True"


async def test_a_cluster_without_room_is_no_fault() -> None:
    world = await world_of(script={"server": [Unschedulable()] * 2})
    assert conditions(world)["Ready"] == ("False", "Unschedulable")
    assert conditions(world)["Stalled"][0] == "False"
    assert conditions(world)["Reconciling"][0] == "True"


async def test_a_server_that_ends_again_and_again_is_named_with_its_last_lines() -> None:
    world = await world_of(script={"server": [Crashes(), Crashes()]})
    assert conditions(world)["Stalled"] == ("True", "ServerFailed")
    (message,) = {c["message"] for c in state(world)["conditions"]}
    assert "no such flag" in message
    assert "deployment." not in message


async def test_a_pool_waits_for_its_base_model() -> None:
    world = World()
    world.cluster.put(servingpool())
    await world.settle()
    assert conditions(world)["Ready"] == ("False", "BaseModelNotFound")
    assert world.cluster.names("Deployment") == []
    world.cluster.put(BASE)
    await world.settle()
    assert conditions(world)["Ready"][0] == "True"


async def test_a_base_model_that_moves_does_not_change_the_servers_under_their_adapters() -> None:
    world = await world_of()
    before = world.cluster.get("Deployment", "chat")["spec"]
    world.cluster.put({**BASE, "spec": {"source": "hf://meta/llama", "revision": "b" * 40}})
    await world.settle()
    assert world.cluster.get("Deployment", "chat")["spec"] == before
    assert conditions(world)["Stalled"] == ("True", "InvalidSpec")
    world.cluster.put(BASE)
    await world.settle()
    assert conditions(world)["Ready"][0] == "True"


async def test_a_rank_below_that_of_a_held_adapter_changes_no_server_and_stalls() -> None:
    world = await world_of(servingpool(**{"spec.adapters.maxRank": 32}))
    job = job_in("ml/chat", "web", "ab" * 32)
    record = json.loads(job["status"]["serving"])
    record["adapter"]["rank"] = 32
    job["status"]["serving"] = json.dumps(record, separators=(",", ":"))
    world.cache.put_parent(job)
    before = world.cluster.get("Deployment", "chat")["spec"]
    world.cluster.put(servingpool(**{"spec.adapters.maxRank": 16}))
    world.deliver()
    uid = world.cluster.get("ServingPool", "chat")["metadata"]["uid"]
    await world.reconcile(uid)
    assert world.cluster.get("Deployment", "chat")["spec"] == before
    assert conditions(world)["Stalled"] == ("True", "InvalidSpec")
    assert "ml/web" in str(state(world)["conditions"])
    world.cache.drop_parent(job["metadata"]["uid"])
    await world.settle()
    assert world.cluster.get("Deployment", "chat")["spec"] != before
    assert conditions(world)["Ready"][0] == "True"


async def test_another_owners_service_of_the_same_name_is_not_taken_over() -> None:
    world = World()
    world.cluster.put(BASE)
    other = {"kind": "Service", "metadata": {"name": "chat", "namespace": "ml"}, "spec": {"selector": {"app": "web"}}}
    world.cluster._store("Service", other)
    world.cluster.put(servingpool())
    await world.wait(30)
    assert world.cluster.get("Service", "chat")["spec"]["selector"] == {"app": "web"}
    (message,) = {c["message"] for c in state(world)["conditions"]}
    assert "Service chat exists and is not this pool's" in message
    assert conditions(world)["Stalled"][0] == "True"


async def test_a_refused_quota_is_in_the_status() -> None:
    world = World()
    world.cluster.put(BASE)
    words = "pods is forbidden: exceeded quota: gpus, requested: requests.nvidia.com/gpu=1, used: x=4, limited: x=4"
    world.cluster.refuse = lambda verb, kind, name: (
        cluster.Failure(403, words) if (verb, kind) == ("apply", "Deployment") else None
    )
    world.cluster.put(servingpool())
    await world.wait(5)
    assert conditions(world)["Ready"] == ("False", "QuotaExceeded")


# -- what the pods report --


def reported(*adapters: tuple[str, str], requests: int = 0) -> serving.State:
    traffic = {"namespace": "ml", "job": "a", "name": "a", "revision": "r1", "since": "2026-05-04T12:00:00Z"}
    return serving.State.model_validate(
        {
            "pool": "ml/chat",
            "etag": "e",
            "engineReady": True,
            "adapters": [
                {"sha256": sha, "state": what, "message": "too large" if what == "Failed" else "", "resident": True}
                for sha, what in adapters
            ],
            "traffic": [{**traffic, "requests": requests}],
        }
    )


async def test_the_status_counts_adapters_and_names_those_that_are_not_everywhere() -> None:
    world = await world_of()
    shas = [f"{number:064x}" for number in range(3)]
    for number, sha in enumerate(shas):
        world.cache.put_parent(job_in("ml/chat", f"job-{number}", sha))
    uid = world.cluster.get("ServingPool", "chat")["metadata"]["uid"]
    first, second = sorted(name for kind, name in world.cache.children[uid] if kind == "Pod")
    world.cache.put_pool_state(uid, first, pools.Reading(reported(*((sha, "Ready") for sha in shas)), 2.04))
    world.cache.put_pool_state(uid, second, pools.Reading(reported((shas[0], "Ready"), (shas[1], "Failed")), 1.0))
    await world.reconcile(uid)
    found = state(world)
    assert {key: found["adapters"][key] for key in ("total", "ready", "loading", "failed", "resident", "bytes")} == {
        "total": 3, "ready": 1, "loading": 1, "failed": 1, "resident": 3, "bytes": 3000,
    }  # fmt: skip
    assert [(one["job"], one["state"], one["pods"], one["message"]) for one in found["problems"]] == [
        ("ml/job-1", "Failed", 1, "too large"),
        ("ml/job-2", "Loading", 1, ""),
    ]
    assert (found["requestsPerSecond"], found["models"], found["gpus"], found["gpusSaved"]) == ("3.0", 3, 2, 1)


async def test_a_rate_that_hardly_changes_is_not_written_again() -> None:
    world = await world_of()
    uid = world.cluster.get("ServingPool", "chat")["metadata"]["uid"]
    pod = next(name for kind, name in world.cache.children[uid] if kind == "Pod")
    versions = []
    for rate in (40.0, 42.0, 60.0):
        world.cache.put_pool_state(uid, pod, pools.Reading(reported(), rate))
        await world.reconcile(uid)
        versions.append(state(world)["requestsPerSecond"])
    assert versions == ["40", "40", "60"]


async def test_pods_whose_state_cannot_be_read_are_named_and_the_pool_is_ready() -> None:
    world = await world_of()
    uid = world.cluster.get("ServingPool", "chat")["metadata"]["uid"]
    for kind, name in list(world.cache.children[uid]):
        if kind == "Pod":
            world.cache.put_pool_state(uid, name, pools.Reading(problem="10.1.2.3: no answer within 2 s"))
    await world.reconcile(uid)
    assert conditions(world)["Ready"][0] == "True"
    assert state(world)["unread"] == 2
    (message,) = {c["message"] for c in state(world)["conditions"]}
    assert "TCP port 8002" in message


# -- the index --


async def test_a_job_of_a_namespace_that_is_not_allowed_has_no_part_in_the_index() -> None:
    world = await world_of(
        servingpool(**{"spec.allowedNamespaces": ["support"], "spec.keysSecret": "keys"}),
    )
    for number, namespace in enumerate(("ml", "support", "strangers")):
        world.cache.put_parent(job_in("ml/chat", "tone", f"{number:064x}", namespace))
    found = world.indexes.of(world.cache.pool_of("ml/chat"))
    assert [one.namespace for one in found.models] == ["ml", "support"]
    assert [one.namespace for one in found.adapters] == ["ml", "support"]
    world.cluster.put(servingpool(**{"spec.allowedNamespaces": ["*"], "spec.keysSecret": "keys"}))
    world.deliver()
    assert len(world.indexes.of(world.cache.pool_of("ml/chat")).models) == 3


async def test_a_deleted_job_leaves_the_index_and_the_etag_changes() -> None:
    world = await world_of()
    world.cache.put_parent(job_in("ml/chat", "tone", "ab" * 32))
    before = world.indexes.of(world.cache.pool_of("ml/chat"))
    world.cache.drop_parent("ml-tone")
    after = world.indexes.of(world.cache.pool_of("ml/chat"))
    assert (len(before.models), len(after.models)) == (1, 0)
    assert before.etag != after.etag


async def test_a_thousand_jobs_cost_one_index_for_each_change_and_none_for_a_poll() -> None:
    world = await world_of()
    for number in range(1000):
        world.cache.put_parent(job_in("ml/chat", f"job-{number:04}", f"{number:064x}"))
    pool = world.cache.pool_of("ml/chat")
    builds = world.indexes.builds
    for _ in range(100):
        found = world.indexes.of(pool)
    assert (len(found.models), len(found.adapters), world.indexes.builds - builds) == (1000, 1000, 1)
    assert len(found.model_dump_json(by_alias=True, exclude_none=True)) < 500_000
    # progress of a job that changes nothing of its part
    same = job_in("ml/chat", "job-0001", f"{1:064x}", version=2)
    same["status"]["progress"] = {"percent": 1}
    world.cache.put_parent(same)
    world.indexes.of(pool)
    assert world.indexes.builds - builds == 1
    asked = len(world.cluster.requests)
    uid = world.cluster.get("ServingPool", "chat")["metadata"]["uid"]
    await world.reconcile(uid)
    assert len(world.cluster.requests) - asked == 1, "one write of the status, whatever the number of jobs"


def test_what_a_job_contributes_is_empty_without_a_pool_or_with_a_record_that_cannot_be_read() -> None:
    job = job_in("ml/chat", "tone", "ab" * 32)
    (part,) = members.members(job)
    assert (part.pool, part.models[0].name, part.adapters[0].rank) == ("ml/chat", "tone", 16)
    for text in ("", "{}", '{"pool": 1', '{"pool": 1}'):
        job["status"]["serving"] = text
        assert members.members(job) == ()


def test_the_index_is_the_same_whatever_the_order_of_the_jobs() -> None:
    pool = pools.parent(
        {**servingpool(), "metadata": {"name": "chat", "namespace": "ml", "uid": "u", "resourceVersion": "1"}}
    )
    parts = [part for n in range(5) for part in members.members(job_in("ml/chat", f"j{n}", f"{n:064x}"))]
    assert index.build(pool, parts) == index.build(pool, reversed(parts))


@pytest.mark.parametrize("play", [Ends(), Hangs()])
async def test_all_pods_of_a_pool_are_restricted_and_have_no_token(play: Any) -> None:
    world = await world_of(script={"server": [play, play]})
    for raw in world.cluster.of("Pod"):
        spec = raw["spec"]
        assert spec["automountServiceAccountToken"] is False
        assert spec["securityContext"]["runAsNonRoot"] is True
        for container in [*spec["initContainers"], *spec["containers"]]:
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert raw["metadata"]["labels"][label.POOL] == "chat"
        assert label.RELEASE not in raw["metadata"]["labels"]
