"""What an edit costs, and what serves meanwhile."""

import json

import pytest

from finetune_api.reasons import Phase, Reason, Stage
from finetune_operator.observe import label
from flow import world
from flow.fakecluster import Crashes, Ends, Hangs, Unschedulable

IMAGE = {"spec.deployment.image": "registry/vllm:2"}
DATA = {"spec.dataset.train": ["s3://acme/support/more.jsonl"]}
GATE = {"spec.evaluation.gates": [{"metric": "ExactMatch", "minimum": 0.5}]}
RECREATE = {"spec.deployment.rollout.strategy": "Recreate"}


def start(script: dict | None = None, **changes) -> world.World:
    played = world.World(script)
    played.add_model()
    played.apply(**changes)
    return played


async def served(**changes) -> world.World:
    """A job that serves its first revision."""
    played = start(**changes)
    await played.rest()
    assert played.phase == Phase.READY
    return played


def jobs(played: world.World) -> list[int]:
    return [len(played.attempts(stage)) for stage in world.ALWAYS]


class Watcher:
    """Notes at every tick which release answers, and that one does."""

    def __init__(self, played: world.World) -> None:
        self.played = played
        self.seen: list[str | None] = []
        self.gaps = 0

    def __call__(self) -> bool:
        release = self.played.serving()
        ready = [
            p
            for p in self.played.pods("server")
            if p["metadata"]["labels"][label.RELEASE] == release
            and not p["metadata"].get("deletionTimestamp")
            and p["status"]["phase"] == "Running"
        ]
        self.gaps += not ready
        if self.seen[-1:] != [release]:
            self.seen.append(release)
        return False


async def watched(played: world.World) -> Watcher:
    watcher = Watcher(played)
    before = played.settle

    await before(
        until=lambda: watcher() or (not played.dirty and played.phase in {Phase.READY, Phase.FAILED} and done(played))
    )
    await played.rest()
    watcher()
    return watcher


def done(played: world.World) -> bool:
    return played.state.observed_generation == played.job["metadata"]["generation"]


# -- new revisions --


async def test_an_edited_dataset_trains_a_second_revision_that_takes_over_without_a_gap() -> None:
    played = await served()
    first, revision = played.serving(), played.state.revision
    played.apply(**DATA)
    watcher = await watched(played)
    assert played.phase == Phase.READY
    assert (watcher.seen, watcher.gaps) == ([first, played.serving()], 0)
    assert played.state.revision != revision
    assert jobs(played) == [2, 2, 2, 2]
    assert played.cluster.names("Deployment") == [played.serving()]
    assert played.state.deployment.revision == played.state.revision
    assert [h.outcome for h in played.state.history] == [Reason.SERVING, Reason.SERVING]


async def test_during_a_second_revision_the_job_is_not_ready_and_names_the_serving_one() -> None:
    played = await served()
    revision = played.state.revision
    played.script["train"] = [Hangs()]
    played.apply(**DATA)
    await played.rest()
    assert played.phase == Phase.TRAINING
    assert played.condition("Ready").status == "False"
    assert f"(revision {revision} " in played.condition("Ready").message
    assert world.kstatus(played.job) == "InProgress"
    assert played.state.deployment.revision == revision


async def test_the_old_release_drains_before_it_is_deleted() -> None:
    played = await served()
    first = played.serving()
    played.apply(**DATA)
    await played.settle(until=lambda: played.serving() != first)
    switched = played.cluster.now
    assert first in played.cluster.names("Deployment")
    await played.settle(until=lambda: first not in played.cluster.names("Deployment"))
    assert (played.cluster.now - switched).total_seconds() >= played.chart.drain_seconds - 1
    await played.rest()
    assert set(played.cluster.names("Service")) == {world.NAME, played.serving()}


async def test_a_second_revision_that_fails_its_gate_leaves_the_first_serving() -> None:
    played = await served()
    first, revision = played.serving(), played.state.revision
    played.script["evaluate"] = [Ends(0, world.evaluate(passed=False))]
    played.apply(**DATA)
    watcher = await watched(played)
    assert (watcher.seen, watcher.gaps) == ([first], 0)
    assert (played.phase, played.reason("Failed")) == (Phase.FAILED, Reason.EVALUATION_BELOW_GATE)
    assert played.is_true("Deployed")
    assert revision in played.condition("Deployed").message
    assert f"(revision {revision} " in played.condition("Ready").message
    assert world.kstatus(played.job) == "Failed"
    assert played.cluster.names("Deployment") == [first]


