"""What the platform team says about pods: layers of one shape, each asserted on the pods that it reaches."""

import json
import pathlib
from typing import Any

import pytest

from finetune_api.reasons import Stage
from finetune_operator import podsettings, settings
from support import templates

LOADING = (Stage.BASELINE, Stage.TRAIN, Stage.EVALUATE)
EIGHT = {"parameters": 8_000_000_000}
"""A base model of 16 GB."""


def seen(values: settings.Settings, read: Any, **how: Any) -> dict[Any, Any]:
    return {which: read(templates.of(which, values, **how)) for which in templates.PODS}


def test_a_setting_of_all_pods_reaches_every_container_of_every_pod() -> None:
    values = templates.chart(
        pods={
            "env": {"HF_ENDPOINT": "https://hub.example"},
            "labels": {"team": "ml"},
            "annotations": {"sidecar.istio.io/inject": "false"},
            "runtimeClassName": "kata",
            "priorityClassName": "batch",
            "dnsPolicy": "None",
            "dnsConfig": {"nameservers": ["10.0.0.10"], "options": [{"name": "ndots", "value": "2"}]},
            "nodeSelector": {"pool": "ml"},
            "tolerations": [{"key": "ml", "operator": "Exists"}],
        }
    )
    for which in templates.PODS:
        made = templates.of(which, values)
        assert all(env["HF_ENDPOINT"] == "https://hub.example" for env in templates.variables(made)), which
        assert made["metadata"]["labels"]["team"] == "ml"
        assert made["metadata"]["annotations"]["sidecar.istio.io/inject"] == "false"
        spec = made["spec"]
        assert (spec["runtimeClassName"], spec["priorityClassName"], spec["dnsPolicy"]) == ("kata", "batch", "None")
        assert spec["dnsConfig"] == {"nameservers": ["10.0.0.10"], "options": [{"name": "ndots", "value": "2"}]}
        assert (spec["nodeSelector"], spec["tolerations"]) == ({"pool": "ml"}, [{"key": "ml", "operator": "Exists"}])


def test_without_settings_a_pod_says_nothing_of_them() -> None:
    spec = templates.of(Stage.TRAIN, templates.chart())["spec"]
    assert not set(spec) & {
        "affinity", "nodeSelector", "tolerations", "topologySpreadConstraints", "runtimeClassName", "dnsPolicy", "dnsConfig",
    }  # fmt: skip


@pytest.mark.parametrize(
    "layer, reached",
    [("preflight", {Stage.PREFLIGHT}), ("training", {*LOADING}), ("verify", {Stage.VERIFY}), ("serving", {None})],
)
def test_a_layer_reaches_its_own_pods_alone(layer: str, reached: set[Stage | None]) -> None:
    values = templates.chart(**{layer: {"annotations": {"seen": "yes"}}})
    found = seen(values, lambda made: made["metadata"]["annotations"].get("seen") == "yes")
    assert {which for which, there in found.items() if there} == reached


def test_the_more_specific_layer_wins_and_maps_and_lists_add_up() -> None:
    key = {"operator": "Exists", "effect": "NoSchedule"}
    values = templates.chart(
        pods={"env": {"A": "pods", "B": "pods"}, "tolerations": [{"key": "a", **key}], "runtimeClassName": "one"},
        training={
            "env": {"B": "training", "C": "training"},
            "tolerations": [{"key": "b", **key}],
            "priorityClassName": "low",
        },
        gpuTypes={"l4": {"env": {"C": "type"}, "tolerations": [{"key": "c", **key}], "runtimeClassName": "nvidia"}},
    )
    job = {"gpus": 1, "gpuType": "l4", "priorityClassName": "high", "tolerations": [{"key": "d", **key}]}
    made = templates.of(Stage.TRAIN, values, job)
    [env] = templates.variables(made)
    assert (env["A"], env["B"], env["C"]) == ("pods", "training", "type")
    assert [t["key"] for t in made["spec"]["tolerations"]] == ["a", "b", "c", "d"]
    assert (made["spec"]["runtimeClassName"], made["spec"]["priorityClassName"]) == ("nvidia", "high")


def test_a_servers_environment_follows_the_layers_and_may_replace_the_operators_defaults() -> None:
    values = templates.chart(
        pods={"env": {"A": "pods", "DO_NOT_TRACK": "0"}},
        serving={"env": {"B": "serving", "C": "serving"}},
        gpuTypes={"l4": {"env": {"C": "type"}}},
    )
    fetch, server = templates.variables(templates.of(None, values, {"gpus": 1, "gpuType": "l4"}))
    assert (server["A"], server["B"], server["C"], server["DO_NOT_TRACK"]) == ("pods", "serving", "type", "0")
    assert (fetch["A"], fetch["B"], fetch["C"]) == ("pods", "serving", "type")


