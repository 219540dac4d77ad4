"""Admission policies that real clusters have: registries are rewritten, sidecars are injected. Each holds in one namespace.

JSON patches, since apply configurations cannot change lists of containers.
"""

import contextlib
import json
import time
from collections.abc import Iterator
from typing import Any

from demo.kube import Kube

Raw = dict[str, Any]

SIDECAR = "agent"
STOPS_WITH_143 = [
    "python",
    "-c",
    "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(143)); time.sleep(86400)",
]
"""A sidecar that runs until it is stopped, as meshes and agents do."""
SECURITY: Raw = {
    "runAsNonRoot": True,
    "runAsUser": 65532,
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "seccompProfile": {"type": "RuntimeDefault"},
}
RESOURCES: Raw = {"requests": {"memory": "16Mi"}, "limits": {"memory": "64Mi"}}


def rewrite_images(namespace: str, mirror: str, registry: str = "") -> list[Raw]:
    """The image of the first container of every Job and Deployment gets a mirror's prefix, in place of that of its registry."""
    image = "object.spec.template.spec.containers[0].image"
    done = f'{image}.startsWith("{mirror}") || !{image}.startsWith("{registry}")'
    expression = (
        f"{done} ? [] : "
        f'[JSONPatch{{op: "replace", path: "/spec/template/spec/containers/0/image", '
        f'value: "{mirror}" + {image}.substring({len(registry)})}}]'
    )
    rules = [
        {"apiGroups": [group], "apiVersions": ["v1"], "operations": ["CREATE", "UPDATE"], "resources": [plural]}
        for group, plural in (("apps", "deployments"), ("batch", "jobs"))
    ]
    return _policy("rewrite-image", namespace, rules, expression)


def inject_sidecar(namespace: str, image: str, *, native: bool, command: list[str] = STOPS_WITH_143) -> list[Raw]:
    """Every pod of a job gets one more container: a native sidecar (an init container that stays), or a classic one."""
    place = "initContainers" if native else "containers"
    fields = {"name": SIDECAR, "image": image, "command": command, "securityContext": SECURITY, "resources": RESOURCES}
    container = cel({**fields, **({"restartPolicy": "Always"} if native else {})})
    there = f'has(object.spec.{place}) && object.spec.{place}.exists(c, c.name == "{SIDECAR}") ? [] : '
    add = f'[JSONPatch{{op: "add", path: "/spec/{place}/-", value: {container}}}]'
    if native:  # it comes first, since the others may need it; a pod without such containers has no list yet
        first = f'[JSONPatch{{op: "add", path: "/spec/{place}/0", value: {container}}}]'
        alone = f'[JSONPatch{{op: "add", path: "/spec/{place}", value: dyn([{container}])}}]'
        add = f"has(object.spec.{place}) ? {first} : {alone}"
    rules = [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}]
    return _policy("inject-sidecar", namespace, rules, f"{there}({add})", {"matchExpressions": [OF_JOBS]})


def cel(value: Any) -> str:
    """A value in CEL, whose maps have values of one type unless these are dynamic."""
    if isinstance(value, dict):
        return "dyn({" + ", ".join(f"{json.dumps(key)}: {cel(inner)}" for key, inner in value.items()) + "})"
    return f"dyn({json.dumps(value)})"


OF_JOBS = {"key": "finetune.dev/job", "operator": "Exists"}


@contextlib.contextmanager
def in_force(kube: Kube, made: list[Raw]) -> Iterator[None]:
    """Within the block, and a moment before: the API server reads policies from its own watch."""
    kube.apply(*made)
    try:
        time.sleep(5)
        yield
    finally:
        for one in reversed(made):
            kube.run("delete", one["kind"].lower(), one["metadata"]["name"], "--ignore-not-found")


def _policy(name: str, namespace: str, rules: list[Raw], expression: str, objects: Raw | None = None) -> list[Raw]:
    api, full = "admissionregistration.k8s.io/v1", f"{name}-{namespace}"
    where = {"matchLabels": {"kubernetes.io/metadata.name": namespace}}
    spec = {
        "matchConstraints": {"resourceRules": rules, "namespaceSelector": where, "objectSelector": objects or {}},
        "failurePolicy": "Fail",
        "reinvocationPolicy": "Never",
        "mutations": [{"patchType": "JSONPatch", "jsonPatch": {"expression": expression}}],
    }
    return [
        {"apiVersion": api, "kind": "MutatingAdmissionPolicy", "metadata": {"name": full}, "spec": spec},
        {
            "apiVersion": api,
            "kind": "MutatingAdmissionPolicyBinding",
            "metadata": {"name": full},
            "spec": {"policyName": full},
        },
    ]
