"""The advisor's rules, the effort of a training and its price: pure, without data or model."""

import dataclasses
import json
from typing import Any

import pytest
from tests.trainer import tiny

from finetune_api import basemodel, job, reasons, run
from finetune_trainer.planning import advisor, architecture, effort, measurements, memory, verdict, workload

LLAMA = basemodel.Architecture(
    layers=32,
    hidden_size=4096,
    intermediate_size=14336,
    attention_heads=32,
    key_value_heads=8,
    head_dim=128,
    vocabulary_size=128256,
    max_positions=131072,
)
FOUND = measurements.Measurements(
    train=800,
    validation=40,
    test=90,
    tokens=200_000,
    trainable=80_000,
    truncated=0.0,
    findings=[],
    memory="21Gi",
    distinct=790.0,
    top_answer=0.1,
    novelty={"share": 0.1, "places": []},
    parameters=8_030_261_248,
    work=1e18,
)


def spec(**changes: Any) -> run.Run:
    document = tiny.run_document("file:///base", ["file:///train.jsonl"], "file:///out", **changes)
    return run.Run.model_validate_json(json.dumps(document))


def spoke(found: measurements.Measurements = FOUND, **changes: Any) -> dict[str, advisor.Advice]:
    rules = {rule.__name__ for rule in advisor.RULES}
    return {one.rule: one for one in advisor.advise(spec(**changes), found) if one.rule in rules}


def changed(**fields: Any) -> measurements.Measurements:
    return dataclasses.replace(FOUND, **fields)


def test_good_data_with_a_suitable_goal_has_no_findings() -> None:
    answer = verdict.decide(spec(intent={"goals": ["Style"]}), FOUND)
    assert answer.preflight is not None
    assert answer.preflight.verdict == "Recommended"
    assert answer.message == "800 training, 40 validation and 90 test examples, 200000 tokens, 80000 of them learned"
    assert answer.preflight.advice == [
        "Tried a prompt? The job has none: put the one in use into intent.prompt.system, and the evaluation compares "
        "the tuned model with it.",
        "Can retrieval (RAG) solve it? Hardly: 10% of the answers look like facts.",
        "Enough data? Yes: 800 training examples, about 790 of them different.",
    ]


def test_what_no_baseline_measures_is_not_promised() -> None:
    intent = {"prompt": {"system": "Be brief."}, "retrieval": {"uris": ["file:///handbook.md"]}}
    for baselines, unmeasured in ((["Prompt", "RAG"], 0), (["Base"], 2)):
        answer = verdict.decide(spec(intent=intent, evaluation={"baselines": baselines}), FOUND)
        assert answer.preflight is not None
        assert sum("is not measured" in one for one in answer.preflight.advice) == unmeasured


@pytest.mark.parametrize(
    "every, weight", [("Rarely", None), ("Monthly", "CAUTION"), ("Weekly", "AGAINST"), ("Daily", "AGAINST")]
)
def test_knowledge_that_changes_faster_than_training_belongs_in_the_prompt(every: str, weight: str | None) -> None:
    found = spoke(intent={"changeFrequency": every})
    assert [one.weight.name for one in found.values()] == ([weight] if weight else [])


def test_only_unsuitable_goals_end_an_enforced_job_and_mixed_ones_warn() -> None:
    both = spoke(intent={"goals": ["Knowledge", "GeneralCapability"]})
    assert {one.weight for one in both.values()} == {advisor.Weight.AGAINST}
    mixed = spoke(intent={"goals": ["Knowledge", "Style"]})
    assert [one.weight for one in mixed.values()] == [advisor.Weight.CAUTION]
    ended = verdict.decide(spec(intent={"goals": ["Knowledge"], "advice": "Enforce"}), FOUND)
    assert ended.reason is reasons.Reason.FINE_TUNING_NOT_RECOMMENDED
    assert "RAG" in ended.message
    assert verdict.decide(spec(intent={"goals": ["Knowledge", "Style"], "advice": "Enforce"}), FOUND).reason is None


def test_the_most_severe_finding_comes_first_and_is_the_reason_of_the_job() -> None:
    few = changed(train=12, distinct=12.0, parameters=70_000_000_000, memory_advice="training needs more.")
    wanted = spec(intent={"advice": "Enforce", "changeFrequency": "Monthly"}, dataset={"minimumExamples": 200})
    answer = verdict.decide(wanted, few)
    assert answer.reason is reasons.Reason.TOO_FEW_EXAMPLES
    assert answer.preflight is not None
    assert answer.preflight.advice[0] == answer.message
    assert "training needs more." in answer.preflight.advice
    assert answer.preflight.advice[-1].startswith("Enough data? No: 12")


