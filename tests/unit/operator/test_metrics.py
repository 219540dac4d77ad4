"""The operator's own metrics, and all that it exports together."""

import re

from finetune_api import metrics as contract
from finetune_api.reasons import Phase
from finetune_operator import cache, metrics
from finetune_operator.observe import label
from support import prometheus


def job(name: str) -> dict:
    return {"metadata": {"uid": name, "name": name, "namespace": "ml", "resourceVersion": "1"}}


def fleet(leads: bool) -> dict[str, float]:
    facts = cache.Cache(lambda uid: None)
    facts.put_parent(job("one") | {"status": {"phase": "Ready"}})
    facts.put_parent(job("two"))
    found = metrics.Fleet(facts, lambda: leads).collect()
    samples = [sample for family in found for sample in family.samples if sample.name == "finetune_jobs"]
    return {sample.labels["phase"]: sample.value for sample in samples}


def test_the_leader_counts_jobs_by_phase_and_a_new_one_is_pending() -> None:
    counted = fleet(leads=True)
    assert counted["Ready"] == 1
    assert counted["Pending"] == 1
    assert set(counted) == {phase.value for phase in Phase}


def pool_pod(name: str, phase: str = "Running", **labels: str) -> dict:
    meta = {"name": name, "namespace": "ml", "resourceVersion": "1"}
    owned = {label.UID: "pool", label.POOL: "chat", label.GPUS: "2", label.GPU_TYPE: "nvidia-l4"} | labels
    return {"metadata": meta | {"labels": owned}, "status": {"phase": phase, "startTime": "2026-05-04T12:00:00Z"}}


def test_the_gpus_of_a_pool_are_counted_once_and_those_of_pods_that_ended_are_not() -> None:
    facts = cache.Cache(lambda uid: None)
    pool = {"metadata": {"uid": "pool", "name": "chat", "namespace": "ml", "resourceVersion": "1"}}
    facts.listed("ServingPool", None, [pool | {"spec": {"baseModel": {"name": "llama"}}}], "1")
    ended = pool_pod("c", "Failed")
    facts.listed("Pod", None, [pool_pod("a"), pool_pod("b"), ended], "2")
    found = metrics.Fleet(facts, lambda: True).collect()
    samples = [sample for family in found for sample in family.samples if sample.name == "finetune_pool_gpus"]
    assert [(sample.labels, sample.value) for sample in samples] == [
        ({"namespace": "ml", "pool": "chat", "gpu_type": "nvidia-l4"}, 4)
    ]


def test_a_replica_that_stands_by_says_nothing_of_jobs_so_that_sums_and_first_answers_are_right() -> None:
    assert fleet(leads=False) == {}


def exposed(leads: bool) -> str:
    facts = cache.Cache(lambda uid: None)
    facts.put_parent(job("one"))
    try:
        exposition = metrics.Exposition(facts, lambda: leads)
        return b"".join(exposition.parts()).decode()
    finally:
        metrics.prometheus_client.REGISTRY.unregister(exposition.fleet)


def test_what_the_operator_exports_pleases_promtool() -> None:
    text = exposed(leads=True)
    assert "finetune_job_status" in text
    assert prometheus.problems(text) == ""


def test_promtool_would_say_what_it_does_not_like() -> None:
    assert "no help text" in prometheus.problems("# TYPE x counter\nx 1\n")


def test_only_the_leader_exports_series_of_jobs() -> None:
    assert "finetune_job_" not in exposed(leads=False)


def test_everything_that_is_exported_is_in_the_contract() -> None:
    found = set(re.findall(r"^# TYPE (finetune_\w+) ", exposed(leads=True), re.MULTILINE))
    assert found - {metric.name for metric in contract.JOBS} == {metric.name for metric in contract.OPERATOR}


def test_what_will_be_counted_begins_with_zero_so_that_the_first_one_is_an_increase() -> None:
    text = exposed(leads=True)
    assert re.search(r'^finetune_stage_duration_seconds_count\{result="failed",stage="train"\} \d', text, re.MULTILINE)
    assert re.search(r'^finetune_retries_total\{reason="StorageUnavailable",stage="train"\} \d', text, re.MULTILINE)
    assert re.search(r'^finetune_reconcile_errors_total\{kind="defect"\} \d', text, re.MULTILINE)