@pytest.mark.parametrize("strategy", ["BlueGreen", "Recreate"])
async def test_a_second_revision_whose_server_crashes_is_rolled_back(strategy: str) -> None:
    rollout = {"spec.deployment.rollout.strategy": strategy}
    played = await served(**rollout)
    first = played.serving()
    played.script["server"] = [Crashes()]
    played.apply(**rollout, **DATA)
    watcher = await watched(played)
    await played.settle()
    assert watcher.seen == [first]
    assert strategy == "Recreate" or watcher.gaps == 0
    assert played.reason("Failed") == Reason.SERVER_FAILED
    assert played.reason("Deployed") == Reason.ROLLED_BACK
    assert played.cluster.names("Deployment") == [first]
    assert played.cluster.get("Deployment", first)["spec"]["replicas"] == 1
    assert len(played.pods("server")) == 1


async def test_recreate_stops_the_serving_release_before_it_starts_the_next() -> None:
    played = await served(**RECREATE)
    first = played.serving()
    most = 0

    def counted() -> bool:
        nonlocal most
        most = max(most, len(played.pods("server")))
        return played.phase == Phase.READY and played.serving() != first

    played.apply(**RECREATE, **DATA)
    await played.settle(until=counted)
    assert most == 1
    await played.rest()
    assert played.cluster.names("Deployment") == [played.serving()]


async def test_recreate_waits_until_the_last_pod_of_the_serving_release_is_gone() -> None:
    played = await served(**RECREATE)
    first = played.serving()
    played.cluster.stop_slowly = True
    played.apply(**RECREATE, **DATA)
    await played.settle()
    assert len(played.pods("server")) == 1
    assert played.cluster.names("Deployment") == [first]
    assert "rollout.strategy: Recreate" in played.condition("Deployed").message
    played.cluster.stop_slowly = False
    await played.rest()
    assert played.phase == Phase.READY
    assert played.serving() != first


async def test_a_third_revision_takes_over_from_a_second_that_was_never_verified() -> None:
    played = await served()
    first = played.serving()
    played.script["server"] = [Hangs()]
    played.apply(**DATA)
    await played.rest()
    second = played.state.revision
    played.apply(**DATA, **{"spec.training.seed": 7})
    watcher = await watched(played)
    assert (watcher.seen, watcher.gaps) == ([first, played.serving()], 0)
    assert [h.outcome for h in played.state.history] == [Reason.SERVING, Reason.SUPERSEDED, Reason.SERVING]
    assert played.state.history[1].revision == second
    assert played.cluster.names("Deployment") == [played.serving()]


async def test_an_edit_validation_stops_the_old_revision_first() -> None:
    played = start({"train": [Hangs()]})
    await played.settle(until=played.runs("train"))
    played.apply(**DATA)
    await played.rest()
    assert played.phase == Phase.READY
    assert jobs(played) == [2, 2, 1, 1]
    assert played.state.history[-1].outcome == Reason.SUPERSEDED


async def test_an_edit_and_its_return_make_one_revision() -> None:
    played = start({"train": [Hangs()]})
    await played.settle(until=played.runs("train"))
    revision = played.state.revision
    played.apply(**DATA)
    await played.tick()
    played.apply()
    await played.rest()
    assert played.phase == Phase.READY
    assert played.state.revision == revision
    assert len({h.revision for h in played.state.history}) == len(played.state.history)


async def test_an_edit_back_to_a_former_revision_serves_it_again() -> None:
    played = await served()
    revision, release = played.state.revision, played.serving()
    played.apply(**DATA)
    await played.rest()
    played.apply()
    watcher = await watched(played)
    assert watcher.gaps == 0
    assert (played.state.revision, played.serving()) == (revision, release)
    assert played.phase == Phase.READY


# -- edits that train nothing --


async def test_an_edit_of_the_evaluation_judges_the_same_adapter_again() -> None:
    played = await served()
    release = played.serving()
    played.apply(**GATE)
    watcher = await watched(played)
    assert jobs(played) == [1, 1, 2, 1]
    assert (watcher.seen, watcher.gaps) == ([release], 0)
    assert played.phase == Phase.READY


