"""ServingPool: servers of one base model that serve the adapters of many jobs; and its status.

A FineTuneJob chooses one with spec.deployment.pool. What operator and gateways tell each other is in `serving`.
"""

import datetime
from typing import Annotated, Any, Literal

from pydantic import Field

from finetune_api import arguments, basemodel, deployment, model, status
from finetune_api import storage as stores
from finetune_api.resources import ServerResources

DEDICATED = "Dedicated"
"""The value of spec.deployment.pool that means a server of the job's own."""

MAXIMUM_NAME = 57
"""Longest metadata.name: the Service <name>-pods is a DNS label."""

EVERYWHERE = "*"
"""The entry of spec.allowedNamespaces that stands for all namespaces."""

Namespace = Annotated[
    str,
    model.text(r"^(\*|[a-z0-9]([-a-z0-9]*[a-z0-9])?)$", "must be a namespace's name, or '*' for all namespaces", 63),
]


class Storage(stores.Connection):
    """How the base model's files are reached: for an s3:// source, and for certificates and identity of the pods."""

    credentials_secret: model.Name | None = Field(
        default=None,
        description="The name of a Secret in the pool's namespace with AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and, "
        "where needed, AWS_SESSION_TOKEN. Absent: the pods' own identity (IRSA, workload identity).",
    )
    ca_bundle: stores.CaBundle | None = Field(
        default=None,
        description="Certificate authorities that the pods trust besides the public ones, in a ConfigMap of the pool's "
        "namespace. Absent: the chart's caBundle, if it has one.",
    )
    service_account_name: model.Name | None = Field(
        default=None,
        description="The ServiceAccount of the pods, for example one with a cloud identity. Absent: the namespace's `default` "
        "one. No container gets its API token.",
    )


class Adapters(model.Model):
    """How many adapters the servers hold, and where."""

    model_config = model.Model.model_config | {
        "json_schema_extra": model.rules(
            (
                "!has(self.inMemory) || !has(self.onGpu) || self.inMemory >= self.onGpu",
                "adapters.inMemory must not be below adapters.onGpu: an adapter on the GPU is in memory as well",
            )
        )
    }
    max_rank: int = Field(
        default=16,
        ge=1,
        le=512,
        description="The highest rank of an adapter (vLLM's --max-lora-rank, rounded up to a value that it accepts). A job whose "
        "adapter has a higher one is refused. GPU memory is reserved for onGpu adapters of this rank. Default: 16.",
    )
    on_gpu: int = Field(
        default=8,
        ge=1,
        le=256,
        description="Adapters that can answer in the same batch (vLLM's --max-loras). Default: 8.",
    )
    in_memory: int = Field(
        default=64,
        ge=1,
        le=4096,
        description="Adapters that each server keeps in the node's memory (vLLM's --max-cpu-loras); others are loaded from disk "
        "when a request needs them. Default: 64.",
    )
    claim_name: model.Name | None = Field(
        default=None,
        description="A PersistentVolumeClaim of the pool's namespace, ReadWriteMany with more than one replica, that keeps the "
        "adapters when pods end. Absent: each pod has its own copy on its node's disk; a new pod copies it from "
        "another one.",
    )


class Ingress(model.Model):
    """The way in from outside of the cluster: an Ingress with TLS to the pool's Service, for /v1 alone."""

    host: deployment.Host = Field(description="The name under which clients reach the pool: https://HOST/v1.")
    class_name: model.Name | None = Field(
        default=None, description="The IngressClass, that is the controller. Absent: the cluster's default."
    )
    tls_secret_name: model.Name | None = Field(
        default=None,
        description="A Secret of the pool's namespace with certificate and key of the host (kubernetes.io/tls). Absent: the "
        "controller's own certificate.",
    )


class EndpointPicker(model.Model):
    """What picks a pod for each request: an endpoint picker of Gateway API's inference extension, for this pool alone."""

    service: model.Name = Field(
        description="The name of its Service, in the pool's namespace. The platform team installs it."
    )
    port: int = Field(default=9002, ge=1, le=65535, description="The Service's port for the Gateway. Default: 9002.")
    failure_mode: Literal["FailClose", "FailOpen"] = Field(
        default="FailClose",
        description="What the Gateway does while the endpoint picker does not answer. FailClose: it refuses requests. FailOpen: "
        "it picks a pod itself. Default: FailClose.",
    )


class Route(model.Model):
    """The way in through the platform's Gateway: an HTTPRoute to an InferencePool of the pool's servers, for /v1 alone."""

    host: deployment.Host = Field(
        description="The name under which clients reach the pool through the Gateway: HOST/v1."
    )
    endpoint_picker: EndpointPicker = Field(description="Which service picks the pod that answers.")


