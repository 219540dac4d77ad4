"""ServiceAccount, Role and RoleBinding of a job's pods: they may patch their own progress ConfigMap and nothing else."""

from collections.abc import Iterable

from finetune_api import revision as revisions
from finetune_operator import settings
from finetune_operator.manifests import meta
from finetune_operator.observe import parents, projections


def build(parent: parents.Parent, chart: settings.Settings, revision: str, chosen: str | None) -> list[meta.Manifest]:
    """The identity of the job's pods; with a ServiceAccount of the user's only Role and RoleBinding are ours."""
    name = meta.identity(parent)
    labels = meta.labels(parent, chart.labels)
    account = {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": meta.owned(parent, name, labels),
        "automountServiceAccountToken": False,
    }
    role = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "Role",
        "metadata": meta.owned(parent, name, labels),
        "rules": [
            {
                "apiGroups": [""],
                "resources": ["configmaps"],
                "resourceNames": [meta.progress_config(parent, revision)],
                "verbs": ["get", "patch"],
            }
        ],
    }
    binding = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": meta.owned(parent, name, labels),
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name},
        "subjects": [
            {"kind": "ServiceAccount", "name": meta.service_account(parent, chosen), "namespace": parent.namespace}
        ],
    }
    return [*([] if chosen else [account]), role, binding]


def digest(manifests: Iterable[meta.Manifest]) -> str:
    """Of the rights among these manifests; empty when there are none."""
    rights = [manifest for manifest in manifests if manifest["kind"] not in projections.PROJECTIONS]
    return revisions.digest(rights, 16) if rights else ""
