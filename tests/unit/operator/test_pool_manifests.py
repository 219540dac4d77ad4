"""The objects of a ServingPool: what each container gets, and that the gateway and the fetch understand it."""

import argparse
import pathlib
from typing import Any

import pytest

from finetune_api import run, serving, servingpool
from finetune_operator import settings
from finetune_operator.manifests import meta, pool
from finetune_operator.observe import label, pools
from finetune_trainer import __main__ as trainer
from finetune_trainer.gateway import settings as gateway

BASE = run.ResolvedBaseModel(name="llama", source="s3://acme/llama", extra_args=["--seed=1"])
CHART: dict[str, Any] = {
    "images": {"trainer": "registry/trainer:1", "fetch": "registry/fetch:1", "serving": "registry/vllm:1"},
    "indexUrl": "http://finetune-operator-index.finetune-system.svc:9500",
    "serving": {"args": ["--dtype=bfloat16"]},
}


def built(
    spec: dict[str, Any] | None = None, base: run.ResolvedBaseModel = BASE, chart: dict[str, Any] | None = None
) -> dict[tuple[str, str], Any]:
    raw = {
        "metadata": {"name": "chat", "namespace": "ml", "uid": "u", "resourceVersion": "1"},
        "spec": {"baseModel": {"name": "llama"}, **(spec or {})},
    }
    parent = pools.parent(raw)
    assert parent.spec is not None, parent.unreadable
    made = pool.build(
        parent, parent.spec, base, settings.Settings.model_validate(CHART | (chart or {})), parent.spec.replicas
    )
    return {(one["kind"], one["metadata"]["name"]): one for one in made}


def pod_of(made: dict[tuple[str, str], Any]) -> Any:
    return made["Deployment", "chat"]["spec"]["template"]["spec"]


def container(made: dict[tuple[str, str], Any], name: str) -> Any:
    spec = pod_of(made)
    return next(one for one in [*spec.get("initContainers", []), *spec["containers"]] if one["name"] == name)


def test_the_gateway_understands_its_command_line() -> None:
    spec = {"keysSecret": "keys", "serveBaseModel": True, "adapters": {"maxRank": 20, "inMemory": 100}}
    words = container(built(spec), label.GATEWAY)["args"]
    parser = argparse.ArgumentParser(exit_on_error=False)
    gateway.add_arguments(parser)
    found = gateway.of(parser.parse_args(words[1:]))
    assert words[0] == "gateway"
    assert (found.pool, found.index, found.peers) == ("ml/chat", CHART["indexUrl"], "chat-pods.ml.svc")
    assert (found.base_model, found.max_rank, found.in_memory, found.serve_base_model) == ("llama", 32, 100, True)
    assert (str(found.keys), str(found.adapters)) == ("/etc/finetune/keys", "/adapters")
    grace = pod_of(built(spec))["terminationGracePeriodSeconds"]
    assert grace == found.grace + 10, "the kubelet waits longer than the gateway"


def test_without_a_secret_of_keys_the_gateway_asks_for_none() -> None:
    made = built()
    assert not any("keys" in word for word in container(made, label.GATEWAY)["args"])
    assert "keys" not in [volume["name"] for volume in pod_of(made)["volumes"]]


def test_only_the_gateway_sees_the_keys_and_writes_the_adapters_and_only_it_is_reached() -> None:
    made = built({"keysSecret": "keys"})
    mounts = {
        name: {m["name"]: m for m in container(made, name)["volumeMounts"]} for name in ("fetch", "server", "gateway")
    }
    assert [name for name, found in mounts.items() if "keys" in found] == ["gateway"]
    assert mounts["server"]["adapters"]["readOnly"] is True
    assert "readOnly" not in mounts["gateway"]["adapters"]
    assert "ports" not in container(made, label.SERVER)
    arguments = container(made, label.SERVER)["args"]
    assert {"--host=127.0.0.1", f"--port={serving.ENGINE_PORT}"} <= set(arguments)


