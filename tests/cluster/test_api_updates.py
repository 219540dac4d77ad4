"""Edits of a stored FineTuneJob on a real API server: its spec by people, its status by the operator."""

from typing import Any

import kubernetes.client
import pytest

from finetune_api import schema, status
from support import api, manifests

pytestmark = pytest.mark.cluster

# --- Updates ---------------------------------------------------------------------------------------------------------


def test_the_output_cannot_be_changed(own):
    stored = own.create(manifests.MINIMAL)
    with pytest.raises(kubernetes.client.ApiException) as refused:
        own.replace(manifests.changed(stored, **{"spec.storage.output": "s3://elsewhere/finetune"}))
    [(field, message)] = api.causes(refused.value)
    assert field == "spec.storage.output"
    assert '"s3://elsewhere/finetune": storage.output cannot be changed' in message


def test_every_other_part_of_the_spec_can_be_changed_and_counts_as_a_generation(own):
    stored = own.create(manifests.MINIMAL)
    edit = {"spec.dataset.train[0]": "s3://acme/support/new.jsonl", "spec.training.epochs": 1, "spec.suspend": True}
    found = own.replace(manifests.changed(stored, **edit))
    assert (stored["metadata"]["generation"], found["metadata"]["generation"]) == (1, 2)
    assert found["spec"]["dataset"]["train"] == ["s3://acme/support/new.jsonl"]


# --- The status ------------------------------------------------------------------------------------------------------

NOW = "2026-01-02T03:04:05Z"


def full_status() -> dict[str, Any]:
    """A status with a value in every field, made from the schema so that none is forgotten."""

    def value(schema: dict[str, Any]) -> Any:
        match schema.get("type"):
            case "object":
                return {name: value(child) for name, child in schema["properties"].items()}
            case "array":
                return [value(schema["items"])]
            case "integer":
                return 1
            case "number":
                return 0.5
            case "boolean":
                return True
        return NOW if schema.get("format") == "date-time" else schema.get("enum", ["text"])[0]

    return value(schema.schema_of(status.Status))


def test_a_status_with_every_field_is_stored_as_written(own):
    stored = own.create(manifests.MINIMAL)
    found = own.replace(manifests.changed(stored, status=full_status()), subresource="_status")
    assert found["status"] == full_status()
    assert status.Status.model_validate(found["status"]).wire() == full_status()


def test_a_write_of_the_status_leaves_the_spec_alone(own):
    stored = own.create(manifests.MINIMAL)
    edit = {"spec.training.epochs": 7, "status.phase": "Training"}
    found = own.replace(manifests.changed(stored, **edit), subresource="_status")
    assert (found["spec"], found["status"]["phase"]) == (stored["spec"], "Training")
    assert found["metadata"]["generation"] == 1


def test_a_write_of_the_job_leaves_the_status_alone(own):
    stored = own.create(manifests.changed(manifests.MINIMAL, **{"status.phase": "Ready"}))
    assert stored["status"] == {"observedGeneration": schema.UNSEEN}
    found = own.replace(manifests.changed(stored, **{"status.phase": "Ready"}))
    assert found["status"] == {"observedGeneration": schema.UNSEEN}


def test_a_condition_type_stands_once(own):
    condition = {
        "type": "Ready",
        "status": "True",
        "observedGeneration": 1,
        "lastTransitionTime": NOW,
        "reason": "Serving",
    }
    stored = own.create(manifests.MINIMAL)
    with pytest.raises(kubernetes.client.ApiException) as refused:
        own.replace(
            manifests.changed(stored, **{"status.conditions": [condition | {"message": text} for text in "ab"]}),
            subresource="_status",
        )
    assert ("status.conditions[1]", 'Duplicate value: {"type":"Ready"}') in api.causes(refused.value)


def test_a_reason_of_a_newer_operator_is_stored(own):
    """Helm does not upgrade CRDs: a reason that this schema does not know must not cost the whole status."""
    failure = {"stage": "distil", "reason": "TeacherAsleep", "attempt": 1, "message": "wake it"}
    found = own.replace(
        manifests.changed(own.create(manifests.MINIMAL), **{"status.failure": failure}), subresource="_status"
    )
    assert found["status"]["failure"] == failure
