"""The operator's benchmark itself: what KWOK is told, how the audit log is read, what is written. No timing is asserted."""

import asyncio
import dataclasses
import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from tests.bench.operator import (
    __main__,
    audit,
    bare,
    drive,
    jobset,
    measure,
    ours,
    peer,
    recording,
    report,
    revision,
    scenarios,
    sides,
    stages,
)

from finetune_api import outcome
from finetune_api.reasons import Stage
from finetune_operator.observe import label
from support import manifests, ports
from toolbox import cache, golang, say

USER = next(iter(ours.SIDE.users))
AT = "2026-11-23T00:00:0{}.250000Z"


def line(**changes: Any) -> bytes:
    event = {
        "stage": "ResponseComplete",
        "verb": "patch",
        "user": {"username": USER},
        "userAgent": "client/1",
        "objectRef": {"resource": "jobs", "name": "b-00001-0a1b2c3d-preflight-1"},
        "responseStatus": {"code": 201},
        "requestReceivedTimestamp": AT.format(0),
        "stageTimestamp": AT.format(1),
    }
    return json.dumps(manifests.changed(event, **changes)).encode()


def results() -> report.Results:
    found = [
        report.Found("burst-1000", 1000, scenarios.RATE.name, scenarios.OURS, 60.0),
        report.Found("burst-1000", 1000, scenarios.RATE.name, scenarios.FLOOR, 80.0),
        report.Found("burst-1000", 1000, scenarios.RATE.name, scenarios.FORMER, 30.0),
        report.Found("burst-1000", 1000, scenarios.LIFE_WRITES.name, scenarios.OURS, 7.0),
    ]
    late = {f"burst-1000, {scenarios.OURS}": ["one was late"]}
    minutes = {f"burst-1000, {scenarios.OURS}": 1.0}
    return report.Results({"cores": "2 cores"}, {"kopf": "1"}, "0a1b2c3 of 2026-11-23", minutes, found, late)


def test_a_request_is_identified_by_requester_content_and_time() -> None:
    one = audit.request(line(**{"objectRef.subresource": "status"}))
    assert one is not None
    assert (one.user, one.verb, one.what, one.job, one.code) == (USER, "patch", "jobs/status", "b-00001", 201)
    assert one.answered - one.received == 1
    assert one.writes


def test_what_is_not_answered_or_about_no_resource_is_left_out() -> None:
    assert audit.request(line(stage="ResponseStarted")) is None
    assert audit.request(line(objectRef=manifests.REMOVED)) is None