async def test_an_edit_of_the_evaluation_may_unseat_the_judgement_but_not_the_server() -> None:
    played = await served()
    release = played.serving()
    played.script["evaluate"] = [Ends(0, world.evaluate(passed=False))]
    played.apply(**GATE)
    await played.rest()
    assert (played.phase, played.serving()) == (Phase.FAILED, release)
    assert played.is_true("Deployed")
    played.apply()
    await played.rest()
    assert played.phase == Phase.READY
    assert jobs(played)[:2] == [1, 1]


async def test_an_attempt_that_failed_on_the_way_is_forgotten_at_the_end() -> None:
    played = await served()
    played.script["evaluate"] = [Ends(1, "boom")]
    played.apply(**GATE)
    await played.rest()
    assert played.phase == Phase.READY
    assert played.state.failure is None
    assert jobs(played) == [1, 1, 3, 1]


async def test_a_failed_gate_that_is_lowered_passes_without_training() -> None:
    played = start({"evaluate": [Ends(0, world.evaluate(passed=False))]})
    await played.rest()
    assert played.phase == Phase.FAILED
    played.apply(**GATE)
    await played.rest()
    assert played.phase == Phase.READY
    assert jobs(played) == [1, 1, 2, 1]


@pytest.mark.parametrize("edit", [GATE, IMAGE, {"spec.intent.advice": "Enforce"}, {"spec.deployment.enabled": False}])
async def test_an_edit_of_what_comes_later_leaves_training_alone(edit: dict) -> None:
    played = start({"train": [Ends(1), Hangs()]})
    await played.settle(until=lambda: played.state.attempt == 2 and played.runs("train")())
    pod, started = played.pods("train")[-1]["metadata"]["uid"], played.state.start_time
    played.apply(**edit)
    await played.rest()
    assert [p["metadata"]["uid"] for p in played.pods("train") if p["status"]["phase"] == "Running"] == [pod]
    assert (played.state.attempt, played.state.failed_attempts, played.state.start_time) == (2, 1, started)
    played.let_go("train")
    await played.rest()
    assert played.phase in {Phase.READY, Phase.COMPLETE}
    assert len(played.attempts("train")) == 2


async def test_an_edit_of_the_deployment_verifies_a_candidate_before_the_switch() -> None:
    played = await served()
    first = played.serving()
    played.script["verify"] = [Hangs()]
    played.apply(**IMAGE)
    await played.rest()
    assert played.serving() == first
    assert len(played.cluster.names("Deployment")) == 2
    played.let_go("verify")
    watcher = await watched(played)
    assert (watcher.seen, watcher.gaps) == ([first, played.serving()], 0)
    assert played.serving() != first
    assert jobs(played) == [1, 1, 1, 2]
    assert image(played) == "registry/vllm:2"


async def test_a_candidate_that_is_not_the_tuned_model_never_serves() -> None:
    played = await served()
    first = played.serving()
    played.script["verify"] = [Ends(2, world.refusal(Stage.VERIFY, Reason.ADAPTER_NOT_SERVED))]
    played.apply(**IMAGE)
    await played.rest()
    assert (played.phase, played.serving()) == (Phase.FAILED, first)
    assert played.reason("Failed") == Reason.ADAPTER_NOT_SERVED
    assert played.reason("Deployed") == Reason.ROLLED_BACK
    played.apply()
    await played.rest()
    assert (played.phase, played.serving()) == (Phase.READY, first)


async def test_a_label_more_in_the_node_selector_rolls_the_deployment() -> None:
    played = await served()
    first = played.serving()
    played.apply(**{"spec.deployment.resources.nodeSelector": {"disk": "fast"}})
    await played.rest()
    assert played.serving() != first
    template = played.cluster.get("Deployment", played.serving())["spec"]["template"]["spec"]
    assert template["nodeSelector"] == {"disk": "fast"}


async def test_an_edit_of_the_replicas_only_scales() -> None:
    played = await served()
    first, before = played.serving(), jobs(played)
    played.apply(**{"spec.deployment.replicas": 3})
    await played.tick()
    await played.tick()
    assert world.kstatus(played.job) == "InProgress"
    await played.rest()
    assert (played.serving(), jobs(played)) == (first, before)
    assert len(played.pods("server")) == 3
    assert played.phase == Phase.READY
    assert world.kstatus(played.job) == "Current"
    assert played.state.deployment.ready_replicas == 3


async def test_every_condition_has_the_observed_generation() -> None:
    played = await served()
    played.apply(**{"spec.deployment.replicas": 2})
    await played.rest()
    assert played.job["metadata"]["generation"] == played.state.observed_generation == 2
    assert {c.observed_generation for c in played.state.conditions} == {2}