def test_parts_of_an_affinity_are_replaced_one_by_one() -> None:
    near, far = ({"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": w}]} for w in (1, 2))
    values = templates.chart(
        pods={"affinity": {"nodeAffinity": near, "podAffinity": near}}, serving={"affinity": {"nodeAffinity": far}}
    )
    assert templates.of(None, values)["spec"]["affinity"] == {"nodeAffinity": far, "podAffinity": near}
    assert templates.of(Stage.TRAIN, values)["spec"]["affinity"] == {"nodeAffinity": near, "podAffinity": near}


def test_pods_are_spread_among_those_of_the_same_stage_or_release() -> None:
    rule = {"topologyKey": "topology.kubernetes.io/zone", "whenUnsatisfiable": "ScheduleAnyway"}
    values = templates.chart(pods={"topologySpreadConstraints": [rule]})
    for which in templates.PODS:
        made = templates.of(which, values)
        [constraint] = made["spec"]["topologySpreadConstraints"]
        chosen = constraint["labelSelector"]["matchLabels"]
        assert chosen["finetune.dev/uid"] == "u-1"
        assert len(chosen) == 2
        assert chosen.items() <= made["metadata"]["labels"].items(), which
        assert (constraint["maxSkew"], constraint["topologyKey"]) == (1, "topology.kubernetes.io/zone")
    own = {**rule, "labelSelector": {"matchLabels": {"team": "ml"}}}
    values = templates.chart(pods={"topologySpreadConstraints": [own]})
    assert templates.of(None, values)["spec"]["topologySpreadConstraints"] == [{**own, "maxSkew": 1}]


# -- GPUs --


@pytest.mark.parametrize("resource", ["nvidia.com/mig-1g.10gb", "amd.com/gpu", "gpu.intel.com/i915", "habana.ai/gaudi"])
def test_a_type_requests_its_own_resource_and_the_others_still_request_the_general_one(resource: str) -> None:
    values = templates.chart(gpuTypes={"own": {"resource": resource}, "nvidia-l4": {}})
    for which in (*LOADING, None):
        own = templates.amounts(templates.of(which, values, {"gpus": 1, "gpuType": "own"}))
        assert own["requests"][resource] == own["limits"][resource] == "1"
        assert "nvidia.com/gpu" not in own["limits"]
        other = templates.amounts(templates.of(which, values, {"gpus": 2, "gpuType": "nvidia-l4"}))
        assert (other["limits"]["nvidia.com/gpu"], resource in other["limits"]) == ("2", False)
        assert templates.amounts(templates.of(which, values, {"gpus": 1}))["limits"]["nvidia.com/gpu"] == "1"


def test_only_pods_that_train_together_request_what_connects_them() -> None:
    values = templates.chart(gpuTypes={"h100": {"multiNodeResources": {"rdma/hca": "1"}}})
    job = {"gpus": 8, "gpuType": "h100"}
    several = templates.amounts(templates.of(Stage.TRAIN, values, job, nodes=4))
    assert (several["requests"]["rdma/hca"], several["limits"]["rdma/hca"]) == ("1", "1")
    for which in (*LOADING, None):
        assert "rdma/hca" not in templates.amounts(templates.of(which, values, job))["limits"]


def test_only_the_server_of_a_gpu_type_holds_gpus_and_not_what_fetches_for_it() -> None:
    fetch, server = templates.containers(templates.of(None, templates.chart(), {"gpus": 1}))
    assert "nvidia.com/gpu" not in fetch["resources"]["limits"]
    assert server["resources"]["limits"]["nvidia.com/gpu"] == "1"


