"""What people see of the API through kubectl: names, columns and the manual."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

import finetune_api
from finetune_api import basemodel, job, reasons, schema, servingpool, status
from support import manifests

pytestmark = pytest.mark.cluster

NOW = "2026-01-02T03:04:05Z"


@pytest.mark.parametrize("plural", ["finetunejobs", "basemodels", "servingpools"])
def test_the_definition_is_structural_and_its_names_are_accepted(control_plane, plural):
    found = json.loads(control_plane.kubectl("get", "crd", f"{plural}.{finetune_api.GROUP}", "-o", "json"))
    conditions = {condition["type"]: condition["status"] for condition in found["status"]["conditions"]}
    assert conditions == {"NamesAccepted": "True", "Established": "True"}  # a NonStructuralSchema would stand here too


WORDS = ["ftj", "finetune", "finetunejob", "finetunejobs", "basemodel", "basemodels", "servingpool", "spool"]
SPECS = [job.FineTuneJobSpec, basemodel.BaseModelSpec, servingpool.ServingPoolSpec, servingpool.Status, status.Status]


@pytest.mark.parametrize("word", WORDS)
def test_kubectl_knows_the_kind_by_this_name(control_plane, word):
    assert "No resources found" in control_plane.run("get", word, "--namespace=default").stderr


def test_explain_is_a_manual(control_plane):
    text = control_plane.kubectl("explain", "ftj.spec.training")
    for field, words in {
        "batchSize": "optimizer step",
        "learningRate": "peak learning rate",
        "epochs": "3; more for fewer than 34 examples",
    }.items():
        assert re.search(rf"{field}\s+<\w+>", text), text
        assert words in " ".join(text.split())


@pytest.mark.parametrize("kind", SPECS)
def test_every_field_is_described_in_a_sentence(kind):
    def undescribed(schema: dict[str, Any], at: str) -> Iterator[str]:
        for name, child in schema.get("properties", {}).items():
            text = child.get("description", "")
            if not ((text.endswith(".") and text[0].isupper()) or text.startswith("true ")):
                yield f"{at}.{name}: {text!r}"
            yield from undescribed(child.get("items", child), f"{at}.{name}")

    assert list(undescribed(schema.schema_of(kind), kind.__name__)) == []


def test_get_shows_the_progress_and_wide_the_rest(control_plane, own):
    stored = own.create(manifests.MINIMAL)
    ready = {"type": "Ready", "status": "False", "observedGeneration": 1, "lastTransitionTime": NOW, "reason": "Waiting",
             "message": "training"}  # fmt: skip
    own.replace(
        manifests.changed(
            stored,
            **{
                "status.phase": reasons.Phase.TRAINING.value,
                "status.conditions": [ready],
                "status.waiting": {"reason": "Waiting", "since": NOW},
                "status.progress": {
                    "summary": "43%",
                    "percent": 43,
                    "step": 43,
                    "totalSteps": 100,
                    "eta": "12m",
                    "loss": "0.71",
                },
                "status.baseModel": "qwen2.5-7b-instruct",
                "status.revision": "3f2a9c1b",
                "status.attempt": 2,
            },
        ),
        subresource="_status",
    )
    head, row = control_plane.kubectl("get", "ftj", "--namespace", own.namespace).splitlines()
    assert head.split() == [
        "NAME", "PHASE", "REASON", "WAITING", "PROGRESS", "ETA", "LOSS", "SCORE", "READY", "AGE"
    ]  # fmt: skip
    assert row.split()[:3] == ["support-tone", "Training", "Waiting"]
    assert row.split()[4:8] == ["43%", "12m", "0.71", "False"]
    head, row = control_plane.kubectl("get", "ftj", "--namespace", own.namespace, "--output=wide").splitlines()
    assert head.split()[10:] == ["MODEL", "REVISION", "SERVING", "ATTEMPT", "QUEUE", "ENDPOINT"]
    assert row.split()[9:] == ["qwen2.5-7b-instruct", "3f2a9c1b", "2"]
    training = control_plane.kubectl(
        "get", "ftj", "--namespace", own.namespace, "--field-selector=status.phase=Training", "--output=name"
    )
    assert training.split() == ["finetunejob.finetune.dev/support-tone"]
    waited = control_plane.kubectl(
        "wait", "--for=condition=Ready=False", "--timeout=5s", "--namespace", own.namespace, "ftj/support-tone"
    )
    assert "condition met" in waited


def test_get_shows_the_catalogue(control_plane, own):
    own.create(manifests.changed(manifests.ENTRY, **{"spec.family": "qwen-2.5", "spec.parameters": 7_615_616_512}))
    head, row = control_plane.kubectl("get", "basemodels").splitlines()
    assert head.split() == ["NAME", "FAMILY", "PARAMETERS", "SOURCE", "AGE"]
    assert row.split()[:4] == ["qwen2.5-7b-instruct", "qwen-2.5", "7615616512", "hf://Qwen/Qwen2.5-7B-Instruct"]


def test_a_bare_off_in_yaml_is_no_enumeration_value():
    """YAML 1.1 readers, kubectl's among them, turn On, Off, Yes and No into booleans."""

    def values(schema: dict[str, Any]) -> Iterator[Any]:
        yield from schema.get("enum", ())
        for child in [*schema.get("properties", {}).values(), *filter(None, [schema.get("items")])]:
            yield from values(child)

    assert {
        value for value in values(schema.schema_of(job.FineTuneJobSpec)) if yaml.safe_load(str(value)) != value
    } == set()
