"""Traefik on the local node, as a platform team would have it: Gateway API and Ingress, with TLS.

It runs in a pod, from a program that is mounted from this machine: no image of it is needed.
"""

import base64
import json
import pathlib
from typing import Any

from bench.routed import program
from support import authority, gateway
from support.site import NAMESPACE, Site
from toolbox import gotool

SPACE, NAME = "gateways", "traefik"
PORT, PING = 8443, 8080
DOMAIN = "gateway.example.com"
"""The Gateway's listener has a certificate for the hosts below it."""
INGRESS_HOST, INGRESS_SECRET = "models.example.com", "models-tls"
VALUES = {
    "gatewayAPI": {"enabled": True, "gateway": {"name": "public", "namespace": SPACE, "sectionName": "https"}},
    # Traefik takes only the certificates from an Ingress's `tls`; whether its router answers over TLS is said apart.
    "ingress": {"enabled": True, "annotations": {f"{NAME}.ingress.kubernetes.io/router.tls": "true"}},
}
ARGUMENTS = [
    f"--entrypoints.websecure.address=:{PORT}",
    f"--entrypoints.traefik.address=:{PING}",
    "--ping=true",
    "--providers.kubernetesgateway=true",
    "--providers.kubernetesingress=true",
    "--accesslog=true",
    "--accesslog.format=json",
    "--global.checknewversion=false",
    "--global.sendanonymoususage=false",
]
_GATEWAY = "gateway.networking.k8s.io"
_SEEN = ["get", "list", "watch"]
_KINDS = (
    "gatewayclasses",
    "gateways",
    "httproutes",
    "grpcroutes",
    "tlsroutes",
    "tcproutes",
    "udproutes",
    "listenersets",
    "referencegrants",
    "backendtlspolicies",
)
RULES = [
    {"apiGroups": [""], "resources": ["namespaces", "services", "secrets", "configmaps", "nodes"], "verbs": _SEEN},
    {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": _SEEN},
    {"apiGroups": ["networking.k8s.io"], "resources": ["ingresses", "ingressclasses"], "verbs": _SEEN},
    {"apiGroups": ["networking.k8s.io"], "resources": ["ingresses/status"], "verbs": ["update"]},
    {"apiGroups": [_GATEWAY], "resources": list(_KINDS), "verbs": _SEEN},
    {"apiGroups": [_GATEWAY], "resources": [f"{kind}/status" for kind in _KINDS], "verbs": ["update"]},
]


def crds(site: Site) -> None:
    """Those of Gateway API; the operator reads HTTPRoutes once they are there."""
    site.kube.apply_folder(gotool.source("gateway-api", gateway.MODULE) / "config" / "crd" / "standard")
    site.kube.run("wait", "--for=condition=Established", "--timeout=60s", "crd", "--all")


def start(site: Site, folder: pathlib.Path) -> tuple[str, pathlib.Path, pathlib.Path]:
    """The controller's address, and the authorities of the certificates of the Gateway and of the Ingress."""
    site.kube.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SPACE}})
    public, crt, key = authority.issue(folder / "gateway", f"*.{DOMAIN}")
    site.kube.apply(_tls(SPACE, "public-tls", crt, key))
    other, crt, key = authority.issue(folder / "ingress", INGRESS_HOST)
    site.kube.apply(_tls(NAMESPACE, INGRESS_SECRET, crt, key))
    site.kube.apply(*_rights(), *_classes(), _gateway(), _pod(site.images["fetch"], program.ensure()))
    site.kube.run("wait", "--for=condition=Ready", f"pod/{NAME}", "--namespace", SPACE, "--timeout=120s")
    pod = json.loads(site.raw(f"/api/v1/namespaces/{SPACE}/pods/{NAME}"))
    address: str = pod["status"]["podIP"]
    return address, public, other


def log(site: Site) -> list[dict[str, Any]]:
    """The requests that it has answered, with the address of the pod that each was sent to."""
    lines = site.kube.run("logs", NAME, "--namespace", SPACE).splitlines()
    return [json.loads(line) for line in lines if line.startswith("{") and "RequestPath" in line]


def _tls(namespace: str, name: str, crt: pathlib.Path, key: pathlib.Path) -> dict[str, Any]:
    data = {file.name: base64.b64encode(file.read_bytes()).decode() for file in (crt, key)}
    metadata = {"name": name, "namespace": namespace}
    return {"apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls", "metadata": metadata, "data": data}


def _rights() -> list[dict[str, Any]]:
    api, account = "rbac.authorization.k8s.io", {"kind": "ServiceAccount", "name": NAME, "namespace": SPACE}
    return [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": NAME, "namespace": SPACE}},
        {"apiVersion": f"{api}/v1", "kind": "ClusterRole", "metadata": {"name": NAME}, "rules": RULES},
        {
            "apiVersion": f"{api}/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": NAME},
            "roleRef": {"apiGroup": api, "kind": "ClusterRole", "name": NAME},
            "subjects": [account],
        },
    ]


def _classes() -> list[dict[str, Any]]:
    return [
        {
            "apiVersion": f"{_GATEWAY}/v1",
            "kind": "GatewayClass",
            "metadata": {"name": NAME},
            "spec": {"controllerName": "traefik.io/gateway-controller"},
        },
        {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "IngressClass",
            "metadata": {"name": NAME},
            "spec": {"controller": "traefik.io/ingress-controller"},
        },
    ]


def _gateway() -> dict[str, Any]:
    listener = {
        "name": "https",
        "port": PORT,
        "protocol": "HTTPS",
        "hostname": f"*.{DOMAIN}",
        "tls": {"mode": "Terminate", "certificateRefs": [{"name": "public-tls"}]},
        "allowedRoutes": {"namespaces": {"from": "All"}},
    }
    return {
        "apiVersion": f"{_GATEWAY}/v1",
        "kind": "Gateway",
        "metadata": {"name": "public", "namespace": SPACE},
        "spec": {"gatewayClassName": NAME, "listeners": [listener]},
    }


def _pod(image: str, traefik: pathlib.Path) -> dict[str, Any]:
    container = {
        "name": NAME,
        "image": image,
        "command": [f"/controller/{traefik.name}", *ARGUMENTS],
        "volumeMounts": [{"name": "program", "mountPath": "/controller", "readOnly": True}],
        "readinessProbe": {"httpGet": {"path": "/ping", "port": PING}, "periodSeconds": 1},
        "resources": {"requests": {"cpu": "50m", "memory": "128Mi"}},
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": NAME, "namespace": SPACE, "labels": {"app": NAME}},
        "spec": {
            "serviceAccountName": NAME,
            "containers": [container],
            "volumes": [{"name": "program", "hostPath": {"path": str(traefik.parent)}}],
        },
    }
