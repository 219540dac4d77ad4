"""The pool on the node, and the jobs whose statuses say which adapter their names stand for."""

import base64
import contextlib
import json
import pathlib
import threading
import time
import urllib.request
from typing import Any

from bench.pool.adapters import RANK, Adapter
from support import site as sites
from support.site import NAMESPACE, Site

POOL, KEYS, KEY, CLAIM, FIRST = "many", "many-keys", "key-of-the-clients", "many-adapters", "firstborn"
ON_GPU, IN_MEMORY = 8, 64
SETTLED = 90.0
"""Seconds after a change in which a name may answer with its former adapter as well."""


def objects(site: Site, folder: pathlib.Path) -> list[dict[str, Any]]:
    size = {"storage": "2Gi"}
    volume = {
        "capacity": size,
        "accessModes": ["ReadWriteMany"],
        "storageClassName": "",
        "hostPath": {"path": str(folder)},
        "persistentVolumeReclaimPolicy": "Retain",
    }
    claim = {
        "accessModes": ["ReadWriteMany"],
        "resources": {"requests": size},
        "storageClassName": "",
        "volumeName": CLAIM,
    }
    here = {"namespace": NAMESPACE}
    pool = {
        "baseModel": {"name": sites.MODEL},
        "resources": {"gpus": 0, "requests": {"cpu": "500m", "memory": "4Gi"}},
        "storage": {"endpoint": site.store.endpoint, "region": site.store.region, "credentialsSecret": sites.SECRET},
        "adapters": {"maxRank": RANK, "onGpu": ON_GPU, "inMemory": IN_MEMORY, "claimName": CLAIM},
        "contextLength": 256,
        # in bfloat16 two tokens of a random adapter may be equally likely, and what else is in the batch decides
        "extraArgs": ["--dtype=float32"],
        "keysSecret": KEYS,
    }
    key = base64.b64encode(KEY.encode()).decode()
    return [
        {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": CLAIM}, "spec": volume},
        {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": CLAIM, **here}, "spec": claim},
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": KEYS, **here}, "data": {NAMESPACE: key}},
        {
            "apiVersion": "finetune.dev/v1alpha1",
            "kind": "ServingPool",
            "metadata": {"name": POOL, **here},
            "spec": pool,
        },
    ]


class Fleet:
    """The jobs that stand for adapters, by the names that clients send."""

    def __init__(self, site: Site, first: sites.Job) -> None:
        self._site, self._spec = site, {**first["spec"], "suspend": True}
        self._spec["deployment"] = {**self._spec["deployment"], "servedModelName": None}
        self._text = json.dumps(first["status"])
        self._release = json.loads(first["status"]["serving"])
        self._lock = threading.Lock()
        self._valid: dict[str, list[tuple[float, Adapter]]] = {}
        self._changes = 0
        self.known: dict[str, str] = {}
        """Answer of each adapter -> the name that had it first."""

    def put(self, name: str, adapter: Adapter) -> None:
        """The job's status says that this adapter serves."""
        self._changes += 1
        state = json.loads(self._text.replace(FIRST, name))
        release = json.loads(json.dumps(self._release).replace(FIRST, name))
        release["name"] = f"{name}-{self._changes}"
        release["adapter"] |= {"sha256": adapter.sha256, "bytes": adapter.bytes, "rank": RANK}
        state["serving"] = json.dumps(release, separators=(",", ":"))  # as the operator writes it
        state.pop("observedGeneration", None)
        with self._lock:
            self._valid.setdefault(name, []).append((time.monotonic(), adapter))
        patch(f"http://{self._site.proxy}{sites.JOBS}/{name}/status", {"status": state})

    def create(self, names: list[str]) -> None:
        made = [
            {
                "apiVersion": "finetune.dev/v1alpha1",
                "kind": "FineTuneJob",
                "metadata": {"name": name, "namespace": NAMESPACE},
                "spec": {**self._spec, "deployment": {**self._spec["deployment"], "servedModelName": name}},
            }
            for name in names
        ]
        self._site.kube.apply(*made)

    def remove(self, name: str) -> None:
        with self._lock:
            self._valid.pop(name, None)
        self._site.delete(name)

    def names(self) -> list[str]:
        with self._lock:
            return sorted(self._valid)

    def answers(self, name: str, asked: float) -> set[str] | None:
        """What the name may answer to a request that began then; None once it is gone."""
        with self._lock:
            known = list(self._valid.get(name, []))
        if not known:
            return None
        recent = [adapter for since, adapter in known[:-1] if known[-1][0] + SETTLED > asked or since > asked]
        return {adapter.answer for adapter in (*recent, known[-1][1])}

    def whose(self, name: str, text: str) -> str:
        """Which adapter gives an answer that this name should not give."""
        with self._lock:
            since, former = time.monotonic(), list(self._valid.get(name, []))
        if text in {adapter.answer for _, adapter in former}:
            return f"its former adapter's, {since - former[-1][0]:.0f} s after the change"
        return f"that of {self.known[text]}" if text in self.known else "no adapter's: this one's in another batch"


def patch(url: str, body: Any) -> None:
    headers = {"Content-Type": "application/merge-patch+json"}
    request = urllib.request.Request(url, json.dumps(body).encode(), headers, method="PATCH")
    with urllib.request.urlopen(request, timeout=30):
        pass


def server(site: Site) -> dict[str, Any]:
    found = json.loads(site.raw(f"/api/v1/namespaces/{NAMESPACE}/pods"))["items"]
    mine = [pod for pod in found if pod["metadata"]["name"].startswith(f"{POOL}-")]
    live = [pod for pod in mine if not pod["metadata"].get("deletionTimestamp")]
    return live[0]


def ready_server(site: Site, seconds: float = 300) -> dict[str, Any]:
    end = time.monotonic() + seconds
    while True:
        with contextlib.suppress(IndexError):
            pod = server(site)
            if any(c["type"] == "Ready" and c["status"] == "True" for c in pod["status"].get("conditions", [])):
                return pod
        if time.monotonic() > end:
            raise SystemExit(f"the pool's pod is not ready after {seconds:.0f} s: {server(site)['status']}")
        time.sleep(1)


def memory(pod: dict[str, Any]) -> int:
    """Bytes of all processes of a pod on this machine, shared pages divided (Pss)."""
    total = 0
    for folder in pathlib.Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if folder.name.isdigit() and pod["metadata"]["uid"] in (folder / "cgroup").read_text():
                lines = (folder / "smaps_rollup").read_text().splitlines()
                total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) * 1024
    return total
