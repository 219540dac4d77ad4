"""A whole site for the end-to-end tests: one node, our images, the operator by its chart, S3, a tiny base model.

It uses the demo's own steps, so that what is tested is what `make demo` does. With KUBECONFIG and REGISTRY of an existing
cluster given, the same tests run there.
"""

import contextlib
import dataclasses
import fcntl
import json
import os
import signal
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from demo import child, gateway, install, place
from demo.kube import Kube
from demo.objects import Objects
from toolbox import cache, lock

_HARNESS = cache.REPOSITORY / "hack" / "localcluster"
NAME = "e2e"
NAMESPACE = "ml"
API = "/apis/finetune.dev/v1alpha1/namespaces"
JOBS = f"{API}/{NAMESPACE}/finetunejobs"
CACHED, CLAIM = "ml-cached", "models"
"""A namespace whose pods share base models, and the claim in it; a test makes both."""
BUCKET = "finetune-e2e"
SECRET = "s3-credentials"
MODEL = "tiny"
PRICED = "any"
"""A gpuType that every node with a GPU has, and a price."""
IMAGES = ["operator", "fetch", "trainer", "vllm-cpu"]
Job = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Site:
    """The installed system. `local` tells whether the node is this machine's own; `proxy` is where `kubectl proxy` listens."""

    kube: Kube
    proxy: str
    store: place.ObjectStore
    objects: Objects
    images: dict[str, str]
    local: bool

    def spec(self, data: str, **changes: Any) -> dict[str, Any]:
        """The spec of a small CPU job on the tiny model, without a server; `changes` replace top-level fields."""
        spec: dict[str, Any] = {
            "baseModel": {"name": MODEL},
            "dataset": {"train": [data], "minimumExamples": 20},
            "storage": {
                "output": f"s3://{BUCKET}/output",
                "endpoint": self.store.endpoint,
                "region": self.store.region,
                "credentialsSecret": SECRET,
            },
            "training": {"maxSteps": 8, "batchSize": 8, "learningRate": 0.01, "lora": {"rank": 8}},
            "resources": {"gpus": 0, "requests": {"cpu": "250m", "memory": "2Gi"}},
            "evaluation": {
                "baselines": ["Base", "Prompt", "FewShot", "Retrieved", "ManyShot"],
                "maximumExamples": 8,
                "generation": {"maxNewTokens": 8},
                "gates": [],
            },
            "deployment": {"enabled": False},
        }
        return {**spec, **changes}

    def apply(self, name: str, spec: dict[str, Any], **annotations: str) -> None:
        self.kube.apply(
            {
                "apiVersion": "finetune.dev/v1alpha1",
                "kind": "FineTuneJob",
                "metadata": {"name": name, "namespace": NAMESPACE, "annotations": annotations},
                "spec": spec,
            }
        )

    def raw(self, path: str, **query: str) -> str:
        """What the API server answers. Tests ask it some thousand times: a kubectl each would take minutes of a core."""
        url = f"http://{self.proxy}{path}?{urllib.parse.urlencode(query)}"
        try:
            with urllib.request.urlopen(url, timeout=60) as answer:
                text: str = answer.read().decode(errors="replace")
        except urllib.error.HTTPError as error:
            error.msg = f"{path}: {error.msg}"
            raise
        return text

    def read(self, path: str) -> dict[str, Any]:
        """An object."""
        found: dict[str, Any] = json.loads(self.raw(path))
        return found

    def items(self, path: str, selector: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self.raw(path, labelSelector=selector))["items"]
        return found

    def job(self, name: str) -> Job:
        return self.read(f"{JOBS}/{name}")

    def until(self, name: str, holds: Callable[[Job], bool], what: str, seconds: float = 300) -> Job:
        """The job, once `holds` is true of it; fails with its status when that takes more than `seconds` and PATIENCE."""
        seconds += PATIENCE
        end = time.monotonic() + seconds
        while True:
            job = self.job(name)
            if holds(job):
                return job
            if time.monotonic() > end:
                raise AssertionError(
                    f"{name}: not {what} after {seconds:.0f} s: {json.dumps(job.get('status'), indent=1)}"
                )
            time.sleep(0.5)

    def until_condition(self, name: str, kind: str, value: str = "True", reason: str = "", seconds: float = 300) -> Job:
        """The job, once a condition has this value (and reason); fails at once when the job failed instead."""

        def holds(job: Job) -> bool:
            if job.get("status", {}).get("observedGeneration") != job["metadata"]["generation"]:
                return False
            found = condition(job, kind)
            if kind != "Failed" and condition(job, "Failed").get("status") == "True" and value == "True":
                raise AssertionError(f"{name} failed: {condition(job, 'Failed')} {job['status'].get('failure')}")
            return found.get("status") == value and (not reason or found.get("reason") == reason)

        return self.until(name, holds, f"{kind}={value} {reason}".strip(), seconds)

    def pods(self, job: str, **labels: str) -> list[dict[str, Any]]:
        """Pods of a FineTuneJob with these finetune.dev labels."""
        selector = ",".join(
            [f"finetune.dev/job={job}", *(f"finetune.dev/{key}={value}" for key, value in labels.items())]
        )
        return self.items(f"/api/v1/namespaces/{NAMESPACE}/pods", selector)

    def jobs(self, job: str, **labels: str) -> list[dict[str, Any]]:
        selector = ",".join(
            [f"finetune.dev/job={job}", *(f"finetune.dev/{key}={value}" for key, value in labels.items())]
        )
        return self.items(f"/apis/batch/v1/namespaces/{NAMESPACE}/jobs", selector)

    def logs(self, pod: str) -> str:
        return self.kube.run("logs", pod, "--namespace", NAMESPACE)

    def evict(self, pod: str) -> None:
        """As `kubectl drain` does."""
        body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": NAMESPACE}}
        path = f"/api/v1/namespaces/{NAMESPACE}/pods/{pod}/eviction"
        self.kube.run("create", "--raw", path, "-f", "-", stdin=json.dumps(body))

    def upload_rows(self, key: str, rows: list[Any]) -> str:
        """Rows as JSON lines in the bucket (a string is written as it is); gives the URI."""
        text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
        uri = f"s3://{BUCKET}/{key}"
        folder = cache.folder("e2e")
        path = folder / key.replace("/", "-")
        path.write_text(text)
        self.objects.upload(path, uri)
        return uri

    def python(self, image: str, code: str, seconds: int = 60) -> str:
        """What a program prints in one of our images, in a restricted pod of its own. `seconds`: as in `until`."""
        name = f"python-{image}"
        container = {
            "name": "python",
            "image": self.images[image],
            "command": ["python", "-c", code],
            "env": [{"name": "HOME", "value": "/tmp"}],
            "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
            "securityContext": {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            },
        }
        spec = {
            "restartPolicy": "Never",
            "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [container],
            "volumes": [{"name": "tmp", "emptyDir": {}}],
        }
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": NAMESPACE}, "spec": spec}
        self.kube.apply(pod)
        try:
            ended = "--for=jsonpath={.status.phase}=Succeeded"
            patience = f"--timeout={seconds + PATIENCE}s"
            self.kube.run("wait", ended, f"pod/{name}", "--namespace", NAMESPACE, patience, timeout=None)
            return self.logs(name)
        finally:
            self.kube.run("delete", "pod", name, "--namespace", NAMESPACE, "--wait=false")

    def delete(self, name: str) -> None:
        self.kube.run("delete", "finetunejob", name, "--namespace", NAMESPACE, "--ignore-not-found", "--wait=false")


