"""Several base models, the smallest first: the next one only after evidence, and what each edit keeps."""

import json
from typing import Any

import pytest

from finetune_api import job, status
from finetune_api.exits import Exit
from finetune_api.reasons import Phase, Reason, Stage
from flow import world
from flow.fakecluster import Ends, Hangs

SMALL, MIDDLE, LARGE = "qwen-1b", "qwen-7b", "qwen-72b"
SIZES = {SMALL: 1_500_000_000, MIDDLE: 7_600_000_000, LARGE: 72_000_000_000}
PRICED: dict[str, Any] = {"gpuTypes": {"nvidia-l4": {"nodeSelector": {"gpu": "l4"}, "pricePerHour": 2.0}}}


def missed(how: str | None = "ByEvidence", remedy: str | None = None) -> Ends:
    gate = status.GateResult(metric="ExactMatch", requirement="at least 0.8", observed="0.61", passed=False, missed=how)
    found = status.Evaluation(passed=False, examples=100, gates=[gate], missed=how, remedy=remedy, score="0.61")
    return Ends(0, world.evaluate(evaluation=found))


PASSED = Ends(0, world.evaluate())
HELD: dict[str, Any] = {"spec.resources": {"gpus": 2, "gpuType": "nvidia-l4"}}


def job_of(*names: str, **changes: Any) -> dict[str, Any]:
    return {"spec.baseModel": {"candidates": list(names)}, **changes}


def start(*evaluations: Ends, names: tuple[str, ...] = (LARGE, SMALL, MIDDLE), **changes: Any) -> world.World:
    played = world.World({Stage.EVALUATE: list(evaluations)}, PRICED)
    for name, size in SIZES.items():
        played.add_model(**{"metadata.name": name, "spec.source": f"hf://Qwen/{name}", "spec.parameters": size})
    played.apply(**job_of(*names, **changes))
    return played


def table(played: world.World) -> dict[str, str | None]:
    return {one.model: one.result for one in played.state.candidates}


def trained(played: world.World) -> list[str]:
    """The base models in the order of their trainings."""
    return [played.run_file("Job", name)["baseModel"]["name"] for name in played.attempts(Stage.TRAIN)]


async def test_the_smallest_that_passes_serves_and_the_larger_ones_are_skipped() -> None:
    played = start(PASSED)
    await played.rest()
    assert played.phase == Phase.READY
    assert trained(played) == [SMALL]
    assert list(table(played).items()) == [(SMALL, "Passed"), (MIDDLE, "Skipped"), (LARGE, "Skipped")]
    assert played.state.base_model == SMALL
    assert played.state.deployment is not None
    assert played.state.deployment.base_model == SMALL
    assert f"{SMALL} is enough: {MIDDLE}, {LARGE}" in played.condition("Evaluated").message


async def test_evidence_that_it_misses_a_gate_takes_the_job_to_the_next_one() -> None:
    played = start(missed(), PASSED)
    await played.rest()
    assert (played.phase, trained(played)) == (Phase.READY, [SMALL, MIDDLE])
    assert table(played) == {SMALL: "Missed", MIDDLE: "Passed", LARGE: "Skipped"}
    assert [entry.outcome for entry in played.state.history][-1] == Reason.EVALUATION_BELOW_GATE
    assert "observed 0.61" in played.state.candidates[0].message
    accepted = played.condition("Accepted").message
    assert f"base model {MIDDLE}, candidate 2 of 3: {SMALL} missed: ExactMatch" in accepted
    assert len({one.revision for one in played.state.candidates[:2]}) == 2
    listed = [played.run_file("Job", name).get("smaller") for name in played.attempts(Stage.EVALUATE)]
    assert [one and [each["model"] for each in one] for one in listed] == [None, [SMALL]], (
        "the report shows what was tried"
    )
    assert all("smaller" not in played.run_file("Job", name) for name in played.attempts(Stage.TRAIN))
    assert played.condition("Failed") is None
    played.boot()
    await played.nothing_is_left_to_do()


@pytest.mark.parametrize(
    "play, words",
    [
        (missed("Undecided"), "Too few test examples decide"),
        (missed(remedy="More data may be enough. About 400 rows."), "About 400 rows"),
        (Ends(0, world.evaluate(passed=False)), "Too few test examples decide"),
    ],
)
async def test_a_miss_that_examples_rows_or_steps_may_cure_says_so_and_trains_no_larger_model(
    play: Ends, words: str
) -> None:
    played = start(play)
    await played.rest()
    assert (played.phase, played.reason("Failed")) == (Phase.FAILED, Reason.EVALUATION_BELOW_GATE)
    assert trained(played) == [SMALL]
    assert table(played) == {SMALL: "Undecided", MIDDLE: None, LARGE: None}
    message = played.condition("Failed").message
    assert words in message
    assert f"To train {MIDDLE}, {LARGE} anyway, take {SMALL} out of baseModel.candidates" in message