def test_the_pools_numbers_override_those_of_the_chart_and_the_catalogue() -> None:
    base = BASE.model_copy(update={"extra_args": ["--max-loras=1", "--max-model-len=128"]})
    arguments = container(
        built({"contextLength": 4096, "adapters": {"onGpu": 4, "inMemory": 8}, "resources": {"gpus": 2}}, base),
        "server",
    )["args"]
    last = {word.partition("=")[0]: word for word in arguments}
    assert last["--max-loras"] == "--max-loras=4"
    assert last["--max-cpu-loras"] == "--max-cpu-loras=8"
    assert last["--max-model-len"] == "--max-model-len=4096"
    assert last["--tensor-parallel-size"] == "--tensor-parallel-size=2"
    assert "--dtype=bfloat16" in arguments


def test_the_fetch_understands_the_pools_run_file(tmp_path: pathlib.Path) -> None:
    made = built(
        {
            "storage": {
                "endpoint": "https://minio.example:9000",
                "credentialsSecret": "s3",
                "caBundle": {"configMap": "c"},
            }
        }
    )
    template = made["Deployment", "chat"]["spec"]["template"]
    file = tmp_path / "run.json"
    file.write_text(template["metadata"]["annotations"][label.RUN_FILE])
    found = trainer._read_to_fetch(file)
    assert isinstance(found, run.PoolRun)
    assert (found.base_model.source, found.storage.endpoint) == ("s3://acme/llama", "https://minio.example:9000")
    fetch = container(made, label.FETCH)
    keys = {one["valueFrom"]["secretKeyRef"]["name"] for one in fetch["env"] if "valueFrom" in one}
    assert keys == {"s3"}
    assert not [one for one in container(made, label.GATEWAY)["env"] if "valueFrom" in one]


@pytest.mark.parametrize(
    ("spec", "surge"),
    [
        ({"replicas": 1}, True),
        ({"replicas": 3}, False),
        ({"replicas": 1, "update": "InPlace"}, False),
        ({"replicas": 3, "update": "Surge"}, True),
    ],
)
def test_an_update_needs_a_spare_gpu_only_where_nothing_would_serve_otherwise(
    spec: dict[str, Any], surge: bool
) -> None:
    found = built(spec)["Deployment", "chat"]["spec"]["strategy"]["rollingUpdate"]
    assert found == ({"maxSurge": 1, "maxUnavailable": 0} if surge else {"maxSurge": 0, "maxUnavailable": 1})


def test_scaling_does_not_change_the_digest_and_every_other_edit_does() -> None:
    def digest(spec: dict[str, Any]) -> str:
        return str(built(spec)["Deployment", "chat"]["metadata"]["annotations"][label.HASH])

    assert digest({"replicas": 2}) == digest({"replicas": 3})
    assert digest({"replicas": 2}) != digest({"replicas": 2, "resources": {"requests": {"memory": "64Gi"}}})


def test_a_model_of_the_cache_is_shared_with_the_server_and_not_with_the_gateway() -> None:
    made = built(chart={"modelCache": {"claimName": "models"}})
    assert "model-cache" in [one["name"] for one in container(made, label.SERVER)["volumeMounts"]]
    assert "model-cache" not in [one["name"] for one in container(made, label.GATEWAY)["volumeMounts"]]


def test_adapters_are_on_the_claim_that_the_pool_names() -> None:
    made = built({"adapters": {"claimName": "adapters"}})
    (volume,) = [one for one in pod_of(made)["volumes"] if one["name"] == "adapters"]
    assert volume["persistentVolumeClaim"] == {"claimName": "adapters"}


def test_a_model_on_a_claim_is_mounted_and_nothing_is_fetched() -> None:
    made = built(base=BASE.model_copy(update={"source": "pvc://models/llama"}))
    assert not pod_of(made).get("initContainers")
    assert "base" in [one["name"] for one in container(made, label.SERVER)["volumeMounts"]]


