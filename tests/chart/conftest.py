"""The chart, rendered by the real Helm: what a cluster would get, as parsed YAML."""

import collections
import json
import os
import pathlib
import shutil
import subprocess
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import yaml

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
CHART = REPOSITORY / "charts" / "finetune-operator"
# Rendered for the oldest Kubernetes that Chart.yaml allows; a Helm built from source has no default version.
KUBERNETES = "1.30"

Manifest = dict[str, Any]
Rendered = dict[str, dict[str, Manifest]]
"""kind -> name (namespace/name where the namespace is not the release's) -> manifest."""
Render = Callable[..., Rendered]
Refusal = Callable[..., str]


def find_helm() -> str:
    cache = pathlib.Path(os.environ.get("FINETUNE_CACHE") or pathlib.Path.home() / ".cache" / "finetune-operator")
    places = [pathlib.Path(os.environ["FINETUNE_BIN"])] if os.environ.get("FINETUNE_BIN") else []
    places += sorted((cache / "bin").glob("*"))
    for place in places:
        if (place / "helm").exists():
            return str(place / "helm")
    if found := shutil.which("helm"):
        return found
    pytest.fail(
        f"helm was found neither in $FINETUNE_BIN, nor in {cache / 'bin'}, nor in PATH:"
        " run `make cluster` once, or install Helm 3"
    )


@pytest.fixture(scope="session")
def helm() -> str:
    return find_helm()


def run(helm: str, values: Any, release: str, *more: str) -> subprocess.CompletedProcess[str]:
    where = [str(CHART), "--namespace=finetune-system", f"--kube-version={KUBERNETES}"]
    return subprocess.run(
        [helm, "template", release, *where, "--values=-", *more],
        input=json.dumps(values or {}),
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="session")
def render(helm: str) -> Render:
    """The manifests for some values, as they are installed."""

    def rendered(values: Any = None, release: str = "finetune-operator") -> Rendered:
        done = run(helm, values, release, "--skip-tests")
        assert done.returncode == 0, done.stderr
        return sorted_out(done.stdout)

    return rendered


@pytest.fixture(scope="session")
def render_tests(helm: str) -> Render:
    """The manifests of `helm test` alone."""

    def rendered(values: Any = None, release: str = "finetune-operator") -> Rendered:
        done = run(helm, values, release, "--show-only=templates/tests/test.yaml")
        assert done.returncode == 0, done.stderr
        return sorted_out(done.stdout)

    return rendered


@pytest.fixture(scope="session")
def render_upgrade(helm: str) -> Render:
    """The manifests of the clean-up after an upgrade alone, in a cluster that has these groups besides Kubernetes' own."""

    def rendered(values: Any = None, groups: Sequence[str] = ()) -> Rendered:
        more = [f"--api-versions={group}" for group in groups]
        done = run(
            helm, values, "finetune-operator", "--is-upgrade", "--show-only=templates/upgrade/cleanup.yaml", *more
        )
        assert done.returncode == 0, done.stderr
        return sorted_out(done.stdout)

    return rendered


def sorted_out(text: str) -> Rendered:
    found: Rendered = collections.defaultdict(dict)
    for manifest in yaml.safe_load_all(text):
        if not manifest:
            continue
        metadata = manifest["metadata"]
        elsewhere = metadata.get("namespace", "finetune-system") != "finetune-system"
        name = f"{metadata['namespace']}/{metadata['name']}" if elsewhere else metadata["name"]
        assert name not in found[manifest["kind"]], f"{manifest['kind']} {name} is rendered twice"
        found[manifest["kind"]][name] = manifest
    return found


@pytest.fixture(scope="session")
def refusal(helm: str) -> Refusal:
    """What Helm says to values that the schema refuses."""

    def refused(values: Any) -> str:
        done = run(helm, values, "finetune-operator")
        assert done.returncode != 0, f"these values were accepted: {values}"
        return done.stderr

    return refused