async def test_the_author_may_continue_without_the_one_that_is_undecided() -> None:
    played = start(missed("Undecided"), PASSED)
    await played.rest()
    played.apply(**job_of(MIDDLE, LARGE))
    await played.rest()
    assert (played.phase, trained(played)) == (Phase.READY, [SMALL, MIDDLE])
    assert table(played) == {MIDDLE: "Passed", LARGE: "Skipped"}


async def test_a_job_whose_candidates_all_miss_fails_with_the_figures_of_each() -> None:
    played = start(missed(), missed(), missed())
    await played.rest()
    assert (played.phase, trained(played)) == (Phase.FAILED, [SMALL, MIDDLE, LARGE])
    assert set(table(played).values()) == {"Missed"}
    assert "status.candidates has the figures of each" in played.condition("Failed").message
    assert all("observed 0.61" in one.message for one in played.state.candidates)


async def test_a_larger_candidate_that_is_added_keeps_what_was_measured_of_the_others() -> None:
    played = start(missed(), missed(), PASSED, names=(SMALL, MIDDLE))
    await played.rest()
    assert played.phase == Phase.FAILED
    played.apply(**job_of(MIDDLE, SMALL, LARGE))
    await played.rest()
    assert (played.phase, trained(played)) == (Phase.READY, [SMALL, MIDDLE, LARGE])
    assert table(played) == {SMALL: "Missed", MIDDLE: "Missed", LARGE: "Passed"}


@pytest.mark.parametrize(
    "edit",
    [{"spec.training.epochs": 5}, {"spec.evaluation.gates": [{"metric": "ExactMatch", "minimum": 0.5}]}],
)
async def test_other_training_or_other_gates_begin_with_the_smallest_again(edit: dict[str, Any]) -> None:
    played = start(missed(), PASSED, PASSED)
    await played.rest()
    served = played.serving()
    played.apply(**job_of(*SIZES, **edit))
    await played.settle(until=lambda: played.state.base_model == SMALL)
    assert (table(played)[SMALL], played.serving()) == ("Running", served)
    await played.rest()
    assert played.phase == Phase.READY
    assert table(played) == {SMALL: "Passed", MIDDLE: "Skipped", LARGE: "Skipped"}
    assert played.serving() != served


async def test_another_failure_than_a_missed_gate_trains_no_larger_model() -> None:
    played = start()
    played.script[Stage.TRAIN] = [Ends(Exit.DIVERGED, world.refusal(Stage.TRAIN, Reason.LOSS_DIVERGED))]
    await played.rest()
    assert (played.phase, played.reason("Failed")) == (Phase.FAILED, Reason.LOSS_DIVERGED)
    assert table(played) == {SMALL: "Failed", MIDDLE: None, LARGE: None}


async def test_a_prompt_that_is_enough_for_the_smallest_ends_the_job() -> None:
    enforced: dict[str, Any] = {**world.ASKED, "spec.intent.advice": "Enforce"}
    played = start(**enforced)
    played.script[Stage.BASELINE] = [Ends(0, world.baseline(job.Contender.PROMPT))]
    await played.rest()
    assert (played.phase, trained(played)) == (Phase.COMPLETE, [])
    assert table(played) == {SMALL: "PromptSufficient", MIDDLE: "Skipped", LARGE: "Skipped"}


async def test_each_candidates_cost_is_counted_and_the_next_ones_is_estimated() -> None:
    played = start(missed(), PASSED, **HELD)
    played.script[Stage.TRAIN] = [Hangs(), Hangs()]
    for name in (SMALL, MIDDLE):
        await played.settle(until=lambda name=name: played.runs(Stage.TRAIN)() and played.state.base_model == name)
        await played.wait(3600)
        played.let_go(Stage.TRAIN)
    await played.rest()
    small, middle, large = played.state.candidates
    total = played.state.cost
    assert total is not None
    assert float(small.gpu_hours or 0) == pytest.approx(2, rel=0.05)
    assert float(middle.gpu_hours or 0) == pytest.approx(2, rel=0.05)
    assert float(small.gpu_hours or 0) + float(middle.gpu_hours or 0) == pytest.approx(float(total.gpu_hours), abs=1e-5)
    assert float(small.amount or 0) + float(middle.amount or 0) == pytest.approx(float(total.amount or 0), abs=1e-5)
    assert float(large.saved_gpu_hours or 0) == pytest.approx(float(middle.gpu_hours or 0) * 72 / 7.6, abs=1e-4)
    assert "GPU-hours not spent" in large.message


