"""Observability of a complete job: a real Prometheus with the chart's scrape rules, and data in every panel of every dashboard.

Pods, operator, trainer and vLLM are the real ones. Prometheus runs on this machine.
"""

import contextlib
import json
import math
import time
import urllib.request
from collections.abc import Iterator

import pytest

from demo import install
from finetune_api import metrics
from support import boards, prometheus
from support import site as sites
from support.site import NAMESPACE, Site

NAME, BROKEN = "observed", "observed-broken"


def spec(site: Site, data: str, held_out: str) -> dict:
    """Each stage lasts long enough to be found and read a few times."""
    gpu = {"gpus": 1, "gpuType": sites.PRICED}
    return site.spec(
        data,
        dataset={"train": [data], "test": {"uris": [held_out]}, "minimumExamples": 20},
        training={
            "maxSteps": 500,
            "batchSize": 8,
            "learningRate": 0.01,
            "lora": {"rank": 8},
            "checkpoints": {"everyMinutes": 0.03},
            "earlyStopping": {"patience": 100},
        },
        resources={**gpu, "requests": {"cpu": "250m", "memory": "2Gi"}},
        evaluation={
            "engine": "InProcess",  # the node's GPUs exist for the scheduler alone
            "baselines": ["Base"],
            "maximumExamples": 400,
            "generation": {"maxNewTokens": 64},
            "gates": [{"metric": "Loss", "over": "Base", "improvement": 0.01}],
        },
        deployment={
            "resources": {**gpu, "requests": {"cpu": "250m", "memory": "3Gi"}},
            "extraArgs": ["--max-model-len=256"],
        },
    )


def ask(url: str, number: int) -> None:
    body = {"model": NAME, "messages": [{"role": "user", "content": f"Which colour, {number}?"}], "max_tokens": 8}
    request = urllib.request.Request(
        f"{url}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        json.load(answer)


@pytest.fixture(scope="module")
def observed(
    site: Site, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[prometheus.Prometheus, float, sites.Job]]:
    """A Prometheus that watched a job from its beginning until it answered requests, and another one fail."""
    data = site.upload_rows("observed/train.jsonl", sites.chats(60))
    held_out = site.upload_rows("observed/test.jsonl", sites.chats(400, "switch"))
    with contextlib.ExitStack() as stack:
        discovery = stack.enter_context(prometheus.discovering(lambda selector: site.items("/api/v1/pods", selector)))
        proxy = None if site.local else stack.enter_context(site.kube.proxy())
        config = prometheus.of_cluster(prometheus.chart(install.CHART), discovery, proxy=proxy, interval="1s")
        server = stack.enter_context(prometheus.running(tmp_path_factory.mktemp("prometheus"), config))
        begun = time.time()
        site.apply(BROKEN, site.spec("s3://no-such-bucket-here/train.jsonl"))
        site.apply(NAME, spec(site, data, held_out))
        served = site.until_condition(NAME, "Ready", seconds=600)
        url = stack.enter_context(site.kube.forward(f"service/{NAME}", 8000, NAMESPACE))
        for number in range(20):
            ask(url, number)
            time.sleep(1)
        site.until_condition(BROKEN, "Failed", seconds=120)
        time.sleep(6)
        yield server, begun, served


# the dashboard of pools: tests/trainer/gateway/test_dashboard.py
@pytest.mark.parametrize("name", sorted({*boards.names()} - {"pools"}))
def test_every_query_of_every_panel_returns_data(
    observed: tuple[prometheus.Prometheus, float, sites.Job], name: str
) -> None:
    server, begun, _ = observed
    values = {"namespace": NAMESPACE, "finetunejob": NAME, "revision": ".*"}
    for query in (*boards.queries(name), *boards.choices(name)):
        found = server.range(query.filled(values), begun, time.time(), 2)
        finite = [value for series in found for _, value in series["values"] if math.isfinite(float(value))]
        assert finite, f"no data: {query}"


def test_operator_trainer_and_server_carry_the_same_labels(
    observed: tuple[prometheus.Prometheus, float, sites.Job],
) -> None:
    server, begun, served = observed
    job = {"namespace": NAMESPACE, "finetunejob": NAME, "revision": served["status"]["revision"]}
    for name, stage in (
        ("finetune_job_loss", "train"),
        ("finetune_trainer_loss", "train"),
        ("finetune_trainer_progress_ratio", "evaluate"),
        ("vllm:generation_tokens_total", "serve"),
        ("finetune_job_ready_replicas", "serve"),
    ):
        found = server.range(f'{name}{{finetunejob="{NAME}",stage="{stage}"}}', begun, time.time(), 2)
        assert found, (name, server.targets())
        for series in found:
            assert {label: series["metric"].get(label) for label in metrics.JOB} == {**job, "stage": stage}, name


def test_promtool_accepts_every_metrics_endpoint(site: Site, observed: object) -> None:
    for pod in site.kube.items("pods", f"app.kubernetes.io/name={install.RELEASE}", install.SYSTEM):
        with site.kube.forward(f"pod/{pod['metadata']['name']}", 8080, install.SYSTEM) as url:
            text = urllib.request.urlopen(f"{url}/metrics", timeout=10).read().decode()
        assert prometheus.problems(text) == ""


def test_a_jobs_series_end_with_the_job(site: Site, observed: tuple[prometheus.Prometheus, float, sites.Job]) -> None:
    """The last test: it deletes what the others look at."""
    server, _, _ = observed
    assert server.now(f'vllm:num_requests_running{{finetunejob="{NAME}"}}')
    for name in (NAME, BROKEN):
        site.delete(name)
    end = time.monotonic() + 150 + sites.PATIENCE
    while server.now(f'{{finetunejob=~"{NAME}|{BROKEN}"}}'):
        assert time.monotonic() < end, server.now(f'count by (__name__) ({{finetunejob=~"{NAME}|{BROKEN}"}})')
        time.sleep(1)
