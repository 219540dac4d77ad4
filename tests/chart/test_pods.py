"""Settings of pods, from the chart's values to the pod templates of the operator; what the schema refuses of them."""

import json
from typing import Any

import pytest
from tests.chart.conftest import Refusal, Render
from tests.chart.test_operator import pod_of
from tests.chart.test_values import SCHEMA

from finetune_api.reasons import Stage
from finetune_operator import podsettings, settings
from support import templates

WHERE = {"preflight": Stage.PREFLIGHT, "verify": Stage.VERIFY, "serving": None}
LOADING = (Stage.BASELINE, Stage.TRAIN, Stage.EVALUATE)


def read(render: Render, values: Any = None) -> settings.Settings:
    """What the operator reads of these values."""
    return settings.Settings.model_validate_json(
        render(values)["ConfigMap"]["finetune-operator"]["data"]["settings.json"]
    )


def test_trainings_are_not_evicted_to_use_fewer_nodes(render: Render) -> None:
    chart = read(render)
    for which in templates.PODS:
        annotations = templates.of(which, chart)["metadata"]["annotations"]
        asked = {
            "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
            "karpenter.sh/do-not-disrupt": "true",
        }.items() <= annotations.items()
        assert asked is (which in LOADING), which


def test_an_annotation_of_the_chart_is_removed_by_null(render: Render) -> None:
    chart = read(render, {"training": {"annotations": {"karpenter.sh/do-not-disrupt": None}}})
    annotations = templates.of(Stage.TRAIN, chart)["metadata"]["annotations"]
    assert "karpenter.sh/do-not-disrupt" not in annotations
    assert annotations["cluster-autoscaler.kubernetes.io/safe-to-evict"] == "false"


def test_a_whole_layer_is_removed_by_null(render: Render) -> None:
    layers = ("pods", "preflight", "training", "verify", "serving", "gpuTypes", "imagePullSecretsByNamespace")
    chart = read(render, dict.fromkeys(layers))
    bare = settings.Settings(images=chart.images)
    for name in ("pods", "preflight", "training", "verify", "serving", "gpu_types", "image_pull_secrets_by_namespace"):
        assert getattr(chart, name) == getattr(bare, name), name


def test_every_stage_that_loads_no_model_sets_its_disk(render: Render) -> None:
    """A LimitRange gives containers without a limit of the disk its default one, which may be far too small."""
    chart = read(render)
    preflight, verify = (templates.amounts(templates.of(which, chart)) for which in (Stage.PREFLIGHT, Stage.VERIFY))
    assert (preflight["requests"]["ephemeral-storage"], preflight["limits"]["ephemeral-storage"]) == ("1Gi", "32Gi")
    assert (verify["requests"]["ephemeral-storage"], verify["limits"]["ephemeral-storage"]) == ("100Mi", "200Mi")


def test_every_field_of_a_layer_arrives(render: Render) -> None:
    layer = {
        "env": {"HTTPS_PROXY": "http://proxy:3128"},
        "labels": {"team": "ml"},
        "annotations": {"a": "b"},
        "nodeSelector": {"pool": "ml"},
        "tolerations": [{"key": "ml", "operator": "Exists"}],
        "affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []}},
        "topologySpreadConstraints": [{"topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway"}],
        "runtimeClassName": "kata",
        "priorityClassName": "low",
        "dnsPolicy": "Default",
        "dnsConfig": {"searches": ["ml.example"]},
        "requests": {"cpu": "1", "memory": "1Gi", "ephemeralStorage": "1Gi"},
        "limits": {"cpu": "2", "memory": "2Gi", "ephemeralStorage": "2Gi"},
    }
    assert set(layer) == {field.alias or name for name, field in podsettings.Pods.model_fields.items()}
    for name in ("pods", "preflight", "training", "verify", "serving"):
        chart = read(render, {name: layer})
        made = templates.of(Stage.TRAIN if name in {"pods", "training"} else WHERE[name], chart)
        assert made["spec"]["runtimeClassName"] == "kata", name
        assert all(env["HTTPS_PROXY"] == "http://proxy:3128" for env in templates.variables(made)), name
    typed = read(render, {"gpuTypes": {"own": layer}})
    assert templates.of(None, typed, {"gpus": 1, "gpuType": "own"})["spec"]["runtimeClassName"] == "kata"


@pytest.mark.parametrize(
    "values, place", templates.REFUSED, ids=[json.dumps(values) for values, _ in templates.REFUSED]
)
def test_the_chart_is_not_installed_with_values_that(refusal: Refusal, values: Any, place: str) -> None:
    assert place in refusal(values)


def test_the_operators_own_pods_keep_their_confinement_too(refusal: Refusal) -> None:
    weak = {"container.apparmor.security.beta.kubernetes.io/operator": "unconfined"}
    assert "/podAnnotations" in refusal({"podAnnotations": weak})


def test_schema_and_operator_refuse_the_same_names() -> None:
    given = SCHEMA["definitions"]
    assert given["environment"]["propertyNames"]["allOf"][1]["not"]["pattern"] == podsettings.ENVIRONMENT.pattern
    for kind in ("podLabels", "podAnnotations"):
        assert given[kind]["allOf"][1]["propertyNames"]["not"]["pattern"] == podsettings.NAMES.pattern


def test_the_operators_own_pods_leave_their_ids_to_the_namespace_too(
    render: Render, render_tests: Render, render_upgrade: Render
) -> None:
    found = [
        pod_of(render({"securityContext": None})),
        render_tests({"securityContext": None})["Pod"].popitem()[1]["spec"],
    ]
    found.append(render_upgrade({"securityContext": None})["Job"].popitem()[1]["spec"]["template"]["spec"])
    for pod in found:
        assert pod["securityContext"] == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}


def test_large_ids_stay_whole_numbers(render: Render) -> None:
    """As in the ranges of OpenShift."""
    values = {"securityContext": {"runAsUser": 1000620000, "runAsGroup": None, "fsGroup": 1000620000}}
    expected = {
        "runAsNonRoot": True, "runAsUser": 1000620000, "fsGroup": 1000620000, "seccompProfile": {"type": "RuntimeDefault"},
    }  # fmt: skip
    assert pod_of(render(values))["securityContext"] == expected
    assert templates.of(Stage.TRAIN, read(render, values))["spec"]["securityContext"] == expected


def test_a_mig_slice_is_a_type_beside_whole_gpus(render: Render) -> None:
    chart = read(render, {"gpuTypes": {"mig-1g": {"resource": "nvidia.com/mig-1g.10gb", "memoryGiB": 9}}})
    slice_ = templates.amounts(templates.of(Stage.TRAIN, chart, {"gpus": 1, "gpuType": "mig-1g"}))
    whole = templates.amounts(templates.of(Stage.TRAIN, chart, {"gpus": 1, "gpuType": "nvidia-l4"}))
    assert slice_["limits"] == {"nvidia.com/mig-1g.10gb": "1"}
    assert whole["limits"] == {"nvidia.com/gpu": "1"}
