"""The container of the gateway, in the pods of a ServingPool and alone; and the Deployment of an activator, which is the gateway
alone: it takes the requests of a pool or of a job while no server is ready."""

from typing import Any

from finetune_api import deployment, resources, run, serving
from finetune_api.reasons import Stage
from finetune_operator import podsettings, settings
from finetune_operator.manifests import meta, pods
from finetune_operator.observe import label

KEYS = "/etc/finetune/keys"
GRACE_SECONDS = 290
"""That answers have to end when a pod stops: some 4,000 tokens at 15 tokens per second."""
GATEWAY = resources.Resources(gpus=0, requests=resources.Requests(cpu="250m", memory="512Mi"))
ACTIVATOR = resources.Resources(gpus=0, requests=resources.Requests(cpu="50m", memory="512Mi"))


def name_of_activator(name: str) -> str:
    """The Deployment of what takes requests while no server is ready."""
    return f"{name}-activator"


def selector_of_activator(parent: meta.Owner) -> dict[str, str]:
    return {label.UID: parent.uid, label.ACTIVATOR: parent.name}


def hold(idle: deployment.Idle) -> str:
    """The argument that makes an activator of a gateway."""
    return f"--hold={deployment.seconds(idle.hold_for) if idle.requests == 'Hold' else 0}"


def container(chart: settings.Settings, arguments: list[str], mounts: list[dict[str, Any]]) -> dict[str, Any]:
    """The gateway."""

    def probe(path: str, period: int, failures: int) -> dict[str, Any]:
        get = {"path": path, "port": serving.DELIVERY_PORT}
        return {"httpGet": get, "periodSeconds": period, "timeoutSeconds": 5, "failureThreshold": failures}

    return {
        "name": label.GATEWAY,
        "image": chart.images.fetch,
        "imagePullPolicy": chart.image_pull_policy,
        "args": ["gateway", *arguments],
        "env": pods.environment({}),
        "resources": pods.amounts(GATEWAY, podsettings.Pods(), {}),
        "securityContext": pods.security(),
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "ports": [
            {"name": "http", "containerPort": run.SERVER_PORT},
            {"name": "delivery", "containerPort": serving.DELIVERY_PORT},
        ],
        "startupProbe": probe("/healthz", 2, 60),
        "readinessProbe": probe("/readyz", 5, 2),
        "livenessProbe": probe("/healthz", 15, 4),
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}, *mounts],  # noqa: S108
    }


def activator(
    parent: meta.Owner,
    chart: settings.Settings,
    metadata: dict[str, Any],
    gateway: dict[str, Any],
    volumes: list[dict[str, Any]],
    service_account: str | None,
) -> meta.Manifest:
    """One pod with this container, without GPU and engine, where the chart wants pods that need no GPU. metadata: of the
    Deployment; its labels are the pod's, too."""
    layer, selector = chart.pods_of(Stage.VERIFY, None), selector_of_activator(parent)
    pod = pods.pod(
        chart,
        namespace=parent.namespace,
        service_account=service_account,
        containers=[{**gateway, "resources": pods.amounts(ACTIVATOR, podsettings.Pods(), {})}],
        volumes=volumes,
        terminationGracePeriodSeconds=GRACE_SECONDS + 10,
        **pods.placement(resources.Resources(gpus=0), layer, selector),
    )
    labels = {**layer.labels, **metadata["labels"], **selector, label.POOL: ""}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata,
        "spec": {
            "replicas": 1,
            "revisionHistoryLimit": 1,
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
            "selector": {"matchLabels": selector},
            "template": {"metadata": {"labels": labels, "annotations": layer.annotations}, "spec": pod},
        },
    }


def scaled(made: meta.Manifest) -> meta.Manifest:
    """A Deployment with the digest of its spec without the replicas, which it has besides."""
    prescribed = {name: value for name, value in made["spec"].items() if name != "replicas"}
    return meta.marked(made, prescribed, **{label.REPLICAS: str(made["spec"]["replicas"])})
