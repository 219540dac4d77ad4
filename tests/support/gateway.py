"""The CRDs of Gateway API, of the release that hack/tools/gateway-api pins; no controller."""

import contextlib
from collections.abc import Iterator

from support import controlplane
from toolbox import gotool

MODULE = "sigs.k8s.io/gateway-api"
KINDS = ("gatewayclasses", "gateways", "httproutes")


@contextlib.contextmanager
def served(plane: controlplane.ControlPlane) -> Iterator[None]:
    """The control plane has them as long as the block lasts."""
    folder = gotool.source("gateway-api", MODULE) / "config" / "crd" / "standard"
    named = [word for kind in KINDS for word in ("-f", folder / f"gateway.networking.k8s.io_{kind}.yaml")]
    plane.kubectl("apply", "--server-side", *named)
    plane.kubectl("wait", "--for=condition=Established", "--timeout=30s", *named)
    try:
        yield
    finally:
        plane.kubectl("delete", *named)
