"""Common parts of the pods of stages and servers: allowed by the `restricted` Pod Security Standard, with a read-only root."""

import json
import posixpath
from typing import Any

from finetune_api import job, run
from finetune_operator import settings
from finetune_operator.observe import label

USER = 65532
WORK = {"name": "tmp", "emptyDir": {}}
"""Libraries write caches and temporary files to /tmp, which is also HOME; the rest of the root is read-only."""


def security() -> dict[str, Any]:
    return {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def environment(extra: dict[str, str]) -> list[dict[str, Any]]:
    fixed = {"HOME": "/tmp", "TMPDIR": "/tmp", "PYTHONUNBUFFERED": "1"}  # noqa: S108
    return [{"name": name, "value": value} for name, value in {**fixed, **extra}.items()]


def credentials(secret: str | None) -> list[dict[str, Any]]:
    """S3 keys of a Secret as the variables that boto3 reads; without a Secret the pods use their own identity."""
    if secret is None:
        return []
    keys = {"AWS_ACCESS_KEY_ID": False, "AWS_SECRET_ACCESS_KEY": False, "AWS_SESSION_TOKEN": True}
    return [
        {"name": key, "valueFrom": {"secretKeyRef": {"name": secret, "key": key, "optional": optional}}}
        for key, optional in keys.items()
    ]


def secret_value(variable: str, secret: str | None, key: str) -> list[dict[str, Any]]:
    if secret is None:
        return []
    return [{"name": variable, "valueFrom": {"secretKeyRef": {"name": secret, "key": key}}}]


def run_annotation(content: run.Run) -> dict[str, str]:
    """The run file as an annotation of the pod, so that it needs no object of its own."""
    return {label.RUN_FILE: json.dumps(content.wire(), ensure_ascii=False, separators=(",", ":"))}


def run_volume() -> tuple[dict[str, Any], dict[str, Any]]:
    """Volume and mount that show this annotation as the file run.PATH."""
    folder, file = posixpath.split(run.PATH)
    field = {"fieldPath": f"metadata.annotations['{label.RUN_FILE}']"}
    volume = {"name": "run", "downwardAPI": {"items": [{"path": file, "fieldRef": field}]}}
    return volume, {"name": "run", "mountPath": folder, "readOnly": True}


def resources(wanted: job.Resources, chart: settings.Settings, default: job.Requests | None = None) -> dict[str, Any]:
    """Requests, and limits that protect the node: memory, and GPUs, which cannot be overcommitted."""
    requests = wanted.requests.wire() or (default.wire() if default else {})
    limits = {"memory": requests["memory"]} if "memory" in requests else {}
    if wanted.gpus:
        limits[chart.gpu_resource] = str(wanted.gpus)
        requests = {**requests, chart.gpu_resource: str(wanted.gpus)}
    return {"requests": requests, "limits": limits}


def gpu_labels(wanted: job.Resources) -> dict[str, str]:
    """The GPUs that a pod holds, for cost accounting here and in other tools."""
    if not wanted.gpus:
        return {}
    return {label.GPUS: str(wanted.gpus), **({label.GPU_TYPE: wanted.gpu_type} if wanted.gpu_type else {})}


def placement(wanted: job.Resources, chart: settings.Settings) -> dict[str, Any]:
    """Node selector, tolerations and priority. An unknown gpuType selects a node that does not exist: such a pod must wait,
    and must not run on another GPU."""
    kind = chart.gpu_types.get(wanted.gpu_type or "", settings.GpuType())
    if wanted.gpu_type and wanted.gpu_type not in chart.gpu_types:
        kind = settings.GpuType(node_selector={"finetune.dev/unknown-gpu-type": wanted.gpu_type})
    selector = {**kind.node_selector, **wanted.node_selector}
    tolerations = [t.wire() for t in (*kind.tolerations, *wanted.tolerations)]
    return {
        **({"nodeSelector": selector} if selector else {}),
        **({"tolerations": tolerations} if tolerations else {}),
        **({"priorityClassName": wanted.priority_class_name} if wanted.priority_class_name else {}),
    }


def pod(
    chart: settings.Settings,
    *,
    service_account: str | None,
    containers: list[dict[str, Any]],
    volumes: list[dict[str, Any]],
    **more: Any,
) -> dict[str, Any]:
    """A PodSpec. No container gets the token of its ServiceAccount, whether that is the namespace's `default` one or the
    user's."""
    return {
        **({"serviceAccountName": service_account} if service_account else {}),
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        **({"imagePullSecrets": [{"name": n} for n in chart.image_pull_secrets]} if chart.image_pull_secrets else {}),
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
