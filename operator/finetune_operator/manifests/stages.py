"""A stage as a Job: one attempt, never repeated by Kubernetes itself except when the node was taken away."""

from typing import Any

from finetune_api import job, run
from finetune_api.reasons import Stage
from finetune_operator import observe, settings
from finetune_operator.manifests import meta, pods

CONTAINER = "finetune"
GRACE_SECONDS = 120
"""From SIGTERM to SIGKILL: time for a checkpoint to reach S3."""
KEEP_SECONDS = 3600
"""How long a finished Job and its pod's log stay to be looked at."""


def build(
    parent: observe.Parent,
    chart: settings.Settings,
    content: run.Run,
    *,
    name: str,
    stage: Stage,
    attempt: int,
    wanted: job.Resources,
    arguments: list[str],
    api_key_secret: str | None = None,
) -> meta.Manifest:
    """The Job of one attempt of a stage.

    `arguments` follow the stage's name on the command line of the trainer image (see trainer-image/README.md).
    """
    labels = meta.labels(
        parent,
        chart.labels,
        **{observe.REVISION: content.revision, observe.STAGE: stage, observe.ATTEMPT: str(attempt)},
    )
    volumes, mounts = pods.base_volume(content.base_model) if stage is not Stage.VERIFY else ([], [])
    container: dict[str, Any] = {
        "name": CONTAINER,
        "image": chart.images.fetch if stage is Stage.VERIFY else chart.images.trainer,
        "imagePullPolicy": chart.image_pull_policy,
        "args": [stage.value, "--run", run.PATH, *arguments],
        "env": [
            *pods.environment({}),
            *pods.credentials(content.storage.credentials_secret),
            *pods.secret_value("HF_TOKEN", content.base_model.access_token_secret, "HF_TOKEN"),
            *pods.secret_value("API_KEY", api_key_secret, "API_KEY"),
        ],
        "resources": pods.resources(wanted, chart),
        "securityContext": pods.security(),
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [
            {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108
            {"name": "run", "mountPath": "/etc/finetune", "readOnly": True},
            *mounts,
        ],
        **({"ports": [{"name": "metrics", "containerPort": run.METRICS_PORT}]} if stage is Stage.TRAIN else {}),
    }
    if wanted.gpus > 1:
        container["volumeMounts"].append({"name": "shm", "mountPath": "/dev/shm"})  # noqa: S108
        volumes = [*volumes, {"name": "shm", "emptyDir": {"medium": "Memory"}}]
    template = pods.pod(
        chart,
        service_account=meta.service_account(parent, content.storage.service_account_name),
        token=stage in {Stage.TRAIN, Stage.EVALUATE},
        containers=[container],
        volumes=[{"name": "run", "configMap": {"name": meta.run_config(parent, content.revision)}}, *volumes],
        restartPolicy="Never",
        terminationGracePeriodSeconds=GRACE_SECONDS,
        **pods.placement(wanted, chart),
    )
    return meta.hashed(
        {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": meta.owned(parent, name, labels),
            "spec": {
                "backoffLimit": 0,
                "podReplacementPolicy": "Failed",
                "podFailurePolicy": {
                    "rules": [{"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}]
                },
                "ttlSecondsAfterFinished": KEEP_SECONDS,
                "template": {"metadata": {"labels": labels}, "spec": template},
            },
        }
    )
