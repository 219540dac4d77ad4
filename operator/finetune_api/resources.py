"""What pods request: GPUs, CPU and memory, and which nodes they may run on."""

import re
from fractions import Fraction
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field

from finetune_api import model

UNITS: dict[str, int | Fraction] = {
    "": 1, "m": Fraction(1, 1000), "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12,
    "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40,
}  # fmt: skip


def amount(quantity: str) -> Fraction | None:
    """The number that a quantity such as 500m or 32Gi stands for; None if it is none."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)(m|k|M|G|T|Ki|Mi|Gi|Ti)?", quantity)
    return Fraction(match[1]) * UNITS[match[2] or ""] if match else None


def _quantity(value: Any) -> Any:
    """`cpu: 4` means the same as `cpu: "4"`; everything else is left to the schema."""
    return str(value) if type(value) is int else value


Quantity = Annotated[
    str,
    # First the pattern, then the conversion: the other way round the pattern would not reach the schema.
    Field(
        pattern=r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?$",
        max_length=32,
        json_schema_extra={
            "x-kubernetes-int-or-string": True,
            "x-message": "must be a quantity, for example 500m, 4 or 32Gi",
        },
    ),
    pydantic.BeforeValidator(_quantity),
]
_CORES = model.rules(
    (
        "!isQuantity(string(self)) || (quantity(string(self)).isGreaterThan(quantity('0'))"
        " && !quantity(string(self)).isGreaterThan(quantity('1024')))",
        "cpu is in cores, above 0 and at most 1024: write 4, or 500m for half a core",
    )
)
_MEMORY = model.rules(
    (
        "!isQuantity(string(self)) || !quantity(string(self)).isLessThan(quantity('64Mi'))",
        "memory is in bytes and must be at least 64Mi: write 32Gi, not 32",
    )
)
_DISK = model.rules(
    (
        "!isQuantity(string(self)) || !quantity(string(self)).isLessThan(quantity('64Mi'))",
        "ephemeralStorage is in bytes and must be at least 64Mi: write 40Gi, not 40",
    )
)
_LABEL = r"([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)"
LabelValue = Annotated[
    str,
    model.text(
        f"^{_LABEL}?$",
        "must be a label value: letters, digits, '-', '_' and '.', starting and ending with a letter or digit",
        63,
    ),
]
Labels = Annotated[
    dict[str, LabelValue],
    Field(
        max_length=32,
        json_schema_extra=model.rules(
            (
                f"self.all(k, k.size() <= 317 && k.matches('^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?{_LABEL}$'))",
                "every key must be a label name, for example kubernetes.io/arch",
            )
        ),
    ),
]


class Toleration(model.Model):
    """A taint that the pods tolerate, as in a pod's spec."""

    model_config = model.Model.model_config | {
        "json_schema_extra": model.rules(
            ("self.operator == 'Equal' || !has(self.value)", "a toleration with operator Exists must not have a value"),
            ("self.operator == 'Exists' || has(self.key)", "a toleration without a key needs operator Exists"),
            (
                "!has(self.tolerationSeconds) || (has(self.effect) && self.effect == 'NoExecute')",
                "tolerationSeconds needs effect NoExecute",
            ),
        )
    }
    key: str | None = Field(
        default=None,
        min_length=1,
        max_length=317,
        description="The taint's key. Absent, with operator Exists: every taint.",
    )
    operator: Literal["Exists", "Equal"] = Field(default="Equal", description="Exists or Equal. Default: Equal.")
    value: LabelValue | None = Field(default=None, description="The taint's value, for Equal.")
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = Field(
        default=None, description="The taint's effect; absent: all effects."
    )
    toleration_seconds: int | None = Field(
        default=None, description="For NoExecute: how many seconds the pod stays on the node. Absent: forever."
    )


class Requests(model.Model):
    """Requests of CPU, memory and ephemeral storage."""

    cpu: Quantity | None = Field(
        default=None, description="CPU cores requested, for example 4 or 500m.", json_schema_extra=_CORES
    )
    memory: Quantity | None = Field(
        default=None,
        description="Memory requested, for example 32Gi. It is also the limit, which protects the node, unless limits.memory is "
        "higher.",
        json_schema_extra=_MEMORY,
    )
    ephemeral_storage: Quantity | None = Field(
        default=None,
        description="Disk requested on the node for model, data and temporary files, for example 40Gi. Absent: estimated "
        "from the base model's number of parameters and the data; nothing if that number is unknown, or in a queue.",
        json_schema_extra=_DISK,
    )


