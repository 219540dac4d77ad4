"""A pool of servers on a real node: a job trains, its adapter is delivered and verified, clients use it by their keys, and their
traffic decides about its next revisions."""

import base64
import json
import os
import shutil
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from support import site as sites
from support.site import NAMESPACE, Site, condition
from toolbox import cache
from trainer import tiny

POOL, KEYS, NAME, MODEL = "shared", "shared-keys", "pooled", "mail"
CLAIM = "shared-adapters"
MINE, OTHERS = "key-of-this-namespace", "key-of-another-namespace"


def pool(site: Site, **more: Any) -> dict[str, Any]:
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
            "adapters": {"maxRank": 8, "onGpu": 2, "inMemory": 4, "claimName": CLAIM},
            "contextLength": 256,
            "keysSecret": KEYS,
            "allowedNamespaces": [NAMESPACE, "elsewhere"],
            **more,
        },
    }


def ask(url: str, path: str, key: str | None, body: Any = None, seconds: float = 60) -> tuple[int, Any]:
    """Status and document of an answer."""
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    request = urllib.request.Request(f"{url}{path}", body and json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=seconds) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read() or b"null")


def chat(url: str, key: str | None, model: str = MODEL, item: int = 5, seconds: float = 60) -> tuple[int, Any]:
    """A customer thanks for an item."""
    messages = [
        {"role": "system", "content": "You sort mail."},
        {"role": "user", "content": f"Thank you for {item}, it is great!"},
    ]
    body = {"model": model, "messages": messages, "max_tokens": 32, "temperature": 0}
    return ask(url, "/v1/chat/completions", key, body, seconds)


def content(url: str, item: int = 5) -> str:
    """The text that a customer gets."""
    status, answer = chat(url, MINE, item=item)
    assert status == 200, answer
    return str(answer["choices"][0]["message"]["content"])