def test_the_audit_log_is_read_over_its_rotations_and_in_the_middle_of_a_line(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "audit.log"
    follower = audit.Follower(path)
    assert follower.read() == []
    whole = line() + b"\n"
    path.write_bytes(whole + whole[:20])
    assert len(follower.read()) == 1
    with path.open("ab") as log:
        log.write(whole[20:] + whole)
    path.rename(tmp_path / "audit-1.log")
    path.write_bytes(whole)
    assert len(follower.read()) == 3
    assert follower.read() == []


def test_a_job_waits_from_its_creation_to_its_first_child_and_later_ones_do_not_count() -> None:
    ledger = audit.Ledger(ours.SIDE)
    create = {
        "verb": "create",
        "user.username": "admin",
        "objectRef.resource": "finetunejobs",
        "objectRef.name": "b-00001",
    }
    lines = [
        line(**create),
        line(stageTimestamp=AT.format(2)),
        line(stageTimestamp=AT.format(5)),
        line(**{"objectRef.resource": "finetunejobs", "objectRef.subresource": "status", "responseStatus.code": 409}),
        line(**{"objectRef.resource": "leases"}),
    ]
    for one in map(audit.request, lines):
        assert one is not None
        ledger.add(one)
    assert ledger.waits() == [2.0]
    assert ledger.writes("finetunejobs/status") == 1
    assert ledger.requests == 3, "the Lease is no job's"
    assert dict(ledger.refused) == {("patch", "finetunejobs/status", 409): 1}


def test_the_news_of_a_pods_end_are_those_of_its_own_stage() -> None:
    seen = drive.Seen()
    conditions = [{"type": "PreflightPassed", "status": "True"}, {"type": "Trained", "status": "Unknown"}]
    seen.take({"metadata": {"name": "b-00001"}, "status": {"phase": "Complete", "conditions": conditions}}, "Complete")
    at = seen.true["b-00001", "PreflightPassed"]
    ends = {"b-00001-0a1b2c3d-preflight-1": at - 2, "b-00001-0a1b2c3d-train-1": at, "b-00002-0a1b2c3d-train-1": at}
    assert seen.after(ends) == [2.0]
    assert set(seen.finished) == {"b-00001"}


def test_kwok_plays_each_stage_of_ours_and_says_what_the_operator_reads() -> None:
    stages_by_name = {
        document["spec"]["selector"].get("matchLabels", {}).get(label.STAGE): document["spec"]["next"]["statusTemplate"]
        for document in stages.configuration()
        if document["kind"] == "Stage" and "statusTemplate" in document["spec"]["next"]
    }
    for stage, message in stages.answers().items():
        assert outcome.Outcome.model_validate_json(message).stage == stage
        assert stages.quoted(message) in stages_by_name[stage.value]
    assert f'index $root.metadata.labels "{label.REVISION}"' in stages_by_name[Stage.TRAIN.value]
    assert stages.REVISION not in "".join(stages_by_name.values())


def test_percentiles_are_measured_values() -> None:
    assert measure.percentile([3, 1, 2], 50) == 2
    assert measure.percentile(range(1, 101), 99) == 100


def test_goals_and_figures_are_of_scenarios_that_run() -> None:
    assert set(sides.SIDES) == set(scenarios.SIDES)
    for goal in scenarios.GOALS:
        assert {scenarios.OURS, goal.to or scenarios.OURS} <= set(scenarios.BY_NAME[goal.scenario].sides), goal


def test_a_steady_scenario_runs_at_its_part_of_the_floors_rate() -> None:
    steady = next(scenario for scenario in scenarios.ALL if scenario.part == 0.7).at(results().floor())
    assert steady.rate == pytest.approx(56)
    assert steady.jobs == 56 * scenarios.STEADY
    nothing = report.Results({}, {}, "")
    with pytest.raises(say.Problem, match="burst-1000 of the floor"):
        nothing.floor()


def test_rows_compare_with_each_side_that_has_the_figure() -> None:
    rate, writes = report.rows(results())
    assert (rate.ours, rate.others[scenarios.FLOOR]) == (60, report.Beside(80, 0.75))
    assert rate.others[scenarios.FORMER] == report.Beside(30, 2)
    assert (writes.ours, writes.others) == (7, {})


def test_the_page_says_which_goals_are_missed_and_what_went_wrong() -> None:
    page = report.page(results())
    assert f"| burst-1000 | {scenarios.RATE.name} | at least 0.85 times that of floor | **no**: 0.75 |" in page
    assert f"| burst-1000 | {scenarios.RATE.name} | at least 1.7 times that of former | yes: 2.00 |" in page
    assert "at most 0.5 s | not measured |" in page
    assert "0a1b2c3 of 2026-11-23" in page
    assert f"- burst-1000, {scenarios.OURS}: one was late" in page


def test_a_part_that_is_measured_again_replaces_its_earlier_measurement() -> None:
    whole = results()
    first = report.Found("burst-100", 100, scenarios.RATE.name, scenarios.OURS, 50.0)
    whole.put("burst-100", scenarios.OURS, [first], [], 1.0)
    fresh = report.Found("burst-1000", 1000, scenarios.RATE.name, scenarios.OURS, 90.0)
    whole.put("burst-1000", scenarios.OURS, [fresh], [], 2.0)
    assert [(row.scenario, row.ours) for row in report.rows(whole)] == [("burst-1000", 90), ("burst-100", 50)]
    assert whole.floor() == 80
    assert sorted(whole.minutes.values()) == [1.0, 2.0]
    assert "one was late" not in report.page(whole)


def test_page_and_rows_are_checked_against_what_was_measured(tmp_path: pathlib.Path) -> None:
    assert __main__.again(tmp_path, check=True) == 0, "nothing was measured yet"
    report.write(results(), tmp_path)
    assert report.read(tmp_path) == results()
    assert __main__.again(tmp_path, check=True) == 0
    for name in (report.PAGE, report.DATA):
        text = (tmp_path / name).read_text()
        (tmp_path / name).write_text(text.replace("60", "61"))
        assert __main__.again(tmp_path, check=True) == 1
        assert __main__.again(tmp_path, check=False) == 0
        assert (tmp_path / name).read_text() == text


def test_peers_are_locked_in_versions_that_fit() -> None:
    for module, tool in ((peer.MODULE, peer.TOOL), (peer.JOBSET, peer.TOOL), (jobset.MODULE, jobset.TOOL)):
        assert f"{module} v" in (golang.MODULE / tool / "go.mod").read_text()
    assert peer.version().startswith("v2.")
    assert f"{peer.JOBSET} {jobset.version()}" in (golang.MODULE / peer.TOOL / "go.mod").read_text()


def test_what_was_recorded_of_one_job_is_written_for_another() -> None:
    path = "/apis/finetune.dev/v1alpha1/namespaces/bench/finetunejobs/f-00000/status?fieldManager=finetune-operator"
    body = {"metadata": {"resourceVersion": "7"}, "status": {"jobName": "f-00000-train-1"}}
    job = {"metadata": {"name": "f-00000-train-1", "ownerReferences": [{"uid": "one"}]}}
    writes = [
        recording.Write("PATCH", path, "application/merge-patch+json", json.dumps(body)),
        recording.Write("POST", "/apis/batch/v1/namespaces/bench/jobs", "application/json", json.dumps(job)),
    ]
    asked: list[tuple[str, str, Any, Any, str]] = []

    class Server:
        async def request(self, method: str, path: str, query: Any, body: Any, content: str) -> Any:
            asked.append((method, path, query, body, content))
            return {"metadata": {"resourceVersion": "9"}}

    templates = [dataclasses.asdict(one) for one in recording.templates(writes, "f-00000", "one")]
    known = {"metadata": {"name": "b-00001", "uid": "two", "resourceVersion": "8"}}
    asyncio.run(bare.write_all(Server(), templates, known))  # type: ignore[arg-type]
    (method, where, query, status, content), (_, _, _, made, _) = asked
    assert (method, content, query) == ("PATCH", "application/merge-patch+json", {"fieldManager": "finetune-operator"})
    assert where.endswith("/finetunejobs/b-00001/status")
    assert status == {"metadata": {"resourceVersion": "8"}, "status": {"jobName": "b-00001-train-1"}}
    assert made == {"metadata": {"name": "b-00001-train-1", "ownerReferences": [{"uid": "two"}]}}


def test_the_recorder_passes_requests_on_and_keeps_those_that_write(tmp_path: pathlib.Path) -> None:
    received: list[tuple[str, str, str, bytes]] = []

    async def answer(request: web.Request) -> web.Response:
        received.append(
            (request.method, request.raw_path, request.headers.get("Content-Type", ""), await request.read())
        )
        return web.json_response({"metadata": {"name": "f-00000"}}, status=409 if "taken" in request.path else 200)

    async def scenario() -> list[recording.Write]:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", answer)
        runner = web.AppRunner(app)
        await runner.setup()
        server = web.TCPSite(runner, "127.0.0.1", ports.free())
        await server.start()
        given, through = tmp_path / "given", tmp_path / "through"
        clusters = [{"name": "c", "cluster": {"server": server.name}}]
        given.write_text(json.dumps({"clusters": clusters, "users": [], "contexts": []}))
        recorder = recording.Recorder(given)
        async with recorder.open(through), aiohttp.ClientSession() as session:
            address = json.loads(through.read_text())["clusters"][0]["cluster"]["server"]
            merge = {"Content-Type": "application/merge-patch+json"}
            for method, path, body in (
                ("GET", "/jobs?labelSelector=a%3Db", None),
                ("PATCH", "/jobs/f-00000/status?x=1", b"{}"),
                ("PUT", "/leases/mine", b"{}"),
                ("POST", "/taken", b"{}"),
            ):
                async with session.request(method, address + path, data=body, headers=merge if body else {}) as found:
                    assert (await found.json())["metadata"]["name"] == "f-00000"
        await runner.cleanup()
        return recorder.writes

    writes = asyncio.run(scenario())
    assert writes == [recording.Write("PATCH", "/jobs/f-00000/status?x=1", "application/merge-patch+json", "{}")]
    assert [(method, path) for method, path, _, _ in received][:2] == [
        ("GET", "/jobs?labelSelector=a%3Db"), ("PATCH", "/jobs/f-00000/status?x=1"),
    ]  # fmt: skip
    assert received[0][2:] == ("", b""), "an API server refuses a type that a GET has no use for"


def test_a_revision_has_its_own_code_chart_and_crds() -> None:
    with revision.at("HEAD") as code:
        assert code.root != cache.REPOSITORY
        assert any("finetunejobs" in file.name for file in code.crds.iterdir())
        assert (code.chart / "Chart.yaml").exists()
        assert any(document["kind"] == "Stage" for document in code.played)
        shown = [sys.executable, "-c", "import finetune_operator; print(finetune_operator.__file__)"]
        found = subprocess.run(
            shown, env=os.environ | code.environment, capture_output=True, text=True, check=True
        ).stdout
        assert found.startswith(str(code.root))
    assert not code.root.exists()
    with pytest.raises(say.Problem, match="is no revision"):
        revision.commit("nothing-of-this-name")