def test_what_connects_gpus_is_a_setting_of_their_type_and_reaches_the_pods_that_have_them() -> None:
    nccl = {"NCCL_IB_HCA": "mlx5", "NCCL_SOCKET_IFNAME": "eth0", "NCCL_DEBUG": "WARN"}
    connected = {
        "env": nccl,
        "runtimeClassName": "nvidia",
        "annotations": {"k8s.v1.cni.cncf.io/networks": "rdma-net"},
        "multiNodeResources": {"rdma/hca": "1"},
    }
    values = templates.chart(gpuTypes={"h100": connected})
    for which, nodes in ((Stage.TRAIN, 4), (Stage.TRAIN, 1), (Stage.EVALUATE, 1), (None, 1)):
        made = templates.of(which, values, {"gpus": 8, "gpuType": "h100"}, nodes=nodes)
        assert nccl.items() <= templates.variables(made)[-1].items(), which
        assert made["spec"]["runtimeClassName"] == "nvidia"
        assert made["metadata"]["annotations"]["k8s.v1.cni.cncf.io/networks"] == "rdma-net"
    cpu = templates.of(Stage.TRAIN, values)
    assert "runtimeClassName" not in cpu["spec"]
    assert not nccl.keys() & templates.variables(cpu)[-1].keys()


@pytest.mark.parametrize(("gpus", "has"), [(0, False), (1, False), (2, True), (8, True)])
def test_gpus_of_one_training_pod_share_memory_that_is_counted_as_the_pods(gpus: int, has: bool) -> None:
    spec = templates.of(Stage.TRAIN, templates.chart(), {"gpus": gpus})["spec"]
    mounted = [one["name"] for one in spec["containers"][0]["volumeMounts"] if one["mountPath"] == "/dev/shm"]
    assert mounted == ["shm"] * has
    assert [one["emptyDir"] for one in spec["volumes"] if one["name"] == "shm"] == [{"medium": "Memory"}] * has


# -- requests and limits --


def test_one_limit_of_the_chart_is_enough_for_a_namespace_that_limits_cpu_by_default() -> None:
    """A LimitRange gives containers without a CPU limit its default one, and the API server then refuses those that request
    more than that."""
    values = templates.chart(pods={"limits": {"cpu": "1"}}, preflight={"requests": {"cpu": "500m"}})
    assert templates.amounts(templates.of(Stage.PREFLIGHT, values))["limits"]["cpu"] == "1"
    for which in (*LOADING, None):
        amounts = templates.amounts(templates.of(which, values, {**templates.CPU, "requests": {"cpu": 4}}))
        assert (amounts["requests"]["cpu"], amounts["limits"]["cpu"]) == ("4", "4"), "never below what is requested"


def test_limits_of_the_job_are_taken_as_they_are() -> None:
    values = templates.chart(
        pods={"limits": {"cpu": "1", "memory": "64Gi"}}, training={"requests": {"cpu": "3", "memory": "8Gi"}}
    )
    job = {**templates.CPU, "requests": {"memory": "16Gi"}, "limits": {"cpu": "2", "memory": "20Gi"}}
    amounts = templates.amounts(templates.of(Stage.TRAIN, values, job))
    assert amounts == {"requests": {"memory": "16Gi"}, "limits": {"cpu": "2", "memory": "20Gi"}}


def test_requests_of_the_chart_complete_those_of_a_job() -> None:
    values = templates.chart(training={"requests": {"cpu": "2", "memory": "8Gi"}})
    job = {**templates.CPU, "requests": {"memory": "16Gi"}}
    amounts = templates.amounts(templates.of(Stage.TRAIN, values, job))
    assert amounts == {"requests": {"cpu": "2", "memory": "16Gi"}, "limits": {"memory": "16Gi"}}


# -- ephemeral storage --


@pytest.mark.parametrize("which", [*LOADING, None])
def test_disk_is_requested_for_the_model_and_limited_to_twice_of_it(which: Stage | None) -> None:
    for container in templates.containers(templates.of(which, templates.chart(), base=EIGHT)):
        assert container["resources"]["requests"]["ephemeral-storage"] == "19Gi"  # 17.6 GB of weights and 2 GiB
        assert container["resources"]["limits"]["ephemeral-storage"] == "38Gi"


def test_disk_grows_with_the_data_once_they_are_counted() -> None:
    def disk(tokens: int) -> str:
        made = templates.of(Stage.TRAIN, templates.chart(), base=EIGHT, tokens=tokens)
        return str(templates.amounts(made)["requests"]["ephemeral-storage"])

    assert (disk(0), disk(1_000_000_000)) == ("19Gi", "34Gi")


def test_the_weights_of_a_model_on_a_claim_need_no_disk() -> None:
    made = templates.of(Stage.TRAIN, templates.chart(), base={**EIGHT, "source": "pvc://models/8b"})
    assert templates.amounts(made)["requests"]["ephemeral-storage"] == "2Gi"


def test_disk_is_left_to_the_namespace_where_the_size_of_the_model_is_unknown() -> None:
    assert templates.amounts(templates.of(Stage.TRAIN, templates.chart())) == {"requests": {}, "limits": {}}


