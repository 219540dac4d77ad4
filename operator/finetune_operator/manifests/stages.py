"""A stage as a Job: one attempt, never retried by Kubernetes itself, except that an evicted single pod is replaced.

Training on several nodes is an Indexed Job: its pods start, fail and end together
(docs/adr/0012-nodes-are-an-indexed-job.md).
"""

from typing import Any

from finetune_api import course, job, run
from finetune_api.reasons import Stage
from finetune_operator import kueue, settings
from finetune_operator.manifests import meta, modelcache, pods, service, sidecar
from finetune_operator.observe import label, parents

CONTAINER = label.CONTAINER
GRACE_SECONDS = 120
"""From SIGTERM to SIGKILL: time for a checkpoint to reach S3."""
JUDGING = {Stage.PREFLIGHT, Stage.BASELINE, Stage.EVALUATE}
"""Stages that read `intent`, `evaluation` and data files."""
QUEUED = course.LOADING
"""Stages that load the model wait in the job's queue, if there is one. Preflight, before a GPU is requested, and
verification, whose server already runs, do not."""
AGAIN = 0
"""The number of a verify attempt that delivers again what its pool had; it belongs to no stage that is under way."""
KEEP_SECONDS = 3600
"""How long a finished Job and its pod's log are kept."""
DISRUPTED = {"onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}


def build(
    parent: parents.Parent,
    chart: settings.Settings,
    content: run.Run,
    *,
    name: str,
    stage: Stage,
    attempt: int,
    wanted: job.Resources,
    arguments: list[str],
    nodes: int = 1,
    queue: str | None = None,
    api_key_secret: str | None = None,
    tokens: int = 0,
    server: sidecar.Plan | None = None,
) -> meta.Manifest:
    """The Job of one attempt of a stage, with `nodes` pods; suspended if a queue decides when it may run.

    `arguments` follow the stage's name on the command line of the trainer image (see trainer-image/README.md). `tokens`: of the
    data, as far as they were counted. `server`: the one that answers the stage's questions; then it requests what is wanted, and
    the stage what preflight does.
    """
    layer = chart.pods_of(stage, wanted.gpu_type)
    # not in a queue: Kueue admits no pod that requests what its ClusterQueue does not cover
    estimated = stage in course.LOADING and not queue
    claim = chart.model_claim(parent.namespace) if stage in course.LOADING else None
    least_disk = pods.disk(content.base_model, tokens, cached=claim is not None) if estimated else None
    labels = meta.labels(
        parent,
        chart.labels,
        **{label.REVISION: content.revision, label.STAGE: stage, label.ATTEMPT: str(attempt)},
        **pods.gpu_labels(wanted),
    )
    run_volume, run_mount = pods.run_volume()
    volumes, mounts = pods.base_volume(content.base_model) if stage is not Stage.VERIFY else ([], [])
    own, own_layer, least = wanted, layer, least_disk
    beside = None
    if server is not None:
        beside = sidecar.parts(server, chart, content, wanted, stage, least_disk)
        volumes, mounts, arguments = beside.volumes, beside.mounts, [*arguments, *beside.arguments]
        own, own_layer, least = job.Resources(gpus=0), chart.pods_of(Stage.PREFLIGHT, None), None
    if stage in JUDGING:
        data, mounted = pods.data_volumes(content)
        volumes, mounts = [*volumes, *data], [*mounts, *mounted]
    authorities, trusted, where = pods.ca_bundle(content.storage.ca_bundle or chart.ca_bundle)
    volumes, mounts = [*volumes, *authorities], [*mounts, *trusted]
    container: dict[str, Any] = {
        "name": CONTAINER,
        "image": chart.images.fetch if stage is Stage.VERIFY else chart.images.trainer,
        "imagePullPolicy": chart.image_pull_policy,
        "args": [stage.value, "--run", run.PATH, *arguments],
        "env": [
            *pods.environment(layer.env),
            *pods.credentials(content.storage.credentials_secret),
            *(pods.model_credentials(content.base_model) if stage is not Stage.VERIFY else []),
            *pods.secret_value("API_KEY", api_key_secret, "API_KEY"),
            *endpoint_keys(content, stage),
            *data_keys(content, stage),
            *([{"name": run.GPUS, "value": str(own.gpus)}] if own.gpus else []),
            *where,
            *(together(nodes, service.rendezvous(parent, content.revision, name)) if nodes > 1 else []),
        ],
        "resources": pods.amounts(own, own_layer, pods.extended(own, chart, nodes), least),
        "securityContext": pods.security(),
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [
            {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108
            run_mount,
            *mounts,
        ],
        **({"ports": [{"name": "metrics", "containerPort": run.METRICS_PORT}]} if stage in course.LOADING else {}),
    }
    if own.gpus > 1:
        container["volumeMounts"].append({"name": "shm", "mountPath": "/dev/shm"})  # noqa: S108
        volumes = [*volumes, {"name": "shm", "emptyDir": {"medium": "Memory"}}]
    pod = pods.pod(
        chart,
        namespace=parent.namespace,
        service_account=content.storage.service_account_name,
        containers=[container],
        volumes=[run_volume, *volumes],
        **({"initContainers": beside.init_containers} if beside else {}),
        restartPolicy="Never",
        terminationGracePeriodSeconds=GRACE_SECONDS,
        **({"subdomain": meta.nodes_service(parent, content.revision)} if nodes > 1 else {}),
        **pods.placement(wanted, layer, {label.UID: parent.uid, label.STAGE: stage}),
    )
    return meta.hashed(
        {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": meta.owned(parent, name, {**labels, **({kueue.QUEUE: queue} if queue else {})}),
            "spec": {
                **({"suspend": True} if queue else {}),
                "backoffLimit": 0,
                "podReplacementPolicy": "Failed",
                # A single pod is replaced within its attempt; with several, the others cannot continue without it.
                "podFailurePolicy": {"rules": [{"action": "Ignore" if nodes == 1 else "FailJob", **DISRUPTED}]},
                **(indexed(nodes) if nodes > 1 else {}),
                "ttlSecondsAfterFinished": KEEP_SECONDS,
                "template": pods.template(
                    labels,
                    run_file(content, stage),
                    layer,
                    modelcache.shared(pod, content.base_model, claim, chart.images.fetch),
                ),
            },
        }
    )


def run_file(content: run.Run, stage: Stage) -> run.Run:
    """The run file of a stage. Stages that do not evaluate get no evaluation settings, so that an edit of these does not
    requeue their Job."""
    if stage is Stage.PREFLIGHT:
        return content.model_copy(update={"smaller": None})
    if stage is Stage.EVALUATE:
        return content.without_later_stages().model_copy(update={"smaller": content.smaller})
    return content.without_later_stages() if stage in JUDGING else content.without_judgement()


def endpoint_keys(content: run.Run, stage: Stage) -> list[dict[str, Any]]:
    """The keys of evaluation.candidates, evaluation.judge and intent.prompt.optimizer, for the stages that ask them."""
    wanted = {}
    if stage in (Stage.BASELINE, Stage.EVALUATE):
        asked = content.evaluation.others if stage is Stage.BASELINE else content.contending
        wanted = {run.candidate_key(one.name): one.api_key_secret for one in asked}
        if content.intent.prompt.optimizer:
            wanted[run.OPTIMIZER_KEY] = content.intent.prompt.optimizer.api_key_secret
    if stage is Stage.EVALUATE and content.evaluation.judge:
        wanted[run.JUDGE_KEY] = content.evaluation.judge.api_key_secret
    return [entry for name, secret in wanted.items() for entry in pods.secret_value(name, secret, "API_KEY")]


def data_keys(content: run.Run, stage: Stage) -> list[dict[str, Any]]:
    """The keys of dataset.storage, for the stages that read data files."""
    store = content.dataset.storage
    return pods.credentials(store.credentials_secret, run.DATA_KEYS) if store and stage in JUDGING else []


def indexed(nodes: int) -> dict[str, Any]:
    """One pod for each index below `nodes`, all in parallel. The first pod's success is the Job's: pods that still run then
    are stopped."""
    return {
        "completionMode": "Indexed",
        "completions": nodes,
        "parallelism": nodes,
        "successPolicy": {"rules": [{"succeededIndexes": "0"}]},
    }


def together(nodes: int, rendezvous: str) -> list[dict[str, Any]]:
    """Environment by which several pods find each other."""
    number = {"fieldRef": {"fieldPath": f"metadata.labels['{label.COMPLETION_INDEX}']"}}
    return [
        {"name": run.NODES, "value": str(nodes)},
        {"name": run.NODE, "valueFrom": number},
        {"name": run.RENDEZVOUS, "value": rendezvous},
    ]
