"""The NetworkPolicies: who reaches whom, judged from the rendered YAML by the rules of the API's reference.

The test cluster's bridge enforces none of them, so that this judgement is all the proof there is: what a plugin makes of them is
the plugin's.
"""

import dataclasses
from typing import Any

import pytest
from tests.chart.conftest import Manifest, Refusal, Render, Rendered

from finetune_api import reasons, run, serving
from finetune_operator import __main__ as operator_main
from finetune_operator.observe import label

Labels = dict[str, str]
METRICS = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}
CLIENTS = {"podSelector": {"matchLabels": {"app": "shop"}}}
STORE = {"ipBlock": {"cidr": "10.1.0.0/16"}}
NARROW: dict[str, Any] = {
    "namespaces": ["ml", "research"],
    "networkPolicy": {
        "enabled": True,
        "apiServer": {"ports": [6443], "peers": [{"ipBlock": {"cidr": "10.0.0.1/32"}}]},
        "storage": {"ports": [9000], "peers": [STORE]},
        "metrics": {"peers": [METRICS]},
        "clients": {"peers": [CLIENTS]},
    },
}


@dataclasses.dataclass(frozen=True)
class End:
    """One end of a connection: a pod by namespace and labels, or a name for something outside."""

    namespace: str = ""
    labels: tuple[tuple[str, str], ...] = ()
    address: str = ""


def pod(namespace: str = "ml", **labels: str) -> End:
    return End(namespace, tuple(labels.items()))


def stage(name: reasons.Stage, namespace: str = "ml") -> End:
    return End(namespace, ((label.STAGE, name.value), (label.JOB, "a")))


SERVER = End("ml", ((label.RELEASE, "a-1"), (label.JOB, "a")))
POOL = End("ml", ((label.POOL, "chat"),))
ACTIVATOR = End("ml", ((label.ACTIVATOR, "chat"), (label.POOL, "")))
API_SERVER = End(address="10.0.0.1/32")
STORAGE = End(address="10.1.0.0/16")
ELSEWHERE = End(address="169.254.169.254/32")
PROMETHEUS = pod("monitoring")
SHOP = pod(app="shop")
STRANGER = pod(app="stranger")
STAGES = list(reasons.Stage)


def selects(selector: Manifest, labels: Labels) -> bool:
    for rule in selector.get("matchExpressions", []):
        value = labels.get(rule["key"])
        assert rule["operator"] in {"Exists", "In"}
        if value is None or (rule["operator"] == "In" and value not in rule["values"]):
            return False
    return bool(selector.get("matchLabels", {}).items() <= labels.items())


def is_peer(peer: Manifest, other: End, home: str) -> bool:
    if "ipBlock" in peer:
        return bool(peer["ipBlock"]["cidr"] == other.address)
    if other.address:
        return False
    if "namespaceSelector" in peer:
        here = selects(peer["namespaceSelector"], {"kubernetes.io/metadata.name": other.namespace})
    else:
        here = other.namespace == home
    return here and selects(peer.get("podSelector", {}), dict(other.labels))


def allowed(rendered: Rendered, way: str, of: End, other: End, port: int, protocol: str = "TCP") -> bool:
    """Whether the pod `of` may connect to (Egress) or be connected by (Ingress) the other end."""
    isolated = False
    for policy in rendered["NetworkPolicy"].values():
        spec = policy["spec"]
        home = policy["metadata"]["namespace"]
        if home != of.namespace or way not in spec["policyTypes"] or not selects(spec["podSelector"], dict(of.labels)):
            continue
        isolated = True
        for rule in spec.get(way.lower(), []):
            ports = rule.get("ports")
            peers = rule.get("from" if way == "Ingress" else "to")
            fits = not ports or any(p["port"] == port and p["protocol"] == protocol for p in ports)
            if fits and (not peers or any(is_peer(peer, other, home) for peer in peers)):
                return True
    return not isolated


def connects(rendered: Rendered, source: End, target: End, port: int, protocol: str = "TCP") -> bool:
    out = bool(source.address) or allowed(rendered, "Egress", source, target, port, protocol)
    return out and (bool(target.address) or allowed(rendered, "Ingress", target, source, port, protocol))


def operator_of(rendered: Rendered) -> End:
    template = rendered["Deployment"]["finetune-operator"]["spec"]["template"]["metadata"]["labels"]
    return End("finetune-system", tuple(template.items()))


def test_policies_are_rendered_only_on_request(render: Render) -> None:
    assert "NetworkPolicy" not in render({"namespaces": ["ml"]})


