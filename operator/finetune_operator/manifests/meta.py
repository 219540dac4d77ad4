"""Names, labels and owners of children. Every name is a function of job, revision and attempt, so that applying twice is once."""

from typing import Any, Protocol

from finetune_api import API_VERSION, reasons, revision
from finetune_operator import revisions
from finetune_operator.observe import label, parents

Manifest = dict[str, Any]


class Owner(Protocol):
    """A FineTuneJob or ServingPool."""

    @property
    def name(self) -> str: ...

    @property
    def namespace(self) -> str: ...

    @property
    def uid(self) -> str: ...


def release(parent: parents.Parent, wanted: revisions.Wanted) -> str:
    """The name of the Deployment, and of the candidate's Service."""
    return f"{parent.name}-{wanted.revision}-{wanted.release_hash}"


def stage_job(parent: parents.Parent, wanted: revisions.Wanted, stage: reasons.Stage, attempt: int) -> str:
    """At most 63 characters for a name of 40, up to attempt 999, including a node's index (it is the pod's host name):
    baseline, evaluation and verification contain four digits of the hash that they depend on."""
    short = {
        reasons.Stage.BASELINE: f"base{wanted.evaluation_hash[:4]}",
        reasons.Stage.EVALUATE: f"eval{wanted.evaluation_hash[:4]}",
        reasons.Stage.VERIFY: f"check{wanted.release_hash}",
    }.get(stage, stage.value)
    return f"{parent.name}-{wanted.revision}-{short}-{attempt}"


def delivery(release_name: str) -> str:
    """The Job that delivers a release's adapter again; pods of its pool had it."""
    return f"{release_name}-again"


def nodes_service(parent: parents.Parent, of: str) -> str:
    """The headless Service of the pods of a multi-node training."""
    return f"{parent.name}-{of}-nodes"


def labels(parent: parents.Parent, extra: dict[str, str], **more: str) -> dict[str, str]:
    return {
        **extra,
        label.MANAGED_BY: label.MANAGER,
        "app.kubernetes.io/name": "finetunejob",
        "app.kubernetes.io/instance": parent.name,
        label.JOB: parent.name,
        label.UID: parent.uid,
        **more,
    }


def owned(parent: Owner, name: str, labels_: dict[str, str], kind: str = "FineTuneJob") -> dict[str, Any]:
    """Metadata of a child, which the garbage collector removes with its owner."""
    return {
        "name": name,
        "namespace": parent.namespace,
        "labels": labels_,
        "ownerReferences": [
            {
                "apiVersion": API_VERSION,
                "kind": kind,
                "name": parent.name,
                "uid": parent.uid,
                "controller": True,
                "blockOwnerDeletion": True,
            }
        ],
    }


def hashed(manifest: Manifest) -> Manifest:
    """The manifest with its own digest as an annotation, for later comparisons."""
    return marked(manifest, manifest)


def marked(manifest: Manifest, prescribed: Any, **annotations: str) -> Manifest:
    """The manifest with the digest of what matters in it as an annotation, and further annotations."""
    before = manifest["metadata"].get("annotations", {})
    after = {**before, label.HASH: digest_of(prescribed), **annotations}
    return {**manifest, "metadata": {**manifest["metadata"], "annotations": after}}


def digest_of(prescribed: Any) -> str:
    return revision.digest(prescribed, 16)


def hash_of(manifest: Manifest) -> str:
    return str(manifest["metadata"]["annotations"][label.HASH])
