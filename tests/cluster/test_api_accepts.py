"""What a real API server accepts, how it completes it, and that nothing sent is lost."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from finetune_api import basemodel, evaluation, job, model, schema
from support import manifests

pytestmark = pytest.mark.cluster

EXAMPLES = sorted((manifests.REPOSITORY / "examples").glob("*.yaml"))


def without_empty(value: Any) -> Any:
    """The value without what says nothing: empty objects and lists, which the API server does not fill in."""
    if isinstance(value, dict):
        stored = {key: without_empty(item) for key, item in value.items()}
        return {key: item for key, item in stored.items() if item not in ({}, [])}
    return [without_empty(item) for item in value] if isinstance(value, list) else value


def assert_contains(found: Any, sent: Any, path: str = "spec") -> None:
    """Everything that was sent is in what came back: nothing was pruned or altered."""
    if isinstance(sent, dict):
        assert isinstance(found, dict), path
        for key, value in sent.items():
            assert key in found, f"{path}.{key} was pruned"
            assert_contains(found[key], value, f"{path}.{key}")
    elif isinstance(sent, list):
        assert len(found) == len(sent), path
        for index, (inner, value) in enumerate(zip(found, sent, strict=True)):
            assert_contains(inner, value, f"{path}[{index}]")
    else:
        assert found == sent, path


def quantities_as_text(value: Any) -> Any:
    """Data in which `cpu: 4` is written as `cpu: "4"`: the API server keeps what was sent."""
    if isinstance(value, dict):
        return {key: str(item) if key in ("cpu", "memory") else quantities_as_text(item) for key, item in value.items()}
    return [quantities_as_text(item) for item in value] if isinstance(value, list) else value


def assert_round_trip(kind: type[model.Model], sent: dict[str, Any], found: dict[str, Any]) -> None:
    assert_contains(found, sent)
    assert kind.model_validate(found) == kind.model_validate(sent)
    # The API server filled exactly what pydantic fills: the two can never disagree about a default. It leaves one to the models,
    # which depends on another field.
    if kind is job.FineTuneJobSpec:
        server = kind.model_validate(sent).deployment.resources
        found = manifests.changed(found, **{"deployment.resources.gpus": server.gpus})
    assert quantities_as_text(without_empty(found)) == without_empty(kind.model_validate(sent).wire())


def test_a_minimal_job_is_accepted_and_completed_with_the_defaults_of_the_models(dry):
    found = dry.create(manifests.MINIMAL)["spec"]
    assert_round_trip(job.FineTuneJobSpec, manifests.MINIMAL["spec"], found)
    assert found["dataset"]["validation"] == {"fraction": 0.05}
    assert found["training"]["lora"] == {"rank": 16, "alpha": 32, "dropout": 0, "targetModules": "AllLinear"}
    rollout = {"strategy": "BlueGreen", "minimumRequests": 50, "watch": "30m", "keepPrevious": 1}
    assert found["deployment"]["rollout"] == rollout
    assert "epochs" not in found["training"]  # by the rule for the number of examples


def test_a_job_with_every_field_is_accepted_without_pruning(dry):
    sent = manifests.every_field()
    assert_round_trip(job.FineTuneJobSpec, sent["spec"], dry.create(sent)["spec"])


def test_the_example_with_every_field_has_every_field():
    exclusive = {
        "baseModel.name",
        "baseModel.candidates",
        "dataset.validation.uris",
        "dataset.test.fraction",
        "training.maxSteps",
        "training.replay",
        "training.replay.share",
        "training.teacher",
    }

    def paths(schema: dict[str, Any], at: str = "") -> Iterator[str]:
        for name, child in schema.get("properties", {}).items():
            yield f"{at}{name}"
            yield from paths(child.get("items", child), f"{at}{name}.")

    def given(value: Any, at: str = "") -> Iterator[str]:
        for item in value if isinstance(value, list) else [value]:
            for name, inner in item.items() if isinstance(item, dict) else ():
                yield f"{at}{name}"
                yield from given(inner, f"{at}{name}.")

    assert set(paths(schema.schema_of(job.FineTuneJobSpec))) - set(given(manifests.every_field()["spec"])) == exclusive


def _enumerated() -> Iterator[Any]:
    """A change for every value of every enumeration of the schema, within lists too."""

    def walk(schema: dict[str, Any], at: str) -> Iterator[tuple[str, Any]]:
        for value in schema.get("enum", ()):
            yield at, value
        for name, child in schema.get("properties", {}).items():
            yield from walk(child, f"{at}.{name}")
        if "items" in schema:
            yield from walk(schema["items"], f"{at}[0]")

    for path, value in walk(schema.schema_of(job.FineTuneJobSpec), "spec"):
        yield pytest.param(path, value, id=f"{path.removeprefix('spec.')}={value}")


@pytest.mark.parametrize("path, value", _enumerated())
def test_every_value_of_an_enumeration_is_accepted(dry, path, value):
    toleration = {"key": "team", "operator": "Exists"}
    # Some metrics always compare, and a gate may be over a baseline that is included only
    alone = value in evaluation.OVER_BASE or "baselines" in path
    sent = manifests.changed(
        manifests.MINIMAL,
        **{
            "spec.intent": {
                "goals": ["Format"],
                "prompt": {"system": "You sort mail."},
                "retrieval": {"uris": ["s3://bucket/documents/*.md"]},
            },
            "spec.evaluation": {
                "baselines": ["Base"] if "baselines" in path else [baseline.value for baseline in evaluation.BASELINES],
                "labels": ["refund", "praise"],
                "outputSchema": {"type": "object", "properties": {"intent": {"enum": ["refund", 1, None]}}},
                "consistency": {},
                "judge": {"endpoint": "https://judge.example/v1", "model": "wise"},
                "gates": [{"metric": "Loss", "maximum": 1} if alone else {"metric": "Loss", "over": "Base"}],
            },
            "spec.resources.tolerations": [toleration],
            "spec.evaluation.resources.tolerations": [toleration],
            "spec.deployment.resources.tolerations": [toleration],
            # preferences are learned by one objective only
            "spec.training.objective": "DPO" if value == "Preference" else "SFT",
            path: value,
        },
    )
    assert_round_trip(job.FineTuneJobSpec, sent["spec"], dry.create(sent)["spec"])


def test_benchmarks_need_no_more_than_their_names(dry):
    sent = manifests.changed(manifests.MINIMAL, **{"spec.evaluation.harness": {"tasks": [{"name": "darijammlu_(x)"}]}})
    found = dry.create(sent)["spec"]
    assert_round_trip(job.FineTuneJobSpec, sent["spec"], found)
    assert found["evaluation"]["harness"] == {
        "tasks": [{"name": "darijammlu_(x)"}],
        "maximumExamples": 200,
        "chatTemplate": False,
    }


def test_an_entry_of_the_catalogue_is_accepted_and_completed(dry):
    full = manifests.changed(
        manifests.ENTRY,
        **{
            "spec.revision": "main",
            "spec.family": "qwen-2.5",
            "spec.parameters": 7_615_616_512,
            "spec.license": "Apache-2.0",
            "spec.accessTokenSecret": "hugging-face",
            "spec.defaults.training.learningRate": 0.0001,
            "spec.defaults.serving.extraArgs": ["--max-model-len=8192"],
        },
    )
    for sent in (manifests.ENTRY, full):
        assert_round_trip(basemodel.BaseModelSpec, sent["spec"], dry.create(sent)["spec"])


@pytest.mark.parametrize(
    "source", ["hf://Qwen/Qwen2.5-7B", "s3://models/qwen", "pvc://models/qwen", "pvc://models", "file:///models/qwen"]
)
def test_a_base_model_may_come_from(dry, source):
    sent = manifests.changed(manifests.MINIMAL, **{"spec.baseModel": {"source": source}})
    assert dry.create(sent)["spec"]["baseModel"] == {"source": source}


@pytest.mark.parametrize(
    "field, value",
    [
        ("dataset.train", ["s3://acme/my data/a b+c%20d.jsonl", "file:///my data/a b.jsonl"]),
        ("storage.output", "s3://acme/my results"),
        ("storage.endpoint", "https://project.storage.example/storage/v1/s3"),
    ],
)
def test_places_may_have_spaces_and_endpoints_a_path(dry, field, value):
    sent = manifests.changed(manifests.MINIMAL, **{f"spec.{field}": value})
    section, name = field.split(".")
    assert dry.create(sent)["spec"][section][name] == value


def test_an_objective_without_settings_gets_its_defaults_from_the_trainer_and_with_some_from_the_schema(dry):
    plain = manifests.changed(manifests.MINIMAL, **{"spec.training.objective": "DPO"})
    assert "dpo" not in dry.create(plain)["spec"]["training"]
    assert dry.create(manifests.changed(plain, **{"spec.training.dpo": {}}))["spec"]["training"]["dpo"] == {"beta": 0.1}
    assert job.Training.model_validate({"objective": "DPO"}).dpo is None


@pytest.mark.parametrize("beta", [0.01, 0.1, 10])
def test_the_beta_of_dpo_may_be(dry, beta):
    sent = manifests.changed(manifests.MINIMAL, **{"spec.training": {"objective": "DPO", "dpo": {"beta": beta}}})
    assert_round_trip(job.FineTuneJobSpec, sent["spec"], dry.create(sent)["spec"])


@pytest.mark.parametrize(
    "nodes, gpus, batch", [(1, 0, 1), (2, 0, 2), (2, 0, 16), (2, 8, 16), (64, 0, 64), (64, 16, 1024), (1, 16, 16)]
)
def test_nodes_may_be_with_gpus_and_without(dry, nodes, gpus, batch):
    changes = {"spec.resources": {"nodes": nodes, "gpus": gpus}, "spec.training.batchSize": batch}
    sent = manifests.changed(manifests.MINIMAL, **changes)
    assert_round_trip(job.FineTuneJobSpec, sent["spec"], dry.create(sent)["spec"])


@pytest.mark.parametrize("gpus", [0, 1])
def test_a_base_in_four_bits_may_be_trained_on(dry, gpus):
    sent = manifests.changed(manifests.MINIMAL, **{"spec.training.method": "QLoRA", "spec.resources.gpus": gpus})
    assert_round_trip(job.FineTuneJobSpec, sent["spec"], dry.create(sent)["spec"])


@pytest.mark.parametrize("amount", [4, "4", "0.5", "500m"])
def test_cores_may_be_written_as(dry, amount):
    sent = manifests.changed(manifests.MINIMAL, **{"spec.resources.requests.cpu": amount})
    assert_round_trip(job.FineTuneJobSpec, sent["spec"], dry.create(sent)["spec"])


@pytest.mark.parametrize("amount", [68719476736, "64Mi", "32Gi", "1.5Gi", "32G", "1Ti"])
def test_memory_may_be_written_as(dry, amount):
    sent = manifests.changed(manifests.MINIMAL, **{"spec.resources.requests.memory": amount})
    assert_round_trip(job.FineTuneJobSpec, sent["spec"], dry.create(sent)["spec"])


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_the_example_is_accepted(control_plane, namespace, path):
    """Each document alone, as `kubectl apply` would send it; the namespaces of an example are created first."""
    documents = [document for document in yaml.safe_load_all(path.read_text()) if document]
    assert documents, f"{path} is empty"
    for document in documents:
        document["metadata"].pop("namespace", None)
        control_plane.kubectl(
            "create", "--dry-run=server", "--validate=strict", f"--namespace={namespace}", "-f", "-",
            stdin=json.dumps(document),
        )  # fmt: skip


def test_there_are_examples():
    assert {path.name for path in EXAMPLES} >= {"every-field.yaml", "quickstart.yaml"}
