"""Every flow test is a test of what GitOps tools see: all versions of all jobs that it brought about are judged afterwards."""

from collections.abc import Iterator

import pytest

from finetune_api.reasons import Stage
from flow import recorder
from support import gitops


@pytest.fixture(autouse=True)
def conformance() -> Iterator[None]:
    """Current never too early, Failed only when nothing will come by itself, and Argo CD says the same as kstatus."""
    recorder.take()
    yield
    lives = recorder.take()
    verdicts = iter(gitops.judge([wired(version) for life in lives for version in life]))
    for life in lives:
        failed, before = False, None
        for version in life:
            verdict = next(verdicts)
            edited = version.key != before  # the author's own write, with the status of what was before
            if edited:
                failed, before = False, version.key
            said = f"{verdict}: {version.raw.get('status', {}).get('conditions')}"
            assert verdict.argo in gitops.SAME[verdict.kstatus], said
            if verdict.kstatus == "Current":
                is_what_was_asked_for(version, said)
            assert not failed or verdict.kstatus == "Failed", f"a failure that went by itself: {said}"
            failed = verdict.kstatus == "Failed" and not edited


def is_what_was_asked_for(version: recorder.Version, said: str) -> None:
    """Judged by the cluster, not by the status."""
    state, spec = version.raw["status"], version.raw["spec"]
    assert state["observedGeneration"] == version.raw["metadata"]["generation"], said
    if spec["intent"]["advice"] == "Enforce" and Stage.TRAIN not in version.done:
        assert state["baseline"]["sufficient"], said
    elif spec["deployment"]["enabled"]:
        assert version.serving == state["revision"], f"{version.serving} serves. {said}"
    else:
        assert state["artifacts"]["adapter"]["uri"], said
        assert state["evaluation"]["passed"], said


def wired(version: recorder.Version) -> dict:
    """The version as the API server would send it."""
    return {"apiVersion": "finetune.dev/v1alpha1", "kind": "FineTuneJob", **version.raw}