@pytest.mark.parametrize("distinct, weight", [(790.0, None), (190.0, "CAUTION"), (30.0, "AGAINST")])
def test_near_copies_are_weighed_by_what_is_left(distinct: float, weight: str | None) -> None:
    found = spoke(changed(distinct=distinct), dataset={"minimumExamples": 200})
    assert [one.weight.name for one in found.values()] == ([weight] if weight else [])


def test_a_number_that_a_sample_cannot_show_is_not_reported() -> None:
    many = changed(train=50_000, distinct=48_000.0)
    assert advisor.advise(spec(), many)[-1].text == "Enough data? Yes: 50000 training examples."
    few = advisor.advise(spec(dataset={"minimumExamples": 200}), changed(train=50_000, distinct=6.0))
    assert few[-1].text == "Enough data? Hardly: 50000 training examples, about 6 of them different."


def test_knowledge_seen_in_the_data_is_a_guess_and_says_so() -> None:
    seen = changed(novelty={"share": 0.62, "places": ["train.jsonl:3"]})
    (advice,) = spoke(seen).values()
    assert advice.weight is advisor.Weight.CAUTION
    assert "look like knowledge: 62%" in advice.text
    assert "train.jsonl:3" in advice.text
    assert "guess" in advice.text
    assert list(spoke(seen, intent={"goals": ["Knowledge"]})) == ["goal_is_knowledge"]


def test_a_large_model_costs_its_parameters() -> None:
    (advice,) = spoke(changed(parameters=70_553_706_496)).values()
    assert "71 billion parameters" in advice.text
    assert "about 9 times" in advice.text
    assert spoke(changed(parameters=14_000_000_000)) == {}


def test_ignore_reports_nothing() -> None:
    ignored = spec(intent={"goals": ["Knowledge"], "advice": "Ignore", "changeFrequency": "Daily"})
    answer = verdict.decide(ignored, changed(train=3, parameters=70_000_000_000)).preflight
    assert answer is not None
    assert (answer.verdict, answer.advice) == ("Recommended", [])


def test_every_rule_is_listed_and_its_messages_are_sentences() -> None:
    bad = changed(
        train=300,
        distinct=10.0,
        top_answer=1.0,
        novelty={"share": 0.9, "places": []},
        parameters=70_000_000_000,
        memory_advice="training needs more.",
        experts=8,
        layers=["k_proj", "q_proj"],
        closed=True,
        work=1e24,
        short_gates=["ExactMatch at least 0.8: with 30 examples ..."],
        short_benchmarks=["arc_easy acc at least 0.8: with 30 questions ..."],
        short_baseline=["ExactMatch at least 0.8 takes 20 validation examples, and there are 16"],
    )
    wanted = {"dataset": {"minimumExamples": 200}, "gpus": 1, "gpuType": "nvidia-l4"}
    advice = spoke(bad, intent={"goals": ["GeneralCapability"], "changeFrequency": "Weekly"}, **wanted)
    advice |= spoke(bad, intent={"goals": ["Knowledge"], "changeFrequency": "Monthly"}, **wanted)
    taught = {"intent": {"prompt": {"system": "Sort."}}, "training": {"teacher": "Prompt"}}
    advice |= spoke(changed(train=3), **wanted, **taught)
    assert set(advice) == {rule.__name__ for rule in advisor.RULES}
    for one in advice.values():
        assert one.text[-1] == "."
        assert len(one.text) < 400


# -- effort and price --


@pytest.mark.parametrize(
    "name, tera",
    [
        ("nvidia-l4", 121),
        ("nvidia-a10g", 70),
        ("nvidia-a10", 125),
        ("nvidia-l40s", 362),
        ("nvidia-a100-80gb-pcie", 312),
        ("NVIDIA-H100-80GB-HBM3", 989),
        ("h100-pcie", 756),
        ("nvidia-h200", 989),
        ("nvidia-b200", 2250),
        ("nvidia-gb200", 2500),
        ("nvidia-a100-40gb-mig-1g.5gb", None),
        ("nvidia-tesla-t4", None),
        ("somebody-else", None),
        (None, None),
    ],
)
def test_a_gpu_is_known_by_the_words_of_its_type(name: str | None, tera: float | None) -> None:
    assert effort.peak(name) == (None if tera is None else tera * 1e12)