async def test_a_server_that_loses_its_pods_is_not_ready_and_recovers() -> None:
    played = await served()
    played.recast("server", Unschedulable())
    played.script["server"] = [Unschedulable("0/3 nodes are available: 3 node(s) were unschedulable.")]
    played.cluster._delete("Pod", "ml", played.pods("server")[0]["metadata"]["name"], "Background")
    await played.rest()
    assert played.condition("Ready").status == "False"
    assert "3 node(s) were unschedulable" in played.condition("Ready").message
    assert world.kstatus(played.job) == "InProgress"
    played.let_go("server")
    await played.rest()
    assert played.phase == Phase.READY


async def test_turning_the_deployment_off_stops_the_server_and_completes_the_job() -> None:
    played = await served()
    played.apply(**{"spec.deployment.enabled": False})
    await played.rest()
    assert played.phase == Phase.COMPLETE
    assert world.kstatus(played.job) == "Current"
    assert not played.cluster.names("Deployment")
    assert not played.cluster.names("Service")
    played.apply()
    await played.rest()
    assert played.phase == Phase.READY
    assert jobs(played)[:3] == [1, 1, 1]


async def test_turning_the_deployment_off_stops_the_server_of_a_failed_job_too() -> None:
    played = await served()
    played.script["train"] = [Ends(4, world.refusal(Stage.TRAIN, Reason.LOSS_DIVERGED))]
    played.apply(**DATA)
    await played.rest()
    played.apply(**DATA, **{"spec.deployment.enabled": False})
    await played.rest()
    assert not played.cluster.names("Deployment")
    assert played.phase == Phase.FAILED
    assert not played.is_true("Deployed")


async def test_a_complete_job_that_is_to_serve_after_all_serves() -> None:
    played = start(**{"spec.deployment.enabled": False})
    await played.rest()
    assert played.phase == Phase.COMPLETE
    played.apply()
    await played.rest()
    assert played.phase == Phase.READY
    assert jobs(played) == [1, 1, 1, 1]


@pytest.mark.parametrize(
    "edit",
    [
        {"spec.resources.requests.memory": "64Gi"},
        {"spec.storage.credentialsSecret": "another"},
        {"spec.training.retries": 5},
        {"spec.resources.nodeSelector": {"disk": "fast"}},
    ],
)
async def test_an_edit_of_the_surroundings_gives_a_failed_stage_another_try(edit: dict) -> None:
    played = start({"train": [Ends(2, world.refusal(Stage.TRAIN, Reason.S3_ACCESS_DENIED))]})
    await played.rest()
    revision = played.state.revision
    played.apply(**edit)
    await played.rest()
    assert (played.phase, played.state.revision) == (Phase.READY, revision)
    assert jobs(played) == [1, 2, 1, 1]


async def test_an_edit_of_everything_at_once_loses_nothing() -> None:
    played = start({"train": [Ends(2, world.refusal(Stage.TRAIN, Reason.S3_ACCESS_DENIED))]})
    await played.rest()
    played.apply(**GATE, **IMAGE, **{"spec.storage.credentialsSecret": "another"})
    await played.rest()
    assert played.phase == Phase.READY
    assert jobs(played) == [1, 2, 1, 1]


@pytest.mark.parametrize("edit", [{"spec.resources.requests.memory": "64Gi"}, {"spec.training.retries": 5}])
async def test_an_edit_of_the_surroundings_of_a_served_job_does_nothing(edit: dict) -> None:
    played = await served()
    before = list(played.cluster.created)
    played.apply(**edit)
    await played.rest()
    assert played.cluster.created == before
    assert played.phase == Phase.READY


async def test_a_job_whose_pod_waits_is_replaced_when_its_resources_are_edited() -> None:
    played = start({"train": [Unschedulable()]}, **{"spec.resources.gpus": 8})
    await played.rest()
    played.apply(**{"spec.resources.gpus": 1})
    await played.rest()
    assert played.phase == Phase.READY
    assert jobs(played) == [1, 2, 1, 1]


# -- the catalogue and the operator's settings --


