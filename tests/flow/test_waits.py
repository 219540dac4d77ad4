"""Who waits and who ends: the table of the API, row by row."""

import datetime

import pytest

from finetune_api import status
from finetune_api.reasons import WAITING, Phase, Reason, Stage
from flow import world
from flow.fakecluster import Ends, Fetches, Hangs, Unprepared, Unschedulable, Waits


def start(script: dict | None = None, model: bool = True, **changes) -> world.World:
    played = world.World(script)
    if model:
        played.add_model()
    played.apply(**changes)
    return played


CONDITION = {"preflight": "PreflightPassed", "train": "Trained", "evaluate": "Evaluated", "verify": "Deployed"}
MISSING_BUNDLE = 'MountVolume.SetUp failed for volume "ca" : configmap "company-ca" not found'
WHAT_ONLY_EVENTS_SAY = [
    (Unprepared(MISSING_BUNDLE), Reason.CREDENTIALS_MISSING, "(storage.caBundle, or the chart's caBundle)"),
    (
        Unprepared('MountVolume.SetUp failed for volume "ca" : configmap references non-existent config key: ca.crt'),
        Reason.CREDENTIALS_MISSING,
        "ca.crt",
    ),
    (
        Unprepared('MountVolume.SetUp failed for volume "x" : mount.nfs: timed out'),
        Reason.VOLUME_UNAVAILABLE,
        "mount.nfs",
    ),
    (Unprepared("Failed to create pod sandbox: no address is left"), Reason.POD_REFUSED, "no address is left"),
]
WHAT_A_POD_WAITS_FOR = [
    (Unschedulable(), Reason.UNSCHEDULABLE, "Insufficient nvidia.com/gpu"),
    (
        Unschedulable('0/3 nodes are available: persistentvolumeclaim "models" not found.'),
        Reason.VOLUME_UNAVAILABLE,
        "Create the PersistentVolumeClaim",
    ),
    (Waits("ImagePullBackOff", "Back-off pulling image"), Reason.IMAGE_PULL_FAILED, "pull secret"),
    (Waits("ErrImagePull", "manifest unknown"), Reason.IMAGE_PULL_FAILED, "manifest unknown"),
    (Waits("InvalidImageName"), Reason.IMAGE_PULL_FAILED, "InvalidImageName"),
    (
        Waits("CreateContainerConfigError", 'secret "s3-credentials" not found'),
        Reason.CREDENTIALS_MISSING,
        "create that Secret",
    ),
    (
        Waits("CreateContainerConfigError", "couldn't find key AWS_ACCESS_KEY_ID in Secret ml/s3"),
        Reason.CREDENTIALS_MISSING,
        "AWS_ACCESS_KEY_ID",
    ),
    (Waits("CreateContainerError", "no such device"), Reason.POD_REFUSED, "no such device"),
]


@pytest.mark.parametrize("stage", ["preflight", "train", "evaluate", "verify"])
@pytest.mark.parametrize("play, reason, words", WHAT_A_POD_WAITS_FOR)
async def test_a_pod_that_cannot_start_waits_and_continues_automatically(stage, play, reason, words) -> None:
    played = start({stage: [play]})
    await played.rest()
    assert reason in WAITING
    assert played.reason(CONDITION[stage]) == played.reason("Ready") == reason
    assert words in played.condition("Ready").message
    assert world.kstatus(played.job) == "InProgress"
    assert played.phase not in {Phase.FAILED, Phase.READY}
    played.let_go(stage)
    await played.rest()
    assert played.phase == Phase.READY
    assert len(played.attempts(stage)) == 1


@pytest.mark.parametrize("play, reason, words", WHAT_A_POD_WAITS_FOR)
async def test_a_server_that_cannot_start_waits_and_continues_automatically(play, reason, words) -> None:
    played = start({"server": [play]})
    await played.rest()
    assert played.reason("Deployed") == played.reason("Ready") == reason
    assert words in played.condition("Ready").message
    played.let_go("server")
    await played.rest()
    assert played.phase == Phase.READY


