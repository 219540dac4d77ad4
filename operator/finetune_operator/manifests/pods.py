"""Common parts of the pods of stages and servers: allowed by the `restricted` Pod Security Standard, with a read-only root."""

import decimal
import json
import math
import posixpath
from collections.abc import Mapping
from typing import Any

from finetune_api import job, resources, run
from finetune_operator import podsettings, settings
from finetune_operator.observe import label

WORK = {"name": "tmp", "emptyDir": {}}
"""Libraries write caches and temporary files to /tmp, which is also HOME; the rest of the root is read-only."""


def security() -> dict[str, Any]:
    return {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def environment(extra: Mapping[str, str]) -> list[dict[str, Any]]:
    # USER: a user id without an entry in /etc/passwd has no name, which torch asks for
    fixed = {"HOME": "/tmp", "TMPDIR": "/tmp", "USER": "finetune", "PYTHONUNBUFFERED": "1"}  # noqa: S108
    return [{"name": name, "value": value} for name, value in {**fixed, **extra}.items()]


def credentials(secret: str | None, prefix: str = "") -> list[dict[str, Any]]:
    """S3 keys of a Secret as the variables that boto3 reads (or with a prefix, the trainer); without a Secret the pods use their
    own identity."""
    if secret is None:
        return []
    keys = {"AWS_ACCESS_KEY_ID": False, "AWS_SECRET_ACCESS_KEY": False, "AWS_SESSION_TOKEN": True}
    return [
        {"name": prefix + key, "valueFrom": {"secretKeyRef": {"name": secret, "key": key, "optional": optional}}}
        for key, optional in keys.items()
    ]


def model_credentials(base: run.ResolvedBaseModel) -> list[dict[str, Any]]:
    """The keys to a base model's files: of its own store, and of the hub."""
    return [
        *credentials(base.storage.credentials_secret if base.storage else None, run.BASE_MODEL_KEYS),
        *secret_value("HF_TOKEN", base.access_token_secret, "HF_TOKEN"),
    ]


def secret_value(variable: str, secret: str | None, key: str) -> list[dict[str, Any]]:
    if secret is None:
        return []
    return [{"name": variable, "valueFrom": {"secretKeyRef": {"name": secret, "key": key}}}]


def run_annotation(content: run.Run | run.PoolRun) -> dict[str, str]:
    """The run file as an annotation of the pod, so that it needs no object of its own."""
    return {label.RUN_FILE: json.dumps(content.wire(), ensure_ascii=False, separators=(",", ":"))}


def run_volume() -> tuple[dict[str, Any], dict[str, Any]]:
    """Volume and mount that show this annotation as the file run.PATH."""
    folder, file = posixpath.split(run.PATH)
    field = {"fieldPath": f"metadata.annotations['{label.RUN_FILE}']"}
    volume = {"name": "run", "downwardAPI": {"items": [{"path": file, "fieldRef": field}]}}
    return volume, {"name": "run", "mountPath": folder, "readOnly": True}


DISK = "ephemeralStorage"
KUBERNETES = {"cpu": "cpu", "memory": "memory", DISK: "ephemeral-storage"}
DISK_BASE = 2 * 2**30
"""Bytes for temporary files, checkpoints on their way to S3, and the adapter."""
DISK_PER_TOKEN = 16
"""Bytes of an example's token, as text and as number."""


def fetched(base: run.ResolvedBaseModel) -> bool:
    """Whether the model's files are downloaded, and not mounted."""
    return base.source.startswith(("hf://", "s3://"))


def disk(base: run.ResolvedBaseModel, tokens: int, *, cached: bool = False) -> str | None:
    """Ephemeral storage of a pod that loads the base model: its weights in 16 bits, a tenth more for the rest of its files, and
    the data; None if the number of parameters is unknown. The weights of a model on a claim, its own or the cache's, need none.
    """
    if base.parameters is None:
        return None
    weights = 0 if cached or base.source.startswith("pvc://") else base.parameters * 2 * 1.1
    return f"{math.ceil((weights + tokens * DISK_PER_TOKEN + DISK_BASE) / 2**30)}Gi"


def amounts(
    wanted: job.Resources, layer: podsettings.Pods, extended: dict[str, str], least_disk: str | None = None
) -> dict[str, Any]:
    """Requests and limits of a container. What the job says takes precedence over the chart. Limits protect the node: memory as
    requested, disk twice as much. A limit of the chart below a request is raised to it; a request of the chart gives way to a
    limit of the job.

    extended: GPUs and the like, which cannot be overcommitted. least_disk: the estimate for jobs that request none.
    """
    own = wanted.limits.wire()
    defaults = {k: v for k, v in layer.requests.wire().items() if k not in own}
    if least_disk and DISK not in own:
        defaults[DISK] = _larger(least_disk, layer.requests.ephemeral_storage)
    requests = {**defaults, **wanted.requests.wire()}
    limits = {k: v if k == "memory" else _twice(v) for k, v in requests.items() if k != "cpu"}
    limits |= {k: _larger(v, requests.get(k)) for k, v in {**layer.limits.wire(), **own}.items()}
    return {
        "requests": {KUBERNETES[k]: v for k, v in requests.items()} | extended,
        "limits": {KUBERNETES[k]: v for k, v in limits.items()} | extended,
    }


def _twice(quantity: str) -> str:
    number = quantity.rstrip("mkKMGTi")
    return f"{2 * decimal.Decimal(number)}{quantity.removeprefix(number)}"


def _larger(one: str, other: str | None) -> str:
    return max(one, other or one, key=lambda quantity: resources.amount(quantity) or 0)


def extended(wanted: job.Resources, chart: settings.Settings, nodes: int = 1) -> dict[str, str]:
    """The GPUs of a pod under the name of their type and, where several pods train together, what connects them."""
    if not wanted.gpus:
        return {}
    kind = chart.gpu(wanted.gpu_type)
    return {kind.resource or chart.gpu_resource: str(wanted.gpus), **(kind.multi_node_resources if nodes > 1 else {})}


def gpu_labels(wanted: job.Resources) -> dict[str, str]:
    """The GPUs that a pod holds, for cost accounting here and in other tools."""
    if not wanted.gpus:
        return {}
    return {label.GPUS: str(wanted.gpus), **({label.GPU_TYPE: wanted.gpu_type} if wanted.gpu_type else {})}


def placement(wanted: job.Resources, layer: podsettings.Pods, same: Mapping[str, str]) -> dict[str, Any]:
    """Where and how the pods run: what the job says, on top of the chart. `same`: labels of the pods to spread."""
    spread = [
        {"labelSelector": {"matchLabels": dict(same)}, **constraint.wire()}
        for constraint in layer.topology_spread_constraints
    ]
    found = {
        "nodeSelector": {**layer.node_selector, **wanted.node_selector},
        "tolerations": [t.wire() for t in (*layer.tolerations, *wanted.tolerations)],
        "affinity": layer.affinity.wire(),
        "topologySpreadConstraints": spread,
        "priorityClassName": wanted.priority_class_name or layer.priority_class_name,
        "runtimeClassName": layer.runtime_class_name,
        "dnsPolicy": layer.dns_policy,
        "dnsConfig": layer.dns_config and {k: v for k, v in layer.dns_config.wire().items() if v},
    }
    return {key: value for key, value in found.items() if value}


def spread(same: Mapping[str, str]) -> dict[str, Any]:
    """Of servers, unless the chart says otherwise: on different nodes, where there are such."""
    return {
        "maxSkew": 1,
        "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": dict(same)},
    }


