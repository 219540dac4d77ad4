"""`make demo-down`: removes what the demo created, and nothing else. Standard library only."""

import os

from demo import install, place
from toolbox import say


def down() -> None:
    given = place.existing() if os.environ.get("REGISTRY") else None
    if given is None:
        place.stop_local()
        return
    _remove(place.use_existing(*given))


def _remove(where: place.Place) -> None:
    """On an existing cluster: the namespaces and CRDs that carry the demo's label, and the release in them."""
    kube = where.kube
    ours = [item["metadata"]["name"] for item in kube.items("namespaces", selector=install.OURS)]
    if install.SYSTEM in ours:
        say.line(f"  removing the release {install.RELEASE} of namespace {install.SYSTEM}")
        kube.run_helm("uninstall", install.RELEASE, "--namespace", install.SYSTEM, "--ignore-not-found", "--wait")
    for name in ours:
        say.line(f"  deleting namespace {name}")
        kube.run("delete", "namespace", name, "--wait=true", timeout=600)
    crds = [item["metadata"]["name"] for item in kube.items("customresourcedefinitions", selector=install.OURS)]
    if not crds:
        return
    if kube.items("finetunejobs.finetune.dev"):
        say.line(f"  keeping {', '.join(crds)}: other FineTuneJobs use them")
        return
    say.line(f"  deleting {', '.join(crds)}")
    kube.run("delete", "customresourcedefinitions", *crds)