class ServingPoolSpec(model.Model):
    """Servers of one base model, which serve the adapters of many jobs."""

    model_config = model.Model.model_config | {
        "json_schema_extra": model.rules(
            (
                "!has(self.allowedNamespaces) || self.allowedNamespaces.size() == 0 || has(self.keysSecret)",
                "allowedNamespaces needs keysSecret: without keys every client would reach the models of all namespaces",
            ),
            (
                "!has(self.ingress) || has(self.keysSecret)",
                "ingress needs keysSecret: without keys whoever reaches the host could use the models",
            ),
            (
                "!has(self.route) || has(self.keysSecret)",
                "route needs keysSecret: without keys whoever reaches the host could use the models",
            ),
            (
                "!has(self.route) || !has(self.idle)",
                "route cannot be set together with idle: the endpoint picker knows servers alone, so a request to a pool without "
                "any would be refused, and would not start them; remove one of them",
            ),
            (
                "!has(self.idle) || (has(self.adapters) && has(self.adapters.claimName))",
                "idle needs adapters.claimName: adapters on the disks of pods are gone when all pods are",
            ),
            (
                "!has(self.extraArgs) || !self.extraArgs.exists(a, a.replace('_', '-').startsWith('--max-model-len'))",
                "extraArgs must not contain --max-model-len: set contextLength",
            ),
        )
    }
    base_model: basemodel.BaseModelReference = Field(
        description="The model that the servers load; only jobs that fine-tune it can use the pool. It cannot be changed.",
        json_schema_extra=model.rules(
            (
                "self == oldSelf",
                "baseModel cannot be changed, since no adapter of the pool would fit: create another ServingPool",
            )
        ),
    )
    replicas: int = Field(
        default=1,
        ge=1,
        le=1000,
        description="Number of server pods, each of which serves every adapter. `kubectl scale` and autoscalers change it. "
        "Default: 1.",
    )
    resources: ServerResources = Field(
        default_factory=ServerResources, description="What each server pod requests; gpus is 1 if absent."
    )
    storage: Storage = Field(
        default_factory=Storage,
        description="How the base model's files are reached, and identity and certificates of the pods.",
    )
    adapters: Adapters = Field(
        default_factory=Adapters, description="How many adapters the servers hold, and where they are kept."
    )
    context_length: int | None = Field(
        default=None,
        ge=16,
        le=10_000_000,
        description="Tokens of prompt and answer together (vLLM's --max-model-len). Absent: what the base model supports, "
        "which may need more GPU memory than there is.",
    )
    update: Literal["Surge", "InPlace"] | None = Field(
        default=None,
        description="How pods are replaced when the spec or the operator's settings change. Surge: a new pod starts before an "
        "old one ends, which needs its GPUs besides. InPlace: one old pod ends first. Absent: InPlace, and Surge with one "
        "replica, since otherwise nothing would serve meanwhile.",
    )
    image: (
        Annotated[
            str,
            model.text(r"^[a-z0-9][^\s]*$", "must be an image reference, for example vllm/vllm-openai:v0.20.0", 512),
        ]
        | None
    ) = Field(
        default=None,
        description="The server's image; it must run vLLM's OpenAI server. Absent: the image from the operator's settings.",
    )
    extra_args: arguments.OfJobs = Field(
        default_factory=list,
        description="Further arguments of vLLM, from the list that jobs may set. Only the platform team can set others, in the "
        "BaseModel or the chart.",
    )
    keys_secret: model.Name | None = Field(
        default=None,
        description="The name of a Secret in the pool's namespace with the clients' keys: each entry is named like a namespace, "
        "and each line of it is a key, or `sha256:` and its hash, that may use the models of this namespace's jobs. "
        "Changes take effect within minutes, without a restart. Absent: no key is required.",
    )
    ingress: Ingress | None = Field(
        default=None,
        description="An address outside of the cluster. Needs keysSecret, and ingress.enabled in the chart. Default: none.",
    )
    route: Route | None = Field(
        default=None,
        description="An address at the platform's Gateway, with an endpoint picker that picks pods by their load. Needs "
        "keysSecret, and gatewayAPI.inference.enabled in the chart. Not together with idle. Default: none.",
    )
    idle: deployment.Idle | None = Field(
        default=None,
        description="When the servers end because nobody uses them, and what a request gets that comes then. Needs "
        "adapters.claimName. A pod without GPU (the activator) takes requests meanwhile. Default: they never end.",
    )
    serve_base_model: bool = Field(
        default=False, description="Whether clients may use the base model itself, by its name. Default: false."
    )
    allowed_namespaces: list[Namespace] = Field(
        default_factory=list,
        max_length=256,
        description="Further namespaces whose jobs may use the pool; '*' stands for all. Needs keysSecret. Default: only the "
        "pool's own.",
    )
    default: bool = Field(
        default=False,
        description="Whether jobs that name no pool use this one, if it fits and they may. Default: false.",
    )

    @property
    def rewritten(self) -> bool:
        """Whether an endpoint picker may know the adapters behind its models' names. Not those of several tenants: the answers
        would tell each which names the others' models have."""
        return self.route is not None and not self.allowed_namespaces

    def admits(self, own: str, namespace: str) -> bool:
        """Whether jobs of `namespace` may use the pool, which is in the namespace `own`."""
        return namespace == own or namespace in self.allowed_namespaces or EVERYWHERE in self.allowed_namespaces


