"""Every flow test is a test of what GitOps tools see: all versions of all jobs that it brought about are judged afterwards."""

from collections.abc import Iterator

import pytest

from finetune_api.reasons import Stage
from flow import recorder
from support import gitops


@pytest.fixture(autouse=True)
def conformance() -> Iterator[None]:
    """Current never too early, Failed only when nothing will happen automatically, and Argo CD says the same as kstatus."""
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
            shown = f"{verdict}: {version.raw.get('status', {}).get('conditions')}"
            assert verdict.argo in gitops.SAME[verdict.kstatus], shown
            if verdict.kstatus == "Current":
                matches_what_was_requested(version, shown)
            assert not failed or verdict.kstatus == "Failed", f"a failure that disappeared without an edit: {shown}"
            waits = version.raw.get("status", {}).get("waiting") is not None  # stalled, and resumes automatically
            failed = verdict.kstatus == "Failed" and not edited and not waits


def matches_what_was_requested(version: recorder.Version, shown: str) -> None:
    """Judged by the cluster as the operator could know it, not by the status."""
    state, spec = version.raw["status"], version.raw["spec"]
    assert state["observedGeneration"] == version.raw["metadata"]["generation"], shown
    if spec["intent"]["advice"] == "Enforce" and Stage.TRAIN not in version.done:
        assert state["baseline"]["sufficient"], shown
    elif spec["deployment"]["enabled"]:
        assert state["revision"] in version.serving, f"{sorted(version.serving)} serves. {shown}"
    else:
        assert state["artifacts"]["adapter"]["uri"], shown
        assert state["evaluation"]["passed"], shown


def wired(version: recorder.Version) -> dict:
    """The version as the API server would send it."""
    return {"apiVersion": "finetune.dev/v1alpha1", "kind": "FineTuneJob", **version.raw}