@pytest.mark.parametrize(("role", "kind"), [*CONDITION.items(), ("server", "Deployed")])
@pytest.mark.parametrize("play, reason, words", WHAT_ONLY_EVENTS_SAY)
async def test_a_pod_that_its_node_cannot_prepare_says_why_and_continues_automatically(
    role, kind, play, reason, words
) -> None:
    played = start({role: [play]})
    await played.settle(until=lambda: played.reason(kind) == played.reason("Ready") == reason)
    assert words in played.condition("Ready").message
    assert played.state.waiting.reason == reason
    played.let_go(role)
    await played.rest()
    assert (played.phase, played.state.waiting) == (Phase.READY, None)


async def test_events_of_a_pod_are_read_a_few_times_a_minute_and_only_while_its_node_prepares_it() -> None:
    played = start({"train": [Unprepared("")]})
    await played.settle(until=lambda: len(played.attempts("train")) == 1)
    await played.wait(60)
    asked = [verb for verb, _, _ in played.cluster.requests].count("unprepared")
    assert 2 <= asked <= 5
    assert played.reason("Trained") == Reason.WAITING, "the newest event is of the pull of an image"
    played.let_go("train")
    await played.rest()
    assert [verb for verb, _, _ in played.cluster.requests].count("unprepared") <= asked + 1


@pytest.mark.parametrize("stage", ["preflight", "train", "evaluate", "verify"])
async def test_a_quota_that_refuses_a_pod_is_reported_and_waited_for(stage: str) -> None:
    played = start()
    quota = 'pods "x" is forbidden: exceeded quota: team, requested: gpu=1, used: gpu=4, limited: gpu=4'
    refused = world.Everywhere(stage, quota)
    played.cluster.refused_pods = refused
    await played.settle(until=lambda: played.reason("Ready") == Reason.QUOTA_EXCEEDED)
    assert "ResourceQuota team refuses the pod, which requests 1 of gpu: 4 of 4" in played.condition("Ready").message
    assert world.kstatus(played.job) == "InProgress"
    refused.stage = "none"
    await played.rest()
    assert played.phase == Phase.READY


STALLING = [
    (Waits("CreateContainerConfigError", 'secret "s3" not found'), Reason.CREDENTIALS_MISSING),
    (Waits("ImagePullBackOff", "no such tag"), Reason.IMAGE_PULL_FAILED),
    (Unprepared(MISSING_BUNDLE), Reason.CREDENTIALS_MISSING),
    (
        Unschedulable("0/3 nodes are available: 3 node(s) didn't match Pod's node affinity/selector."),
        Reason.UNSCHEDULABLE,
    ),
    (Unschedulable('0/3 nodes are available: persistentvolumeclaim "models" not found.'), Reason.VOLUME_UNAVAILABLE),
]


@pytest.mark.parametrize("play, reason", STALLING)
async def test_a_job_that_waits_for_somebody_is_stalled_after_a_while_and_resumes_automatically(play, reason) -> None:
    played = start({"train": [play]})
    await played.wait(800)
    since = played.state.waiting.since
    assert (played.state.waiting.reason, world.kstatus(played.job)) == (reason, "InProgress")
    await played.wait(200)
    assert (played.is_true("Stalled"), world.kstatus(played.job)) == (True, "Failed")
    assert played.phase == Phase.QUEUED, "the revision has not failed"
    assert played.state.waiting.since == since
    assert [kind for kind, why, text in played.cluster.events if why == reason and text.startswith("Stalled")] == [
        "Warning"
    ]
    played.let_go("train")
    await played.rest()
    assert (played.phase, played.state.waiting) == (Phase.READY, None)
    assert not played.is_true("Stalled")


async def test_the_chart_sets_when_a_waiting_job_is_stalled() -> None:
    played = world.World(chart={"stalledAfterSeconds": 30})
    played.apply()
    await played.wait(25)
    assert not played.is_true("Stalled")
    await played.wait(10)
    assert (played.reason("Stalled"), played.phase) == (Reason.BASE_MODEL_NOT_FOUND, Phase.PENDING)
    played.add_model()
    await played.rest()
    assert played.phase == Phase.READY


