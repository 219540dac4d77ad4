"""The example values for clusters of several vendors: accepted by the chart, and what they do to the pods."""

import pathlib
from typing import Any

import pytest
import yaml
from tests.chart.conftest import REPOSITORY, Render
from tests.chart.test_operator import pod_of
from tests.chart.test_pods import read

from finetune_api.reasons import Stage
from finetune_operator import settings
from support import templates

FILES = sorted((REPOSITORY / "examples" / "clusters").glob("*.yaml"))
L4, H100 = {"gpus": 1, "gpuType": "nvidia-l4"}, {"gpus": 8, "gpuType": "nvidia-h100-80gb"}


def values(name: str) -> Any:
    return yaml.safe_load((REPOSITORY / "examples" / "clusters" / f"{name}.yaml").read_text())


def chart(render: Render, name: str) -> settings.Settings:
    return read(render, values(name))


def keys(template: dict[str, Any]) -> list[str]:
    return [toleration["key"] for toleration in template["spec"].get("tolerations", [])]


def test_there_is_one_file_for_each_vendor() -> None:
    assert [path.stem for path in FILES] == ["aks", "eks", "gke", "k3s", "openshift"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_example_keeps_pods_restricted_and_every_one_of_its_types_is_known(
    render: Render, path: pathlib.Path
) -> None:
    found = chart(render, path.stem)
    for which in templates.PODS:
        made = templates.of(which, found)["spec"]
        assert made["securityContext"].get("runAsNonRoot") is True
        assert made["securityContext"].get("runAsUser") != 0
        for container in [*made.get("initContainers", []), *made["containers"]]:
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    for name in values(path.stem).get("gpuTypes", {}):
        assert found.gpu_types[name].memory_gi_b, name


def test_openshift_assigns_the_ids_of_all_pods(render: Render) -> None:
    given = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    for which in templates.PODS:
        assert templates.of(which, chart(render, "openshift"))["spec"]["securityContext"] == given
    assert pod_of(render(values("openshift")))["securityContext"] == given
    policies = render(
        {**values("openshift"), "networkPolicy": {**values("openshift")["networkPolicy"], "enabled": True}}
    )
    [dns, *_] = policies["NetworkPolicy"]["finetune-operator"]["spec"]["egress"]
    assert {port["port"] for port in dns["ports"]} == {53, 5353}


def test_gke_selects_by_its_own_label(render: Render) -> None:
    found = chart(render, "gke")
    train = templates.of(Stage.TRAIN, found, L4)
    assert train["spec"]["nodeSelector"] == {"cloud.google.com/gke-accelerator": "nvidia-l4"}
    assert keys(train) == ["cloud.google.com/gke-spot", "nvidia.com/gpu"]
    assert keys(templates.of(None, found, L4)) == ["nvidia.com/gpu"]
    slice_ = templates.of(Stage.TRAIN, found, {"gpus": 1, "gpuType": "a100-1g"})
    assert slice_["spec"]["nodeSelector"]["cloud.google.com/gke-gpu-partition-size"] == "1g.5gb"
    assert templates.amounts(templates.of(Stage.PREFLIGHT, found))["limits"]["ephemeral-storage"] == "10Gi"


def test_eks_selects_what_karpenter_knows_and_connects_nodes_by_efa(render: Render) -> None:
    found = chart(render, "eks")
    assert templates.of(Stage.TRAIN, found, L4)["spec"]["nodeSelector"] == {"karpenter.k8s.aws/instance-gpu-name": "l4"}
    several = templates.of(Stage.TRAIN, found, H100, nodes=2)
    assert templates.amounts(several)["limits"] == {"nvidia.com/gpu": "8", "vpc.amazonaws.com/efa": "32"}
    assert templates.variables(several)[0]["FI_PROVIDER"] == "efa"
    assert several["metadata"]["annotations"]["karpenter.sh/do-not-disrupt"] == "true"
    assert "vpc.amazonaws.com/efa" not in templates.amounts(templates.of(Stage.TRAIN, found, H100))["limits"]
    [spread] = templates.of(None, found)["spec"]["topologySpreadConstraints"]
    assert spread["topologyKey"] == "topology.kubernetes.io/zone"
    assert spread["labelSelector"]["matchLabels"]["finetune.dev/uid"] == "u-1"


def test_aks_selects_instances_and_limits_every_container(render: Render) -> None:
    found = chart(render, "aks")
    train = templates.of(Stage.TRAIN, found, H100)
    assert train["spec"]["nodeSelector"] == {"node.kubernetes.io/instance-type": "Standard_ND96isr_H100_v5"}
    assert keys(train) == ["kubernetes.azure.com/scalesetpriority", "sku"]
    for which in templates.PODS:
        for container in templates.containers(templates.of(which, found)):
            assert {"cpu", "memory"} <= set(container["resources"]["limits"]), which
    large = templates.of(Stage.TRAIN, found, {"gpus": 0, "requests": {"cpu": 8, "memory": "64Gi"}})
    assert (templates.amounts(large)["limits"]["cpu"], templates.amounts(large)["limits"]["memory"]) == ("8", "64Gi")


def test_k3s_gives_gpus_under_its_runtime_class_alone(render: Render) -> None:
    found = chart(render, "k3s")
    own = {"gpus": 1, "gpuType": "rtx-4090"}
    for which in (Stage.BASELINE, Stage.TRAIN, Stage.EVALUATE, None):
        made = templates.of(which, found, own)["spec"]
        assert (made["runtimeClassName"], made["nodeSelector"]) == ("nvidia", {"gpu": "rtx-4090"})
    assert "runtimeClassName" not in templates.of(Stage.PREFLIGHT, found)["spec"]
    assert render(values("k3s"))["Deployment"]["finetune-operator"]["spec"]["replicas"] == 1
