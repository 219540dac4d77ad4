"""The objects of a ServingPool: a Deployment, two Services, a PodDisruptionBudget, and where it wants them an Ingress, and a
Deployment of the activator, which takes requests while no server is ready.

A pod: `fetch` puts the base model into a volume; `server`, vLLM, listens on loopback; `gateway` is what clients, stages and other
pods of the pool reach (finetune_trainer.gateway).
"""

from typing import Any

from finetune_api import arguments as vllm_arguments
from finetune_api import deployment, run, serving, servingpool, storage
from finetune_operator import podsettings, settings
from finetune_operator.manifests import gateway, meta, modelcache, pods, vllm
from finetune_operator.observe import label, pools

KIND = "ServingPool"
ADAPTERS = "/adapters"
HEALTH = f"import urllib.request as r; r.urlopen('http://127.0.0.1:{serving.ENGINE_PORT}/health', timeout=5)"
"""The kubelet's own requests go to the pod's address, at which the engine does not listen."""


def name_of_pods(name: str) -> str:
    """The headless Service of all pods of a pool."""
    return f"{name}-pods"


def endpoint(parent: meta.Owner) -> str:
    return f"http://{parent.name}.{parent.namespace}.svc:{run.SERVER_PORT}"


def build(
    parent: pools.Parent,
    spec: servingpool.ServingPoolSpec,
    base: run.ResolvedBaseModel,
    chart: settings.Settings,
    replicas: int,
    *,
    to_activator: bool = False,
) -> list[meta.Manifest]:
    """All objects, each with the digest of its spec; a Deployment's is without the replicas, which it has besides.

    replicas: of the servers; to_activator: whether clients reach the activator, and not the servers.
    """
    front = gateway.selector_of_activator(parent) if to_activator else selector(parent)
    others = [*_services(parent, chart, front), _budget(parent, chart)]
    return [
        gateway.scaled(_deployment(parent, spec, base, chart, replicas)),
        *([gateway.scaled(_activator(parent, spec, spec.idle, base, chart))] if spec.idle else []),
        *(meta.marked(one, one["spec"]) for one in others),
        *([_ingress(parent, spec.ingress, chart)] if spec.ingress and chart.ingress.enabled else []),
    ]


def selector(parent: meta.Owner) -> dict[str, str]:
    return {label.UID: parent.uid, label.POOL: parent.name}


def metadata(parent: pools.Parent, chart: settings.Settings, name: str) -> dict[str, Any]:
    """Of an object of the pool."""
    return meta.owned(parent, name, _labels(parent, chart), KIND)


def _labels(parent: pools.Parent, chart: settings.Settings) -> dict[str, str]:
    return {
        **chart.labels,
        label.MANAGED_BY: label.MANAGER,
        "app.kubernetes.io/name": "servingpool",
        "app.kubernetes.io/instance": parent.name,
        **selector(parent),
    }


def _deployment(
    parent: pools.Parent,
    spec: servingpool.ServingPoolSpec,
    base: run.ResolvedBaseModel,
    chart: settings.Settings,
    replicas: int,
) -> meta.Manifest:
    layer = chart.pods_of(None, spec.resources.gpu_type)
    labels = {**_labels(parent, chart), **pods.gpu_labels(spec.resources)}
    content = run.PoolRun(
        name=parent.name, namespace=parent.namespace, base_model=base, storage=_connection(spec.storage)
    )
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata(parent, chart, parent.name),
        "spec": {
            "replicas": replicas,
            "revisionHistoryLimit": 1,
            "progressDeadlineSeconds": 7200,
            "strategy": {"type": "RollingUpdate", "rollingUpdate": _update(spec)},
            "selector": {"matchLabels": selector(parent)},
            "template": pods.template(
                labels,
                content,
                layer,
                modelcache.shared(
                    _pod(parent, spec, base, chart, layer),
                    base,
                    chart.model_claim(parent.namespace),
                    chart.images.fetch,
                ),
            ),
        },
    }


