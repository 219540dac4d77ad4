"""vLLM in a pod: its command line, its container, and the one that fetches its model, of a Deployment or beside a stage."""

from collections.abc import Mapping
from typing import Any

from finetune_api import arguments as vllm_arguments
from finetune_api import job, run
from finetune_operator import settings
from finetune_operator.manifests import pods
from finetune_operator.observe import label

OFFLINE = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}

MODELS = {"name": "models", "emptyDir": {}}
MOUNT = {"name": "models", "mountPath": "/models"}


def arguments(
    base: run.ResolvedBaseModel,
    rank: int,
    gpus: int,
    chart: settings.Settings,
    extra: list[str],
    *,
    first: tuple[str, ...] = (),
    then: tuple[str, ...] = (),
) -> list[str]:
    """vLLM's command line; later arguments override earlier ones. `first` and `then`: before and after the adapters' rank."""
    given = [*chart.serving.args, *base.extra_args, *extra]
    split = vllm_arguments.tensor_parallel(gpus, given)
    return [
        f"--model={run.MODEL_PATH}",
        f"--served-model-name={base.name}",
        f"--port={run.SERVER_PORT}",
        "--enable-lora",
        *first,
        f"--max-lora-rank={vllm_arguments.max_lora_rank(rank)}",
        *then,
        *([f"--tensor-parallel-size={split}"] if split > 1 else []),
        *given,
    ]


def server(
    chart: settings.Settings,
    image: str,
    arguments_: list[str],
    env: list[dict[str, Any]],
    base: run.ResolvedBaseModel,
    resources: Mapping[str, Any],
    **more: Any,
) -> dict[str, Any]:
    """The server's container, without its probes."""
    return {
        "name": label.SERVER,
        "image": image,
        "imagePullPolicy": chart.image_pull_policy,
        # by module: the console script looks for a distribution that CPU builds lack
        "command": ["python3", "-m", "vllm.entrypoints.openai.api_server"],
        "args": arguments_,
        "env": env,
        "resources": resources,
        "securityContext": pods.security(),
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [
            {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108
            {**MOUNT, "readOnly": True},
            {"name": "shm", "mountPath": "/dev/shm"},  # noqa: S108
            *pods.base_volume(base)[1],
        ],
        **more,
    }


def shared_memory(size: str) -> dict[str, Any]:
    return {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": size}}


def fetch(
    chart: settings.Settings,
    image: str,
    arguments_: list[str],
    env: Mapping[str, str],
    base: run.ResolvedBaseModel,
    storage: job.Connection,
    ca: job.CaBundle | None,
    resources: Mapping[str, Any],
) -> dict[str, Any]:
    """The init container that puts the base model and adapters into the volume of models."""
    _, trusted, where = pods.ca_bundle(ca)
    _, base_mounts = pods.base_volume(base)
    return {
        "name": label.FETCH,
        "image": image,
        "imagePullPolicy": chart.image_pull_policy,
        "args": [
            "fetch", "--run", run.PATH, *arguments_, *([] if base_mounts else ["--base-to", run.MODEL_PATH]),
        ],
        "env": [
            *pods.environment(env),
            *pods.credentials(storage.credentials_secret),
            *pods.model_credentials(base),
            *where,
        ],
        "resources": resources,
        "securityContext": pods.security(),
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [
            {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108
            pods.run_volume()[1],
            MOUNT,
            *base_mounts,
            *trusted,
        ],
    }  # fmt: skip