@pytest.mark.parametrize("stage", ["train", "evaluate", "server"])
async def test_an_edit_of_the_catalogue_changes_nothing_of_what_is_under_way(stage: str) -> None:
    played = start({stage: [Hangs()]})
    await played.settle(until=played.runs(stage))
    revision = played.state.revision
    played.add_model(**{"spec.source": "hf://Qwen/other", "spec.defaults.serving.extraArgs": ["--enforce-eager"]})
    await played.rest()
    played.let_go(stage)
    await played.rest()
    assert played.phase == Phase.READY
    assert played.state.revision == revision
    assert jobs(played) == [1, 1, 1, 1]
    for kind, name in [("Deployment", played.serving()), *(("Job", played.attempts(one)[0]) for one in world.ALWAYS)]:
        assert "hf://Qwen/Qwen2.5" in played.run_file(kind, name)["baseModel"]["source"]
    assert "--enforce-eager" not in args(played)


async def test_an_entry_that_is_removed_from_the_catalogue_changes_nothing() -> None:
    played = await served()
    played.cluster.remove("BaseModel", "qwen2.5-7b-instruct")
    played.apply(**IMAGE)
    await played.rest()
    assert played.phase == Phase.READY
    assert image(played) == "registry/vllm:2"


UPGRADE = {"images": {"trainer": "registry/trainer:2", "fetch": "registry/fetch:2", "serving": "registry/vllm:2"}}


@pytest.mark.parametrize("stage", ["preflight", "train", "evaluate"])
async def test_an_upgrade_of_the_operator_leaves_running_pods_alone(stage: Stage) -> None:
    played = start({stage: [Hangs()]})
    await played.settle(until=played.runs(stage))
    await played.rest()
    before = list(played.cluster.created)
    played.boot(UPGRADE)
    await played.rest()
    assert played.cluster.created == before
    played.let_go(stage)
    await played.rest()
    assert played.phase == Phase.READY
    assert jobs(played) == [1, 1, 1, 1]


async def test_an_upgrade_of_the_operator_does_not_change_a_serving_release_even_when_it_repairs_it() -> None:
    played = await served()
    played.boot(UPGRADE)
    await played.rest()
    assert image(played) == "registry/vllm:1"
    played.cluster.remove("Deployment", played.serving())
    await played.rest()
    assert image(played) == "registry/vllm:1"
    assert played.phase == Phase.READY


async def test_an_upgrade_of_the_operator_replaces_a_job_whose_pod_still_waits() -> None:
    played = start({"train": [Unschedulable()]})
    await played.rest()
    played.boot(UPGRADE)
    await played.rest()
    assert played.phase == Phase.READY
    assert jobs(played) == [1, 2, 1, 1]
    newest = played.cluster.get("Job", played.attempts("train")[-1])
    assert newest["spec"]["template"]["spec"]["containers"][0]["image"] == "registry/trainer:2"


@pytest.mark.parametrize("role", ["server", "verify"])
async def test_a_candidate_that_is_on_its_way_follows_an_upgrade_and_is_verified_as_it_will_serve(role: str) -> None:
    played = start({role: [Hangs()]})
    await played.settle(until=played.runs(role))
    played.boot(UPGRADE)
    await played.rest()
    assert played.phase == Phase.READY
    assert image(played) == "registry/vllm:2"
    created = [(kind, name) for kind, name, _ in played.cluster.created]
    last_server = max(i for i, (kind, name) in enumerate(created) if kind == "Pod" and "-check" not in name)
    last_verify = max(i for i, (kind, name) in enumerate(created) if kind == "Job" and "-check" in name)
    assert last_verify > last_server


# -- children --


async def test_a_port_that_others_add_to_the_service_stays_and_causes_no_writes() -> None:
    played = await served()
    played.cluster.edit(
        "Service", world.NAME, lambda raw: raw["spec"]["ports"].append({"port": 80, "targetPort": 8000})
    )
    await played.rest()
    assert len(played.cluster.get("Service", world.NAME)["spec"]["ports"]) == 2


@pytest.mark.parametrize("kind", ["Deployment", "Service"])
async def test_children_that_are_removed_come_back(kind: str) -> None:
    played = await served()
    names = played.cluster.names(kind)
    for name in names:
        played.cluster.remove(kind, name)
    await played.rest()
    back = played.cluster.names(kind)
    assert back == names
    assert played.phase == Phase.READY


async def test_a_deleted_candidate_is_recreated_and_verified() -> None:
    played = start({"verify": [Hangs()]})
    await played.settle(until=played.runs("verify"))
    played.cluster.remove("Deployment", played.cluster.names("Deployment")[0])
    await played.rest()
    assert played.phase == Phase.READY
    assert len(played.attempts("verify")) == 2


