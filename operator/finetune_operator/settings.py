"""What the platform team sets through the chart: images, GPU types, pull policy. One JSON file, read at start."""

import pathlib
from typing import Literal

import pydantic
from pydantic import Field

from finetune_api import job, model
from finetune_api.reasons import Stage
from finetune_operator import podsettings

USER = 65532
PATH = pathlib.Path("/etc/finetune-operator/settings.json")


class Images(model.Model):
    trainer: str
    fetch: str
    serving: str


class GpuType(podsettings.Pods):
    """The meaning of a job's `gpuType`, and settings of the pods that request it."""

    resource: podsettings.ResourceName | None = Field(
        default=None,
        description="The resource name of one GPU, for example a MIG slice's. Absent: Settings.gpu_resource.",
    )
    multi_node_resources: dict[podsettings.ResourceName, job.Quantity] = Field(
        default_factory=dict,
        description="What each pod of a training on several nodes requests besides, for example RDMA.",
    )
    memory_gi_b: float | None = Field(default=None, gt=0, alias="memoryGiB")
    price_per_hour: float | None = Field(default=None, ge=0, description="Of one GPU, in Settings.currency.")


class Serving(podsettings.Pods):
    """Arguments and pods of every server, for example those of a CPU build."""

    args: list[str] = Field(default_factory=list)
    shm_size: job.Quantity = "1Gi"


class ModelClaim(model.Model):
    """The claim with base models of one namespace."""

    name: model.Name
    size: job.Quantity | None = None


class ModelCache(model.Model):
    """Base models on a claim that the pods of a namespace share. Without one each pod downloads its own."""

    claim_name: model.Name | None = Field(default=None, description="A PersistentVolumeClaim in each job's namespace.")
    claim_name_by_namespace: dict[str, model.Name | Literal[""]] = Field(
        default_factory=dict, description="Another one in these namespaces; empty: none there."
    )
    size: job.Quantity | None = Field(
        default=None, description="What all models on it may take. Absent: what its file system has."
    )


class Kueue(model.Model):
    enabled: bool = Field(default=False, description="Whether the operator reads Kueue's Workloads.")


class Ingress(model.Model):
    enabled: bool = Field(default=False, description="Whether the operator writes Ingresses for ServingPools.")
    annotations: dict[str, str] = Field(default_factory=dict, description="Of every Ingress.")


class Gateway(model.Model):
    """The Gateway to which HTTPRoutes are attached."""

    name: str = ""
    namespace: str = ""
    section_name: str | None = Field(default=None, description="One of its listeners. Absent: all that fit.")


class Inference(model.Model):
    """Gateway API's inference extension."""

    enabled: bool = Field(
        default=False, description="Whether the operator writes InferencePools, and HTTPRoutes to them."
    )
    model_rewrites: bool = Field(default=False, description="Whether it writes InferenceModelRewrites of llm-d, too.")


class GatewayApi(model.Model):
    enabled: bool = Field(default=False, description="Whether the operator writes HTTPRoutes.")
    gateway: Gateway = Field(default_factory=Gateway)
    inference: Inference = Field(default_factory=Inference)

    @pydantic.model_validator(mode="after")
    def _is_named(self) -> "GatewayApi":
        if self.enabled and not (self.gateway.name and self.gateway.namespace):
            raise ValueError("gatewayAPI.enabled needs gatewayAPI.gateway.name and gatewayAPI.gateway.namespace")
        if self.inference.enabled and not self.enabled:
            raise ValueError(
                "gatewayAPI.inference.enabled needs gatewayAPI.enabled: an HTTPRoute leads to an InferencePool"
            )
        if self.inference.model_rewrites and not self.inference.enabled:
            raise ValueError("gatewayAPI.inference.modelRewrites needs gatewayAPI.inference.enabled")
        return self


class Settings(model.Model):
    images: Images
    index_url: str = Field(
        default="", description="Of the Service of the operator's pods for the index of ServingPools."
    )
    image_pull_policy: str = "IfNotPresent"
    image_pull_secrets: list[str] = Field(default_factory=list, description="Of the pods in all namespaces.")
    image_pull_secrets_by_namespace: dict[str, list[str]] = Field(default_factory=dict, description="Besides these.")
    security_context: podsettings.SecurityContext | None = podsettings.SecurityContext(
        run_as_user=USER, run_as_group=USER, fs_group=USER
    )
    namespaces: list[str] = Field(default_factory=list, description="Empty: all namespaces.")
    gpu_resource: str = "nvidia.com/gpu"
    gpu_types: dict[str, GpuType] = Field(default_factory=dict)
    currency: str = Field(default="USD", min_length=1, max_length=16, description="The currency of prices.")
    pods: podsettings.Pods = Field(default_factory=podsettings.Pods, description="All pods of jobs.")
    preflight: podsettings.Pods = Field(default_factory=podsettings.Pods)
    training: podsettings.Pods = Field(
        default_factory=podsettings.Pods,
        description="Baseline, training and evaluation: the stages that load the model.",
    )
    verify: podsettings.Pods = Field(default_factory=podsettings.Pods)
    serving: Serving = Field(default_factory=Serving)
    ca_bundle: job.CaBundle | None = Field(
        default=None, description="Of jobs that name none, in a ConfigMap of their namespace."
    )
    model_cache: ModelCache = Field(default_factory=ModelCache)
    kueue: Kueue = Field(default_factory=Kueue)
    ingress: Ingress = Field(default_factory=Ingress)
    gateway_api: GatewayApi = Field(default_factory=GatewayApi)
    retry_backoff_seconds: float = Field(default=10, ge=0, description="Doubled with every retry, up to five minutes.")
    drain_seconds: float = Field(
        default=20, ge=0, description="How long the old release keeps running after the switch."
    )
    stalled_after_seconds: float = Field(
        default=900,
        ge=0,
        description="How long a job waits for something that somebody has to do until it has Stalled=True.",
    )
    progress_seconds: float = Field(default=3, ge=0, description="Minimum time between two writes of a job's progress.")
    labels: dict[str, str] = Field(
        default_factory=dict, description="Labels of every child, for example a cost center."
    )
    log_level: str = "INFO"

    def gpu(self, name: str | None) -> GpuType:
        """The meaning of a gpuType; without one, any GPU. An unknown one selects a node that does not exist: its pod must wait,
        and must not run on another GPU."""
        if name is None:
            return GpuType()
        return self.gpu_types.get(name) or GpuType(node_selector={"finetune.dev/unknown-gpu-type": name})

    def pods_of(self, stage: Stage | None, gpu_type: str | None) -> podsettings.Pods:
        """The settings of the pods of a stage, or of a server (None)."""
        layers = {None: self.serving, Stage.PREFLIGHT: self.preflight, Stage.VERIFY: self.verify}
        return self.gpu(gpu_type).over(layers.get(stage, self.training).over(self.pods))

    def model_claim(self, namespace: str) -> ModelClaim | None:
        """The claim on which pods of this namespace share base models."""
        cache = self.model_cache
        name = cache.claim_name_by_namespace.get(namespace, cache.claim_name)
        return ModelClaim(name=name, size=cache.size) if name else None

    def pull_secrets(self, namespace: str) -> list[str]:
        return [*self.image_pull_secrets, *self.image_pull_secrets_by_namespace.get(namespace, [])]


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
        # without the values: one of them may be a secret that does not belong there
        wrong = error.errors(include_input=False, include_url=False)
        places = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in wrong)
        raise SystemExit(f"settings {path} are invalid: {places}") from None
