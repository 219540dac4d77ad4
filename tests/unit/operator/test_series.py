"""The series of each job: read from any status, the same labels for all, gone with the job."""

import copy
import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from finetune_api import metrics
from finetune_operator import cache, series
from finetune_operator.observe import label
from support import prometheus

JOB: dict[str, Any] = {
    "metadata": {"uid": "u", "name": "support-tone", "namespace": "ml", "resourceVersion": "7"},
    "spec": {"deployment": {"replicas": 2}},
    "status": {
        "phase": "Training",
        "stage": "train",
        "revision": "0123abcd",
        "startTime": "2026-05-04T12:00:00Z",
        "conditions": [{"type": "Ready", "status": "False", "reason": "Running"}],
        "progress": {
            "percent": 43,
            "step": 43,
            "totalSteps": 100,
            "epoch": "1.29",
            "loss": "0.707",
            "validationLoss": "0.811",
            "tokensPerSecond": 1234,
            "eta": "1h02m",
        },
        "checkpoint": {"uri": "s3://b/c", "step": 40, "savedAt": "2026-05-04T12:10:00Z"},
        "evaluation": {
            "passed": True,
            "metrics": [
                {"name": "ExactMatch", "contender": "Base", "value": "0.1"},
                {"name": "ExactMatch", "contender": "Tuned", "value": "0.9"},
            ],
        },
        "deployment": {"revision": "89abcdef", "readyReplicas": 1, "tokensPerSecond": 50},
        "serving": json.dumps({"deployment": {"resources": {"gpus": 2, "gpuType": "nvidia-l4"}}}),
        "cost": {"gpuHours": "1.250000", "amount": "0.875000", "currency": "EUR"},
    },
}
ANY = some.recursive(
    some.none() | some.booleans() | some.integers(-9, 9) | some.floats() | some.text(max_size=5),
    lambda inner: some.lists(inner, max_size=2) | some.dictionaries(some.text(max_size=5), inner, max_size=2),
    max_leaves=5,
)


def shown(raw: dict[str, Any], held: series.Held = ()) -> dict[str, float]:
    """Series as in a query -> value."""
    lines = "".join(series.write(series.samples(raw, held))).splitlines()
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}


def changed(**status: Any) -> dict[str, Any]:
    raw = copy.deepcopy(JOB)
    raw["status"] |= status
    return raw


def test_the_status_of_a_training_job_becomes_series() -> None:
    found = shown(JOB)
    train = 'namespace="ml",finetunejob="support-tone",revision="0123abcd",stage="train"'
    assert found[f'finetune_job_status{{{train},phase="Training",reason="Running"}}'] == 1
    assert found[f"finetune_job_progress_ratio{{{train}}}"] == 0.43
    assert found[f"finetune_job_loss{{{train}}}"] == 0.707
    assert found[f"finetune_job_validation_loss{{{train}}}"] == 0.811
    assert found[f"finetune_job_tokens_per_second{{{train}}}"] == 1234
    assert found[f"finetune_job_eta_seconds{{{train}}}"] == 3720
    assert found[f"finetune_job_checkpoint_step{{{train}}}"] == 40
    assert found[f"finetune_job_checkpoint_timestamp_seconds{{{train}}}"] == 1777896600


def test_servers_that_sleep_or_wake_are_no_replicas_that_an_alert_could_miss() -> None:
    found = shown(changed(deployment=JOB["status"]["deployment"] | {"heldSince": "2026-05-04T12:00:00Z"}))
    serving = 'namespace="ml",finetunejob="support-tone",revision="89abcdef",stage="serve"'
    assert found[f"finetune_job_replicas{{{serving}}}"] == 0


def test_evaluation_serving_and_cost_have_the_labels_of_their_own_stage_and_revision() -> None:
    found = shown(JOB)
    name = 'namespace="ml",finetunejob="support-tone"'
    judged, serving = f'{name},revision="0123abcd",stage="evaluate"', f'{name},revision="89abcdef",stage="serve"'
    assert found[f'finetune_job_evaluation_value{{{judged},metric="ExactMatch",contender="Tuned"}}'] == 0.9
    assert found[f"finetune_job_evaluation_passed{{{judged}}}"] == 1
    assert found[f"finetune_job_replicas{{{serving}}}"] == 2
    assert found[f"finetune_job_ready_replicas{{{serving}}}"] == 1
    assert found[f'finetune_job_gpus{{{serving},gpu_type="nvidia-l4"}}'] == 2
    assert found[f"finetune_job_gpu_seconds_total{{{name}}}"] == 4500
    assert found[f'finetune_job_cost_total{{{name},currency="EUR"}}'] == 0.875


def test_a_job_in_a_pool_holds_none_of_its_gpus() -> None:
    record = json.loads(JOB["status"]["serving"])
    found = shown(changed(serving=json.dumps(record | {"pool": "ml/chat"})))
    assert not [name for name in found if name.startswith("finetune_job_gpus") and 'stage="serve"' in name]
    assert (
        found['finetune_job_replicas{namespace="ml",finetunejob="support-tone",revision="89abcdef",stage="serve"}'] == 2
    )


def test_a_job_that_is_done_still_shows_its_last_values_but_no_time_left() -> None:
    found = shown(changed(phase="Ready"))
    assert any(name.startswith("finetune_job_loss{") for name in found)
    assert not any(name.startswith("finetune_job_eta_seconds{") for name in found)


def test_a_new_job_is_pending_and_has_cost_nothing_yet() -> None:
    found = shown({"metadata": JOB["metadata"], "spec": {}})
    name = 'namespace="ml",finetunejob="support-tone"'
    assert found == {
        f'finetune_job_status{{{name},revision="",stage="",phase="Pending",reason=""}}': 1,
        f"finetune_job_gpu_seconds_total{{{name}}}": 0,
    }