class Problem(status.Reported):
    """An adapter that is not on every ready pod."""

    job: str = Field(description="NAMESPACE/NAME of the job.")
    revision: str = Field(description="The job's revision.")
    state: str = Field(description="Loading or Failed.")
    pods: int = Field(description="Pods that lack it.")
    message: str = Field(default="", description="What one of these pods reports.")


class AdapterCounts(status.Reported):
    """Adapters of the pool."""

    total: int = Field(default=0, description="Adapters that the pool is to hold.")
    ready: int = Field(default=0, description="On every ready pod, and accepted by its server.")
    loading: int = Field(default=0, description="Missing on at least one ready pod.")
    failed: int = Field(default=0, description="Refused by at least one pod.")
    resident: int | None = Field(
        default=None, description="In the memory of a server, the highest number of all pods. Absent: unknown."
    )
    bytes: int = Field(default=0, description="What all of them take on the disk of each pod.")


class Status(status.Reported):
    """What the operator reports about a ServingPool."""

    observed_generation: int | None = Field(
        default=None, description="The generation of the spec that the status is about."
    )
    conditions: list[status.Condition] = Field(
        default_factory=list,
        description="Ready (every requested pod is ready), Reconciling and Stalled; Routed, with spec.route.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    )
    base_model: str | None = Field(default=None, description="The base model as resolved.")
    source: str | None = Field(
        default=None,
        description="Where its files are, and at which revision, since the pool was created: an edit of the BaseModel does not "
        "change it.",
    )
    endpoint: str | None = Field(
        default=None, description="The base URL inside the cluster; clients append /v1/chat/completions."
    )
    models: int | None = Field(default=None, description="Models that clients can use, each with a name of its own.")
    adapters: AdapterCounts | None = Field(default=None, description="Adapters by state. Absent: not known yet.")
    problems: list[Problem] = Field(
        default_factory=list, max_length=20, description="Adapters that are loading or failed; failed ones first."
    )
    replicas: int | None = Field(default=None, description="Pods that exist.")
    ready_replicas: int | None = Field(default=None, description="Ready pods.")
    pods: str | None = Field(
        default=None, description="Ready and requested pods, for example 2/2; none is requested while the pool sleeps."
    )
    asleep_since: datetime.datetime | None = Field(
        default=None, description="Since when there are no servers because of spec.idle. Absent: the pool is awake."
    )
    selector: str | None = Field(
        default=None, description="Labels of the pods, for autoscalers that scale the ServingPool."
    )
    requests_per_second: str | None = Field(
        default=None, description="Requests of clients per second over the last minute or so, all pods together."
    )
    gpus: int | None = Field(default=None, description="GPUs of the requested pods.")
    gpus_saved: int | None = Field(
        default=None,
        description="GPUs that one dedicated server for each model would take, less those of the pool.",
    )
    unread: int | None = Field(
        default=None,
        description="Ready pods whose state could not be read: their adapters and requests are not counted.",
    )


NAME_RULES = model.rules(
    (
        f"self.metadata.name.size() <= {MAXIMUM_NAME}",
        f"metadata.name must have at most {MAXIMUM_NAME} characters, since the Service of the pods is called <name>-pods",
    ),
    (
        "self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')",
        "metadata.name must begin with a letter and must not contain a dot, since the pool's Service has the same name",
    ),
)

PRINTER_COLUMNS: list[dict[str, Any]] = [
    {"name": "Ready", "type": "string", "jsonPath": ".status.conditions[?(@.type=='Ready')].status"},
    {"name": "Reason", "type": "string", "jsonPath": ".status.conditions[?(@.type=='Ready')].reason"},
    {"name": "Pods", "type": "string", "jsonPath": ".status.pods"},
    {"name": "Adapters", "type": "integer", "jsonPath": ".status.adapters.total"},
    {"name": "Loading", "type": "integer", "jsonPath": ".status.adapters.loading"},
    {"name": "Failed", "type": "integer", "jsonPath": ".status.adapters.failed"},
    {"name": "Req/s", "type": "string", "jsonPath": ".status.requestsPerSecond"},
    {"name": "GPUs", "type": "integer", "jsonPath": ".status.gpus"},
    {"name": "Saved", "type": "integer", "jsonPath": ".status.gpusSaved"},
    {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
    {"name": "Model", "type": "string", "jsonPath": ".status.baseModel", "priority": 1},
    {"name": "Resident", "type": "integer", "jsonPath": ".status.adapters.resident", "priority": 1},
    {"name": "Default", "type": "boolean", "jsonPath": ".spec.default", "priority": 1},
    {"name": "Endpoint", "type": "string", "jsonPath": ".status.endpoint", "priority": 1},
]