def _activator(
    parent: pools.Parent,
    spec: servingpool.ServingPoolSpec,
    idle: deployment.Idle,
    base: run.ResolvedBaseModel,
    chart: settings.Settings,
) -> meta.Manifest:
    return gateway.activator(
        parent,
        chart,
        metadata(parent, chart, gateway.name_of_activator(parent.name)),
        _gateway(parent, spec, base, chart, [gateway.hold(idle)]),
        [{"name": "adapters", "emptyDir": {}}, *_keys(spec)],
        spec.storage.service_account_name,
    )


def _keys(spec: servingpool.ServingPoolSpec) -> list[dict[str, Any]]:
    return [{"name": "keys", "secret": {"secretName": spec.keys_secret, "optional": True}}] if spec.keys_secret else []


def _connection(of: servingpool.Storage) -> storage.Connection:
    wanted = of.model_dump(exclude={"ca_bundle", "service_account_name"})
    return storage.Connection(**wanted)


def _update(spec: servingpool.ServingPoolSpec) -> dict[str, int]:
    """A second pod for the time of an update needs GPUs that a cluster may not have; without it, one pod less serves."""
    surge = spec.update == "Surge" or (spec.update is None and spec.replicas == 1)
    return {"maxSurge": 1, "maxUnavailable": 0} if surge else {"maxSurge": 0, "maxUnavailable": 1}


def _pod(
    parent: pools.Parent,
    spec: servingpool.ServingPoolSpec,
    base: run.ResolvedBaseModel,
    chart: settings.Settings,
    layer: podsettings.Pods,
) -> dict[str, Any]:
    authorities_of = spec.storage.ca_bundle or chart.ca_bundle
    authorities, _, _ = pods.ca_bundle(authorities_of)
    base_volumes, mounted = pods.base_volume(base)
    amounts = pods.amounts(spec.resources, layer, {})
    fetch = vllm.fetch(
        chart, chart.images.fetch, [], layer.env, base, _connection(spec.storage), authorities_of, amounts
    )
    claim = spec.adapters.claim_name
    volume = {"persistentVolumeClaim": {"claimName": claim}} if claim else {"emptyDir": {}}
    found = pods.pod(
        chart,
        namespace=parent.namespace,
        service_account=spec.storage.service_account_name,
        containers=[_server(spec, base, chart, layer), _gateway(parent, spec, base, chart, [])],
        volumes=[
            pods.run_volume()[0],
            vllm.MODELS,
            vllm.shared_memory(chart.serving.shm_size),
            {"name": "adapters", **volume},
            *_keys(spec),
            *base_volumes,
            *authorities,
        ],
        **({} if mounted else {"initContainers": [fetch]}),
        terminationGracePeriodSeconds=gateway.GRACE_SECONDS + 10,
        **pods.placement(spec.resources, layer, selector(parent)),
    )
    return {"topologySpreadConstraints": [pods.spread(selector(parent))], **found}


def rank(spec: servingpool.ServingPoolSpec) -> int:
    """The rank that the servers reserve memory for."""
    return vllm_arguments.max_lora_rank(spec.adapters.max_rank)


def arguments(spec: servingpool.ServingPoolSpec, base: run.ResolvedBaseModel, chart: settings.Settings) -> list[str]:
    """vLLM's command line; later arguments override earlier ones."""
    split = vllm_arguments.tensor_parallel(
        spec.resources.gpus, [*chart.serving.args, *base.extra_args, *spec.extra_args]
    )
    return [
        f"--model={run.MODEL_PATH}",
        f"--served-model-name={base.name}",
        "--host=127.0.0.1",
        f"--port={serving.ENGINE_PORT}",
        *([f"--tensor-parallel-size={split}"] if split > 1 else []),
        *chart.serving.args,
        *base.extra_args,
        "--enable-lora",
        f"--max-lora-rank={rank(spec)}",
        f"--max-loras={spec.adapters.on_gpu}",
        f"--max-cpu-loras={spec.adapters.in_memory}",
        *([f"--max-model-len={spec.context_length}"] if spec.context_length else []),
        # The gateway sends the adapter's own chat template, and refuses one from a client.
        "--trust-request-chat-template",
        *spec.extra_args,
    ]


