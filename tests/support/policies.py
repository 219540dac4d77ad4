"""Admission policies that real clusters have: registries are rewritten, sidecars are injected. Each holds in one namespace.

JSON patches, since apply configurations cannot change lists of containers.
"""

import json
from typing import Any

Raw = dict[str, Any]

SIDECAR = "agent"
_SECURITY = (
    '"securityContext": {"runAsNonRoot": true, "runAsUser": 65532, "allowPrivilegeEscalation": false, '
    '"capabilities": {"drop": ["ALL"]}, "seccompProfile": {"type": "RuntimeDefault"}}'
)


def rewrite_images(namespace: str, prefix: str) -> list[Raw]:
    """Every image of a Job's or Deployment's first container gets this prefix, as if it came from a mirror."""
    image = "object.spec.template.spec.containers[0].image"
    expression = (
        f'{image}.startsWith("{prefix}") ? [] : '
        f'[JSONPatch{{op: "replace", path: "/spec/template/spec/containers/0/image", value: "{prefix}" + {image}}}]'
    )
    rules = [
        {"apiGroups": [group], "apiVersions": ["v1"], "operations": ["CREATE", "UPDATE"], "resources": [plural]}
        for group, plural in (("apps", "deployments"), ("batch", "jobs"))
    ]
    return _policy("rewrite-image", namespace, rules, expression)


def inject_sidecar(namespace: str, image: str, command: list[str], *, native: bool) -> list[Raw]:
    """Every pod gets one more container: a native sidecar (an init container that stays), or a classic one."""
    place = "initContainers" if native else "containers"
    stays = '"restartPolicy": "Always", ' if native else ""
    container = (
        f'{{"name": "{SIDECAR}", "image": "{image}", {stays}"command": {json.dumps(command)}, {_SECURITY}, '
        '"resources": {"requests": {"memory": "16Mi"}, "limits": {"memory": "64Mi"}}}'
    )
    there = f'has(object.spec.{place}) && object.spec.{place}.exists(c, c.name == "{SIDECAR}") ? [] : '
    add = f'[JSONPatch{{op: "add", path: "/spec/{place}/-", value: dyn({container})}}]'
    if native:  # it comes first, since the others may need it; a pod without such containers has no list yet
        first = f'[JSONPatch{{op: "add", path: "/spec/{place}/0", value: dyn({container})}}]'
        alone = f'[JSONPatch{{op: "add", path: "/spec/{place}", value: dyn([{container}])}}]'
        add = f"has(object.spec.{place}) ? {first} : {alone}"
    rules = [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}]
    return _policy("inject-sidecar", namespace, rules, there + add)


def _policy(name: str, namespace: str, rules: list[Raw], expression: str) -> list[Raw]:
    api, full = "admissionregistration.k8s.io/v1", f"{name}-{namespace}"
    where = {"matchLabels": {"kubernetes.io/metadata.name": namespace}}
    spec = {
        "matchConstraints": {"resourceRules": rules, "namespaceSelector": where},
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
