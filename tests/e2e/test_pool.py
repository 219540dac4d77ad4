"""A pool of servers on a real node: a job trains, its adapter is delivered and verified, and clients use it by their keys."""

import base64
import json
import os
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from support import site as sites
from support.site import NAMESPACE, Site, condition

POOL, KEYS, NAME, MODEL = "shared", "shared-keys", "pooled", "colours"
MINE, OTHERS = "key-of-this-namespace", "key-of-another-namespace"


def pool(site: Site) -> dict[str, Any]:
    """Of the namespace of the jobs; another namespace has a key."""
    return {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "ServingPool",
        "metadata": {"name": POOL, "namespace": NAMESPACE},
        "spec": {
            "baseModel": {"name": sites.MODEL},
            "resources": {"gpus": 0, "requests": {"cpu": "250m", "memory": "3Gi"}},
            "storage": {
                "endpoint": site.store.endpoint,
                "region": site.store.region,
                "credentialsSecret": sites.SECRET,
            },
            "adapters": {"maxRank": 8, "onGpu": 2, "inMemory": 4},
            "contextLength": 256,
            "keysSecret": KEYS,
            "allowedNamespaces": [NAMESPACE, "elsewhere"],
        },
    }


def ask(url: str, path: str, key: str | None, body: Any = None) -> tuple[int, Any]:
    """Status and document of an answer."""
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    request = urllib.request.Request(f"{url}{path}", body and json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read() or b"null")


def chat(url: str, key: str | None, model: str = MODEL) -> tuple[int, Any]:
    messages = [{"role": "user", "content": "The router number 3 shines grey. Which colour?"}]
    body = {"model": model, "messages": messages, "max_tokens": 4, "temperature": 0}
    return ask(url, "/v1/chat/completions", key, body)


@pytest.fixture(scope="module")
def served(site: Site) -> Iterator[sites.Job]:
    """A job that a pool serves."""
    keys = {
        namespace: base64.b64encode(key.encode()).decode()
        for namespace, key in ((NAMESPACE, MINE), ("elsewhere", OTHERS))
    }
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": KEYS, "namespace": NAMESPACE}, "data": keys}
    site.kube.apply(secret)
    site.kube.apply(pool(site))
    data = site.upload_rows("pooled/train.jsonl", sites.chats(60))
    training = {**site.spec(data)["training"], "maxSequenceLength": 256}  # the context of the pool
    site.apply(NAME, site.spec(data, training=training, deployment={"pool": POOL, "servedModelName": MODEL}))
    yield site.until_condition(NAME, "Ready", seconds=400)
    site.delete(NAME)
    site.kube.run("delete", "servingpool", POOL, "--namespace", NAMESPACE, "--ignore-not-found", "--wait=false")
    site.kube.run("delete", "secret", KEYS, "--namespace", NAMESPACE, "--ignore-not-found")


@pytest.fixture
def clients(site: Site, served: sites.Job) -> Iterator[str]:
    """The address that clients use."""
    with site.kube.forward(f"service/{POOL}", 8000, NAMESPACE) as url:
        yield url


def servers(site: Site) -> list[dict[str, Any]]:
    found = json.loads(site.raw(f"/api/v1/namespaces/{NAMESPACE}/pods"))["items"]
    return [pod for pod in found if pod["metadata"]["name"].startswith(f"{POOL}-")]


def test_a_job_in_a_pool_has_no_server_of_its_own(site: Site, served: sites.Job) -> None:
    assert condition(served, "Deployed")["reason"] == "Serving", condition(served, "Deployed")
    assert served["status"]["deployment"]["pool"] == f"{NAMESPACE}/{POOL}"
    assert served["status"]["deployment"]["endpoint"] == f"http://{POOL}.{NAMESPACE}.svc:8000"
    owned = json.loads(site.raw(f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments"))["items"]
    assert NAME not in {one["metadata"].get("labels", {}).get("finetune.dev/job") for one in owned}


def test_a_key_reaches_the_models_of_its_namespace_alone(clients: str) -> None:
    status, answer = chat(clients, MINE)
    assert (status, answer.get("model")) == (200, MODEL), answer
    assert answer["usage"]["completion_tokens"] > 0
    assert chat(clients, None)[0] == 401
    assert chat(clients, "guessed")[0] == 401
    assert chat(clients, OTHERS)[0] == 404
    assert [one["id"] for one in ask(clients, "/v1/models", MINE)[1]["data"]] == [MODEL]
    assert ask(clients, "/v1/models", OTHERS)[1]["data"] == []


def test_neither_files_nor_the_base_model_nor_the_engines_own_requests_are_open(
    clients: str, served: sites.Job
) -> None:
    sha256 = json.loads(served["status"]["serving"])["adapter"]["sha256"]
    for name in (f"../adapters/{sha256}", sha256, f"/adapters/{sha256}", sites.MODEL):
        assert chat(clients, MINE, name)[0] == 404, name
    load = {"lora_name": "mine", "lora_path": "/adapters"}
    assert ask(clients, "/v1/load_lora_adapter", MINE, load)[0] == 404
    assert ask(clients, "/v1/unload_lora_adapter", MINE, {"lora_name": sha256})[0] == 404


def test_no_container_of_the_pool_has_credentials_of_the_job_or_a_token(site: Site, served: sites.Job) -> None:
    (pod,) = servers(site)
    mounted = {one["mountPath"] for each in pod["spec"]["containers"] for one in each["volumeMounts"]}
    assert not any("serviceaccount" in path for path in mounted), mounted
    named = {one["name"] for each in pod["spec"]["containers"] for one in each.get("env", [])}
    assert not {name for name in named if name.startswith("AWS_")}


def test_the_pool_says_what_it_serves(site: Site, served: sites.Job) -> None:
    end = time.monotonic() + 60
    while True:
        found = site.kube.get("servingpool", POOL, NAMESPACE) or {}
        counts = found.get("status", {}).get("adapters") or {}
        if counts.get("ready") == 1:
            break
        assert time.monotonic() < end, found.get("status")
        time.sleep(1)
    assert condition(found, "Ready")["status"] == "True"
    shown = site.kube.run("get", "servingpools", "--namespace", NAMESPACE)
    assert POOL in shown


def test_an_engine_that_is_killed_answers_for_its_adapters_again(site: Site, clients: str, served: sites.Job) -> None:
    before = chat(clients, MINE)[1]["choices"][0]["message"]["content"]
    (pod,) = servers(site)
    engine = sites.processes(pod["metadata"]["uid"], "vllm.entrypoints.openai.api_server")[0]
    os.kill(int(engine.name), signal.SIGKILL)
    end = time.monotonic() + 60 + sites.PATIENCE
    restarts: list[int] = []
    while not (restarts and max(restarts) and chat(clients, MINE)[0] == 200):
        assert time.monotonic() < end, servers(site)[0]["status"]
        time.sleep(1)
        restarts = [one["restartCount"] for one in servers(site)[0]["status"]["containerStatuses"]]
    assert chat(clients, MINE)[1]["choices"][0]["message"]["content"] == before
