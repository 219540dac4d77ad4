"""Canary secrets wherever a job takes some, looked for in everything that a person, a program or a collector could read.

Only the Secrets themselves may have them, and the environment of the pods that mount them.
"""

import base64
import contextlib
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from demo import install
from support import site as sites
from support.site import BUCKET, NAMESPACE, Site
from toolbox import say

NAME, MODEL, HUB, KEY, JUDGE = "secretive", "tiny-gated", "hub-canary", "api-canary", "judge-canary"
HUB_TOKEN, API_KEY, JUDGE_KEY = "hf_canary0hub0token0a1b2c3", "canary-api-key-9f8e7d6c", "canary-judge-key-5b4a3f2e"


def canaries(site: Site) -> dict[str, str]:
    return {
        "the S3 access key": site.store.access_key,
        "the S3 secret": site.store.secret_key,
        "the hub's token": HUB_TOKEN,
        "the API key": API_KEY,
        "the judge's key": JUDGE_KEY,
    }


def leaks(site: Site, text: str) -> list[str]:
    """Which canaries stand in a text, plainly or as Secrets and HTTP write them."""
    found = []
    for name, value in canaries(site).items():
        forms = {value, json.dumps(value)[1:-1], base64.b64encode(value.encode()).decode()}
        if any(form in text for form in forms):
            found.append(name)
    return found


def shown(site: Site, path: str, namespace: str = NAMESPACE, **query: str) -> str:
    """What can be read of a pod, or nothing while it cannot."""
    with contextlib.suppress(OSError):
        return site.raw(f"/api/v1/namespaces/{namespace}/pods/{path}", **query)
    return ""


def proxied(site: Site, pod: str, port: int, namespace: str = NAMESPACE) -> str:
    """What a pod's /metrics says, through the API server."""
    return shown(site, f"{pod}:{port}/proxy/metrics", namespace)


class Overheard:
    """What could be read while the job ran: it is gone afterwards."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.texts: dict[str, str] = {}
        self.commands: set[str] = set()

    def listen(self) -> None:
        for pod in self.site.pods(NAME):
            name = pod["metadata"]["name"]
            for container in [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]:
                if text := shown(self.site, f"{name}/log", container=container["name"]):
                    self.texts[f"log of {name}/{container['name']}"] = text
            if pod["status"]["phase"] == "Running":
                port = 8000 if "finetune.dev/release" in pod["metadata"]["labels"] else 9400
                if text := proxied(self.site, name, port):
                    self.texts[f"metrics of {name}"] = text
        if self.site.local:
            self._processes()

    def _processes(self) -> None:
        """Command lines of this machine's processes, in which those of the pods are."""
        for folder in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if folder.name.isdigit() and (text := (folder / "cmdline").read_text(errors="replace")):
                    self.commands.add(text.replace("\0", " "))


