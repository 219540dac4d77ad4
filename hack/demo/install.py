"""Installs everything that a user would: CRDs, namespaces, the Secret, the chart with its values."""

import base64
import json
from collections.abc import Mapping
from typing import Any

from demo import place
from demo.kube import Kube, Manifest
from toolbox import cache, say

RELEASE = "finetune-operator"
SYSTEM = "finetune-system"
MODEL = "smollm2-135m-instruct"
LABEL = "finetune.dev/demo"
OURS = f"{LABEL}=true"
CHART = cache.REPOSITORY / "charts" / "finetune-operator"

# config.json of HuggingFaceTB/SmolLM2-135M-Instruct
_ARCHITECTURE = {
    "layers": 30,
    "hiddenSize": 576,
    "intermediateSize": 1536,
    "attentionHeads": 9,
    "keyValueHeads": 3,
    "headDim": 64,
    "vocabularySize": 49152,
    "maxPositions": 8192,
    "tiedEmbeddings": True,
}

# vLLM on the CPU of a small machine
_SERVING = {
    "args": [
        "--dtype=bfloat16",
        "--max-model-len=1024",
        "--max-num-seqs=8",
        "--enforce-eager",
        "--kv-cache-memory-bytes=268435456",
    ],
    # Two servers run side by side while a new model takes over: neither may pin itself to the same cores. Threads that
    # wait for each other on busy cores are slower than one: beside one busy process 4 tokens/s with two, 45 with one.
    # Without its own worker process, which it starts to pin threads, a server has one import of vLLM less to do.
    "env": {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"},
    "shmSize": "256Mi",
    "requests": {"cpu": "500m", "memory": "4Gi"},
}


def values(images: Mapping[str, str], model_source: str) -> dict[str, Any]:
    """The chart's values of the demo."""
    return {
        "images": {
            "operator": reference(images["operator"]),
            "trainer": reference(images["trainer"]),
            "fetch": reference(images["fetch"]),
            "serving": reference(images["vllm-cpu"]),
        },
        "serving": _SERVING,
        "preflight": {"requests": {"cpu": "250m", "memory": "2Gi"}},
        "verify": {"requests": {"cpu": "50m", "memory": "128Mi"}},
        "progressSeconds": 1,
        "drainSeconds": 5,
        "catalogue": {
            MODEL: {
                "source": model_source,
                "family": "smollm2",
                "parameters": 134515008,
                "license": "Apache-2.0",
                "architecture": _ARCHITECTURE,
            }
        },
    }


def reference(image: str) -> dict[str, str]:
    """An image reference in the chart's form: repository, tag, digest."""
    name, _, digest = image.partition("@")
    repository, colon, tag = name.rpartition(":")
    if not colon or "/" in tag:  # the colon of a registry's port
        repository, tag = name, ""
    return {"repository": repository, "tag": tag, "digest": digest}


def namespace(name: str, *, enforce: str = "restricted") -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": name, "labels": {LABEL: "true", "pod-security.kubernetes.io/enforce": enforce}},
    }


def secret(name: str, in_namespace: str, contents: Mapping[str, str]) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name, "namespace": in_namespace},
        "data": {key: base64.b64encode(value.encode()).decode() for key, value in contents.items()},
    }


def make_namespace(kube: Kube, name: str) -> None:
    """The namespace, unless it exists: one that a user made keeps its labels, and outlives the demo."""
    if kube.get("namespace", name) is None:
        kube.apply(namespace(name))


def crds(kube: Kube) -> None:
    """The CRDs of this checkout; `helm upgrade` would not update older ones."""
    fresh = kube.get("customresourcedefinition", "finetunejobs.finetune.dev") is None
    kube.apply_folder(CHART / "crds")
    if fresh:
        for name in ("finetunejobs.finetune.dev", "basemodels.finetune.dev"):
            kube.run("label", "customresourcedefinition", name, OURS, "--overwrite")
    kube.run(
        "wait", "--for=condition=Established", "--timeout=60s",
        "customresourcedefinition/finetunejobs.finetune.dev", "customresourcedefinition/basemodels.finetune.dev",
    )  # fmt: skip


def credentials(kube: Kube, in_namespace: str, name: str, store: place.ObjectStore) -> None:
    contents = {"AWS_ACCESS_KEY_ID": store.access_key, "AWS_SECRET_ACCESS_KEY": store.secret_key}
    kube.apply(secret(name, in_namespace, contents))


def refuse_to_replace(kube: Kube, *names: str) -> None:
    """On an existing cluster: refuses to change namespaces that the demo did not create."""
    for name in names:
        found = kube.get("namespace", name)
        if found and found["metadata"].get("labels", {}).get(LABEL) != "true":
            raise say.Problem(
                f"this cluster has a namespace {name} that the demo did not make, and the demo would change what is in"
                " it. Use another cluster, or, where the operator runs already, adapt and apply"
                " examples/quickstart.yaml yourself."
            )


def pull(kube: Kube, image: str) -> None:
    """Makes the node pull an image before a pod needs it; nothing waits for it.

    The Job is deleted when it is done; if it is slow, the pod that needs the image waits for the same pull.
    """
    make_namespace(kube, SYSTEM)
    kube.apply(puller(image))


def puller(image: str) -> Manifest:
    name, tag = reference(image)["repository"].rpartition("/")[2], reference(image)["tag"]
    container = {
        "name": "pull",
        "image": image,
        "command": ["true"],
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    pod = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "securityContext": {"runAsNonRoot": True, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [container],
    }
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": f"pull-{name}-{tag}", "namespace": SYSTEM, "labels": {LABEL: "true"}},
        "spec": {"ttlSecondsAfterFinished": 0, "backoffLimit": 3, "template": {"spec": pod}},
    }


def chart(kube: Kube, chosen: dict[str, Any]) -> None:
    kube.run_helm(
        "upgrade", "--install", RELEASE, str(CHART), "--namespace", SYSTEM,
        "--values", "-", "--wait", "--timeout", "5m", "--skip-crds",
        stdin=json.dumps(chosen),
    )  # fmt: skip
