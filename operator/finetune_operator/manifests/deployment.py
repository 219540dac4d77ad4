"""The server of a release: vLLM behind an init container that fetches base model and adapter and checks their hashes."""

from typing import Any

from finetune_api import run
from finetune_operator import settings
from finetune_operator.manifests import meta, modelcache, pods, vllm
from finetune_operator.observe import label, parents
from finetune_operator.observe.records import Release

SERVER, FETCH = label.SERVER, label.FETCH
DRAIN_SECONDS = 290
"""For the answers that a server is giving when it ends: vLLM itself aborts them."""
UNROUTED_SECONDS = 5
"""Until no new requests come: the pod is removed from endpoints meanwhile."""
DRAINED = f"""
import time, urllib.request
time.sleep({UNROUTED_SECONDS})
local, end = urllib.request.build_opener(urllib.request.ProxyHandler({{}})), time.monotonic() + {DRAIN_SECONDS}
def busy():
    text = local.open('http://127.0.0.1:{run.SERVER_PORT}/metrics', timeout=10).read().decode()
    counts = [line.split() for line in text.splitlines()
              if line.startswith(('vllm:num_requests_running', 'vllm:num_requests_waiting'))]
    return any(float(count[-1]) for count in counts)
while time.monotonic() < end and busy():
    time.sleep(1)
"""
"""Ends when the server answers nobody any more, or is gone. With --disable-log-stats it does not know."""


def probe(period: int, failures: int) -> dict[str, Any]:
    return {
        "httpGet": {"path": "/health", "port": run.SERVER_PORT},
        "periodSeconds": period,
        "timeoutSeconds": 5,
        "failureThreshold": failures,
    }


def build(
    parent: parents.Parent, chart: settings.Settings, release: Release, content: run.Run, replicas: int
) -> meta.Manifest:
    """`content`: the run file, if the record has none."""
    run_volume, _ = pods.run_volume()
    selector = {label.UID: parent.uid, label.RELEASE: release.name}
    labels = meta.labels(parent, chart.labels, **{label.REVISION: release.revision, label.RELEASE: release.name})
    wanted = release.deployment.resources
    layer = chart.pods_of(None, wanted.gpu_type)
    base_volumes, _ = pods.base_volume(release.base_model)
    authorities, _, _ = pods.ca_bundle(release.ca_bundle)
    fetch = vllm.fetch(
        chart,
        release.fetch_image,
        [
            "--adapter", release.adapter.uri, "--sha256", release.adapter.sha256,
            "--adapter-to", run.ADAPTER_PATH,
        ],
        release.env,
        release.base_model,
        release.storage,
        release.ca_bundle,
        # those of the server, since it runs before it, and a quota requires them for every container
        pods.amounts(wanted, layer, {}, release.disk),
    )  # fmt: skip
    server = vllm.server(
        chart,
        release.image,
        release.arguments,
        [
            *pods.environment({**vllm.OFFLINE, **release.env}),
            *pods.secret_value("VLLM_API_KEY", release.deployment.api_key_secret, "API_KEY"),
        ],
        release.base_model,
        pods.amounts(wanted, layer, pods.extended(wanted, chart), release.disk),
        ports=[{"name": "http", "containerPort": run.SERVER_PORT}],
        startupProbe=probe(2, 1800),
        readinessProbe=probe(5, 2),
        livenessProbe=probe(15, 4),
        lifecycle={"preStop": {"exec": {"command": ["python3", "-c", DRAINED]}}},
    )
    pod = pods.pod(
        chart,
        namespace=parent.namespace,
        service_account=release.storage.service_account_name,
        containers=[server],
        volumes=[
            run_volume,
            vllm.MODELS,
            vllm.shared_memory(release.shm_size),
            *base_volumes,
            *authorities,
        ],
        initContainers=[fetch],
        terminationGracePeriodSeconds=UNROUTED_SECONDS + DRAIN_SECONDS + 30,
        **pods.placement(wanted, layer, selector),
    )
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": meta.owned(parent, release.name, labels),
        "spec": {
            "replicas": replicas,
            "revisionHistoryLimit": 1,
            "progressDeadlineSeconds": 7200,
            "selector": {"matchLabels": selector},
            "template": pods.template(
                labels,
                release.run_file or content.without_judgement(),
                layer,
                modelcache.shared(
                    {"topologySpreadConstraints": [pods.spread(selector)], **pod},
                    release.base_model,
                    release.model_claim,
                    release.fetch_image,
                ),
            ),
        },
    }