@pytest.fixture(scope="module")
def ran(site: Site) -> Iterator[Overheard]:
    """A job with every kind of secret, from its beginning to an answered request."""
    site.kube.apply(
        install.secret(HUB, NAMESPACE, {"HF_TOKEN": HUB_TOKEN}),
        install.secret(KEY, NAMESPACE, {"API_KEY": API_KEY}),
        install.secret(JUDGE, NAMESPACE, {"API_KEY": JUDGE_KEY}),
        {
            "apiVersion": "finetune.dev/v1alpha1",
            "kind": "BaseModel",
            "metadata": {"name": MODEL},
            "spec": {"source": f"s3://{BUCKET}/models/{sites.MODEL}", "family": "llama", "accessTokenSecret": HUB},
        },
    )
    spec = site.spec(
        site.upload_rows("secrets/train.jsonl", sites.chats(60)),
        baseModel={"name": MODEL},
        evaluation={
            "maximumExamples": 4,
            "generation": {"maxNewTokens": 8},
            "gates": [],
            # No judge but a server that refuses: what is said of that must not have the key.
            "judge": {"endpoint": site.store.endpoint, "model": "nobody", "apiKeySecret": JUDGE},
        },
        deployment={
            "apiKeySecret": KEY,
            "resources": {"gpus": 0, "requests": {"cpu": "250m", "memory": "3Gi"}},
            "extraArgs": ["--max-model-len=256"],
        },
    )
    overheard = Overheard(site)
    site.apply(NAME, spec)

    def ready(job: sites.Job) -> bool:
        overheard.listen()
        assert sites.condition(job, "Failed").get("status") != "True", job["status"]
        return sites.condition(job, "Ready").get("status") == "True"

    site.until(NAME, ready, "Ready", 600)
    with site.kube.forward(f"service/{NAME}", 8000, NAMESPACE) as url:
        body = {"model": NAME, "messages": [{"role": "user", "content": "Which colour?"}], "max_tokens": 4}
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {API_KEY}"}
        request = urllib.request.Request(f"{url}/v1/chat/completions", json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=60) as answer:
            assert json.load(answer)["usage"]["completion_tokens"] > 0
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(f"{url}/v1/models", timeout=60)
    overheard.listen()
    yield overheard
    site.delete(NAME)


def test_the_canaries_are_where_they_belong(site: Site, ran: Overheard) -> None:
    """Otherwise nothing that follows would mean anything."""
    found = site.kube.run("get", "secrets", "--namespace", NAMESPACE, "--output=json")
    assert leaks(site, found) == list(canaries(site))


def test_logs_and_metrics_of_the_jobs_pods_have_no_secret(site: Site, ran: Overheard) -> None:
    stages = {text.split("-")[2] for text in ran.texts if text.startswith("log of")}
    assert {"preflight", "train"} <= stages
    assert any("metrics of" in name for name in ran.texts)
    assert any("vllm:" in text for text in ran.texts.values())
    for name, text in ran.texts.items():
        assert not leaks(site, text), name


def test_logs_and_metrics_of_the_operator_have_no_secret(site: Site, ran: Overheard) -> None:
    pods = site.kube.items("pods", f"app.kubernetes.io/name={install.RELEASE}", install.SYSTEM)
    for pod in pods:
        name = pod["metadata"]["name"]
        shown = site.kube.run("logs", name, "--namespace", install.SYSTEM)
        assert shown
        assert not leaks(site, shown), name
        assert not leaks(site, proxied(site, name, 8080, install.SYSTEM)), name


def test_no_object_but_the_secrets_has_one(site: Site, ran: Overheard) -> None:
    """Status, events, ConfigMaps, pods, Jobs and all the rest, as `kubectl get` shows them."""
    kinds = site.kube.run("api-resources", "--verbs=list", "--output=name").split()
    looked_at = 0
    for kind in kinds:
        if kind == "secrets":
            continue
        try:
            text = site.kube.run("get", kind, "--all-namespaces", "--output=json", "--ignore-not-found")
        except say.Problem:
            continue  # a kind that this cluster lists and does not serve
        looked_at += bool(text)
        assert not leaks(site, text), kind
    assert looked_at > 10


def test_no_command_line_has_one(site: Site, ran: Overheard) -> None:
    if site.local:
        assert any("finetune_trainer" in words or "finetune-trainer" in words for words in ran.commands)
        assert any("vllm" in words for words in ran.commands)
    for words in ran.commands:
        assert not leaks(site, words), words.split()[:3]


def test_what_the_job_left_in_s3_has_none(site: Site, ran: Overheard) -> None:
    names = site.objects.names(f"s3://{BUCKET}/output/{NAMESPACE}/{NAME}/")
    assert any(name.endswith("report.html") for name in names)
    [results] = [name for name in names if name.endswith("results.json")]
    assert "nobody" in json.loads(site.objects.read(results))["judgement"]["problem"], "the key was sent, and refused"
    for name in names:
        assert not leaks(site, site.objects.read(name).decode(errors="replace")), name
