"""The alerts, run by promtool: each fires when it should, with labels that name what to look at, and is silent otherwise."""

import dataclasses
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.chart.conftest import CHART, REPOSITORY, Render
from tests.chart.test_monitoring import FOREIGN, KNOWN, SUFFIXES, metrics_in

from finetune_api.reasons import Phase, Reason
from support import prometheus

FILE = CHART / "monitoring" / "alerts.yaml"
RUNBOOKS = REPOSITORY / "docs" / "runbooks"
GROUPS = yaml.safe_load(FILE.read_text())["groups"]
RULES = {rule["alert"]: rule for group in GROUPS for rule in group["rules"]}
JOB = 'namespace="ml",finetunejob="support-tone",revision="0123abcd"'
NAMED = {"namespace": "ml", "finetunejob": "support-tone"}
REVISED = NAMED | {"revision": "0123abcd"}


@dataclasses.dataclass(frozen=True)
class Case:
    """Series, and the labels of the alert that fires at a time; `fires` None: none does."""

    sentence: str
    alert: str
    series: dict[str, str]
    at: str
    fires: dict[str, str] | None = None
    value: str = ""
    """Of the alert's expression, where its summary shows it."""


def status(phase: Phase, reason: Reason = Reason.RUNNING, stage: str = "train", job: str = JOB) -> str:
    return f'finetune_job_status{{{job},stage="{stage}",phase="{phase}",reason="{reason}"}}'


def ended(phase: Phase, reason: Reason, count: int, minutes: int, first: int = 0) -> dict[str, str]:
    """Jobs that ended at a minute of the test."""
    found = {}
    for number in range(first, first + count):
        job = f'namespace="ml",finetunejob="job-{number}",revision="r"'
        found[status(phase, reason, job=job)] = "1x200"
        found[f"finetune_job_completion_timestamp_seconds{{{job}}}"] = f"{60 * minutes}x200"
    return found


