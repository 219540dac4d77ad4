"""The operator's own metrics."""

from finetune_api.reasons import Phase
from finetune_operator import cache, metrics


def jobs(leads: bool) -> dict[str, float]:
    facts = cache.Cache(lambda uid: None)
    facts.put_parent({"metadata": {"uid": "a", "name": "one", "namespace": "ml"}, "status": {"phase": "Ready"}})
    facts.put_parent({"metadata": {"uid": "b", "name": "two", "namespace": "ml"}})
    found = metrics.Jobs(facts, lambda: leads).collect()
    return {sample.labels["phase"]: sample.value for family in found for sample in family.samples}


def test_the_leader_counts_jobs_by_phase_and_a_new_one_is_pending() -> None:
    counted = jobs(leads=True)
    assert counted["Ready"] == 1
    assert counted["Pending"] == 1
    assert set(counted) == {phase.value for phase in Phase}


def test_a_replica_that_stands_by_says_nothing_of_jobs_so_that_sums_and_first_answers_are_right() -> None:
    assert jobs(leads=False) == {}