def test_disk_is_not_estimated_in_a_queue_which_may_not_cover_it() -> None:
    queued = templates.of(Stage.TRAIN, templates.chart(), base=EIGHT, queue="team-a")
    assert templates.amounts(queued) == {"requests": {}, "limits": {}}
    own = {**templates.CPU, "requests": {"ephemeralStorage": "40Gi"}}
    queued = templates.of(Stage.TRAIN, templates.chart(), own, base=EIGHT, queue="team-a")
    assert templates.amounts(queued)["requests"] == {"ephemeral-storage": "40Gi"}


def test_the_job_says_its_disk_and_the_chart_the_least() -> None:
    values = templates.chart(training={"requests": {"ephemeralStorage": "100Gi"}})
    assert templates.amounts(templates.of(Stage.TRAIN, values, base=EIGHT))["requests"]["ephemeral-storage"] == "100Gi"
    values = templates.chart(training={"requests": {"ephemeralStorage": "1Gi"}})
    assert templates.amounts(templates.of(Stage.TRAIN, values, base=EIGHT))["requests"]["ephemeral-storage"] == "19Gi"
    job = {**templates.CPU, "requests": {"ephemeralStorage": "5.5Gi"}}
    amounts = templates.amounts(templates.of(Stage.TRAIN, values, job, base=EIGHT))
    assert amounts == {"requests": {"ephemeral-storage": "5.5Gi"}, "limits": {"ephemeral-storage": "11.0Gi"}}
    job = {**templates.CPU, "limits": {"ephemeralStorage": "6Gi"}}
    amounts = templates.amounts(templates.of(Stage.TRAIN, values, job, base=EIGHT))
    assert amounts == {"requests": {}, "limits": {"ephemeral-storage": "6Gi"}}, "Kubernetes requests what is the limit"


# -- identity, pull secrets --


def test_ids_can_be_left_to_the_namespace() -> None:
    fixed = seen(templates.chart(), lambda made: made["spec"]["securityContext"].get("runAsUser"))
    assert set(fixed.values()) == {65532}
    for given in (None, {}):
        open_ = seen(templates.chart(securityContext=given), lambda made: made["spec"]["securityContext"])
        assert all(
            context == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
            for context in open_.values()
        )


def test_pull_secrets_of_a_namespace_are_added_to_those_of_all() -> None:
    own = {"ml": ["ml-registry"], "elsewhere": ["other"]}
    values = templates.chart(imagePullSecrets=["all"], imagePullSecretsByNamespace=own)
    found = seen(values, lambda made: [secret["name"] for secret in made["spec"]["imagePullSecrets"]])
    assert set(map(tuple, found.values())) == {("all", "ml-registry")}


# -- what is refused when the operator starts --

REPLACEABLE = {"PYTHONUNBUFFERED", "HF_HUB_OFFLINE", "VLLM_NO_USAGE_STATS", "DO_NOT_TRACK"}
"""Defaults of the operator that a setting may replace."""


def test_no_setting_replaces_a_variable_that_the_operator_sets_for_a_reason() -> None:
    secrets = {"storage.credentialsSecret": "s3", "deployment.apiKeySecret": "key"}
    asked = {"endpoint": "https://judge.example/v1", "model": "m", "apiKeySecret": "judge"}
    judge = {"evaluation.judge": asked, "evaluation.candidates": [{"name": "large", **asked}]}
    stores = {"dataset.storage": {"credentialsSecret": "reader"}}
    base = {"accessTokenSecret": "hf", "source": "s3://models/b", "storage": {"credentialsSecret": "models"}}
    for which in templates.PODS:
        made = templates.of(which, templates.chart(), base=base, nodes=2, spec={**secrets, **judge, **stores})
        for name in {name for container in templates.variables(made) for name in container} - REPLACEABLE:
            assert podsettings.ENVIRONMENT.search(name), f"{name} of {which}"


@pytest.mark.parametrize(
    "values, place", templates.REFUSED, ids=[json.dumps(values) for values, _ in templates.REFUSED]
)
def test_the_operator_does_not_start_with_settings_that(
    values: dict[str, Any], place: str, tmp_path: pathlib.Path
) -> None:
    path = tmp_path / "settings.json"
    path.write_text(json.dumps({"images": templates.IMAGES, **values}))
    with pytest.raises(SystemExit) as refused:
        settings.load(path)
    assert place in str(refused.value)
    assert "in plain sight" not in str(refused.value)