def template(
    labels: Mapping[str, str], content: run.Run | run.PoolRun, layer: podsettings.Pods, spec: dict[str, Any]
) -> dict[str, Any]:
    """A PodTemplateSpec. The operator's labels and annotations take precedence."""
    metadata = {
        "labels": {**layer.labels, **labels},
        "annotations": {**layer.annotations, **run_annotation(content)},
    }
    return {"metadata": metadata, "spec": spec}


def pod(
    chart: settings.Settings,
    *,
    namespace: str,
    service_account: str | None,
    containers: list[dict[str, Any]],
    volumes: list[dict[str, Any]],
    **more: Any,
) -> dict[str, Any]:
    """A PodSpec. No container gets the token of its ServiceAccount, whether that is the namespace's `default` one or the
    user's."""
    secrets = chart.pull_secrets(namespace)
    ids = chart.security_context.wire() if chart.security_context else {}
    return {
        **({"serviceAccountName": service_account} if service_account else {}),
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {**ids, "runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
        **({"imagePullSecrets": [{"name": n} for n in secrets]} if secrets else {}),
        "containers": containers,
        "volumes": [WORK, *volumes],
        **more,
    }


def base_volume(base: run.ResolvedBaseModel) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Volumes and mounts of a base model on a claim (pvc://claim/path); none for other sources."""
    if not base.source.startswith("pvc://"):
        return [], []
    claim, _, path = base.source.removeprefix("pvc://").partition("/")
    volume = {"name": "base", "persistentVolumeClaim": {"claimName": claim, "readOnly": True}}
    mount = {"name": "base", "mountPath": run.MODEL_PATH, "readOnly": True, **({"subPath": path} if path else {})}
    return [volume], [mount]


def data_volumes(content: run.Run) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Volumes and mounts of the claims with data files (pvc://claim/path), each in a folder of its name."""
    claims = sorted({uri.removeprefix("pvc://").partition("/")[0] for uri in content.data if uri.startswith("pvc://")})
    volumes = [
        {"name": f"data-{number}", "persistentVolumeClaim": {"claimName": claim, "readOnly": True}}
        for number, claim in enumerate(claims)
    ]
    mounts = [
        {"name": f"data-{number}", "mountPath": f"{run.DATA_PATH}/{claim}", "readOnly": True}
        for number, claim in enumerate(claims)
    ]
    return volumes, mounts


Parts = tuple[list[dict[str, Any]], list[dict[str, Any]], list[dict[str, Any]]]


def ca_bundle(wanted: job.CaBundle | None) -> Parts:
    """Volume, mount and variable of a bundle of certificate authorities. The pod waits for a ConfigMap that is missing."""
    if wanted is None:
        return [], [], []
    folder, file = posixpath.split(run.CA_PATH)
    items = [{"key": wanted.key, "path": file}]
    volume = {"name": label.AUTHORITIES, "configMap": {"name": wanted.config_map, "items": items}}
    mount = {"name": label.AUTHORITIES, "mountPath": folder, "readOnly": True}
    return [volume], [mount], [{"name": "FINETUNE_CA_BUNDLE", "value": run.CA_PATH}]
