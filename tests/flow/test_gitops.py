"""What GitOps tools see in the life of a job. That every other life conforms is checked after each flow test (conftest)."""

import copy

import pytest
import yaml

from finetune_api.reasons import Reason, Stage
from flow import recorder, world
from flow.conftest import matches_what_was_requested, wired
from flow.fakecluster import Ends, Hangs
from support import gitops


def start(script: dict | None = None, **changes) -> world.World:
    played = world.World(script)
    played.add_model()
    played.apply(**changes)
    return played


def seen(played: world.World) -> tuple[str, str]:
    (verdict,) = gitops.judge([{"apiVersion": "finetune.dev/v1alpha1", "kind": "FineTuneJob", **played.job}])
    return verdict.kstatus, verdict.argo


async def test_a_job_is_in_progress_from_its_first_moment_until_its_model_serves() -> None:
    played = start()
    assert seen(played) == ("InProgress", "Progressing")
    await played.rest()
    (life,) = recorder.take()
    verdicts = [verdict.kstatus for verdict in gitops.judge([wired(version) for version in life])]
    first = verdicts.index("Current")
    assert set(verdicts[:first]) == {"InProgress"}
    assert set(verdicts[first:]) == {"Current"}
    assert first > 5


async def test_without_the_status_that_the_crd_gives_a_new_job_it_would_be_current_at_once() -> None:
    played = start()
    bare = copy.deepcopy(played.job)
    del bare["status"]
    (verdict,) = gitops.judge([{"apiVersion": "finetune.dev/v1alpha1", "kind": "FineTuneJob", **bare}])
    assert verdict.kstatus == "Current"


async def test_a_job_that_waits_for_the_world_is_in_progress() -> None:
    played = world.World()
    played.apply()
    await played.rest()
    assert played.reason("Ready") == Reason.BASE_MODEL_NOT_FOUND
    assert seen(played) == ("InProgress", "Progressing")


async def test_a_failure_is_failed_and_an_edit_is_progress_again() -> None:
    played = start({"train": [Ends(4, "nan")]})
    await played.rest()
    assert seen(played) == ("Failed", "Degraded")
    played.apply(**{"spec.training.learningRate": 1e-5})
    assert seen(played) == ("InProgress", "Progressing")
    await played.rest()
    assert seen(played) == ("Current", "Healthy")


async def test_a_revision_that_fails_is_failed_although_the_one_before_serves() -> None:
    played = start({"evaluate": [Ends(0, world.evaluate()), Ends(0, world.evaluate(passed=False))]})
    await played.rest()
    assert seen(played) == ("Current", "Healthy")
    played.apply(**{"spec.training.seed": 7})
    await played.rest()
    assert seen(played) == ("Failed", "Degraded")


async def test_a_suspended_job_is_suspended_to_argo_and_not_finished_to_flux() -> None:
    played = start({"train": [Hangs()]})
    await played.settle(until=played.runs(Stage.TRAIN))
    played.apply(**{"spec.suspend": True})
    await played.rest()
    assert seen(played) == ("InProgress", "Suspended")
    played.apply()
    played.let_go("train")
    await played.rest()
    assert seen(played) == ("Current", "Healthy")


async def test_a_server_that_is_not_ready_is_progress_and_not_a_failure() -> None:
    played = start()
    await played.rest()
    played.recast("server", Hangs())
    await played.settle()
    assert seen(played) == ("InProgress", "Progressing")
    played.let_go("server")
    await played.rest()
    assert seen(played) == ("Current", "Healthy")


async def test_a_status_that_says_ready_too_early_is_found_out() -> None:
    played = start({"train": [Hangs()]})
    await played.settle(until=played.runs(Stage.TRAIN))
    versions = recorder.take()[0]
    with pytest.raises(AssertionError, match="serves"):
        matches_what_was_requested(versions[-1], "")


def test_argo_gets_the_script_that_is_tested() -> None:
    config = yaml.safe_load((gitops.EXAMPLES / "argocd-cm.yaml").read_text())
    assert set(config["data"].values()) == {(gitops.EXAMPLES / "health.lua").read_text()}


def test_an_incomplete_health_script_is_detected(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "health.lua").write_text('return {status = "Healthy", message = obj.kind}')
    monkeypatch.setattr(gitops, "EXAMPLES", tmp_path)
    (verdict,) = gitops.judge(
        [
            {
                "apiVersion": "v1",
                "kind": "X",
                "metadata": {"name": "x", "generation": 2},
                "status": {"observedGeneration": 1},
            }
        ]
    )
    assert verdict.argo not in gitops.SAME[verdict.kstatus]


async def test_a_pod_known_to_be_lost_does_not_count_as_ready_although_its_deployment_still_counts_it() -> None:
    played = start()
    await played.rest()
    (server,) = played.pods("server")
    played.cluster.edit("Pod", server["metadata"]["name"], lambda raw: raw.update(status={"phase": "Failed"}))
    played.deliver()
    (deployment,) = played.cluster.of("Deployment")
    assert deployment["status"]["readyReplicas"] == 1
    await played.reconcile(played.job["metadata"]["uid"])
    assert played.condition("Ready").status == "False"
    await played.rest()
    assert played.condition("Ready").status == "True"
