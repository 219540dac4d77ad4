"""Revisions of a served job: an edit trains, is judged, and takes over without a failed request, or leaves the first serving."""

import json
from collections.abc import Iterator

import pytest

from support import site as sites
from support.site import NAMESPACE, Site, condition

NAME = "revised"
PROBE = """
import json, time, urllib.request
URL = "http://revised.ml.svc.cluster.local.:8000/v1/chat/completions"
body = json.dumps({"model": "revised", "messages": [{"role": "user", "content": "Which colour?"}], "max_tokens": 2}).encode()
good = bad = 0
patience = time.time() + 300
while True:
    begun = time.time()
    try:
        request = urllib.request.Request(URL, body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            json.load(answer)
        good += 1
    except Exception as error:
        if not good and time.time() < patience:
            time.sleep(0.3)
            continue
        bad += 1
        print(json.dumps({"error": repr(error), "begun": begun, "seconds": time.time() - begun, "good": good}), flush=True)
    print(json.dumps({"good": good, "bad": bad}), flush=True)
    time.sleep(0.3)
"""


def probe(site: Site) -> None:
    """A pod that asks the Service again and again and counts failures: inside the cluster, as a client would be. It counts from
    its first answer on, and has it when this returns: a name that was made a moment ago may not be known everywhere."""
    container = {
        "name": "probe",
        "image": site.images["fetch"],
        "command": ["python", "-c", PROBE],
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
    }
    spec = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 0,
        # A rollout is on trial, not the patience of a resolver: a name server that a busy machine keeps waiting is
        # asked up to five times. A name that is not there, or refers to nothing, still is a failed request.
        "dnsConfig": {"options": [{"name": "attempts", "value": "5"}]},
        "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [container],
    }
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "probe", "namespace": NAMESPACE}, "spec": spec}
    site.kube.apply(pod)
    patience = f"--timeout={60 + sites.PATIENCE}s"
    site.kube.run("wait", "--for=condition=Ready", "pod/probe", "--namespace", NAMESPACE, patience, timeout=None)
    site.until(NAME, lambda _: counts(site)["good"] > 0, "answering its probe", 90)


def counts(site: Site) -> dict[str, int]:
    lines = [json.loads(line) for line in site.logs("probe").splitlines()]
    errors = [line for line in lines if "error" in line]
    assert not errors, errors
    totals = [line for line in lines if "good" in line]
    return totals[-1] if totals else {"good": 0, "bad": 0}


def spec(site: Site, data: str, gates: list[dict] | None = None) -> dict:
    """No baseline is measured before the training."""
    server = {"gpus": 0, "requests": {"cpu": "250m", "memory": "3Gi"}}
    return site.spec(
        data,
        intent={"advice": "Ignore"},
        evaluation={"maximumExamples": 4, "generation": {"maxNewTokens": 4}, "gates": gates or []},
        deployment={"resources": server, "extraArgs": ["--max-model-len=256"]},
    )


@pytest.fixture(scope="module")
def first(site: Site) -> Iterator[sites.Job]:
    data = site.upload_rows("revised/first.jsonl", sites.chats(60))
    site.apply(NAME, spec(site, data))
    yield site.until_condition(NAME, "Ready", seconds=400)
    site.delete(NAME)


def test_an_edit_of_the_dataset_takes_over_without_a_failed_request(site: Site, first: sites.Job) -> None:
    probe(site)
    data = site.upload_rows("revised/second.jsonl", sites.chats(60, topic="lamp"))
    site.apply(NAME, spec(site, data))
    old = first["status"]["revision"]
    site.until(NAME, lambda job: job["status"].get("revision") != old, "in its second revision", 10)
    during = site.job(NAME)
    assert during["status"]["deployment"]["revision"] == old, "the first revision serves while the second trains"
    done = site.until(
        NAME,
        lambda job: condition(job, "Ready").get("status") == "True" and job["status"]["deployment"]["revision"] != old,
        "served by the second revision",
        400,
    )
    assert done["status"]["deployment"]["revision"] == done["status"]["revision"]
    former = first["status"]["deployment"]["release"]
    site.until(NAME, lambda _: site.kube.get("deployment", former, NAMESPACE) is None, "rid of the former server", 60)
    seen = counts(site)
    assert seen["bad"] == 0
    assert seen["good"] > 20
    assert [entry["revision"] for entry in done["status"]["history"][:2]] == [done["status"]["revision"], old]


def test_a_revision_that_fails_its_gate_leaves_the_former_one_serving(site: Site, first: sites.Job) -> None:
    serving = site.job(NAME)["status"]["deployment"]
    data = site.upload_rows("revised/third.jsonl", sites.chats(60, topic="screen"))
    before = counts(site)
    site.apply(NAME, spec(site, data, gates=[{"metric": "ExactMatch", "minimum": 1}, {"metric": "Loss", "maximum": 0}]))
    failed = site.until_condition(NAME, "Failed", seconds=300)
    assert condition(failed, "Failed")["reason"] == "EvaluationBelowGate"
    assert condition(failed, "Ready")["status"] == "False"
    assert condition(failed, "Stalled")["status"] == "True"
    assert condition(failed, "Deployed")["status"] == "True"
    assert serving["revision"] in condition(failed, "Deployed")["message"]
    assert failed["status"]["deployment"]["revision"] == serving["revision"]
    after = counts(site)
    assert after["bad"] == 0
    assert after["good"] > before["good"]
    assert site.kube.get("deployment", serving["release"], NAMESPACE) is not None
    site.kube.run("delete", "pod", "probe", "--namespace", NAMESPACE, "--wait=false")