def test_the_gpus_of_running_pods_are_summed_by_stage() -> None:
    found = shown(JOB, (("train", "nvidia-l4", 4), ("train", "nvidia-l4", 4)))
    train = 'namespace="ml",finetunejob="support-tone",revision="0123abcd",stage="train"'
    assert found[f'finetune_job_gpus{{{train},gpu_type="nvidia-l4"}}'] == 8


def test_no_label_grows_with_the_data() -> None:
    """Every number and every text for people changes: the same series come."""
    later = changed(
        progress={key: {"eta": "5s"}.get(key, 1) for key in JOB["status"]["progress"]},
        checkpoint={"uri": "s3://b/d", "step": 41, "savedAt": "2026-05-05T12:10:00Z"},
        cost={"gpuHours": "9", "amount": "9", "currency": "EUR"},
        startTime="2026-05-05T12:00:00Z",
        failure={"message": "something else", "logTail": "..."},
        attempt=7,
    )
    assert set(shown(later)) == set(shown(JOB))


def test_labels_are_words_of_the_contract_and_names() -> None:
    allowed = {*metrics.JOB, "phase", "reason", "metric", "contender", "gpu_type", "currency", "result", "kind"}
    allowed |= {"model", "status", "state", "pool"}
    every = [*metrics.JOBS, *metrics.OPERATOR, *metrics.TRAINER.values(), *metrics.GATEWAY.values()]
    assert {label for metric in every for label in metric.labels} <= allowed
    for metric in (*metrics.JOBS, *metrics.TRAINER.values()):
        assert metric.labels[:2] == metrics.JOB[:2], metric.name


def jobs(*raws: dict[str, Any]) -> tuple[cache.Cache, series.Jobs]:
    facts = cache.Cache(lambda uid: None)
    for raw in raws:
        facts.put_parent(raw)
    return facts, series.Jobs(facts)


def named(name: str, version: str = "1", **status: Any) -> dict[str, Any]:
    raw = changed(**status)
    raw["metadata"] = {"uid": f"uid-{name}", "name": name, "namespace": "ml", "resourceVersion": version}
    return raw


def test_the_series_of_a_job_end_with_it_and_nothing_of_it_is_stored() -> None:
    facts, exported = jobs(named("one"), named("two"))
    assert set(re.findall(r'finetunejob="(\w+)"', "".join(exported.exposition()))) == {"one", "two"}
    facts.drop_parent("uid-one")
    assert set(re.findall(r'finetunejob="(\w+)"', "".join(exported.exposition()))) == {"two"}
    assert list(exported._written) == ["uid-two"]


def test_a_thousand_jobs_are_created_and_deleted_without_leftovers() -> None:
    facts, exported = jobs()
    for number in range(1000):
        facts.put_parent(named(f"job-{number}"))
        list(exported.exposition())
        facts.drop_parent(f"uid-job-{number}")
    assert list(exported.exposition()) == []
    assert exported._written == {}


def test_a_newer_revision_takes_the_place_of_the_series_before_it() -> None:
    facts, exported = jobs(named("one"))
    list(exported.exposition())
    facts.put_parent(named("one", "2", revision="ffffffff", progress=None, evaluation=None, checkpoint=None))
    text = "".join(exported.exposition())
    assert "0123abcd" not in text
    assert "ffffffff" in text


def test_the_gpus_of_a_pod_are_exported_although_the_job_itself_did_not_change() -> None:
    facts, exported = jobs(named("one"))
    assert 'stage="train",gpu_type' not in "".join(exported.exposition())
    labels = {label.UID: "uid-one", label.STAGE: "train", label.GPUS: "2", label.GPU_TYPE: "nvidia-l4"}
    pod = {
        "metadata": {"name": "p", "namespace": "ml", "resourceVersion": "5", "labels": labels},
        "status": {"phase": "Running", "startTime": "2026-05-04T12:00:00Z"},
    }
    facts.listed("Pod", None, [pod], "6")
    assert 'stage="train",gpu_type="nvidia-l4"} 2.0' in "".join(exported.exposition())
    facts.receive("Pod", None, "DELETED", {**pod, "metadata": {**pod["metadata"], "resourceVersion": "8"}})
    assert 'stage="train",gpu_type' not in "".join(exported.exposition())


def test_promtool_accepts_the_series_of_jobs() -> None:
    text = "".join(jobs(named("one"), named("two"))[1].exposition())
    assert text.count("# TYPE ") == len(metrics.JOBS) - 1, "all but the completion time"
    assert prometheus.problems(text) == ""


@given(ANY, ANY, ANY, ANY)
def test_a_status_written_by_others_is_no_error(progress: Any, evaluation: Any, deployment: Any, serving: Any) -> None:
    raw = changed(progress=progress, evaluation=evaluation, deployment=deployment, serving=serving, cost=progress)
    series.write(series.samples(raw, ()))


@pytest.mark.parametrize(
    "text, value", [("45s", 45), ("12m30s", 750), ("3h05m", 11100), ("soon", None), (None, None), ("", None)]
)
def test_durations_for_people_are_read(text: str | None, value: float | None) -> None:
    assert series.seconds(text) == value


def test_names_are_escaped() -> None:
    raw = {"metadata": {"uid": "u", "name": 'a"b\\c\nd', "namespace": "ml"}}
    assert 'finetunejob="a\\"b\\\\c\\nd"' in "".join(series.write(series.samples(raw, ())))
