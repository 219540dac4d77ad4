"""What can happen to pods: the operator killed, the training pod killed and evicted. Nothing is lost or doubled."""

import time
from collections import Counter

from demo import install
from support import site as sites
from support.site import Site, condition

NAME = "faults"


def training(site: Site, attempt: str = "") -> list[dict]:
    labels = {"stage": "train", **({"attempt": attempt} if attempt else {})}
    return [
        pod
        for pod in site.pods(NAME, **labels)
        if pod["status"]["phase"] == "Running" and not pod["metadata"].get("deletionTimestamp")
    ]


def checkpoint_step(job: sites.Job) -> int:
    return int((job.get("status", {}).get("checkpoint") or {}).get("step") or 0)


def kill_the_leader(site: Site) -> None:
    lease = site.kube.get("lease", "finetune-operator", install.SYSTEM)
    assert lease is not None
    pod = lease["spec"]["holderIdentity"].rpartition("_")[0]
    site.kube.run("delete", "pod", pod, "--namespace", install.SYSTEM, "--grace-period=0", "--force")


def test_a_job_survives_the_death_of_its_operator_and_of_its_training_pods(site: Site) -> None:
    data = site.upload_rows("faults/train.jsonl", sites.chats(160))
    training_spec = {
        "maxSteps": 4000,
        "batchSize": 2,
        "learningRate": 0.001,
        "lora": {"rank": 8},
        "checkpoints": {"everyMinutes": 0.03, "keep": 2},
        "earlyStopping": {"patience": 100},
    }
    site.apply(NAME, site.spec(data, training=training_spec))
    site.until(NAME, lambda job: checkpoint_step(job) > 0, "checkpointed", 180)

    # the leader dies: the other replica takes over, and the training pod does not notice
    before = training(site)[0]["metadata"]["uid"]
    kill_the_leader(site)
    step = checkpoint_step(site.job(NAME))
    site.until(NAME, lambda job: checkpoint_step(job) > step, "followed by the other replica", 60)
    assert training(site)[0]["metadata"]["uid"] == before

    # SIGKILL: the second attempt resumes from the checkpoint
    if site.local:
        sites.kill(before)
        second = site.until(NAME, lambda job: job.get("status", {}).get("attempt") == 2, "in its second attempt", 60)
        assert second["status"]["failure"]["exitCode"] == 137
        step = checkpoint_step(second)
        site.until(NAME, lambda job: checkpoint_step(job) > step, "checkpointed again", 120)

    # eviction: Kubernetes replaces the pod, the attempt stays the same
    attempt = site.job(NAME)["status"]["attempt"]
    victim = training(site)[0]
    site.evict(victim["metadata"]["name"])
    site.until(
        NAME, lambda _: any(p["metadata"]["uid"] != victim["metadata"]["uid"] for p in training(site)), "replaced", 120
    )
    replacement = training(site, str(attempt))[0]["metadata"]["name"]
    assert site.job(NAME)["status"]["attempt"] == attempt

    done = site.until_condition(NAME, "Complete", seconds=400)
    assert '"message": "resumed"' in site.logs(replacement)
    assert condition(done, "Trained")["message"].count("resumed from step") == 1
    jobs = Counter((job["metadata"]["labels"]["finetune.dev/stage"]) for job in site.jobs(NAME))
    assert jobs == {"preflight": 1, "train": attempt, "evaluate": 1}
    assert done["status"].get("failure") is None


def test_suspend_saves_a_checkpoint_and_resume_continues_from_it(site: Site) -> None:
    name = "pausing"
    data = site.upload_rows("pausing/train.jsonl", sites.chats(160))
    training_spec = {
        "maxSteps": 1500,
        "batchSize": 2,
        "learningRate": 0.001,
        "lora": {"rank": 8},
        "checkpoints": {"everyMinutes": 60, "keep": 1},
        "earlyStopping": {"patience": 100},
    }
    spec = site.spec(data, training=training_spec)
    site.apply(name, spec)
    site.until(name, lambda job: (job.get("status", {}).get("progress") or {}).get("step", 0) > 20, "training", 180)
    site.apply(name, {**spec, "suspend": True})
    site.until_condition(name, "Suspended", seconds=30)
    began = time.monotonic()
    while site.pods(name, stage="train") and time.monotonic() - began < 90:
        time.sleep(0.5)
    assert not site.pods(name, stage="train"), "the suspended pod did not end"
    site.apply(name, {**spec, "suspend": False})
    done = site.until_condition(name, "Complete", seconds=300)
    assert "resumed from step" in condition(done, "Trained")["message"]
