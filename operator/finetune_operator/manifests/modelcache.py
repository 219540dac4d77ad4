"""The claim with base models that the pods of a namespace share (docs/adr/0044-base-models-on-a-claim.md).

It changes a finished pod in one place: the container that fetches gets the claim to write to, all others to read. MODEL_PATH is a
link into it. Whoever reads keeps a lock, so that nobody removes the model meanwhile.
"""

from typing import Any

from finetune_api import run
from finetune_operator import settings
from finetune_operator.manifests import pods
from finetune_operator.observe import label

MODELS = "/models"
"""Where the link is; the volume `models` of the pod."""

HOLD = f"""import fcntl, os, pathlib, sys
base = pathlib.Path("{run.MODEL_PATH}").resolve(strict=True)
lock = os.open(base.parent / ".state" / (base.name + ".use"), os.O_RDONLY)
fcntl.flock(lock, fcntl.LOCK_SH)
os.set_inheritable(lock, True)
os.execvp(sys.argv[1], sys.argv[1:])
"""
"""Keeps the lock of the model (finetune_trainer.store.locks) for a program that knows nothing of it: as long as that runs."""


def shared(
    pod: dict[str, Any], base: run.ResolvedBaseModel, claim: settings.ModelClaim | None, image: str
) -> dict[str, Any]:
    """The PodSpec with the claim; as it is without one, or if no model is fetched. `image`: of the container that fetches."""
    if claim is None or not pods.fetched(base):
        return pod
    first = list(pod.get("initContainers", []))
    if not any(one["name"] == label.FETCH for one in first):
        first.insert(0, _fetch(pod["containers"][0], image))
    volumes = [*pod["volumes"], {"name": "model-cache", "persistentVolumeClaim": {"claimName": claim.name}}]
    if not any(one["name"] == "models" for one in volumes):
        volumes.append({"name": "models", "emptyDir": {}})
    return {
        **pod,
        "initContainers": [_writer(one, claim) if one["name"] == label.FETCH else _reader(one) for one in first],
        "containers": [one if one["name"] == label.GATEWAY else _reader(one) for one in pod["containers"]],
        "volumes": volumes,
    }


def _fetch(stage: dict[str, Any], image: str) -> dict[str, Any]:
    """The container that fetches for a stage, with the stage's keys and amounts but without its GPUs."""
    same = {"name", "image", "imagePullPolicy", "env", "securityContext", "terminationMessagePolicy"}
    return {
        **{key: value for key, value in stage.items() if key in same},
        "name": label.FETCH,
        "image": image,
        "args": ["fetch", "--run", run.PATH, "--base-to", run.MODEL_PATH],
        "resources": {
            of: {key: value for key, value in amounts.items() if key in pods.KUBERNETES.values()}
            for of, amounts in stage["resources"].items()
        },
        "volumeMounts": [
            *(one for one in stage["volumeMounts"] if one["name"] in ("tmp", "run", "ca")),
            {"name": "models", "mountPath": MODELS},
        ],
    }


def _writer(fetch: dict[str, Any], claim: settings.ModelClaim) -> dict[str, Any]:
    size = ["--cache-size", claim.size] if claim.size else []
    return {
        **fetch,
        "args": [*fetch["args"], "--cache", run.CACHE_PATH, *size],
        "volumeMounts": [*fetch["volumeMounts"], {"name": "model-cache", "mountPath": run.CACHE_PATH}],
    }


def _reader(container: dict[str, Any]) -> dict[str, Any]:
    mounts = [*container["volumeMounts"], {"name": "model-cache", "mountPath": run.CACHE_PATH, "readOnly": True}]
    if not any(one["name"] == "models" for one in mounts):
        mounts.append({"name": "models", "mountPath": MODELS, "readOnly": True})
    changed = {**container, "volumeMounts": mounts}
    if container["name"] == label.SERVER:
        return {**changed, "command": ["python3", "-c", HOLD, *container["command"]]}
    return {**changed, "env": [*container["env"], {"name": run.FETCHED, "value": run.MODEL_PATH}]}