async def test_an_unknown_gpu_type_and_a_quota_stall_a_job() -> None:
    played = world.World(chart={"stalledAfterSeconds": 30})
    played.add_model()
    played.apply(**{"spec.resources.gpuType": "abacus"})
    await played.wait(40)
    assert (played.reason("Stalled"), played.is_true("Stalled")) == (Reason.UNSCHEDULABLE, True)
    played.cluster.refused_pods = refused = world.Everywhere(
        "preflight", "exceeded quota: team, requested: pods=1, used: pods=0, limited: pods=0"
    )
    played.apply()
    await played.wait(20)
    assert (played.reason("Stalled"), played.is_true("Stalled")) == (Reason.QUOTA_EXCEEDED, False)
    await played.wait(30)
    assert played.is_true("Stalled")
    refused.stage = "none"
    await played.rest()
    assert played.phase == Phase.READY


async def test_the_status_says_since_when_a_job_waits_for_its_pod_and_nothing_when_it_runs() -> None:
    played = start({"train": [Hangs()]})
    await played.settle(until=lambda: played.reason("Trained") == Reason.WAITING)
    assert played.state.waiting.reason == Reason.WAITING
    await played.settle(until=lambda: played.reason("Trained") == Reason.RUNNING)
    assert played.state.waiting is None


async def test_the_status_says_that_a_pod_gets_its_base_model_before_the_stage_runs() -> None:
    played = start({"train": [Fetches()]})
    await played.settle(until=lambda: played.reason("Trained") == Reason.RUNNING)
    assert "gets the base model in pod" in played.condition("Trained").message
    assert played.state.waiting is None
    played.let_go("train")
    await played.rest()
    assert played.phase == Phase.READY


async def test_a_job_that_waits_for_room_on_a_node_is_not_stalled() -> None:
    played = start({"train": [Unschedulable()]})
    await played.wait(5000)
    assert (played.state.waiting.reason, played.is_true("Stalled")) == (Reason.UNSCHEDULABLE, False)


async def test_a_serving_release_stays_ready_to_clients_while_the_next_revision_is_stalled() -> None:
    played = start()
    await played.rest()
    served = played.serving()
    played.apply(**{"spec.baseModel.name": "no-such-model"})
    await played.wait(1000)
    assert played.is_true("Stalled")
    assert played.serving() == served
    assert "keeps serving" in played.condition("Stalled").message


@pytest.mark.parametrize("kind", ["Job", "Deployment"])
async def test_a_refusal_that_lasts_is_stalled_and_costs_no_status_write_in_each_try(kind: str) -> None:
    played = world.World(chart={"stalledAfterSeconds": 60})
    played.add_model()
    played.apply()
    verb = "create" if kind == "Job" else "apply"
    played.cluster.refuse = lambda asked, of, name: (
        world.cluster.Failure(403, "exceeded quota: count, requested: x=1, used: x=3, limited: x=3")
        if (asked, of) == (verb, kind)
        else None
    )
    await played.wait(50)
    assert (played.reason("Ready"), played.is_true("Stalled")) == (Reason.QUOTA_EXCEEDED, False)
    await played.wait(30)
    assert played.is_true("Stalled")
    before = len([r for r in played.cluster.requests if r[0] == "status"])
    await played.wait(120)
    assert len([r for r in played.cluster.requests if r[0] == "status"]) == before
    played.cluster.refuse = lambda *_: None
    await played.rest()
    assert played.phase == Phase.READY


async def test_a_quota_that_refuses_the_servers_pods_is_reported_and_waited_for() -> None:
    played = start()
    played.cluster.refused_pods = refused = world.Everywhere(
        "server", 'pods "x" is forbidden: exceeded quota: team, requested: gpu=1, used: gpu=4, limited: gpu=4'
    )
    await played.rest()
    assert played.reason("Deployed") == Reason.QUOTA_EXCEEDED
    refused.stage = "none"
    await played.rest()
    assert played.phase == Phase.READY