class Limits(model.Model):
    """Limits of CPU, memory and ephemeral storage, for namespaces whose LimitRange or quota demands them."""

    cpu: Quantity | None = Field(
        default=None,
        description="CPU cores at most. Absent: no limit, or that of the operator's settings.",
        json_schema_extra=_CORES,
    )
    memory: Quantity | None = Field(
        default=None,
        description="Memory at most; above it the container is killed. Absent: the requested memory.",
        json_schema_extra=_MEMORY,
    )
    ephemeral_storage: Quantity | None = Field(
        default=None,
        description="Disk at most; above it the pod is evicted. Absent: twice what is requested.",
        json_schema_extra=_DISK,
    )


_WITHIN = (
    "!has(self.limits) || !has(self.requests) || !has(self.limits.{0}) || !has(self.requests.{0})"
    " || !isQuantity(string(self.limits.{0})) || !isQuantity(string(self.requests.{0}))"
    " || !quantity(string(self.limits.{0})).isLessThan(quantity(string(self.requests.{0})))"
)


_LIMITS = tuple(
    (_WITHIN.format(name), f"resources.limits.{name} must not be below resources.requests.{name}")
    for name in ("cpu", "memory", "ephemeralStorage")
)
_TYPED = "resources.gpuType needs resources.gpus of at least 1: remove one of them"


class Resources(model.Model):
    """What each pod requests."""

    model_config = model.Model.model_config | {
        "json_schema_extra": model.rules(("!has(self.gpuType) || self.gpus > 0", _TYPED), *_LIMITS)
    }
    gpus: int = Field(
        default=1,
        ge=0,
        le=16,
        description="GPUs per pod; 0 runs on the CPU. Training runs one process per GPU, a server splits its model "
        "over them; an evaluation does either, by evaluation.engine. Default: 1.",
    )
    gpu_type: (
        Annotated[
            str, model.text(f"^{_LABEL}$", "must be a GPU type from the operator's settings, for example nvidia-l4", 63)
        ]
        | None
    ) = Field(
        default=None,
        description="A GPU type from the operator's settings, for example nvidia-l4, which adds a node selector and "
        "tolerations. Absent: any GPU.",
    )
    requests: Requests = Field(default_factory=Requests, description="Requests of CPU, memory and ephemeral storage.")
    limits: Limits = Field(
        default_factory=Limits,
        description="Limits of CPU, memory and ephemeral storage. Few jobs need them: namespaces whose LimitRange sets a limit "
        "below what a job requests, or whose quota demands one.",
    )
    node_selector: Labels = Field(
        default_factory=dict, description="Labels that a node must have, in addition to those of the gpuType."
    )
    tolerations: list[Toleration] = Field(
        default_factory=list,
        max_length=32,
        description="Taints that the pods tolerate, in addition to those of the gpuType.",
    )
    priority_class_name: model.Name | None = Field(default=None, description="The PriorityClass of the pods.")


def _without_default(schema: dict[str, Any]) -> None:
    """The API server must not fill in a default that depends on another field."""
    del schema["default"]


class ServerResources(Resources):
    """What each pod of a server requests."""

    model_config = model.Model.model_config | {
        "json_schema_extra": model.rules(("!has(self.gpuType) || !has(self.gpus) || self.gpus > 0", _TYPED), *_LIMITS)
    }
    gpus: int = Field(
        default=1,
        ge=0,
        le=16,
        description="GPUs per pod, over which the server splits its model; 0 runs on the CPU. Absent: 1, and 0 if the job trains "
        "on CPUs (resources.gpus is 0).",
        json_schema_extra=_without_default,
    )


class TrainingResources(Resources):
    """What the pods of the training stage request: `nodes` identical pods."""

    nodes: int = Field(
        default=1,
        ge=1,
        le=64,
        description="Pods that train together, each with these gpus and requests; training starts when all of them "
        "are running. Every other stage has one pod. Default: 1.",
    )
    queue_name: (
        Annotated[
            str,
            model.text(
                r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$",
                "must be the name of a LocalQueue: lower-case letters, digits, '-' and '.', starting and ending "
                "with a letter or digit",
                63,
            ),
        ]
        | None
    ) = Field(
        default=None,
        description="The LocalQueue of Kueue, in the job's namespace, in which baseline, training and evaluation "
        "wait for their quota. Preflight, verification and the server are not queued. Absent: no queue.",
    )
