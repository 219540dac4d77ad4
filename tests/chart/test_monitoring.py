"""What Prometheus and Grafana get of the chart."""

import itertools
import json
import pathlib
import re
from typing import Any

import pytest
import yaml
from tests.chart.conftest import CHART, REPOSITORY, Manifest, Render

from dashboards import catalogue
from finetune_api import metrics, run
from finetune_operator.observe import label
from support import boards

ON = {"monitoring": {"podMonitor": {"enabled": True}}}
NAMES = {
    "finetune-operator": "finetune-operator",
    "finetune-operator-stages": "finetune-stages",
    "finetune-operator-servers": "finetune-servers",
    "finetune-operator-pools": "finetune-pools",
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
        # what the Prometheus operator adds automatically is explicit in the plain ones
        own = [r for r in config["relabel_configs"] if r.get("target_label") not in {"namespace", "pod"}]
        keep = {r["source_labels"][0]: r["regex"] for r in own if r.get("action") == "keep"}
        assert keep == {
            "__meta_kubernetes_pod_phase": "Running",
            "__meta_kubernetes_pod_container_port_name": endpoint["port"],
        }
        assert [camel(r) for r in own if r.get("action") != "keep"] == endpoint.get("relabelings", []), name
        (selected,) = config["kubernetes_sd_configs"]
        selector = selected["selectors"][0]["label"]
        chosen = monitor["spec"]["selector"]
        wanted = chosen.get("matchLabels") or {chosen["matchExpressions"][0]["key"]: None}
        assert selector.partition("=")[0] in wanted, name


def test_scrape_rules_put_the_labels_of_the_contract_onto_every_series_of_a_job() -> None:
    for name in ("finetune-stages", "finetune-servers"):
        targets = {r.get("target_label") for r in scrape_configs()[name]["relabel_configs"]}
        assert set(metrics.JOB) <= targets, name


def test_scrape_rules_read_the_labels_that_the_operator_gives_its_pods() -> None:
    text = (CHART / "monitoring" / "scrape-configs.yaml").read_text()
    for key in (label.JOB, label.REVISION, label.STAGE, label.POOL, label.ACTIVATOR):
        assert "__meta_kubernetes_pod_label_" + re.sub(r"[./-]", "_", key) in text
    for key in (label.STAGE, label.RELEASE, label.POOL):
        assert f'label: "{key}"' in text
    assert run.METRICS_PORT == 9400


@pytest.mark.parametrize(
    ("pod", "labels"),
    [
        ({label.POOL: "chat"}, {"pool": "chat"}),
        ({label.POOL: "", label.ACTIVATOR: "chat"}, {"pool": "chat"}),
        ({label.POOL: "", label.ACTIVATOR: "tone", label.JOB: "tone"}, {"finetunejob": "tone"}),
    ],
)
def test_the_series_of_gateways_have_their_pool_or_their_job(pod: dict[str, str], labels: dict[str, str]) -> None:
    known = {"__meta_kubernetes_pod_label_" + re.sub(r"[./-]", "_", key): value for key, value in pod.items()}
    for rule in scrape_configs()["finetune-pools"]["relabel_configs"]:
        seen = ";".join(known.get(name, "") for name in rule["source_labels"])
        if rule.get("action") != "keep" and (found := re.fullmatch(rule.get("regex", "(.*)"), seen)):
            known[rule["target_label"]] = found[1]
    assert {name: known[name] for name in ("pool", "finetunejob") if known.get(name)} == labels


def test_pod_monitors_look_where_the_jobs_are(render: Render) -> None:
    everywhere, somewhere = render(ON)["PodMonitor"], render(ON | {"namespaces": ["ml"]})["PodMonitor"]
    for name in ("finetune-operator-stages", "finetune-operator-servers"):
        assert everywhere[name]["spec"]["namespaceSelector"] == {"any": True}
        assert somewhere[name]["spec"]["namespaceSelector"] == {"matchNames": ["ml"]}


OURS = (*metrics.JOBS, *metrics.OPERATOR, *metrics.TRAINER.values(), *metrics.GATEWAY.values())
KNOWN = {metric.name for metric in (*OURS, *metrics.VLLM)}
FOREIGN = {"process_resident_memory_bytes", "up"}
"""Those of the client library and of Prometheus itself."""
SUFFIXES = r"_(bucket|count|sum)$"


def metrics_in(query: str) -> set[str]:
    """Names of the metrics of a query: the words before a selector or a range, or alone."""
    bare = re.sub(r"\{[^}]*\}|\[[^]]*\]|\"[^\"]*\"", " ", query)
    bare = re.sub(r"\b(by|on|ignoring|without)\s*\([^)]*\)|\bgroup_(left|right)\b", " ", bare)
    words = set(re.findall(r"[a-zA-Z_:][\w:]*(?!\w*\s*\()", bare))
    return {word for word in words if ":" in word or "_" in word} - {"histogram_quantile", "label_replace"}


def test_dashboards_are_rendered_only_on_request(render: Render) -> None:
    assert not [name for name in render()["ConfigMap"] if "dashboard" in name]
    values = {"dashboards": {"enabled": True, "namespace": "grafana", "annotations": {"grafana_folder": "ML"}}}
    maps = {name: one for name, one in render({"monitoring": values})["ConfigMap"].items() if "dashboard" in name}
    assert sorted(maps) == [f"grafana/finetune-operator-dashboard-{name}" for name in boards.names()]
    for manifest in maps.values():
        assert manifest["metadata"]["labels"]["grafana_dashboard"] == "1"
        assert manifest["metadata"]["annotations"] == {"grafana_folder": "ML"}
        ((file, text),) = manifest["data"].items()
        assert json.loads(text) == boards.board(file.removeprefix("finetune-").removesuffix(".json"))


@pytest.mark.parametrize("name", boards.names())
def test_a_dashboard_asks_only_for_metrics_that_exist(name: str) -> None:
    for query in (*boards.queries(name), *boards.choices(name)):
        found = {re.sub(SUFFIXES, "", metric) for metric in metrics_in(query.text)}
        assert found, query
        assert found <= KNOWN | FOREIGN, query


@pytest.mark.parametrize("name", boards.names())
def test_the_panels_of_a_dashboard_lie_beside_each_other_and_say_what_they_show(name: str) -> None:
    panels = boards.board(name)["panels"]
    assert len({panel["title"] for panel in panels}) == len(panels)
    cells = [
        (panel["gridPos"]["x"] + x, panel["gridPos"]["y"] + y)
        for panel in panels
        for x, y in itertools.product(range(panel["gridPos"]["w"]), range(panel["gridPos"]["h"]))
    ]
    assert len(set(cells)) == len(cells), "panels overlap"
    assert max(x for x, _ in cells) < 24
    for panel in panels:
        assert panel["description"].endswith("."), panel["title"]
        assert panel["targets"], panel["title"]


@pytest.mark.parametrize("name", boards.names())
def test_every_variable_of_a_query_can_be_chosen(name: str) -> None:
    known = {variable["name"] for variable in boards.board(name)["templating"]["list"]} | set(boards.GRAFANA)
    for query in (*boards.queries(name), *boards.choices(name)):
        assert set(re.findall(r"\$(\w+)", query.text)) <= known, query


def test_dashboards_are_current() -> None:
    assert catalogue.stale() == [], "run `make dashboards` and commit them"
    assert sorted(catalogue.BOARDS) == boards.names()


def test_the_names_of_metrics_are_found_in_a_query() -> None:
    query = 'sum by (le, stage) (rate(a_b_bucket{x="c_d"}[1h])) / on (e_f) max(v:g) + histogram_quantile(0.5, h_i)'
    assert metrics_in(query) == {"a_b_bucket", "v:g", "h_i"}


GUIDE = REPOSITORY / "docs" / "guides" / "operations.md"


def test_the_values_of_the_guide_give_what_it_promises(render: Render) -> None:
    text = re.search(r"```yaml\n# observed.yaml\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    assert text
    found = render(yaml.safe_load(text[1]))
    assert set(NAMES) == set(found["PodMonitor"])
    for kind in ("PodMonitor", "PrometheusRule"):
        assert {m["metadata"]["labels"]["release"] for m in found[kind].values()} == {"monitoring"}
    assert len([name for name in found["ConfigMap"] if "dashboard" in name]) == len(boards.names())


@pytest.mark.parametrize("page", sorted((REPOSITORY / "docs").rglob("*.md")), ids=lambda page: page.stem)
def test_every_page_that_is_linked_is_there(page: pathlib.Path) -> None:
    for link in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
        if "://" not in link:
            assert (page.parent / link).exists(), f"{page}: {link}"
