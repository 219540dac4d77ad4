"""The preparation: the cluster, the images in its registry, the base model's folder.

The first time, images are built beside the cluster's programs (one waits for downloads and disks while the other compiles), and
the node pulls each large image as soon as it was pushed, so that no pod of the job waits for gigabytes.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from demo import child, clock, gateway, install, place
from demo.place import Place
from toolbox import cache

_IMAGES = cache.REPOSITORY / "hack" / "images"
_FIRST = ["operator", "fetch", "trainer"]
_SERVER = ["vllm-cpu"]


@dataclass(frozen=True)
class Prepared:
    where: Place
    images: dict[str, str]  # image -> reference
    model: Path


def existing(given: tuple[str, str], namespace: str, watch: clock.Clock) -> Prepared:
    """On an existing cluster, without disturbing its users."""
    where = place.use_existing(*given)
    install.refuse_to_replace(where.kube, install.SYSTEM, gateway.NAMESPACE, namespace)
    images, model = clock.together(lambda: _push([*_FIRST, *_SERVER, "s3"], where, watch), lambda: _model(watch))
    return Prepared(where, images, model)


def local(watch: clock.Clock, *, cold: bool) -> Prepared:
    """On a node of this machine. `cold`: the cache is empty."""

    def cluster() -> Place:
        with watch.step("Cluster", "7 s, minutes at first"):
            return place.start_local()

    def build() -> None:
        with watch.step("Images, built meanwhile", "6 min"):
            child.tool(_IMAGES, "prepare", *_FIRST, *_SERVER)

    where, model, *_ = clock.together(cluster, lambda: _model(watch), *[build] * cold)
    if not cold:
        return Prepared(where, _push(_FIRST + _SERVER, where, watch), model)
    images = _push(_FIRST, where, watch)
    install.pull(where.kube, images["trainer"])
    images |= _push(_SERVER, where, watch)
    install.pull(where.kube, images["vllm-cpu"])
    return Prepared(where, images, model)


def _push(names: Sequence[str], where: Place, watch: clock.Clock) -> dict[str, str]:
    with watch.step(f"Images: {', '.join(names)}", "2 s, 6 min at first"):
        output = child.tool(_IMAGES, "build", *names, "--registry", where.registry, "--json")
    references: dict[str, str] = json.loads(output)
    return references


def _model(watch: clock.Clock) -> Path:
    with watch.step("Base model: SmolLM2-135M-Instruct", "1 s, 40 s at first"):
        return Path(child.tool(cache.REPOSITORY / "hack" / "model.py"))
