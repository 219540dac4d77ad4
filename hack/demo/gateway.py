"""An S3 store for an existing cluster: a VersityGW pod of the demo; its data are lost with it."""

import base64
import secrets

from demo import install
from demo.kube import Kube, Manifest
from demo.place import ObjectStore
from toolbox import say

NAMESPACE = "finetune-demo"
NAME = "s3"
PORT = 9000
_REGION = "us-east-1"
_KEYS = "s3-keys"


def ensure(kube: Kube, image: str) -> ObjectStore:
    """Starts the store, with the keys of the first start; returns its address for pods."""
    install.make_namespace(kube, NAMESPACE)
    known = kube.get("secret", _KEYS, NAMESPACE)
    if known:
        keys = {key: base64.b64decode(value).decode() for key, value in known["data"].items()}
    else:
        keys = {"ROOT_ACCESS_KEY": "demo" + secrets.token_hex(6), "ROOT_SECRET_KEY": secrets.token_hex(20)}
        kube.apply(install.secret(_KEYS, NAMESPACE, keys))
    kube.apply(_deployment(image), _service())
    try:
        kube.run("rollout", "status", f"deployment/{NAME}", "--namespace", NAMESPACE, "--timeout=180s")
    except say.Problem as problem:
        raise say.Problem(
            f"the demo's S3 pod did not start; can the cluster pull {image}?"
            f" See: kubectl -n {NAMESPACE} describe pods\n  {problem}"
        ) from problem
    return ObjectStore(
        endpoint=f"http://{NAME}.{NAMESPACE}.svc:{PORT}",
        access_key=keys["ROOT_ACCESS_KEY"],
        secret_key=keys["ROOT_SECRET_KEY"],
        region=_REGION,
    )


def _deployment(image: str) -> Manifest:
    labels = {"app": NAME}
    container = {
        "name": NAME,
        "image": image,
        "envFrom": [{"secretRef": {"name": _KEYS}}],
        "env": [{"name": "VGW_REGION", "value": _REGION}],
        "ports": [{"name": NAME, "containerPort": PORT}],
        "readinessProbe": {"tcpSocket": {"port": PORT}, "periodSeconds": 1},
        "resources": {"requests": {"cpu": "50m", "memory": "128Mi"}, "limits": {"memory": "1Gi"}},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [{"name": "data", "mountPath": "/data"}, {"name": "tmp", "mountPath": "/tmp"}],  # noqa: S108
    }
    pod = {
        "automountServiceAccountToken": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 65532,
            "runAsGroup": 65532,
            "fsGroup": 65532,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
        "volumes": [{"name": "data", "emptyDir": {}}, {"name": "tmp", "emptyDir": {}}],
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": NAME, "namespace": NAMESPACE},
        "spec": {
            "replicas": 1,
            "strategy": {"type": "Recreate"},
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": pod},
        },
    }


def _service() -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": NAME, "namespace": NAMESPACE},
        "spec": {"selector": {"app": NAME}, "ports": [{"name": NAME, "port": PORT, "targetPort": PORT}]},
    }