CASES = [
    Case(
        "a job that waits for quota in a queue",
        "FineTuneQueueWait",
        {status(Phase.QUEUED, Reason.QUEUED): "1x60 0x60", status(Phase.QUEUED, Reason.EVICTED): "0x60 1x60"},
        "100m",
    ),
    Case(
        "a queue that does not exist",
        "FineTuneQueueWait",
        {status(Phase.QUEUED, Reason.QUEUE_REFUSED): "1x60"},
        "40m",
        NAMED | {"reason": "QueueRefused"},
    ),
    Case(
        "two replicas, one of which leads",
        "FineTuneOperatorNotReconciling",
        {'finetune_leader{pod="a"}': "1x20", 'finetune_leader{pod="b"}': "0x20"},
        "15m",
    ),
    Case(
        "a new leader within a minute",
        "FineTuneOperatorNotReconciling",
        {'finetune_leader{pod="a"}': "1x5 0x20", 'finetune_leader{pod="b"}': "0x6 1x20"},
        "15m",
    ),
    Case(
        "two replicas, none of which leads",
        "FineTuneOperatorNotReconciling",
        {'finetune_leader{pod="a"}': "1x5 0x20", 'finetune_leader{pod="b"}': "0x30"},
        "12m",
        {},
    ),
    Case(
        "no operator at all",
        "FineTuneOperatorNotReconciling",
        {},
        "12m",
        {},
    ),
    Case(
        "a handful of errors when the API server restarted",
        "FineTuneReconcileErrors",
        {'finetune_reconcile_errors_total{kind="unreachable"}': "0x10 20x50"},
        "45m",
    ),
    Case(
        "errors for half an hour and more",
        "FineTuneReconcileErrors",
        {'finetune_reconcile_errors_total{kind="refused"}': "0+1x60"},
        "45m",
        {"kind": "refused"},
    ),
    Case(
        "an evaluation of an hour",
        "FineTuneJobStuck",
        {status(Phase.EVALUATING): "1x60", status(Phase.DEPLOYING): "_x60 1x60"},
        "119m",
    ),
    Case(
        "a deployment of three hours, whatever its reasons are",
        "FineTuneJobStuck",
        {
            status(Phase.DEPLOYING, Reason.STARTING, "verify"): "1x60 _x120",
            status(Phase.DEPLOYING, Reason.RUNNING, "verify"): "_x60 1x120",
        },
        "125m",
        REVISED | {"phase": "Deploying"},
    ),
    *(
        Case(
            f"a verified release that waits for a person or for requests ({reason})",
            "FineTuneJobStuck",
            {status(Phase.DEPLOYING, reason, "verify"): "1x300"},
            "250m",
        )
        for reason in (Reason.AWAITING_APPROVAL, Reason.ROLLOUT_HELD, Reason.ROLLING_OUT)
    ),
    Case(
        "a training of ten hours that makes steps",
        "FineTuneJobStuck",
        {status(Phase.TRAINING): "1x600", f'finetune_job_steps{{{JOB},stage="train"}}': "0+1x600"},
        "590m",
    ),
    Case(
        "a training that stopped making steps",
        "FineTuneJobStuck",
        {status(Phase.TRAINING): "1x300", f'finetune_job_steps{{{JOB},stage="train"}}': "0+1x60 60x240"},
        "220m",
        REVISED | {"phase": "Training"},
    ),
    Case(
        "a job that waits for twenty minutes",
        "FineTuneQueueWait",
        {status(Phase.QUEUED, Reason.UNSCHEDULABLE): "1x20 _x60"},
        "25m",
    ),
    Case(
        "a job that no node takes",
        "FineTuneQueueWait",
        {status(Phase.QUEUED, Reason.UNSCHEDULABLE): "1x60"},
        "35m",
        NAMED | {"reason": "Unschedulable"},
    ),
    Case(
        "a preflight whose Secret is missing",
        "FineTuneQueueWait",
        {status(Phase.PREFLIGHT, Reason.CREDENTIALS_MISSING, "preflight"): "1x60"},
        "35m",
        NAMED | {"reason": "CredentialsMissing"},
    ),
    Case(
        "two failed jobs",
        "FineTuneJobsFailing",
        ended(Phase.FAILED, Reason.S3_ACCESS_DENIED, 2, 10),
        "20m",
    ),
    Case(
        "three failed jobs of many good ones",
        "FineTuneJobsFailing",
        ended(Phase.FAILED, Reason.TRAINER_ERROR, 3, 10) | ended(Phase.READY, Reason.SERVING, 20, 10, 3),
        "20m",
    ),
    Case(
        "four failed jobs of ten, for one reason",
        "FineTuneJobsFailing",
        ended(Phase.FAILED, Reason.S3_ACCESS_DENIED, 4, 10) | ended(Phase.READY, Reason.SERVING, 6, 10, 4),
        "20m",
        {"namespace": "ml", "reason": "S3AccessDenied"},
        value="4",
    ),
    Case(
        "failures of long ago",
        "FineTuneJobsFailing",
        ended(Phase.FAILED, Reason.S3_ACCESS_DENIED, 9, 10),
        "90m",
    ),
    Case(
        "one attempt that S3 broke",
        "FineTuneStorageErrors",
        {'finetune_retries_total{stage="train",reason="StorageUnavailable"}': "0x5 1x60"},
        "30m",
    ),
    Case(
        "repeated attempts that S3 breaks",
        "FineTuneStorageErrors",
        {
            'finetune_retries_total{stage="train",reason="StorageUnavailable"}': "0x5 1x5 2x5 3x5 4x60",
            'finetune_retries_total{stage="train",reason="TrainerError"}': "0+1x60",
        },
        "40m",
        {"stage": "train"},
    ),
    Case(
        "a training at its expected speed",
        "FineTuneTrainingSlow",
        {f'finetune_trainer_eta_seconds{{{JOB},stage="train"}}': "14400-60x200"},
        "150m",
    ),
    Case(
        "a training at a third of its expected speed",
        "FineTuneTrainingSlow",
        {f'finetune_trainer_eta_seconds{{{JOB},stage="train"}}': "14400-20x200"},
        "100m",
        REVISED | {"stage": "train"},
    ),
    Case(
        "a loss that falls, and trembles",
        "FineTuneLossDiverging",
        {f'finetune_trainer_loss{{{JOB},stage="train"}}': "2-0.01x150 0.52 0.6 0.5 0.65 0.5x60"},
        "190m",
    ),
    Case(
        "a small loss that doubles is noise",
        "FineTuneLossDiverging",
        {f'finetune_trainer_loss{{{JOB},stage="train"}}': "0.02x60 0.04x60"},
        "100m",
    ),
    Case(
        "a loss that fell and then rises",
        "FineTuneLossDiverging",
        {f'finetune_trainer_loss{{{JOB},stage="train"}}': "2-0.02x60 0.8+0.05x60"},
        "110m",
        REVISED | {"stage": "train"},
    ),
    Case(
        "a server that is away for three minutes",
        "FineTuneEndpointDown",
        {
            f'finetune_job_ready_replicas{{{JOB},stage="serve"}}': "1x5 0x3 1x30",
            f'finetune_job_replicas{{{JOB},stage="serve"}}': "1x60",
        },
        "9m",
    ),
    Case(
        "one of two servers that is away",
        "FineTuneEndpointDown",
        {
            f'finetune_job_ready_replicas{{{JOB},stage="serve"}}': "1x60",
            f'finetune_job_replicas{{{JOB},stage="serve"}}': "2x60",
        },
        "30m",
    ),
    Case(
        "a model that was scaled to nothing",
        "FineTuneEndpointDown",
        {
            f'finetune_job_ready_replicas{{{JOB},stage="serve"}}': "0x60",
            f'finetune_job_replicas{{{JOB},stage="serve"}}': "0x60",
        },
        "30m",
    ),
    Case(
        "no server for six minutes",
        "FineTuneEndpointDown",
        {
            f'finetune_job_ready_replicas{{{JOB},stage="serve"}}': "1x5 0x30",
            f'finetune_job_replicas{{{JOB},stage="serve"}}': "1x60",
        },
        "12m",
        REVISED | {"stage": "serve"},
    ),
    Case(
        "a gate that was missed",
        "FineTuneVerifyFailing",
        {status(Phase.FAILED, Reason.EVALUATION_BELOW_GATE, "evaluate"): "1x30"},
        "20m",
    ),
    Case(
        "a server without the adapter",
        "FineTuneVerifyFailing",
        {status(Phase.FAILED, Reason.ADAPTER_NOT_SERVED, "verify"): "1x30"},
        "20m",
        REVISED | {"reason": "AdapterNotServed"},
    ),
]