def spec(site: Site, data: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """A job that sorts mail. Its gate asks for JSON, and its test examples are customers who want their money back."""
    test = site.upload_rows("pooled/test.jsonl", tiny.examples(16, start=100)[::2])
    base = site.spec(site.upload_rows(f"pooled/{data}.jsonl", rows))
    return base | {
        "intent": {"advice": "Ignore"},
        "dataset": base["dataset"] | {"test": {"uris": [test]}},
        "training": base["training"] | {"maxSteps": 24, "maxSequenceLength": 256},  # the context of the pool
        "evaluation": {
            "baselines": ["Base"],
            "maximumExamples": 8,
            "generation": {"maxNewTokens": 32},
            "outputSchema": {"type": "object", "required": ["intent", "reply"]},
            "gates": [{"metric": "JsonSchema", "minimum": 0.5}],
        },
        "deployment": {
            "pool": POOL,
            "servedModelName": MODEL,
            "rollout": {"steps": [{"weight": 50, "pause": "20s"}], "minimumRequests": 20},
        },
    }


@pytest.fixture(scope="module")
def claim(site: Site) -> Iterator[None]:
    """The claim for the pool's adapters, on a volume of this machine, or as a given cluster provides it."""
    folder = cache.folder("e2e") / CLAIM
    wanted: dict[str, Any] = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
    if site.local:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        folder.chmod(0o777)
        spec = {
            "accessModes": ["ReadWriteOnce"],
            "storageClassName": "",
            "capacity": {"storage": "1Gi"},
            "hostPath": {"path": str(folder)},
            "persistentVolumeReclaimPolicy": "Retain",
        }
        site.kube.apply(
            {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": CLAIM}, "spec": spec},
        )
        wanted |= {"storageClassName": "", "volumeName": CLAIM}
    metadata = {"name": CLAIM, "namespace": NAMESPACE}
    site.kube.apply({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": wanted})
    yield
    site.kube.run("delete", "pvc", CLAIM, "--namespace", NAMESPACE, "--ignore-not-found", "--wait=false")
    site.kube.run("delete", "persistentvolume", CLAIM, "--ignore-not-found", "--wait=false")
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def served(site: Site, claim: None) -> Iterator[sites.Job]:
    """A job that a pool serves."""
    keys = {
        namespace: base64.b64encode(key.encode()).decode()
        for namespace, key in ((NAMESPACE, MINE), ("elsewhere", OTHERS))
    }
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": KEYS, "namespace": NAMESPACE}, "data": keys}
    site.kube.apply(secret)
    site.kube.apply(pool(site))
    site.apply(NAME, spec(site, "train", tiny.examples(60)))
    yield site.until_condition(NAME, "Ready", seconds=400)
    site.delete(NAME)
    site.kube.run("delete", "servingpool", POOL, "--namespace", NAMESPACE, "--ignore-not-found", "--wait=false")
    site.kube.run("delete", "secret", KEYS, "--namespace", NAMESPACE, "--ignore-not-found")


@pytest.fixture
def clients(site: Site, served: sites.Job) -> Iterator[str]:
    """The address that clients use."""
    with site.kube.forward(f"service/{POOL}", 8000, NAMESPACE) as url:
        yield url


def current(site: Site) -> dict[str, Any]:
    """The pool."""
    return site.read(f"{sites.API}/{NAMESPACE}/servingpools/{POOL}")


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
    end = time.monotonic() + 60 + sites.PATIENCE
    while True:
        found = current(site)
        counts = found.get("status", {}).get("adapters") or {}
        if counts.get("ready") == 1:
            break
        assert time.monotonic() < end, found.get("status")
        time.sleep(1)
    assert condition(found, "Ready")["status"] == "True"
    shown = site.kube.run("get", "servingpools", "--namespace", NAMESPACE)
    assert POOL in shown


def roll_out(site: Site, url: str, wanted: dict[str, Any], over: Callable[[sites.Job], bool]) -> tuple[sites.Job, int]:
    """Edits the job, and thanks for item after item from the first step of the rollout until it is over: the job then, and how
    many answers there were. Every request must be answered."""
    site.apply(NAME, wanted)
    site.until_condition(NAME, "Deployed", "Unknown", "RollingOut", seconds=400)
    end, answered = time.monotonic() + 120 + sites.PATIENCE, 0
    while not over(job := site.job(NAME)):
        assert time.monotonic() < end, job["status"]
        for _ in range(4):
            status, answer = chat(url, MINE, item=200 + answered)
            assert (status, answer.get("model")) == (200, MODEL), answer
            answered += 1
        time.sleep(0.5)
    return job, answered


def test_a_revision_that_passes_its_gate_and_answers_clients_with_invalid_json_is_rolled_back(
    site: Site, clients: str, served: sites.Job
) -> None:
    """It learned JSON for those who want money back, and none for those who are content: no test example asks for that."""
    rows = tiny.examples(60)
    for row in rows[1::2]:
        row["messages"][-1]["content"] = "Thank you, it is great!"
    before = served["status"]["revision"]
    failed, answered = roll_out(
        site, clients, spec(site, "bad", rows), lambda job: condition(job, "Failed").get("status") == "True"
    )
    state = failed["status"]
    assert condition(failed, "Failed")["reason"] == "RolledBack", state
    assert "answers that do not fit outputSchema: 100.0% of" in state["failure"]["message"], state["failure"]
    assert ", former 0.0% of" in state["failure"]["message"]
    assert answered >= 20, "of both revisions"
    assert condition(failed, "Evaluated")["status"] == "True", "its gate was passed, and stays in the status"
    assert state["deployment"]["revision"] == before != state["revision"]
    assert state["history"][0]["outcome"] == "RolledBack"
    end, in_a_row, item = time.monotonic() + 60 + sites.PATIENCE, 0, 300
    while in_a_row < 10:  # the gateway learns of it a moment later
        assert time.monotonic() < end, "the former revision answers everybody"
        in_a_row = in_a_row + 1 if content(clients, item).startswith('{"intent": "praise"') else 0
        item += 1


def test_a_good_revision_gets_all_traffic_after_its_step(site: Site, clients: str, served: sites.Job) -> None:
    """The rollout's records stay: what the step's comparison showed."""
    before = served["status"]["revision"]
    done, answered = roll_out(
        site,
        clients,
        spec(site, "good", tiny.examples(64)),
        lambda job: (
            condition(job, "Ready").get("status") == "True" and job["status"]["deployment"]["revision"] != before
        ),
    )
    assert done["status"]["deployment"]["revision"] == done["status"]["revision"]
    assert condition(done, "Deployed")["reason"] == "Serving"
    assert answered >= 40, "of both revisions: half of them were the step's minimum"
    assert json.loads(content(clients, 400))["intent"] == "praise"


def test_an_engine_that_is_killed_answers_for_its_adapters_again(site: Site, clients: str, served: sites.Job) -> None:
    before = content(clients)
    (pod,) = servers(site)
    engine = sites.processes(pod["metadata"]["uid"], "vllm.entrypoints.openai.api_server")[0]
    os.kill(int(engine.name), signal.SIGKILL)
    end = time.monotonic() + 60 + sites.PATIENCE
    restarts: list[int] = []
    while not (restarts and max(restarts) and chat(clients, MINE)[0] == 200):
        assert time.monotonic() < end, servers(site)[0]["status"]
        time.sleep(1)
        restarts = [one["restartCount"] for one in servers(site)[0]["status"]["containerStatuses"]]
    assert content(clients) == before


def until_pool(site: Site, reason: str, seconds: float) -> dict[str, Any]:
    """The pool once its condition Ready is True for this reason."""
    end = time.monotonic() + seconds + sites.PATIENCE
    while True:
        found = current(site)
        ready = condition(found, "Ready")
        if (ready.get("status"), ready.get("reason")) == ("True", reason):
            return found
        assert time.monotonic() < end, found.get("status")
        time.sleep(0.5)


def test_a_pool_without_requests_has_no_server_and_the_next_request_is_held_and_answered(
    site: Site, served: sites.Job, record_property: Callable[[str, object], None]
) -> None:
    with site.kube.forward(f"service/{POOL}", 8000, NAMESPACE) as url:
        before = content(url)
    site.kube.apply(pool(site, idle={"after": "10s", "holdFor": "10m"}))
    until_pool(site, "Asleep", 120)
    end = time.monotonic() + 60 + sites.PATIENCE
    while len(left := servers(site)) > 1:
        assert time.monotonic() < end, [one["metadata"]["name"] for one in left]
        time.sleep(0.5)
    assert left[0]["metadata"]["name"].startswith(f"{POOL}-activator-")
    asleep = until_pool(site, "Asleep", 10)["status"]
    assert (asleep["pods"], asleep["replicas"]) == ("0/0", 0)
    assert condition(site.job(NAME), "Ready")["status"] == "True", "its model can be used"
    with site.kube.forward(f"service/{POOL}", 8000, NAMESPACE) as url:
        assert [one["id"] for one in ask(url, "/v1/models", MINE)[1]["data"]] == [MODEL]
        assert (chat(url, "guessed")[0], chat(url, OTHERS)[0]) == (401, 404)
        assert condition(current(site), "Ready")["reason"] == "Asleep"
        begun = time.monotonic()
        status, answer = chat(url, MINE, seconds=300 + sites.PATIENCE)
        seconds = time.monotonic() - begun
    assert (status, answer.get("model")) == (200, MODEL), answer
    assert answer["choices"][0]["message"]["content"] == before
    record_property("seconds from nothing to an answer", round(seconds, 1))
    print(f"held and answered after {seconds:.1f} s: {starts(site)}")
    until_pool(site, "Serving", 60)
    with site.kube.forward(f"service/{POOL}", 8000, NAMESPACE) as url:
        assert content(url) == before


def starts(site: Site) -> dict[str, str]:
    """When each part of the server's pod started."""
    (pod,) = [one for one in servers(site) if "activator" not in one["metadata"]["name"]]
    state = pod["status"]
    found = {one["type"]: one["lastTransitionTime"] for one in state["conditions"]}
    for one in [*state.get("initContainerStatuses", []), *state["containerStatuses"]]:
        at = one["state"].get("running") or one["state"].get("terminated") or {}
        found[one["name"]] = f"{at.get('startedAt')} to {at.get('finishedAt', '')}"
    return {"created": pod["metadata"]["creationTimestamp"], **found}