def condition(job: Job, kind: str) -> dict[str, Any]:
    return next((c for c in job.get("status", {}).get("conditions", []) if c["type"] == kind), {})


def processes(pod_uid: str, word: str) -> list[Path]:
    """Folders in /proc of a pod's processes with this word on their command line, the first one first; on the node's own machine
    only. Raises LookupError: there is none, since the pod has ended or has not begun."""
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
            mine = pod_uid in (folder / "cgroup").read_text()
        except OSError:
            continue
        if mine and word.encode() in words:
            found.append(folder)
    if not found:
        raise LookupError(f"no process of pod {pod_uid} has {word} on its command line on this machine")
    return sorted(found, key=lambda folder: int(folder.name))


def kill(pod_uid: str) -> None:
    """SIGKILL to the training process, as the kernel or a failing machine would."""
    os.kill(int(processes(pod_uid, "train")[0].name), signal.SIGKILL)


def chats(count: int, topic: str = "router") -> list[dict[str, Any]]:
    """Chat examples that a tiny model learns something of: the answer repeats a word of the question."""
    words = ["red", "green", "blue", "grey", "pink", "gold", "lime", "teal"]
    return [
        {
            "messages": [
                {"role": "system", "content": "Answer with one colour."},
                {"role": "user", "content": f"The {topic} number {n} shines {words[n % 8]}. Which colour?"},
                {"role": "assistant", "content": words[n % 8]},
            ]
        }
        for n in range(count)
    ]


