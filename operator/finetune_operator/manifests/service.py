"""Services: one for the job, which clients use; one for each release, used to verify a candidate; and a headless one for the
pods of a multi-node training."""

from finetune_api import reasons, run
from finetune_operator import settings
from finetune_operator.manifests import meta
from finetune_operator.observe import label, parents


def build(parent: parents.Parent, chart: settings.Settings, name: str, release: str) -> meta.Manifest:
    """A Service `name` for the pods of `release`."""
    return to(parent, chart, name, {label.UID: parent.uid, label.RELEASE: release})


def to(parent: parents.Parent, chart: settings.Settings, name: str, selector: dict[str, str]) -> meta.Manifest:
    """A Service `name` for the pods with these labels."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": meta.owned(parent, name, meta.labels(parent, chart.labels)),
        "spec": {
            "selector": selector,
            "ports": [{"name": "http", "port": run.SERVER_PORT, "targetPort": run.SERVER_PORT, "protocol": "TCP"}],
        },
    }


def nodes(parent: parents.Parent, chart: settings.Settings, revision: str) -> meta.Manifest:
    """The headless Service of a revision's training pods: a DNS name for each from its start, ready or not."""
    stage = reasons.Stage.TRAIN.value
    labels = meta.labels(parent, chart.labels, **{label.REVISION: revision, label.STAGE: stage})
    port = {"name": "rendezvous", "port": run.RENDEZVOUS_PORT, "targetPort": run.RENDEZVOUS_PORT, "protocol": "TCP"}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": meta.owned(parent, meta.nodes_service(parent, revision), labels),
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": {label.UID: parent.uid, label.STAGE: stage, label.REVISION: revision},
            "ports": [port],
        },
    }


def rendezvous(parent: parents.Parent, revision: str, job: str) -> str:
    """host:port of the first pod of an Indexed Job."""
    return f"{job}-0.{meta.nodes_service(parent, revision)}.{parent.namespace}.svc:{run.RENDEZVOUS_PORT}"


def endpoint(parent: parents.Parent, name: str) -> str:
    return f"http://{name}.{parent.namespace}.svc:{run.SERVER_PORT}"