def _server(
    spec: servingpool.ServingPoolSpec, base: run.ResolvedBaseModel, chart: settings.Settings, layer: podsettings.Pods
) -> dict[str, Any]:
    health = {"exec": {"command": ["python3", "-c", HEALTH]}, "timeoutSeconds": 10}
    found = vllm.server(
        chart,
        spec.image or chart.images.serving,
        arguments(spec, base, chart),
        pods.environment({**vllm.OFFLINE, "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True", **layer.env}),
        base,
        pods.amounts(spec.resources, layer, pods.extended(spec.resources, chart)),
        startupProbe={**health, "periodSeconds": 5, "failureThreshold": 720},
        livenessProbe={**health, "periodSeconds": 30, "failureThreshold": 4},
        # The kubelet stops both containers at once; the engine is needed until the last answer has ended.
        lifecycle={"preStop": {"httpGet": {"path": "/drained", "port": serving.DELIVERY_PORT}}},
    )
    mount = {"name": "adapters", "mountPath": ADAPTERS, "readOnly": True}
    return {**found, "volumeMounts": [*found["volumeMounts"], mount]}


def _gateway(
    parent: pools.Parent,
    spec: servingpool.ServingPoolSpec,
    base: run.ResolvedBaseModel,
    chart: settings.Settings,
    more: list[str],
) -> dict[str, Any]:
    keys = [{"name": "keys", "mountPath": gateway.KEYS, "readOnly": True}] if spec.keys_secret else []
    return gateway.container(
        chart,
        [
            f"--pool={parent.key}",
            f"--index={chart.index_url}",
            f"--adapters={ADAPTERS}",
            f"--peers={name_of_pods(parent.name)}.{parent.namespace}.svc",
            f"--base-model={base.name}",
            f"--model-path={run.MODEL_PATH}",
            f"--max-rank={rank(spec)}",
            f"--in-memory={spec.adapters.in_memory}",
            f"--grace={gateway.GRACE_SECONDS}",
            *([f"--keys={gateway.KEYS}"] if keys else []),
            *(["--serve-base-model"] if spec.serve_base_model else []),
            *more,
        ],
        [{"name": "adapters", "mountPath": ADAPTERS}, *keys],
    )


def _services(parent: pools.Parent, chart: settings.Settings, front: dict[str, str]) -> list[meta.Manifest]:
    """front: labels of the pods that clients reach."""

    def service(name: str, port: int, port_name: str, pods_of: dict[str, str], **spec: Any) -> meta.Manifest:
        return {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": metadata(parent, chart, name),
            "spec": {
                **spec,
                "selector": pods_of,
                "ports": [{"name": port_name, "port": port, "targetPort": port, "protocol": "TCP"}],
            },
        }

    headless = {"clusterIP": "None", "publishNotReadyAddresses": True}
    return [
        service(parent.name, run.SERVER_PORT, "http", front),
        service(name_of_pods(parent.name), serving.DELIVERY_PORT, "delivery", selector(parent), **headless),
    ]


def _budget(parent: pools.Parent, chart: settings.Settings) -> meta.Manifest:
    """Nodes are drained one pod at a time. A pool of one pod does not keep its node from being drained."""
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": metadata(parent, chart, parent.name),
        "spec": {"maxUnavailable": 1, "selector": {"matchLabels": selector(parent)}},
    }


def _ingress(parent: pools.Parent, wanted: servingpool.Ingress, chart: settings.Settings) -> meta.Manifest:
    """Annotations are the chart's: some controllers take configuration from them."""
    backend = {"service": {"name": parent.name, "port": {"number": run.SERVER_PORT}}}
    secret = {"secretName": wanted.tls_secret_name} if wanted.tls_secret_name else {}
    spec = {
        **({"ingressClassName": wanted.class_name} if wanted.class_name else {}),
        "tls": [{"hosts": [wanted.host], **secret}],
        "rules": [
            {"host": wanted.host, "http": {"paths": [{"path": "/v1", "pathType": "Prefix", "backend": backend}]}}
        ],
    }
    annotations = chart.ingress.annotations
    about = {**metadata(parent, chart, parent.name), "annotations": annotations}
    manifest = {"apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "metadata": about, "spec": spec}
    return meta.marked(manifest, {"spec": spec, "annotations": annotations})
