"""What the tests of this folder share: one real control plane a session, and clients of it."""

import os
import uuid
from collections.abc import Iterator

import pytest

from support import api, controlplane


@pytest.fixture(scope="session")
def control_plane() -> Iterator[controlplane.ControlPlane]:
    """One control plane for the whole session, with our CRDs."""
    with controlplane.running(f"test-{os.getpid()}") as plane:
        yield plane


@pytest.fixture
def namespace(control_plane: controlplane.ControlPlane) -> str:
    """A fresh namespace. It goes with the control plane."""
    name = f"test-{uuid.uuid4().hex[:8]}"
    control_plane.kubectl("create", "namespace", name)
    return name


@pytest.fixture(scope="session")
def dry(control_plane: controlplane.ControlPlane) -> Iterator[api.Api]:
    """Requests that go through admission and defaulting, and store nothing."""
    control_plane.kubectl("create", "namespace", "dry")
    with control_plane.client() as client:
        yield api.Api(client, "dry", dry=True)


@pytest.fixture
def own(control_plane: controlplane.ControlPlane, namespace: str) -> Iterator[api.Api]:
    """Requests in a namespace of the test's own."""
    with control_plane.client() as client:
        yield api.Api(client, namespace)
