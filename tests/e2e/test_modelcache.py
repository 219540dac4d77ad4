"""Base models on a claim: two jobs at once download their model once, also when the first download is killed."""

import contextlib
import fcntl
import os
import shutil
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from demo import install
from finetune_operator.observe import label
from support import site as sites
from support.site import BUCKET, CACHED, CLAIM, Site, condition
from toolbox import cache

MODEL = "padded"
NAMES = ("one", "two")
PADDING = 256 * 2**20
"""Bytes that give a download a second, in which it can be killed."""


@pytest.fixture
def model(site: Site) -> str:
    """The tiny model with one large file more, which nobody reads."""
    folder = cache.folder("e2e") / MODEL
    folder.mkdir(exist_ok=True)
    for uri in site.objects.names(f"s3://{BUCKET}/models/{sites.MODEL}/"):
        (folder / uri.rpartition("/")[2]).write_bytes(site.objects.read(uri))
    with (folder / "padding.txt").open("wb") as file:
        for _ in range(PADDING >> 20):
            file.write(b"x" * 2**20)
    site.objects.upload_folder(folder, f"s3://{BUCKET}/models/{MODEL}")
    shutil.rmtree(folder)
    return f"s3://{BUCKET}/models/{MODEL}"


@pytest.fixture
def shared(site: Site) -> Iterator[Path]:
    """The folder of a volume of this node, for the claim; the namespace is there, the claim not yet."""
    folder = cache.folder("e2e") / "model-cache"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    folder.chmod(0o777)
    install.make_namespace(site.kube, CACHED)
    install.credentials(site.kube, CACHED, sites.SECRET, site.store)
    yield folder
    site.kube.run("delete", "namespace", CACHED, "--wait=true", "--timeout=120s")
    site.kube.run("delete", "persistentvolume", CACHED, "--ignore-not-found", "--wait=false")
    shutil.rmtree(folder, ignore_errors=True)


def job(site: Site, name: str) -> sites.Job:
    return site.read(f"{sites.API}/{CACHED}/finetunejobs/{name}")


def until(site: Site, holds: Any, what: str, seconds: float) -> None:
    end = time.monotonic() + seconds + sites.PATIENCE
    while not holds():
        jobs = {name: job(site, name) for name in NAMES}
        failed = {name: condition(one, "Failed") for name, one in jobs.items()}
        assert not any(one.get("status") == "True" for one in failed.values()), failed
        assert time.monotonic() < end, f"not {what}: {[condition(one, 'Ready') for one in jobs.values()]}"
        time.sleep(0.5)


def bind(site: Site, folder: Path) -> None:
    """The claim, on a volume of this machine, or as a given cluster provides it."""
    common = {"accessModes": ["ReadWriteOnce"], "storageClassName": ""}
    size = {"storage": "2Gi"}
    claim: dict[str, Any] = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": size}}
    if site.local:
        claim |= {"storageClassName": "", "volumeName": CACHED}
        spec = {
            **common,
            "capacity": size,
            "hostPath": {"path": str(folder)},
            "persistentVolumeReclaimPolicy": "Retain",
        }
        site.kube.apply(
            {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": CACHED}, "spec": spec},
        )
    metadata = {"name": CLAIM, "namespace": CACHED}
    site.kube.apply({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": claim})


def downloading() -> int | None:
    """The process that writes to the cache now, on this machine."""
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if folder.name.isdigit() and b"--cache" in (folder / "cmdline").read_bytes().split(b"\0"):
                files = [os.readlink(one) for one in (folder / "fd").iterdir()]
                if any(".part/" in file and "padding" in file for file in files):
                    return int(folder.name)
    return None


def logs(site: Site) -> list[str]:
    """What the containers that fetch wrote, in every pod that loads the model."""
    pods = site.kube.items("pods", f"{label.JOB} in (one, two)", CACHED)
    loading = [pod for pod in pods if pod["spec"].get("initContainers")]
    return [
        site.kube.run("logs", pod["metadata"]["name"], "--namespace", CACHED, "--container", label.FETCH, check=False)
        for pod in loading
    ]


def test_two_jobs_at_once_download_their_model_once_though_the_first_download_is_killed(
    site: Site, model: str, shared: Path
) -> None:
    data = site.upload_rows("cached/train.jsonl", sites.chats(40))
    for name in NAMES:
        served = {"enabled": name == "one", "extraArgs": ["--max-model-len=256"]}
        served["resources"] = {"gpus": 0, "requests": {"cpu": "250m", "memory": "3Gi"}}
        spec = site.spec(
            data,
            baseModel={"source": model},
            training={"maxSteps": 2, "batchSize": 2, "learningRate": 0.01, "lora": {"rank": 8}},
            evaluation={"maximumExamples": 4, "generation": {"maxNewTokens": 4}, "gates": []},
            deployment=served if name == "one" else {"enabled": False},
        )
        metadata = {"name": name, "namespace": CACHED}
        site.kube.apply(
            {"apiVersion": "finetune.dev/v1alpha1", "kind": "FineTuneJob", "metadata": metadata, "spec": spec}
        )

    def waits(name: str) -> bool:
        return condition(job(site, name), "Ready").get("reason") == "VolumeUnavailable"

    until(site, lambda: all(map(waits, NAMES)), "waiting for the claim", 120)
    assert f'persistentvolumeclaim "{CLAIM}" not found' in condition(job(site, "one"), "Ready")["message"]
    assert list(shared.iterdir()) == []

    bind(site, shared)
    if site.local:
        victim = None
        end = time.monotonic() + 120 + sites.PATIENCE  # pods of other tests may fill the node
        while victim is None:
            assert time.monotonic() < end, "nothing is downloaded"
            time.sleep(0.05)
            victim = downloading()
        os.kill(victim, signal.SIGKILL)
        assert [path.name for path in shared.iterdir()] == [".state"], "a part counts as nothing"

    until(site, lambda: condition(job(site, "two"), "Complete").get("status") == "True", "Complete", 200)
    until(site, lambda: condition(job(site, "one"), "Ready").get("status") == "True", "Ready", 200)
    written = logs(site)
    found = Counter(next((words for words in ("downloaded into", "found in") if words in text), "") for text in written)
    assert found["downloaded into"] == 1, written
    assert found["found in"] >= 4, "two trainings, two evaluations and a server, of which one downloaded"
    assert found[""] == (1 if site.local else 0), "the one that was killed"
    if site.local:
        [folder] = [path for path in shared.iterdir() if path.name != ".state"]
        assert (folder / "padding.txt").stat().st_size == PADDING
        with (shared / ".state" / f"{folder.name}.use").open("a") as lock, pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the server has it as long as it runs