async def test_a_policy_that_refuses_the_pod_is_quoted() -> None:
    played = start()
    played.cluster.refused_pods = refused = world.Everywhere(
        "train", "admission webhook denied the request: no GPUs on Sunday"
    )
    await played.settle(until=lambda: played.reason("Ready") == Reason.POD_REFUSED)
    assert "no GPUs on Sunday" in played.condition("Ready").message
    refused.stage = "none"
    await played.rest()
    assert played.phase == Phase.READY


async def test_a_job_that_the_api_server_refuses_is_reported_and_tried_again() -> None:
    played = start()

    def refuse(verb: str, kind: str, name: str):
        if (verb, kind) == ("create", "Job") and "train" in name:
            return world.cluster.Failure(
                403,
                'jobs.batch "x" is forbidden: exceeded quota: count, requested: count/jobs.batch=1, used: count/jobs.batch=3, '
                "limited: count/jobs.batch=3",
            )
        return None

    played.cluster.refuse = refuse
    await played.settle(until=lambda: played.reason("Ready") == Reason.QUOTA_EXCEEDED)
    assert "requests 1 of count/jobs.batch: 3 of 3 are in use" in played.condition("Ready").message
    played.cluster.refuse = lambda *_: None
    await played.rest()
    assert played.phase == Phase.READY
    assert played.reason("Ready") == Reason.SERVING


@pytest.mark.parametrize("verb, kind", [("create", "Job"), ("patch", "Service"), ("create", "Deployment")])
async def test_a_right_of_the_operator_that_is_missing_is_no_fault_of_the_spec(verb: str, kind: str) -> None:
    played = start()
    sent = "create" if kind == "Job" else "apply"

    def refuse(asked: str, of: str, name: str):
        text = (
            f'{kind} "x" is forbidden: User "operator" cannot {verb} resource "x" in API group "" in the namespace "ml"'
        )
        return world.cluster.Failure(403, text) if (asked, of) == (sent, kind) else None

    played.cluster.refuse = refuse
    played.cluster.lacking = {(verb, kind)}
    await played.wait(30)
    assert {getattr(failure, "status", None) for failure in played.failures} == {403}
    assert played.reason("Ready") != Reason.POD_REFUSED
    assert not [text for *_, text in played.cluster.events if "forbidden" in text]
    played.cluster.refuse, played.cluster.lacking = lambda *_: None, set()
    await played.rest()
    assert played.phase == Phase.READY


async def test_a_refusal_by_admission_is_reported_even_with_the_message_of_a_missing_right() -> None:
    played = start()
    text = 'admission webhook "policy" denied the request: team-a cannot create resource "jobs" on Sunday'

    def refuse(verb: str, kind: str, name: str):
        return world.cluster.Failure(403, text) if (verb, kind) == ("create", "Job") else None

    played.cluster.refuse = refuse
    await played.settle(until=lambda: played.reason("Ready") == Reason.POD_REFUSED)
    assert text in played.condition("Ready").message


async def test_an_unknown_base_model_waits_until_the_catalogue_has_it() -> None:
    played = start(model=False)
    await played.rest()
    assert (played.phase, played.reason("Accepted")) == (Phase.PENDING, Reason.BASE_MODEL_NOT_FOUND)
    assert "kubectl get basemodels" in played.condition("Ready").message
    assert world.kstatus(played.job) == "InProgress"
    assert not played.cluster.names("Job")
    played.add_model()
    await played.rest()
    assert played.phase == Phase.READY


async def test_a_served_job_that_is_edited_to_an_unknown_base_model_keeps_serving() -> None:
    played = start()
    await played.rest()
    served = played.serving()
    played.apply(**{"spec.baseModel.name": "no-such-model"})
    await played.rest()
    assert played.reason("Ready") == Reason.BASE_MODEL_NOT_FOUND
    assert f"(revision {played.state.deployment.revision} " in played.condition("Ready").message
    assert played.serving() == served
    played.apply()
    await played.rest()
    assert played.phase == Phase.READY
    assert played.serving() == served


