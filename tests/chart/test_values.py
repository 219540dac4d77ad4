"""values.schema.json: wrong values are refused with their place, and every value is described."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from tests.chart.conftest import CHART, REPOSITORY, Refusal

SCHEMA: dict[str, Any] = json.loads((CHART / "values.schema.json").read_text())

WRONG: list[tuple[Any, str]] = [
    ({"repliccas": 2}, "repliccas"),
    ({"replicas": "two"}, "/replicas"),
    ({"replicas": -1}, "/replicas"),
    ({"imagePullPolicy": "Sometimes"}, "/imagePullPolicy"),
    ({"imagePullSecrets": [{"name": "key"}]}, "/imagePullSecrets/0"),
    ({"images": {"operator": "an/image:tag"}}, "/images/operator"),
    ({"images": {"operator": {"digest": "abc"}}}, "/images/operator/digest"),
    ({"images": {"trainer": {"name": "x"}}}, "name"),
    ({"namespaces": "ml"}, "/namespaces"),
    ({"namespaces": ["Team A"]}, "/namespaces/0"),
    ({"namespaces": ["ml", "ml"]}, "/namespaces"),
    ({"logLevel": "LOUD"}, "/logLevel"),
    ({"labels": {"cost-centre": 42}}, "/labels/cost-centre"),
    ({"serving": {"env": {"DO_NOT_TRACK": 1}}}, "/serving/env/DO_NOT_TRACK"),
    ({"serving": {"args": "--dtype=auto"}}, "/serving/args"),
    ({"serving": {"shmSize": "much"}}, "/serving/shmSize"),
    ({"preflight": {"requests": {"memory": 2}}}, "/preflight/requests/memory"),
    ({"verify": {"requests": {"gpu": "1"}}}, "gpu"),
    ({"drainSeconds": -1}, "/drainSeconds"),
    ({"gpuTypes": {"l4": {"memory": 24}}}, "memory"),
    ({"gpuTypes": {"l4": {"tolerations": [{"operator": "Any"}]}}}, "/gpuTypes/l4/tolerations/0/operator"),
    ({"catalogue": {"x": {"family": "f"}}}, "source"),
    ({"catalogue": {"x": {"source": "meta-llama/Llama-3.1-8B"}}}, "/catalogue/x/source"),
    ({"catalogue": {"Big Model": {"source": "hf://a/b"}}}, "Big Model"),
    ({"catalogue": {"x": {"source": "hf://a/b", "architecture": {"layers": 2}}}}, "hiddenSize"),
    ({"catalogue": {"x": {"source": "hf://a/b", "licence": "MIT"}}}, "licence"),
    ({"commonLabels": {"team": 42}}, "/commonLabels/team"),
    ({"networkPolicy": {"dns": {"port": 53}}}, "port"),
    ({"networkPolicy": {"storage": {"ports": ["https"]}}}, "/networkPolicy/storage/ports/0"),
    ({"networkPolicy": {"clients": {"peers": {"podSelector": {}}}}}, "/networkPolicy/clients/peers"),
    ({"networkPolicy": {"namespaces": ["Team A"]}}, "/networkPolicy/namespaces/0"),
    ({"gatewayAPI": {"enabled": True}}, "/gatewayAPI/gateway/name"),
    ({"gatewayAPI": {"inference": {"enabled": True}}}, "/gatewayAPI/inference/enabled"),
    ({"gatewayAPI": {"inference": {"modelRewrites": True}}}, "/gatewayAPI/inference/enabled"),
    ({"monitoring": {"podMonitor": {"enabled": "yes"}}}, "/monitoring/podMonitor/enabled"),
]


@pytest.mark.parametrize("values,place", WRONG, ids=[json.dumps(values) for values, _ in WRONG])
def test_wrong_values_are_refused_with_their_place(refusal: Refusal, values: Any, place: str) -> None:
    assert place in refusal(values)


def nodes(schema: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(schema, dict):
        yield path, schema
        for key in ("properties", "definitions"):
            for name, child in schema.get(key, {}).items():
                yield from nodes(child, f"{path}/{name}")


def test_every_value_is_described() -> None:
    assert [path for path, node in nodes(SCHEMA) if "description" not in node] == []


def test_every_object_of_fixed_fields_is_closed() -> None:
    fixed = {path: node for path, node in nodes(SCHEMA) if "properties" in node}
    assert [path for path, node in fixed.items() if node.get("additionalProperties") is not False] == []


def test_every_value_has_a_default_to_read() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert set(SCHEMA["properties"]) - {"global"} == set(values)


def test_the_chart_carries_the_generated_crds() -> None:
    generated = {path.name: path.read_text() for path in (REPOSITORY / "crds").glob("*.yaml")}
    assert generated, "crds/ is empty: run `make crds`"
    assert {path.name: path.read_text() for path in (CHART / "crds").glob("*.yaml")} == generated
