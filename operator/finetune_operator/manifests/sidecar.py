"""The server beside baseline and evaluation: a native sidecar that has loaded the base model before the stage starts, and ends
after it (docs/adr/0045-a-server-beside-the-evaluation.md). It listens on loopback alone; the stage puts adapters into the common
volume and has them loaded."""

import dataclasses
from typing import Any

from finetune_api import job, run
from finetune_api.reasons import Stage
from finetune_operator import settings
from finetune_operator.manifests import pods, vllm

STAGES = frozenset({Stage.BASELINE, Stage.EVALUATE})
"""Stages that ask a model questions."""

HEALTH = (
    "import urllib.request as r; "
    f"r.urlopen('http://127.0.0.1:{run.SERVER_PORT}/health', timeout=5)"
)  # fmt: skip
"""The kubelet's own probes cannot reach a loopback address."""


CONTEXT = "--max-model-len=auto"
"""As long as the GPUs have room for, unless chart, BaseModel or job say how long."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """The server of a stage, by the job's spec."""

    image: str | None
    """Absent: the chart's."""
    arguments: tuple[str, ...]
    """Those of the deployment."""
    rank: int
    """The largest of the adapters'."""


@dataclasses.dataclass(frozen=True)
class Parts:
    """What the pod of a stage gets besides its own container."""

    init_containers: list[dict[str, Any]]
    volumes: list[dict[str, Any]]
    mounts: list[dict[str, Any]]
    """Of the stage's container."""
    arguments: list[str]
    """Of the stage."""


def arguments(plan: Plan, base: run.ResolvedBaseModel, gpus: int, chart: settings.Settings) -> list[str]:
    """Those of the Deployment, but on loopback, and split over as many GPUs of this pod as the model's heads allow."""
    split = base.architecture.splits(gpus)[-1] if base.architecture else max(1, gpus)
    return [
        *vllm.arguments(base, plan.rank, 1, chart, list(plan.arguments), first=("--host=127.0.0.1", CONTEXT)),
        f"--tensor-parallel-size={split}",
        "--pipeline-parallel-size=1",
        "--data-parallel-size=1",
        "--enable-prefix-caching",
    ]


def parts(
    plan: Plan,
    chart: settings.Settings,
    content: run.Run,
    wanted: job.Resources,
    stage: Stage,
    least_disk: str | None,
) -> Parts:
    """`wanted`: what the server requests, with its GPUs."""
    base, layer = content.base_model, chart.pods_of(stage, wanted.gpu_type)
    base_volumes, base_mounts = pods.base_volume(base)
    server = vllm.server(
        chart,
        plan.image or chart.images.serving,
        arguments(plan, base, wanted.gpus, chart),
        pods.environment({
            **vllm.OFFLINE, **chart.pods_of(None, wanted.gpu_type).env, "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
        }),
        base,
        pods.amounts(wanted, layer, pods.extended(wanted, chart), least_disk),
        restartPolicy="Always",
        startupProbe={
            "exec": {"command": ["python3", "-c", HEALTH]},
            "periodSeconds": 3,
            "timeoutSeconds": 10,
            "failureThreshold": 1200,
        },
    )  # fmt: skip
    fetch = vllm.fetch(
        chart, chart.images.fetch, [], layer.env, base, content.storage, content.storage.ca_bundle or chart.ca_bundle,
        pods.amounts(wanted, layer, {}, least_disk),
    )  # fmt: skip
    return Parts(
        # a claim with the model needs nothing fetched
        init_containers=[server] if base_mounts else [fetch, server],
        volumes=[vllm.MODELS, vllm.shared_memory(chart.serving.shm_size), *base_volumes],
        mounts=[vllm.MOUNT, *base_mounts],
        arguments=[
            f"--server=http://127.0.0.1:{run.SERVER_PORT}",
            # vLLM's CPU build (0.32) ends when requests for log-probabilities come in a batch
            *([] if wanted.gpus else ["--scoring-at-once=1"]),
        ],
    )
