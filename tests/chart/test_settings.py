"""The settings file: what the chart renders, the operator reads."""

import json
from typing import Any

from tests.chart.conftest import Manifest, Render

from finetune_operator import settings


def text_of(rendered: dict[str, dict[str, Manifest]]) -> str:
    return str(rendered["ConfigMap"]["finetune-operator"]["data"]["settings.json"])


def test_the_default_settings_are_read_by_the_operator(render: Render) -> None:
    read = settings.Settings.model_validate_json(text_of(render()))
    assert read.images.trainer == "finetune-trainer:0.1.0"
    assert read.images.fetch == "finetune-fetch:0.1.0"
    assert read.images.serving.startswith("vllm/vllm-openai:v0.")
    assert read.preflight.requests.memory == "2Gi"
    assert read.namespaces == []


def test_every_setting_is_rendered_and_none_is_unknown(render: Render) -> None:
    rendered = set(json.loads(text_of(render())))
    assert rendered == set(settings.Settings.model_json_schema(by_alias=True)["properties"])


def test_values_arrive_as_given(render: Render) -> None:
    read = settings.Settings.model_validate_json(
        text_of(
            render(
                {
                    "images": {"registry": "registry.example", "serving": {"repository": "a/vllm", "tag": "x"}},
                    "imagePullPolicy": "Always",
                    "imagePullSecrets": ["key"],
                    "namespaces": ["ml"],
                    "serving": {
                        "args": ["--dtype=bfloat16"],
                        "env": {"DO_NOT_TRACK": "1"},
                        "shmSize": "256Mi",
                        "requests": {"cpu": "500m", "memory": "4Gi"},
                    },
                    "kueue": {"enabled": True},
                    "ingress": {"enabled": True, "annotations": {"a/b": "c"}},
                    "gatewayAPI": {
                        "enabled": True,
                        "gateway": {"name": "public", "namespace": "gateways"},
                        "inference": {"enabled": True, "modelRewrites": True},
                    },
                    "drainSeconds": 5,
                    "stalledAfterSeconds": 60,
                    "retryBackoffSeconds": 2,
                    "labels": {"cost-centre": "42"},
                    "logLevel": "DEBUG",
                }
            )
        )
    )
    assert read.images.trainer == "registry.example/finetune-trainer:0.1.0"
    assert read.images.serving == "a/vllm:x"
    assert read.image_pull_policy == "Always"
    assert read.image_pull_secrets == ["key"]
    assert read.namespaces == ["ml"]
    assert read.serving.args == ["--dtype=bfloat16"]
    assert read.serving.env == {"DO_NOT_TRACK": "1"}
    assert read.serving.shm_size == "256Mi"
    assert read.serving.requests.memory == "4Gi"
    assert read.kueue.enabled
    assert (read.ingress.enabled, read.ingress.annotations) == (True, {"a/b": "c"})
    gateway = read.gateway_api.gateway
    assert (read.gateway_api.enabled, gateway.name, gateway.namespace) == (True, "public", "gateways")
    assert gateway.section_name is None
    inference = read.gateway_api.inference
    assert (inference.enabled, inference.model_rewrites) == (True, True)
    assert (read.drain_seconds, read.retry_backoff_seconds) == (5, 2)
    assert read.stalled_after_seconds == 60
    assert read.labels == {"cost-centre": "42"}
    assert read.log_level == "DEBUG"


def test_gpu_types_name_the_labels_of_gpu_feature_discovery(render: Render) -> None:
    read = settings.Settings.model_validate_json(text_of(render()))
    assert read.gpu_types["nvidia-l4"].node_selector == {"nvidia.com/gpu.product": "NVIDIA-L4"}
    assert read.gpu_types["nvidia-h100-80gb"].node_selector == {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}
    products = [kind.node_selector["nvidia.com/gpu.product"] for kind in read.gpu_types.values()]
    assert len(set(products)) == len(products)
    for name, kind in read.gpu_types.items():
        assert kind.memory_gi_b, name
        assert [(taint.key, taint.operator) for taint in kind.tolerations] == [("nvidia.com/gpu", "Exists")], name


def test_gpu_types_are_added_and_dropped(render: Render) -> None:
    own = {"nodeSelector": {"cloud.google.com/gke-accelerator": "nvidia-l4"}, "memoryGiB": 22.5}
    read = settings.Settings.model_validate_json(text_of(render({"gpuTypes": {"nvidia-b200": None, "gke-l4": own}})))
    assert "nvidia-b200" not in read.gpu_types
    assert read.gpu_types["gke-l4"].memory_gi_b == 22.5
    assert "nvidia-l4" in read.gpu_types


def test_prices_have_their_currency_and_no_type_has_one_by_default(render: Render) -> None:
    assert {
        kind.price_per_hour for kind in settings.Settings.model_validate_json(text_of(render())).gpu_types.values()
    } == {None}
    values = {"currency": "EUR", "gpuTypes": {"nvidia-l4": {"pricePerHour": 0.8}}}
    read = settings.Settings.model_validate_json(text_of(render(values)))
    assert (read.currency, read.gpu_types["nvidia-l4"].price_per_hour) == ("EUR", 0.8)
    assert read.gpu_types["nvidia-l4"].memory_gi_b == 22


def test_new_settings_roll_the_operator_and_equal_ones_do_not(render: Render) -> None:
    def checksum(values: Manifest) -> str:
        pod = render(values)["Deployment"]["finetune-operator"]["spec"]["template"]
        return str(pod["metadata"]["annotations"]["checksum/settings"])

    assert checksum({}) == checksum({"replicas": 3})
    assert checksum({}) != checksum({"drainSeconds": 1})


def test_the_operator_finds_the_settings_where_they_are_mounted(render: Render) -> None:
    pod = render()["Deployment"]["finetune-operator"]["spec"]["template"]["spec"]
    mounts = {mount["name"]: mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
    assert mounts["settings"] == str(settings.PATH.parent)
    (volume,) = [volume for volume in pod["volumes"] if volume["name"] == "settings"]
    assert volume["configMap"] == {"name": "finetune-operator"}


def test_a_bundle_of_authorities_arrives_only_if_there_is_one(render: Render) -> None:
    assert settings.Settings.model_validate_json(text_of(render())).ca_bundle is None
    read = settings.Settings.model_validate_json(text_of(render({"caBundle": {"configMap": "company-ca"}})))
    assert read.ca_bundle is not None
    assert (read.ca_bundle.config_map, read.ca_bundle.key) == ("company-ca", "ca.crt")


def test_a_claim_with_base_models_arrives_only_if_there_is_one(render: Render) -> None:
    def claims(values: Any) -> list[str | None]:
        read = settings.Settings.model_validate_json(text_of(render(values)))
        return [found and found.name for found in map(read.model_claim, ("team-a", "team-b", "team-c"))]

    assert claims({}) == [None, None, None]
    cache = {"claimName": "models", "claimNameByNamespace": {"team-a": "fast", "team-b": ""}, "size": "500Gi"}
    assert claims({"modelCache": cache}) == ["fast", None, "models"]
    assert settings.Settings.model_validate_json(text_of(render({"modelCache": cache}))).model_cache.size == "500Gi"
