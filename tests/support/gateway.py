"""The CRDs of Gateway API and its inference extension, of the releases that hack/tools/gateway-api and
hack/tools/gateway-api-inference-extension pin; no controller."""

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import yaml

from support import controlplane
from toolbox import gotool

MODULE, EXTENSION = "sigs.k8s.io/gateway-api", "sigs.k8s.io/gateway-api-inference-extension"
KINDS = ("gatewayclasses", "gateways", "httproutes")


LLM_D = "llm-d.ai"


@contextlib.contextmanager
def served(plane: controlplane.ControlPlane) -> Iterator[None]:
    """The control plane has those of Gateway API as long as the block lasts."""
    folder = gotool.source("gateway-api", MODULE) / "config" / "crd" / "standard"
    texts = [(folder / f"gateway.networking.k8s.io_{kind}.yaml").read_text() for kind in KINDS]
    with _served(plane, [yaml.safe_load(text) for text in texts]):
        yield


@contextlib.contextmanager
def inference(plane: controlplane.ControlPlane) -> Iterator[None]:
    """The control plane has InferencePools and llm-d's InferenceModelRewrites as long as the block lasts. The latter is the
    extension's, from which llm-d took it over: with llm-d's group, and its default for the group of a pool."""
    folder = gotool.source("gateway-api-inference-extension", EXTENSION) / "config" / "crd" / "bases"
    pools = yaml.safe_load((folder / "inference.networking.k8s.io_inferencepools.yaml").read_text())
    text = (folder / "inference.networking.x-k8s.io_inferencemodelrewrites.yaml").read_text()
    rewrites = yaml.safe_load(text.replace("inference.networking.x-k8s.io", LLM_D))
    spec = rewrites["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    spec["properties"]["poolRef"]["properties"]["group"]["default"] = LLM_D
    with _served(plane, [pools, rewrites]):
        yield


@contextlib.contextmanager
def _served(plane: controlplane.ControlPlane, crds: list[Any]) -> Iterator[None]:
    text = json.dumps({"apiVersion": "v1", "kind": "List", "items": crds})
    plane.kubectl("apply", "--server-side", "-f", "-", stdin=text)
    plane.kubectl("wait", "--for=condition=Established", "--timeout=30s", "-f", "-", stdin=text)
    try:
        yield
    finally:
        plane.kubectl("delete", "-f", "-", stdin=text)