def test_the_operator_reaches_the_api_server_names_and_the_progress_of_stages_alone(render: Render) -> None:
    rendered = render(NARROW)
    operator = operator_of(rendered)
    assert connects(rendered, operator, API_SERVER, 6443)
    assert connects(rendered, operator, ELSEWHERE, 53, "UDP")
    assert not connects(rendered, operator, API_SERVER, 443)
    assert not connects(rendered, operator, STORAGE, 9000)
    assert not connects(rendered, operator, ELSEWHERE, 80)
    for name in STAGES:
        for namespace in ("ml", "research", "elsewhere"):
            assert connects(rendered, operator, stage(name, namespace), run.METRICS_PORT)
        assert not connects(rendered, operator, stage(name), run.RENDEZVOUS_PORT)
    assert not connects(rendered, operator, pod(app="database"), run.METRICS_PORT)
    imposter = End("ml", operator.labels)
    assert not connects(rendered, imposter, stage(reasons.Stage.TRAIN), run.METRICS_PORT)


def test_the_operator_and_activators_reach_servers_and_nothing_else_there(render: Render) -> None:
    rendered = render(NARROW)
    for one in (operator_of(rendered), ACTIVATOR):
        assert connects(rendered, one, SERVER, run.SERVER_PORT)
        assert not connects(rendered, one, SERVER, serving.DELIVERY_PORT)
        for other in (STRANGER, stage(reasons.Stage.TRAIN)):
            assert not connects(rendered, one, other, run.SERVER_PORT)
    assert not connects(rendered, operator_of(rendered), POOL, run.SERVER_PORT)
    assert not connects(rendered, End("research", ACTIVATOR.labels), SERVER, run.SERVER_PORT)


def test_only_metrics_of_the_operator_are_reachable(render: Render, render_tests: Render) -> None:
    rendered = render(NARROW)
    operator = operator_of(rendered)
    labels = render_tests(NARROW)["Pod"]["finetune-operator-test"]["metadata"]["labels"]
    assert connects(rendered, PROMETHEUS, operator, operator_main.PORT)
    assert connects(rendered, End("finetune-system", tuple(labels.items())), operator, operator_main.PORT)
    assert not connects(rendered, STRANGER, operator, operator_main.PORT)
    assert not connects(rendered, PROMETHEUS, operator, 22)


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_reaches_the_store_and_not_the_api_server(render: Render, name: reasons.Stage) -> None:
    rendered = render(NARROW)
    for namespace in ("ml", "research"):
        one = stage(name, namespace)
        assert connects(rendered, one, STORAGE, 9000)
        assert connects(rendered, one, ELSEWHERE, 53, "UDP")
        assert not connects(rendered, one, API_SERVER, 6443)
        assert not connects(rendered, one, ELSEWHERE, 80), "a cloud's metadata server"
        assert not connects(rendered, one, ELSEWHERE, 9000)
        assert not connects(rendered, one, pod(namespace, app="database"), 5432)
        assert not connects(rendered, one, operator_of(rendered), operator_main.PORT)
        assert connects(rendered, PROMETHEUS, one, run.METRICS_PORT)
        assert not connects(rendered, pod(namespace, app="stranger"), one, run.METRICS_PORT)
        assert not connects(rendered, pod(namespace, app="stranger"), one, run.RENDEZVOUS_PORT)


def test_only_training_pods_reach_each_other_on_any_port(render: Render) -> None:
    rendered = render(NARROW)
    train = stage(reasons.Stage.TRAIN)
    for port in (run.RENDEZVOUS_PORT, 43210):
        assert connects(rendered, train, train, port)
        assert not connects(rendered, stage(reasons.Stage.EVALUATE), train, port)
        assert not connects(rendered, stage(reasons.Stage.TRAIN, "research"), train, port)


def test_a_server_is_reachable_by_clients_the_verification_and_prometheus(render: Render) -> None:
    rendered = render(NARROW)
    for one in (SHOP, stage(reasons.Stage.VERIFY), PROMETHEUS):
        assert connects(rendered, one, SERVER, run.SERVER_PORT), one
    for one in (STRANGER, stage(reasons.Stage.TRAIN), stage(reasons.Stage.VERIFY, "research"), POOL):
        assert not connects(rendered, one, SERVER, run.SERVER_PORT), one