def filled(summary: str, labels: dict[str, str], value: str) -> str:
    """A summary with the labels and the value of an alert; KeyError where it names a label that the alert lacks."""
    return re.sub(r"{{ \$labels\.(\w+) }}", lambda found: labels[found[1]], summary).replace("{{ $value }}", value)


def document(case: Case) -> dict[str, Any]:
    """The case as a test file of promtool."""
    rule = RULES[case.alert]
    alerts = []
    if case.fires is not None:
        labels = {**rule["labels"], **case.fires}
        annotations = {**rule["annotations"], "summary": filled(rule["annotations"]["summary"], labels, case.value)}
        alerts = [{"exp_labels": labels, "exp_annotations": annotations}]
    series = [{"series": name, "values": values} for name, values in case.series.items()]
    expected = {"eval_time": case.at, "alertname": case.alert, "exp_alerts": alerts}
    return {
        "rule_files": [str(FILE)],
        "evaluation_interval": "1m",
        "tests": [{"interval": "1m", "input_series": series, "alert_rule_test": [expected]}],
    }


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.alert}: {case.sentence}")
def test_an_alert_fires_when_it_should_and_not_otherwise(case: Case, tmp_path: Path) -> None:
    file = tmp_path / "test.yaml"
    file.write_text(yaml.safe_dump(document(case)))
    done = subprocess.run([prometheus.program("promtool"), "test", "rules", file], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_finds_a_wrong_expectation(tmp_path: Path) -> None:
    wrong = dataclasses.replace(CASES[0], fires=NAMED | {"reason": "Unschedulable"})
    file = tmp_path / "test.yaml"
    file.write_text(yaml.safe_dump(document(wrong)))
    assert subprocess.run([prometheus.program("promtool"), "test", "rules", file], capture_output=True).returncode


@pytest.mark.parametrize("name", RULES)
def test_every_alert_is_seen_to_fire_and_to_be_silent(name: str) -> None:
    mine = [case for case in CASES if case.alert == name]
    assert [case for case in mine if case.fires is not None], name
    assert [case for case in mine if case.fires is None], name


@pytest.mark.parametrize("name", RULES)
def test_every_alert_has_a_page_that_says_what_to_do(name: str) -> None:
    rule = RULES[name]
    assert rule["labels"]["severity"] in {"warning", "critical"}
    page = RUNBOOKS / f"{rule['annotations']['runbook']}.md"
    text = page.read_text()
    assert text.startswith(f"# {name}\n")
    for heading in ("## What it means", "## Look", "## Do"):
        assert heading in text, page
    assert f"[{name}]({page.name})" in (RUNBOOKS / "README.md").read_text()


def test_no_page_is_left_of_an_alert_that_went() -> None:
    pages = {path.stem for path in RUNBOOKS.glob("*.md")} - {"README"}
    assert pages == {rule["annotations"]["runbook"] for rule in RULES.values()}


def test_alerts_and_pages_ask_only_for_metrics_that_exist() -> None:
    for name, rule in RULES.items():
        assert {re.sub(SUFFIXES, "", metric) for metric in metrics_in(rule["expr"])} <= KNOWN | FOREIGN, name
    for page in RUNBOOKS.glob("*.md"):
        found = set(re.findall(r"\bfinetune_\w+", page.read_text()))
        assert {re.sub(SUFFIXES, "", metric) for metric in found} <= KNOWN, page


def test_phases_and_reasons_of_alerts_are_those_of_the_api() -> None:
    text = FILE.read_text()
    for label, kind in (("phase", Phase), ("reason", Reason)):
        for words in re.findall(rf'\b{label}(?:=~?|!~|!=)"([^"]+)"', text):
            assert set(words.split("|")) <= {member.value for member in kind}, words


def test_the_rule_is_rendered_only_on_request_and_links_existing_pages(render: Render) -> None:
    assert "PrometheusRule" not in render()
    plain = render({"monitoring": {"alerts": {"enabled": True, "labels": {"release": "prometheus"}}}})
    rule = plain["PrometheusRule"]["finetune-operator"]
    assert rule["metadata"]["labels"]["release"] == "prometheus"
    assert rule["spec"]["groups"] == GROUPS
    linked = render({"monitoring": {"alerts": {"enabled": True, "runbooks": "https://docs.example/runbooks/"}}})
    rules = [one for group in linked["PrometheusRule"]["finetune-operator"]["spec"]["groups"] for one in group["rules"]]
    assert rules[0]["annotations"]["runbook_url"] == "https://docs.example/runbooks/operator-not-reconciling.md"
