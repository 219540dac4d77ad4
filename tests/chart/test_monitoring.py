"""What Prometheus and Grafana get of the chart."""

import re
from typing import Any

import yaml
from tests.chart.conftest import CHART, Manifest, Render

from finetune_api import metrics, run
from finetune_operator import observe

ON = {"monitoring": {"podMonitor": {"enabled": True}}}
NAMES = {
    "finetune-operator": "finetune-operator",
    "finetune-operator-stages": "finetune-stages",
    "finetune-operator-servers": "finetune-servers",
}
"""PodMonitor -> the plain scrape config that says the same."""


def scrape_configs() -> dict[str, Any]:
    found = yaml.safe_load((CHART / "monitoring" / "scrape-configs.yaml").read_text())
    return {one["job_name"]: one for one in found}


def camel(relabeling: Manifest) -> Manifest:
    return {re.sub(r"_(\w)", lambda m: m[1].upper(), key): value for key, value in relabeling.items()}


def test_the_pod_monitors_and_the_plain_scrape_configs_say_the_same(render: Render) -> None:
    monitors = render(ON)["PodMonitor"]
    configs = scrape_configs()
    assert {NAMES[name] for name in monitors} == set(configs)
    for name, monitor in monitors.items():
        (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
        config = configs[NAMES[name]]
        assert endpoint.get("honorLabels", False) == config.get("honor_labels", False), name
        # what the Prometheus operator adds by itself is spelled out in the plain ones
        own = [r for r in config["relabel_configs"] if r.get("target_label") not in {"namespace", "pod"}]
        keep = {r["source_labels"][0]: r["regex"] for r in own if r.get("action") == "keep"}
        assert keep == {
            "__meta_kubernetes_pod_phase": "Running",
            "__meta_kubernetes_pod_container_port_name": endpoint["port"],
        }
        assert [camel(r) for r in own if r.get("action") != "keep"] == endpoint.get("relabelings", []), name
        (selected,) = config["kubernetes_sd_configs"]
        label = selected["selectors"][0]["label"]
        chosen = monitor["spec"]["selector"]
        wanted = chosen.get("matchLabels") or {chosen["matchExpressions"][0]["key"]: None}
        assert label.partition("=")[0] in wanted, name


def test_scrape_rules_put_the_labels_of_the_contract_onto_every_series_of_a_job() -> None:
    for name in ("finetune-stages", "finetune-servers"):
        targets = {r.get("target_label") for r in scrape_configs()[name]["relabel_configs"]}
        assert set(metrics.JOB) <= targets, name


def test_scrape_rules_read_the_labels_that_the_operator_gives_its_pods() -> None:
    text = (CHART / "monitoring" / "scrape-configs.yaml").read_text()
    for label in (observe.JOB, observe.REVISION, observe.STAGE):
        assert "__meta_kubernetes_pod_label_" + re.sub(r"[./-]", "_", label) in text
    for label in (observe.STAGE, observe.RELEASE):
        assert f'label: "{label}"' in text
    assert run.METRICS_PORT == 9400


def test_pod_monitors_look_where_the_jobs_are(render: Render) -> None:
    everywhere, somewhere = render(ON)["PodMonitor"], render(ON | {"namespaces": ["ml"]})["PodMonitor"]
    for name in ("finetune-operator-stages", "finetune-operator-servers"):
        assert everywhere[name]["spec"]["namespaceSelector"] == {"any": True}
        assert somewhere[name]["spec"]["namespaceSelector"] == {"matchNames": ["ml"]}