def test_a_server_only_fetches_and_has_no_other_egress(render: Render) -> None:
    rendered = render(NARROW)
    assert connects(rendered, SERVER, STORAGE, 9000)
    for other, port in ((API_SERVER, 6443), (ELSEWHERE, 80), (ELSEWHERE, 443), (SERVER, run.SERVER_PORT)):
        assert not connects(rendered, SERVER, other, port)


def test_a_pool_is_reached_by_clients_and_by_what_delivers_reads_or_copies_adapters(render: Render) -> None:
    rendered = render(NARROW)
    operator = operator_of(rendered)
    assert connects(rendered, SHOP, POOL, run.SERVER_PORT)
    for one in (stage(reasons.Stage.TRAIN), stage(reasons.Stage.VERIFY, "research"), operator, STRANGER):
        assert not connects(rendered, one, POOL, run.SERVER_PORT), one
    for one in (stage(reasons.Stage.VERIFY), stage(reasons.Stage.VERIFY, "research"), operator, POOL, PROMETHEUS):
        assert connects(rendered, one, POOL, serving.DELIVERY_PORT), one
    for one in (SHOP, STRANGER, stage(reasons.Stage.TRAIN), SERVER):
        assert not connects(rendered, one, POOL, serving.DELIVERY_PORT), one
    assert not connects(rendered, SHOP, POOL, serving.ENGINE_PORT)
    assert connects(rendered, SHOP, ACTIVATOR, run.SERVER_PORT)
    assert connects(rendered, operator, ACTIVATOR, serving.DELIVERY_PORT)
    assert connects(rendered, ACTIVATOR, operator, serving.INDEX_PORT)
    for port in (run.SERVER_PORT, serving.DELIVERY_PORT):
        assert connects(rendered, ACTIVATOR, POOL, port), "where it sends what it held"


def test_a_pool_fetches_asks_the_operator_for_its_index_and_has_no_other_egress(render: Render) -> None:
    rendered = render(NARROW)
    operator = operator_of(rendered)
    assert connects(rendered, POOL, STORAGE, 9000)
    assert connects(rendered, POOL, operator, serving.INDEX_PORT)
    assert connects(rendered, End("research", POOL.labels), operator, serving.INDEX_PORT)
    for one in (SHOP, SERVER, stage(reasons.Stage.VERIFY), PROMETHEUS):
        assert not connects(rendered, one, operator, serving.INDEX_PORT), one
    for other, port in ((API_SERVER, 6443), (ELSEWHERE, 80), (operator, operator_main.PORT), (SERVER, run.SERVER_PORT)):
        assert not connects(rendered, POOL, other, port)


def test_without_peers_the_ports_alone_decide(render: Render) -> None:
    rendered = render({"namespaces": ["ml"], "networkPolicy": {"enabled": True}})
    train = stage(reasons.Stage.TRAIN)
    assert connects(rendered, train, ELSEWHERE, 443)
    assert not connects(rendered, train, ELSEWHERE, 80)
    assert connects(rendered, STRANGER, SERVER, run.SERVER_PORT)
    assert connects(rendered, STRANGER, train, run.METRICS_PORT)


def test_namespaces_of_jobs_can_be_named_where_the_operator_looks_everywhere(render: Render) -> None:
    everywhere = render({"networkPolicy": {"enabled": True}})
    assert set(everywhere["NetworkPolicy"]) == {"finetune-operator"}
    some = render({"networkPolicy": {"enabled": True, "namespaces": ["ml"]}})
    assert {name.partition("/")[0] for name in some["NetworkPolicy"]} == {"finetune-operator", "ml"}


def test_further_rules_reach_the_pods_of_jobs_alone(render: Render) -> None:
    rule = {"to": [{"ipBlock": {"cidr": "169.254.169.254/32"}}], "ports": [{"protocol": "TCP", "port": 80}]}
    rendered = render({"namespaces": ["ml"], "networkPolicy": {"enabled": True, "extraEgress": [rule]}})
    assert connects(rendered, stage(reasons.Stage.TRAIN), ELSEWHERE, 80)
    assert connects(rendered, SERVER, ELSEWHERE, 80)
    assert not connects(rendered, operator_of(rendered), ELSEWHERE, 80)


def test_no_ports_would_be_all_ports_and_are_refused(refusal: Refusal) -> None:
    assert "/networkPolicy/storage/ports" in refusal({"networkPolicy": {"storage": {"ports": []}}})
    assert "ipBlok" in refusal({"networkPolicy": {"clients": {"peers": [{"ipBlok": {"cidr": "10.0.0.0/8"}}]}}})
