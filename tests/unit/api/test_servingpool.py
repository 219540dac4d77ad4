"""The rules of a ServingPool, and those of a job that uses one, as `finetune validate` evaluates them."""

from typing import Any

import pytest
import yaml

from finetune_api import job, schema, servingpool
from finetune_cli import rules
from support import manifests

POOL: dict[str, Any] = {
    "apiVersion": "finetune.dev/v1alpha1",
    "kind": "ServingPool",
    "metadata": {"name": "chat"},
    "spec": {"baseModel": {"name": "llama"}},
}

ROUTE = {"host": "models.example.com", "endpointPicker": {"service": "chat-epp"}}


def broken(manifest: dict[str, Any]) -> list[str]:
    filled = {**manifest, "spec": servingpool.ServingPoolSpec.model_validate(manifest["spec"]).wire()}
    return [message for _, message in rules.broken(schema.serving_pool(), filled)]


def test_the_smallest_pool_and_the_example_are_good() -> None:
    example = yaml.safe_load((manifests.REPOSITORY / "examples" / "serving-pool.yaml").read_text())
    assert (broken(POOL), broken(example)) == ([], [])


def test_the_example_has_every_field() -> None:
    example = yaml.safe_load((manifests.REPOSITORY / "examples" / "serving-pool.yaml").read_text())["spec"]
    fields = schema.schema_of(servingpool.ServingPoolSpec)["properties"]
    assert set(example) == set(fields) - {"route"}, "which excludes idle"
    for name in ("resources", "storage", "adapters"):
        assert set(example[name]) == set(fields[name]["properties"]), name


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"metadata.name": "a" * 58}, "at most 57 characters"),
        ({"metadata.name": "a.b"}, "must not contain a dot"),
        ({"spec.allowedNamespaces": ["*"]}, "allowedNamespaces needs keysSecret"),
        ({"spec.ingress": {"host": "models.example.com"}}, "ingress needs keysSecret"),
        ({"spec.route": ROUTE}, "route needs keysSecret"),
        (
            {
                "spec.route": ROUTE,
                "spec.keysSecret": "keys",
                "spec.idle": {},
                "spec.adapters": {"claimName": "adapters"},
            },
            "route cannot be set together with idle",
        ),
        ({"spec.adapters": {"onGpu": 8, "inMemory": 4}}, "must not be below adapters.onGpu"),
        ({"spec.extraArgs": ["--max_model_len=10"]}, "set contextLength"),
        ({"spec.extraArgs": ["--max-loras=4"]}, "must not contain --max-loras"),
    ],
)
def test_a_pool_is_refused_with_words_that_help(changes: dict[str, Any], words: str) -> None:
    (message,) = broken(manifests.changed(POOL, **changes))
    assert words in message


@pytest.mark.parametrize(
    "own",
    [
        {"replicas": 2},
        {"resources": {"gpus": 1}},
        {"image": "registry/vllm:1"},
        {"extraArgs": ["--seed=1"]},
        {"apiKeySecret": "key"},
        {"rollout": {"strategy": "Recreate"}},
    ],
)
def test_a_job_in_a_pool_has_no_fields_of_a_server_of_its_own(own: dict[str, Any]) -> None:
    deployment = {"replicas": 1, **own}
    of_a_job = schema.schema_of(job.Deployment)
    (field,) = own
    ((_, message),) = rules.broken(of_a_job, {"pool": "chat", **deployment})
    assert message.startswith(f"deployment.{field}")
    assert "set pool to Dedicated" in message
    assert rules.broken(of_a_job, {"pool": "Dedicated", **deployment}) == []
    assert rules.broken(of_a_job, deployment) == []