def test_the_two_services_have_a_port_each_and_the_pods_are_found_before_they_are_ready() -> None:
    made = built()
    clients, all_pods = made["Service", "chat"]["spec"], made["Service", "chat-pods"]["spec"]
    assert [port["port"] for port in clients["ports"]] == [run.SERVER_PORT]
    assert [port["port"] for port in all_pods["ports"]] == [serving.DELIVERY_PORT]
    assert (all_pods["clusterIP"], all_pods["publishNotReadyAddresses"]) == ("None", True)


def test_who_a_pool_admits() -> None:
    def admits(allowed: list[str], namespace: str) -> bool:
        spec = servingpool.ServingPoolSpec.model_validate({"baseModel": {"name": "a"}, "allowedNamespaces": allowed})
        return spec.admits("ml", namespace)

    assert admits([], "ml")
    assert not admits([], "support")
    assert admits(["support"], "support")
    assert admits(["*"], "anything")


def test_an_ingress_has_tls_and_leads_to_the_clients_port_alone() -> None:
    spec = {"keysSecret": "keys", "ingress": {"host": "a.b", "className": "nginx", "tlsSecretName": "cert"}}
    made = built(spec, chart={"ingress": {"enabled": True, "annotations": {"x/timeout": "300"}}})
    found = made["Ingress", "chat"]
    assert found["metadata"]["annotations"]["x/timeout"] == "300"
    assert found["spec"]["ingressClassName"] == "nginx"
    assert found["spec"]["tls"] == [{"hosts": ["a.b"], "secretName": "cert"}]
    (rule,) = found["spec"]["rules"]
    (path,) = rule["http"]["paths"]
    (port,) = made["Service", "chat"]["spec"]["ports"]
    assert (rule["host"], path["path"], path["pathType"]) == ("a.b", "/v1", "Prefix")
    assert path["backend"]["service"] == {"name": "chat", "port": {"number": port["port"]}}
    again = built(spec, chart={"ingress": {"enabled": True, "annotations": {"x/timeout": "301"}}})["Ingress", "chat"]
    assert meta.hash_of(again) != meta.hash_of(found), "an edit of the chart is applied"
    assert ("Ingress", "chat") not in built(spec)


IDLE: dict[str, Any] = {"idle": {"holdFor": "90s"}, "adapters": {"claimName": "shared"}, "keysSecret": "keys"}


def test_the_activator_is_the_gateway_without_an_engine_a_gpu_and_the_adapters() -> None:
    made = built(IDLE, chart={"serving": {"nodeSelector": {"gpu": "l4"}}})["Deployment", "chat-activator"]["spec"]
    pod = made["template"]["spec"]
    (one,) = pod["containers"]
    parser = argparse.ArgumentParser(exit_on_error=False)
    gateway.add_arguments(parser)
    assert gateway.of(parser.parse_args(one["args"][1:])).hold == 90
    assert [(v["name"], set(v) - {"name"}) for v in pod["volumes"]] == [
        ("tmp", {"emptyDir"}), ("adapters", {"emptyDir"}), ("keys", {"secret"}),
    ]  # fmt: skip
    assert set(one["resources"]["limits"]) == {"memory"}
    assert "nodeSelector" not in pod
    assert made["selector"]["matchLabels"].items() <= made["template"]["metadata"]["labels"].items()
    servers = built(IDLE)["Deployment", "chat"]["spec"]["selector"]["matchLabels"]
    assert not servers.items() <= made["template"]["metadata"]["labels"].items(), "it is not one of the servers"


def test_an_owner_who_wants_requests_refused_has_none_held() -> None:
    refusing = {**IDLE, "idle": {"requests": "Refuse"}}
    assert (
        "--hold=0"
        in built(refusing)["Deployment", "chat-activator"]["spec"]["template"]["spec"]["containers"][0]["args"]
    )


def test_a_pool_that_may_sleep_has_the_same_servers_as_one_that_may_not() -> None:
    never, may = built({**IDLE, "idle": None}), built(IDLE)
    assert ("Deployment", "chat-activator") not in never
    for key, manifest in never.items():
        assert meta.hash_of(manifest) == meta.hash_of(may[key]), key