async def test_an_unknown_gpu_type_is_reported_before_anything_starts() -> None:
    played = start(**{"spec.resources.gpuType": "abacus"})
    await played.rest()
    assert (played.phase, played.reason("Accepted")) == (Phase.PENDING, Reason.UNSCHEDULABLE)
    assert "nvidia-l4" in played.condition("Accepted").message
    assert not played.cluster.names("Job")
    played.apply(**{"spec.resources.gpuType": "nvidia-l4"})
    await played.rest()
    assert played.phase == Phase.READY


async def test_an_unknown_gpu_type_becomes_known_with_new_settings() -> None:
    played = start(**{"spec.resources.gpuType": "abacus"})
    await played.rest()
    played.boot({"gpuTypes": {"abacus": {}}})
    await played.rest()
    assert played.phase == Phase.READY


@pytest.mark.parametrize("passes", [True, False])
async def test_advice_ends_the_job_only_when_preflight_says_so(passes: bool) -> None:
    found = world.FOUND.model_copy(update={"verdict": "NotRecommended", "advice": ["12 examples: collect 200."]})
    answer = (
        world.preflight(preflight=found)
        if passes
        else world.preflight(
            preflight=found, reason=Reason.TOO_FEW_EXAMPLES, message="12 examples; dataset.minimumExamples is 200"
        )
    )
    played = start({"preflight": [Ends(0, answer)]})
    await played.rest()
    assert played.state.preflight.advice == ["12 examples: collect 200."]
    if passes:
        assert played.phase == Phase.READY
        assert "12 examples" in played.condition("PreflightPassed").message
    else:
        assert (played.phase, played.reason("Failed")) == (Phase.FAILED, Reason.TOO_FEW_EXAMPLES)


async def test_a_gate_that_does_not_pass_ends_the_revision() -> None:
    played = start({"evaluate": [Ends(0, world.evaluate(passed=False))]})
    await played.rest()
    assert (played.phase, played.reason("Failed")) == (Phase.FAILED, Reason.EVALUATION_BELOW_GATE)
    assert "required at least 0.8, observed 0.9" in played.condition("Failed").message
    assert played.state.artifacts.report == "s3://acme/report.html"
    assert played.serving() is None
    assert not played.cluster.names("Deployment")


async def test_a_server_that_crashes_ends_the_revision_with_its_last_lines() -> None:
    played = start({"server": [world.fakecluster.Crashes(1, "ValueError: no such flag")]})
    await played.rest()
    assert (played.phase, played.reason("Failed")) == (Phase.FAILED, Reason.SERVER_FAILED)
    assert "no such flag" in played.condition("Failed").message
    assert not played.cluster.names("Deployment")
    assert not played.cluster.names("Service")


async def test_the_deadline_ends_whatever_waits() -> None:
    played = start({"train": [Unschedulable()]}, **{"spec.activeDeadlineSeconds": 3600})
    await played.wait(3500)
    assert played.reason("Trained") == Reason.UNSCHEDULABLE
    await played.wait(200)
    assert (played.phase, played.reason("Failed")) == (Phase.FAILED, Reason.DEADLINE_EXCEEDED)
    assert "Insufficient nvidia.com/gpu" in played.condition("Failed").message
    assert not played.pods("train")
    await played.rest()


async def test_the_deadline_says_nothing_of_a_model_that_serves() -> None:
    played = start(**{"spec.activeDeadlineSeconds": 3600})
    await played.wait(10_000)
    assert played.phase == Phase.READY


@pytest.mark.parametrize("stage", list(Stage))
async def test_a_longer_deadline_gives_the_stage_another_try(stage: Stage) -> None:
    played = start({stage: [Unschedulable()]}, **world.ASKED, **{"spec.activeDeadlineSeconds": 3600})
    await played.wait(4000)
    assert played.reason("Failed") == Reason.DEADLINE_EXCEEDED
    played.apply(**world.ASKED, **{"spec.activeDeadlineSeconds": 7200})
    await played.rest()
    assert played.phase == Phase.READY
    assert len(played.attempts(stage)) == 2
    assert played.condition("Failed") is None


