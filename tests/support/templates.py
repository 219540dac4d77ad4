"""The pod templates that the operator would create under some settings, for one small job in namespace `ml`."""

from typing import Any

from finetune_api import job, run, status
from finetune_api.reasons import Stage
from finetune_operator import settings
from finetune_operator.manifests import deployment, release, sidecar, stages
from finetune_operator.observe import parents
from support import manifests

IMAGES = {"trainer": "reg/trainer:1", "fetch": "reg/fetch:1", "serving": "reg/vllm:1"}
ADAPTER = status.Adapter(uri="s3://acme/out/adapter", sha256="ab" * 32, bytes=1, rank=16, chat_template=True)
BASE = run.ResolvedBaseModel(name="b", source="hf://a/b")
CPU = {"gpus": 0}
PODS = (*Stage, None)
"""All kinds of pods: those of stages, and the server's."""


def chart(**values: Any) -> settings.Settings:
    return settings.Settings.model_validate({"images": IMAGES, **values})


def of(
    which: Stage | None,
    values: settings.Settings,
    resources: dict[str, Any] | None = None,
    base: dict[str, Any] | None = None,
    nodes: int = 1,
    tokens: int = 0,
    spec: dict[str, Any] | None = None,
    queue: str | None = None,
    beside: sidecar.Plan | None = None,
) -> dict[str, Any]:
    """The pod template of a stage, or of the server (None), of a job that sets these resources for all its pods, and these
    fields of its spec."""
    where = {f"spec.{place}": resources or CPU for place in ("resources", "deployment.resources")}
    where |= {f"spec.{path}": value for path, value in (spec or {}).items()}
    raw = manifests.changed(manifests.MINIMAL, **where, **{"metadata.namespace": "ml", "metadata.uid": "u-1"})
    wanted, parent = job.FineTuneJobSpec.model_validate(raw["spec"]), parents.parent(raw)
    content = run.Run(
        name="j", namespace="ml", revision="12345678", evaluation_hash="abcdef12", dataset=wanted.dataset,
        base_model=run.ResolvedBaseModel.model_validate({"name": "b", "source": "hf://a/b", **(base or {})}),
        storage=wanted.storage, training=wanted.training, evaluation=wanted.evaluation, served_model_name="j",
    )  # fmt: skip
    if which is None:
        made = release.build("r", content=content, adapter=ADAPTER, spec=wanted, chart=values, canary=None)
        return dict(deployment.build(parent, values, made, content, 1)["spec"]["template"])
    built = stages.build(
        parent, values, content,
        name="n", stage=which, attempt=1, wanted=wanted.resources, arguments=[], nodes=nodes, tokens=tokens, queue=queue,
        server=beside,
    )  # fmt: skip
    return dict(built["spec"]["template"])


def containers(template: dict[str, Any]) -> list[dict[str, Any]]:
    return [*template["spec"].get("initContainers", []), *template["spec"]["containers"]]


def amounts(template: dict[str, Any]) -> dict[str, Any]:
    """Requests and limits of the stage's or the server's own container."""
    return dict(template["spec"]["containers"][0]["resources"])


def variables(template: dict[str, Any]) -> list[dict[str, Any]]:
    """The environment of each container."""
    return [{v["name"]: v.get("value") for v in container["env"]} for container in containers(template)]


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"securityContext": {"runAsUser": 0}}, "runAsUser"),
    ({"securityContext": {"runAsNonRoot": False}}, "runAsNonRoot"),
    ({"securityContext": {"seLinuxOptions": {"type": "spc_t"}}}, "seLinuxOptions"),
    ({"securityContext": {"sysctls": []}}, "sysctls"),
    ({"securityContext": {"supplementalGroups": [0]}}, "supplementalGroups"),
    ({"pods": {"hostNetwork": True}}, "hostNetwork"),
    ({"pods": {"hostPID": True}}, "hostPID"),
    ({"pods": {"volumes": [{"name": "root", "hostPath": {"path": "/"}}]}}, "volumes"),
    ({"pods": {"securityContext": {"privileged": True}}}, "securityContext"),
    ({"gpuTypes": {"l4": {"capabilities": {"add": ["IPC_LOCK"]}}}}, "capabilities"),
    (
        {"pods": {"annotations": {"container.apparmor.security.beta.kubernetes.io/finetune": "unconfined"}}},
        "apparmor",
    ),
    ({"pods": {"annotations": {"seccomp.security.alpha.kubernetes.io/pod": "unconfined"}}}, "seccomp"),
    ({"serving": {"annotations": {"finetune.dev/run-file": "{}"}}}, "finetune.dev/run-file"),
    ({"training": {"labels": {"finetune.dev/uid": "u-2"}}}, "finetune.dev/uid"),
    ({"pods": {"labels": {"kueue.x-k8s.io/queue-name": "q"}}}, "kueue.x-k8s.io/queue-name"),
    ({"pods": {"env": {"AWS_SECRET_ACCESS_KEY": "in plain sight"}}}, "AWS_SECRET_ACCESS_KEY"),
    ({"serving": {"env": {"VLLM_API_KEY": "in plain sight"}}}, "VLLM_API_KEY"),
    ({"pods": {"env": {"HOME": "/root"}}}, "HOME"),
    ({"pods": {"env": {"FINETUNE_NODES": "2"}}}, "FINETUNE_NODES"),
    ({"pods": {"env": {"A=B": "c"}}}, "A=B"),
    ({"pods": {"labels": {"team": "two words"}}}, "team"),
    ({"pods": {"dnsPolicy": "ClusterFirstWithHostNet"}}, "dnsPolicy"),
    ({"pods": {"dnsPolicy": "None"}}, "dnsConfig"),
    ({"pods": {"affinity": {"hostAffinity": {}}}}, "hostAffinity"),
    ({"pods": {"topologySpreadConstraints": [{"topologyKey": "zone"}]}}, "whenUnsatisfiable"),
    ({"pods": {"limits": {"cpu": "much"}}}, "cpu"),
    ({"gpuTypes": {"l4": {"resource": "a gpu"}}}, "resource"),
]
"""Values that would leave the `restricted` Pod Security Standard, put a secret in plain sight or break the pods; and a fragment
of what both the chart's schema and the operator's start say to them."""
