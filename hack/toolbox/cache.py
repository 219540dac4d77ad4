"""The one folder that the development tools write to: `$FINETUNE_CACHE`, by default ~/.cache/finetune-operator.

bin/          binaries of the local cluster, one folder per set of locked versions; Go programs of our own, one folder each
images/       base image, image builds (buildah's storage), the list of the images last pushed
registry/     the local registry's blobs: kept, so that an unchanged image is not pushed again
containerd/   the node's images: kept, so that an unchanged image is not pulled again
model/        the base model of the demo
bench/        the benchmark's peers, an environment each, and its random model
clusters/     state of the running clusters, one folder each: gone after `down`
logs/         logs of the clusters, kept after `down`; those of the run before as NAME.previous
"""

import hashlib
import os
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


def root() -> Path:
    given = os.environ.get("FINETUNE_CACHE")
    return Path(given).expanduser().absolute() if given else Path.home() / ".cache" / "finetune-operator"


def folder(*parts: str) -> Path:
    """A folder below the cache, made when it is absent."""
    path = root().joinpath(*parts)
    path.mkdir(parents=True, exist_ok=True)
    return path


def run_folder() -> Path:
    """Where buildah notes what it has mounted: forgotten when the machine restarts, and each cache's apart."""
    if os.geteuid() != 0:
        return folder("images", "run")
    return Path("/run", f"finetune-images-{hashlib.sha256(str(root()).encode()).hexdigest()[:8]}")