@pytest.mark.parametrize("record", ["resolved", "serving"])
async def test_records_changed_by_others_are_reported_and_nothing_is_touched(record) -> None:
    played = start()
    await played.rest()
    assert played.phase == Phase.READY
    kinds = ("Job", "Deployment", "Service")
    before = {kind: set(played.cluster.names(kind)) for kind in kinds}
    played.cluster.edit("FineTuneJob", world.NAME, lambda raw: raw["status"].update({record: "not the operator's"}))
    await played.settle()
    assert played.reason("Stalled") == Reason.INVALID_SPEC
    assert "restore the status" in played.condition("Stalled").message
    assert before == {kind: set(played.cluster.names(kind)) for kind in kinds}


async def test_refusals_are_not_looked_up_before_the_job_controller_has_seen_the_job(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With thousands of Jobs the controller is late, and the question would be one more request for each."""
    played = start()
    monkeypatch.setattr(played.cluster, "_job", lambda _: None)
    await played.wait(60)
    assert len(played.attempts("preflight")) == 1
    assert "refusal" not in [verb for verb, _, _ in played.cluster.requests]
    monkeypatch.undo()
    played.cluster.refused_pods = world.Everywhere("preflight", "exceeded quota: no")
    await played.wait(60)
    assert "refusal" in [verb for verb, _, _ in played.cluster.requests]


def another(played: world.World, **changes) -> None:
    played.cluster.now += datetime.timedelta(seconds=5)
    played.apply("the-other", **changes)


def accepted(played: world.World, name: str):
    state = status.Status.model_validate(played.cluster.get("FineTuneJob", name).get("status", {}))
    return next(c for c in state.conditions if c.type == "Accepted")


async def test_a_second_job_of_one_served_name_waits_before_anything_runs() -> None:
    played = start()
    another(played, **{"spec.deployment.servedModelName": world.NAME})
    await played.rest()
    assert played.phase == Phase.READY
    found = accepted(played, "the-other")
    assert (found.status, found.reason) == ("False", Reason.SERVED_NAME_TAKEN)
    assert world.NAME in found.message
    assert not [name for name in played.cluster.names("Job") if name.startswith("the-other")]
    played.cluster.remove("FineTuneJob", world.NAME)
    await played.rest()
    assert accepted(played, "the-other").status == "True"


async def test_a_job_with_another_served_name_or_without_a_server_does_not_wait() -> None:
    played = start()
    another(played, **{"spec.deployment.servedModelName": world.NAME, "spec.deployment.enabled": False})
    await played.rest()
    assert accepted(played, "the-other").status == "True"
    another(played)
    await played.rest()
    assert accepted(played, "the-other").status == "True"


async def test_a_complete_job_that_gets_a_server_of_a_name_that_is_taken_is_complete_no_more() -> None:
    played = start(**{"spec.deployment.enabled": False})
    another(played, **{"spec.deployment.servedModelName": world.NAME})
    await played.rest()
    assert (played.phase, accepted(played, "the-other").status) == (Phase.COMPLETE, "True")
    played.apply()
    await played.rest()
    assert played.reason("Ready") == Reason.SERVED_NAME_TAKEN
    assert world.kstatus(played.job) == "InProgress"


async def test_an_edit_to_a_served_name_that_is_taken_waits_and_the_former_release_serves() -> None:
    played = start()
    another(played)
    await played.rest()
    before = played.serving()
    played.apply(**{"spec.deployment.servedModelName": "the-other"})
    await played.rest()
    assert played.reason("Accepted") == played.reason("Ready") == Reason.SERVED_NAME_TAKEN
    assert played.serving() == before
    assert accepted(played, "the-other").status == "True", "who was first keeps its name"
    played.apply()
    await played.rest()
    assert (played.phase, played.serving()) == (Phase.READY, before)