def eight_billion(**training: Any) -> workload.Workload:
    settings = job.Training.model_validate({"maxSteps": 100, "batchSize": 16} | training)
    device = workload.Device("cuda")
    return workload.Workload(architecture.Shape(LLAMA), settings, workload.Examples.of_one_kind(1024, 16), device)


def operations(wanted: workload.Workload, *, checkpointing: bool = False) -> float:
    setup = memory.Setup(16 * 1024, checkpointing, memory.Memory())
    return effort.work(wanted, setup, 1000)


def test_the_work_is_four_operations_a_weight_and_token_and_half_as_much_again_with_checkpointing() -> None:
    wanted = eight_billion()
    per_token = operations(wanted) / (100 * 16 * 1024)
    assert per_token == pytest.approx(4 * 8.03e9, rel=0.08)
    assert operations(wanted, checkpointing=True) / operations(wanted) == pytest.approx(1.5, abs=0.04)
    assert operations(eight_billion(objective="DPO")) > 1.3 * operations(wanted)
    assert operations(eight_billion(method="QLoRA")) == effort.QUANTISED * operations(wanted)


def test_a_common_prefix_is_computed_once_per_step() -> None:
    wanted = eight_billion()
    shared = dataclasses.replace(wanted, examples=dataclasses.replace(wanted.examples, step=1024.0 * 6))
    assert operations(shared) == pytest.approx(operations(wanted) * 6 / 16)


def test_time_and_price_are_those_of_all_gpus_together() -> None:
    one = spec(gpus=1, gpuType="nvidia-l4", pricePerGpuHour=0.8, currency="EUR")
    hours = 1e18 / (121e12 * 0.35) / 3600
    answer = verdict.decide(one, FOUND).preflight
    assert answer is not None
    assert answer.estimated_duration == "6h33m"
    assert answer.estimated_cost == f"{hours * 0.8:.2f} EUR"
    many = spec(gpus=4, nodes=2, gpuType="nvidia-l4", pricePerGpuHour=0.8)
    assert effort.seconds(many, 1e18) == pytest.approx(hours * 3600 / 8)
    assert effort.price(many, effort.seconds(many, 1e18)) == f"{hours * 0.8:.2f} USD"
    assert effort.price(one, 1.0) == "less than 0.01 EUR"


def test_on_cpus_and_unknown_gpus_nothing_is_estimated() -> None:
    for unknown in (spec(), spec(gpus=1), spec(gpus=1, gpuType="somebody-else")):
        answer = verdict.decide(unknown, FOUND).preflight
        assert answer is not None
        assert answer.estimated_duration is None
        assert answer.estimated_cost is None
    priceless = spec(gpus=1, gpuType="nvidia-l4")
    assert effort.seconds(priceless, 1e18) is not None
    assert effort.price(priceless, 60.0) is None


def test_training_that_takes_days_is_a_note() -> None:
    (advice,) = spoke(changed(work=1e20), gpus=1, gpuType="nvidia-l4").values()
    assert advice.rule == "training_takes_days"
    assert advice.weight is advisor.Weight.NOTE


# -- what smaller models reached on the same data --


def measured(result: str, **changes: Any) -> dict[str, Any]:
    one = {"job": "other", "model": "small", "parameters": 7_600_000_000, "data": "d", "result": result}
    return {"message": "ExactMatch: observed 0.61", **one, **changes}


def large(*records: dict[str, Any]) -> advisor.Advice:
    return spoke(changed(parameters=72_000_000_000), measured=list(records))["base_model_is_large"]


def test_a_large_model_without_a_record_of_a_smaller_one_is_a_caution_that_names_the_candidates_field() -> None:
    found = large()
    assert (found.weight, "baseModel.candidates" in found.text) == (advisor.Weight.CAUTION, True)
    undecided = large(measured("Undecided"))
    assert (undecided.weight, "not by evidence" in undecided.text) == (advisor.Weight.CAUTION, True)


def test_evidence_that_a_smaller_model_misses_is_no_caution_against_a_large_one() -> None:
    found = large(measured("Missed"))
    assert (found.weight, "observed 0.61" in found.text) == (advisor.Weight.NOTE, True)


def test_a_smaller_model_that_passed_speaks_against_a_large_one_unless_the_jobs_own_missed() -> None:
    found = large(measured("Missed"), measured("Passed", model="tiny", parameters=1_500_000_000))
    assert (found.weight, "tiny (1.5 billion, job other) passed" in found.text) == (advisor.Weight.CAUTION, True)
    own = spec().name
    found = large(measured("Missed", job=own), measured("Passed"))
    assert (found.weight, f"job {own}" in found.text) == (advisor.Weight.NOTE, True)