async def test_a_verification_says_nothing_of_a_candidate_that_was_made_again() -> None:
    played = start({"verify": [Hangs()]})
    await played.settle(until=played.runs("verify"))
    await played.rest()
    played.let_go("verify")
    played.cluster.step()
    played.cluster.step()  # the Job is complete, and nobody has heard of it yet
    played.cluster.remove("Deployment", played.cluster.names("Deployment")[0])
    await played.rest()
    assert played.phase == Phase.READY
    assert len(played.attempts("verify")) == 2


def image(played: world.World) -> str:
    return played.cluster.get("Deployment", played.serving())["spec"]["template"]["spec"]["containers"][0]["image"]


def args(played: world.World) -> list[str]:
    return played.cluster.get("Deployment", played.serving())["spec"]["template"]["spec"]["containers"][0]["args"]


# -- why there is a new revision, evaluation or release --

WHYS = [
    ({"spec.training.lora.rank": 32}, "new revision", "spec.training.lora.rank changed"),
    (DATA, "new revision", "spec.dataset.train[0] changed"),
    (GATE, "is evaluated again", "spec.evaluation.gates changed"),
    ({"spec.intent.prompt.system": "Be brief."}, "is evaluated again", "spec.intent.prompt.system changed"),
    (IMAGE, "is served by a new release", "spec.deployment.image changed"),
    ({"spec.deployment.enabled": False}, "is not served any more", "spec.deployment.enabled changed"),
]


@pytest.mark.parametrize("edit, what, why", WHYS)
async def test_the_field_that_made_work_is_in_condition_event_and_log(
    edit: dict, what: str, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    played = await served()
    caplog.clear()
    caplog.set_level("INFO")
    played.apply(**edit)
    await played.rest()
    (event,) = [text for kind, reason, text in played.cluster.events if why in text]
    assert what in event
    assert f"revision {played.state.revision}" in event
    accepted = played.condition("Accepted")
    assert accepted is not None
    assert what in accepted.message
    assert accepted.message.endswith(why)
    assert [record for record in caplog.records if why in record.getMessage()]


async def test_an_edit_that_repeats_no_work_says_that_too() -> None:
    played = await served()
    before = jobs(played)
    played.apply(**{"spec.training.retries": 7})
    await played.rest()
    accepted = played.condition("Accepted")
    assert accepted is not None
    assert "spec.training.retries changed; " in accepted.message
    assert jobs(played) == before


async def test_a_record_that_an_upgrade_writes_differently_makes_no_event() -> None:
    played = await served()
    played.apply(**{"spec.training.seed": 1})
    await played.rest()
    accepted, events = played.condition("Accepted"), len(played.cluster.events)
    assert accepted is not None

    def older(raw: dict) -> None:
        resolved = json.loads(raw["status"]["resolved"])
        del resolved["environment"]
        raw["status"]["resolved"] = json.dumps(resolved)

    played.cluster.edit("FineTuneJob", world.NAME, older)
    await played.rest()
    assert "environment" in json.loads(played.state.resolved or "{}"), "the record is whole again"
    assert played.condition("Accepted").message == accepted.message
    assert len(played.cluster.events) == events


async def test_of_many_changed_fields_three_are_named() -> None:
    played = await served()
    played.apply(**{f"spec.training.{name}": 1 for name in ("seed", "batchSize", "epochs", "maxSteps")})
    await played.rest()
    accepted = played.condition("Accepted")
    assert accepted is not None
    assert accepted.message.count("spec.training.") == 3
    assert "and 1 more changed" in accepted.message


async def test_a_new_run_of_the_same_spec_names_its_annotation() -> None:
    played = await served()
    played.cluster.edit(
        "FineTuneJob", world.NAME, lambda raw: raw["metadata"].update(annotations={"finetune.dev/run": "2"})
    )
    await played.rest()
    assert [text for *_, text in played.cluster.events if "annotation finetune.dev/run changed" in text]


async def test_a_stage_that_is_retried_after_an_edit_names_the_edit() -> None:
    played = start({"train": [Ends(3, world.refusal(Stage.TRAIN, Reason.TRAINER_OUT_OF_MEMORY))] * 2})
    await played.rest()
    assert played.phase == Phase.FAILED
    played.apply(**{"spec.resources.requests.memory": "64Gi"})
    await played.rest()
    assert any(": spec.resources.requests.memory changed" in text for *_, text in played.cluster.events)