PATIENCE = 300
"""Seconds that a job may take longer than on a node of its own: the lanes of a whole run share node and cores."""


@contextlib.contextmanager
def running(tiny_model: Path) -> Iterator[Site]:
    """The site with everything installed. Several processes may share a local node: each finds it up or brings it up, and the
    last one that goes takes it down."""
    # a KUBECONFIG alone is what every developer has: only with a registry is it meant for these tests
    given = place.existing() if os.environ.get("REGISTRY") else None
    busy = lock.held(
        cache.folder("e2e") / ".lock", "another process of tests, which brings the node up or takes it down"
    )
    with contextlib.ExitStack() as stack:
        users = stack.enter_context((cache.folder("e2e") / ".users").open("a"))  # closed last
        with busy:
            fcntl.flock(users, fcntl.LOCK_SH)
            stack.callback(_leave, users, local=given is None)
            site = _site(given, tiny_model, stack)
        yield site


def _leave(users: IO[str], *, local: bool) -> None:
    with lock.held(
        cache.folder("e2e") / ".lock", "another process of tests, which brings the node up or takes it down"
    ):
        try:
            fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        if local:
            child.tool(_HARNESS, "down", "--name", NAME, python=sys.executable)


def _site(given: tuple[str, str] | None, tiny_model: Path, stack: contextlib.ExitStack) -> Site:
    if given:
        where = place.use_existing(*given)
    else:
        where = place.read(Path(child.tool(_HARNESS, "up", "--name", NAME, "--gpus", "2", python=sys.executable)))
    wanted = [*IMAGES, "s3"] if given else IMAGES
    tool = cache.REPOSITORY / "hack" / "images"
    images = json.loads(child.tool(tool, "build", *wanted, "--registry", where.registry, "--json"))
    store = where.store or gateway.ensure(where.kube, images["s3"])
    endpoint = store.endpoint
    if where.store is None:
        endpoint = stack.enter_context(where.kube.forward(f"service/{gateway.NAME}", gateway.PORT, gateway.NAMESPACE))
    objects = Objects(store, endpoint)
    objects.make_bucket(BUCKET)
    objects.upload_folder(tiny_model, f"s3://{BUCKET}/models/{MODEL}")
    _install(where.kube, store, images)
    proxy = stack.enter_context(where.kube.proxy(quiet=True))
    return Site(where.kube, proxy, store, objects, images, where.local)


def _install(kube: Kube, store: place.ObjectStore, images: dict[str, str]) -> None:
    install.crds(kube)
    install.make_namespace(kube, install.SYSTEM)
    install.make_namespace(kube, NAMESPACE)
    install.credentials(kube, NAMESPACE, SECRET, store)
    values = install.values(images, "s3://unused/model")
    values["catalogue"] = {MODEL: {"source": f"s3://{BUCKET}/models/{MODEL}", "family": "llama"}}
    values["gpuTypes"] = {
        "nvidia-l4": {"nodeSelector": {"nvidia.com/gpu.product": "NVIDIA-L4"}},
        # the local node's GPUs exist for the scheduler alone
        PRICED: {"nodeSelector": {}, "pricePerHour": 0.8, "env": {"CUDA_VISIBLE_DEVICES": ""}},
    }
    # The model is tiny and the cores are busy: threads that wait for each other take several times as long as one.
    values["pods"] = {"env": {"OMP_NUM_THREADS": "1"}}
    values["modelCache"] = {"claimNameByNamespace": {CACHED: CLAIM}}
    values["currency"] = "EUR"
    values["retryBackoffSeconds"] = 1
    install.chart(kube, values)