async def test_preflight_of_a_large_model_gets_what_smaller_ones_reached_in_the_namespace() -> None:
    checked = Ends(0, world.preflight(preflight=world.FOUND.model_copy(update={"data": "abc"})))
    played = start(missed(), missed("Undecided"), PASSED)
    played.script[Stage.PREFLIGHT] = [checked] * 4
    played.apply("another", **{"spec.baseModel": {"name": MIDDLE}})
    await played.rest()
    assert table(played)[SMALL] in {"Missed", "Undecided", "Passed"}
    played.apply("large", **{"spec.baseModel": {"name": LARGE}})
    await played.rest()
    [preflight] = [name for name in played.attempts(Stage.PREFLIGHT) if name.startswith("large-")]
    records = played.run_file("Job", preflight)["measured"]
    assert {(one["job"], one["model"], one["parameters"], one["data"]) for one in records} >= {
        ("another", MIDDLE, SIZES[MIDDLE], "abc"),
        (world.NAME, SMALL, SIZES[SMALL], "abc"),
    }
    small = [name for name in played.attempts(Stage.PREFLIGHT) if not name.startswith("large-")]
    assert all("measured" not in played.run_file("Job", name) for name in small)
    [train] = [name for name in played.attempts(Stage.TRAIN) if name.startswith("large-")]
    assert "measured" not in played.run_file("Job", train)


async def test_a_smaller_model_that_passed_without_gates_is_no_record() -> None:
    checked = Ends(0, world.preflight(preflight=world.FOUND.model_copy(update={"data": "abc"})))
    nothing = Ends(0, world.evaluate(evaluation=status.Evaluation(passed=True, examples=100)))
    played = start(nothing, nothing, PASSED, **{"spec.evaluation.gates": []})
    played.script[Stage.PREFLIGHT] = [checked] * 3
    played.apply("another", **{"spec.baseModel": {"name": MIDDLE}, "spec.evaluation.gates": []})
    await played.rest()
    played.apply("large", **{"spec.baseModel": {"name": LARGE}})
    await played.rest()
    [preflight] = [name for name in played.attempts(Stage.PREFLIGHT) if name.startswith("large-")]
    assert "measured" not in played.run_file("Job", preflight)


async def test_an_edit_of_the_catalogue_changes_no_order_while_a_candidate_trains() -> None:
    played = start()
    played.script[Stage.TRAIN] = [Hangs()]
    await played.settle(until=played.runs(Stage.TRAIN))
    played.add_model(**{"metadata.name": LARGE, "spec.source": f"hf://Qwen/{LARGE}", "spec.parameters": 1})
    await played.rest()
    assert (played.state.base_model, [one.model for one in played.state.candidates]) == (SMALL, [SMALL, MIDDLE, LARGE])


async def test_a_candidate_that_the_catalogue_lacks_is_waited_for_once_it_is_its_turn() -> None:
    played = start(missed(), PASSED, names=(SMALL, "later"))
    await played.settle(patience=100)
    assert (played.phase, played.reason("Accepted")) == (Phase.PENDING, Reason.BASE_MODEL_NOT_FOUND)
    assert "BaseModel later" in played.condition("Accepted").message
    assert table(played) == {SMALL: "Missed", "later": None}
    played.add_model(**{"metadata.name": "later", "spec.source": "hf://Qwen/later"})
    await played.rest()
    assert (played.phase, trained(played)) == (Phase.READY, [SMALL, "later"])
    assert table(played) == {SMALL: "Missed", "later": "Passed"}


async def test_each_candidate_is_placed_in_the_default_pool_of_its_base_model() -> None:
    played = start(missed(), PASSED)
    pool = {"baseModel": {"name": MIDDLE}, "replicas": 1, "default": True}
    played.cluster.put({"kind": "ServingPool", "metadata": {"name": "chat"}, "spec": pool})
    played.script[Stage.TRAIN] = [Hangs(), Hangs()]
    placed = {}
    for name in (SMALL, MIDDLE):
        await played.settle(until=lambda name=name: played.runs(Stage.TRAIN)() and played.state.base_model == name)
        placed[name] = json.loads(played.state.resolved or "{}").get("pool")
        played.let_go(Stage.TRAIN)
    assert placed == {SMALL: None, MIDDLE: {"name": "ml/chat"}}


async def test_candidates_of_unknown_size_are_taken_as_listed() -> None:
    played = start(PASSED)
    played.cluster.put(world.finetunejob(**job_of(MIDDLE, "unknown", SMALL)))
    played.add_model(**{"metadata.name": "unknown", "spec.source": "hf://Qwen/unknown"})
    await played.rest()
    assert [one.model for one in played.state.candidates] == [MIDDLE, "unknown", SMALL]
    assert trained(played) == [MIDDLE]


async def test_a_job_of_one_base_model_that_gets_larger_candidates_keeps_its_revision() -> None:
    played = start(PASSED)
    played.cluster.put(world.finetunejob(**{"spec.baseModel": {"name": SMALL}}))
    await played.rest()
    revision = played.state.revision
    played.apply(**job_of(SMALL, MIDDLE))
    await played.rest()
    assert (played.phase, played.state.revision, trained(played)) == (Phase.READY, revision, [SMALL])
    assert table(played) == {SMALL: "Passed", MIDDLE: "Skipped"}
    played.apply(**{"spec.baseModel": {"name": SMALL}})
    await played.rest()
    assert (played.state.revision, played.state.candidates) == (revision, [])
