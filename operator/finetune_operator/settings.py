"""What the platform team sets through the chart: images, GPU types, pull policy. One JSON file, read at start."""

import pathlib

import pydantic
from pydantic import Field

from finetune_api import job, model

PATH = pathlib.Path("/etc/finetune-operator/settings.json")


class Images(model.Model):
    trainer: str
    fetch: str
    serving: str


class GpuType(model.Model):
    """The meaning of a job's `gpuType`."""

    node_selector: dict[str, str] = Field(default_factory=dict)
    tolerations: list[job.Toleration] = Field(default_factory=list)
    memory_gi_b: float | None = Field(default=None, gt=0, alias="memoryGiB")
    price_per_hour: float | None = Field(default=None, ge=0, description="Of one GPU, in Settings.currency.")


class Serving(model.Model):
    """Arguments and environment of every server, for example those of a CPU build."""

    args: list[str] = Field(default_factory=list)
    env: dict[str, str] = Field(default_factory=dict)
    shm_size: job.Quantity = "1Gi"
    requests: job.Requests = Field(default_factory=job.Requests)


class SmallStage(model.Model):
    requests: job.Requests = Field(default_factory=job.Requests)


class Kueue(model.Model):
    enabled: bool = Field(default=False, description="Whether the operator reads Kueue's Workloads.")


class Settings(model.Model):
    images: Images
    image_pull_policy: str = "IfNotPresent"
    image_pull_secrets: list[str] = Field(default_factory=list)
    namespaces: list[str] = Field(default_factory=list, description="Empty: all namespaces.")
    gpu_resource: str = "nvidia.com/gpu"
    gpu_types: dict[str, GpuType] = Field(default_factory=dict)
    currency: str = Field(default="USD", min_length=1, max_length=16, description="The currency of prices.")
    serving: Serving = Field(default_factory=Serving)
    preflight: SmallStage = Field(default_factory=SmallStage)
    verify: SmallStage = Field(default_factory=SmallStage)
    kueue: Kueue = Field(default_factory=Kueue)
    retry_backoff_seconds: float = Field(default=10, ge=0, description="Doubled with every retry, up to five minutes.")
    drain_seconds: float = Field(
        default=20, ge=0, description="How long the old release keeps running after the switch."
    )
    progress_seconds: float = Field(default=3, ge=0, description="Minimum time between two writes of a job's progress.")
    labels: dict[str, str] = Field(
        default_factory=dict, description="Labels of every child, for example a cost center."
    )
    log_level: str = "INFO"


def load(path: pathlib.Path = PATH) -> Settings:
    """The settings of `path`.

    Raises:
        SystemExit: the file is missing or wrong; the text says which field.
    """
    try:
        return Settings.model_validate_json(path.read_text())
    except FileNotFoundError:
        raise SystemExit(
            f"no settings at {path}: the chart mounts them there; set another file with --settings"
        ) from None
    except pydantic.ValidationError as error:
        raise SystemExit(f"settings {path} are invalid: {error}") from None
