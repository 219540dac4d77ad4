"""What the platform team may say about pods: one shape for all pods, for each stage, for servers and for each GPU type.

settings file -> Pods, one for each of these layers -> `over` puts the more specific on top -> manifests.pods applies the result

No field can leave the `restricted` Pod Security Standard, or the names that the operator and the pods rely on.
"""

import re
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field

from finetune_api import job, model

ENVIRONMENT = re.compile(
    r"^(HOME|TMPDIR|USER|((DATA|BASE_MODEL)_)?AWS_(ACCESS_KEY_ID|SECRET_ACCESS_KEY|SESSION_TOKEN)|HF_TOKEN"
    r"|((JUDGE|OPTIMIZER|VLLM)_)?API_KEY|CANDIDATE_API_KEY_.*|FINETUNE_.*)$"
)
"""Variables that the operator sets, or that would hold a secret."""
NAMES = re.compile(
    r"^(finetune\.dev/|batch\.kubernetes\.io/|kueue\.x-k8s\.io/|app\.kubernetes\.io/(name|instance|managed-by)$"
    r"|container\.apparmor\.security\.beta\.kubernetes\.io/|(container\.)?seccomp\.security\.alpha\.kubernetes\.io/)"
)
"""Labels and annotations by which pods are found, and annotations that weaken their confinement."""


def _free(taken: re.Pattern[str], why: str) -> pydantic.AfterValidator:
    def checked(given: dict[str, str]) -> dict[str, str]:
        if found := sorted(name for name in given if taken.search(name)):
            raise ValueError(f"{', '.join(found)} cannot be set here: {why}")
        return given

    return pydantic.AfterValidator(checked)


Environment = Annotated[
    dict[Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")], str],
    _free(ENVIRONMENT, "the operator sets it, or reads it from a Secret that the job names"),
]
_RESERVED = _free(NAMES, "the operator finds pods by it, or it would weaken the pod's confinement")
Labels = Annotated[dict[str, job.LabelValue], _RESERVED]
Annotations = Annotated[dict[str, str], _RESERVED]
ResourceName = Annotated[
    str, Field(pattern=r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$")
]


class Affinity(model.Model):
    """As in a pod's spec; a part in a more specific layer replaces the general one."""

    node_affinity: dict[str, Any] | None = None
    pod_affinity: dict[str, Any] | None = None
    pod_anti_affinity: dict[str, Any] | None = None


class Spread(model.Model):
    """A topology spread constraint, as in a pod's spec. Without a labelSelector it counts the pods of the same stage or release
    of the job."""

    max_skew: int = Field(default=1, ge=1)
    topology_key: str = Field(min_length=1)
    when_unsatisfiable: Literal["DoNotSchedule", "ScheduleAnyway"]
    min_domains: int | None = Field(default=None, ge=1)
    label_selector: dict[str, Any] | None = None
    match_label_keys: list[str] | None = None
    node_affinity_policy: Literal["Honor", "Ignore"] | None = None
    node_taints_policy: Literal["Honor", "Ignore"] | None = None


class DnsOption(model.Model):
    name: str = Field(min_length=1)
    value: str | None = None


class DnsConfig(model.Model):
    nameservers: list[str] = Field(default_factory=list, max_length=3)
    searches: list[str] = Field(default_factory=list, max_length=32)
    options: list[DnsOption] = Field(default_factory=list)


class Pods(model.Model):
    """One layer. Every field may be absent."""

    env: Environment = Field(default_factory=dict)
    labels: Labels = Field(default_factory=dict)
    annotations: Annotations = Field(default_factory=dict)
    node_selector: dict[str, str] = Field(default_factory=dict)
    tolerations: list[job.Toleration] = Field(default_factory=list)
    affinity: Affinity = Field(default_factory=Affinity)
    topology_spread_constraints: list[Spread] = Field(default_factory=list)
    runtime_class_name: model.Name | None = None
    priority_class_name: model.Name | None = None
    dns_policy: Literal["ClusterFirst", "Default", "None"] | None = None
    dns_config: DnsConfig | None = None
    requests: job.Requests = Field(default_factory=job.Requests)
    limits: job.Limits = Field(default_factory=job.Limits)

    @pydantic.model_validator(mode="after")
    def _names_a_server(self) -> "Pods":
        if self.dns_policy == "None" and not (self.dns_config and self.dns_config.nameservers):
            raise ValueError("dnsPolicy None needs dnsConfig.nameservers beside it")
        return self

    def over(self, general: "Pods") -> "Pods":
        """This layer on top of a more general one: maps and lists are added up, everything else is replaced where it is set."""
        own = self.model_fields_set & Pods.model_fields.keys()
        return general.model_copy(update={name: _added(getattr(general, name), getattr(self, name)) for name in own})


def _added(general: Any, own: Any) -> Any:
    if isinstance(own, dict):
        return {**general, **own}
    if isinstance(own, list):
        return [*general, *own]
    if isinstance(own, (job.Requests, job.Limits, Affinity)):
        return own.model_copy(update={k: v for k, v in general if getattr(own, k) is None})
    return general if own is None else own


class SecurityContext(model.Model):
    """The ids of all pods. What is absent is left to the image or, on OpenShift, to the namespace."""

    run_as_user: int | None = Field(default=None, ge=1)
    run_as_group: int | None = Field(default=None, ge=0)
    fs_group: int | None = Field(default=None, ge=0)
    fs_group_change_policy: Literal["Always", "OnRootMismatch"] | None = None
    supplemental_groups: list[Annotated[int, Field(ge=1)]] | None = None
