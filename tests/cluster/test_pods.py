"""Pods of jobs as the admission of a real API server takes or refuses them: LimitRanges, ranges of ids, `restricted`.

They are sent as a dry run, which goes through the whole admission.
"""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from finetune_api.reasons import Reason, Stage
from finetune_operator import settings
from finetune_operator.decide import diagnosis
from support import controlplane, installed, templates

pytestmark = pytest.mark.cluster

SMALL = {"preflight": {"requests": {"cpu": "500m", "memory": "2Gi"}}}
EIGHT = {"parameters": 8_000_000_000}
EVERYTHING = {
    "env": {"HTTPS_PROXY": "http://proxy:3128"},
    "labels": {"team": "ml"},
    "annotations": {"sidecar.istio.io/inject": "false"},
    "nodeSelector": {"pool": "ml"},
    "tolerations": [{"key": "ml", "operator": "Exists"}],
    "affinity": {
        "podAffinity": {
            "preferredDuringSchedulingIgnoredDuringExecution": [
                {
                    "weight": 100,
                    "podAffinityTerm": {
                        "topologyKey": "topology.kubernetes.io/zone",
                        "labelSelector": {
                            "matchExpressions": [{"key": "finetune.dev/stage", "operator": "In", "values": ["train"]}]
                        },
                        "matchLabelKeys": ["finetune.dev/uid"],
                    },
                }
            ]
        }
    },
    "topologySpreadConstraints": [
        {"topologyKey": "topology.kubernetes.io/zone", "whenUnsatisfiable": "ScheduleAnyway"}
    ],
    "dnsPolicy": "None",
    "dnsConfig": {
        "nameservers": ["10.0.0.10"],
        "searches": ["ml.example"],
        "options": [{"name": "ndots", "value": "2"}],
    },
    "requests": {"cpu": "1", "memory": "1Gi", "ephemeralStorage": "1Gi"},
    "limits": {"cpu": "2", "memory": "2Gi", "ephemeralStorage": "4Gi"},
}


class Admission:
    """A namespace."""

    def __init__(self, plane: controlplane.ControlPlane, name: str) -> None:
        self.plane, self.name, self.where = plane, name, f"--namespace={name}"
        installed.eventually(lambda: plane.run("get", "serviceaccount", "default", self.where).returncode == 0, 30)

    def limits(self, **rule: Any) -> None:
        spec = {"limits": [{"type": "Container", **rule}]}
        made = {"apiVersion": "v1", "kind": "LimitRange", "metadata": {"name": "defaults"}, "spec": spec}
        self.plane.kubectl("create", self.where, "-f-", stdin=json.dumps(made))

    def send(self, of: Stage | None, chart: settings.Settings, **how: Any) -> tuple[list[dict[str, Any]], str]:
        """The containers of the pod as it would be stored, and why it is refused."""
        made = templates.of(of, chart, **how)
        metadata = {"name": "p", **made["metadata"]}
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": made["spec"]}
        done = self.plane.run("create", "--dry-run=server", "-o=json", self.where, "-f-", stdin=json.dumps(pod))
        return (templates.containers(json.loads(done.stdout)) if done.returncode == 0 else []), done.stderr


@pytest.fixture
def admission(control_plane: controlplane.ControlPlane, namespace: str) -> Admission:
    return Admission(control_plane, namespace)


@pytest.fixture
def ranges(control_plane: controlplane.ControlPlane, admission: Admission) -> Iterator[Admission]:
    """A namespace that assigns ids as those of OpenShift: pods that choose their own are refused."""
    rule = {
        "expression": "!has(object.spec.securityContext.runAsUser) || object.spec.securityContext.runAsUser >= 1000620000",
        "message": "runAsUser must be in the ranges: [1000620000, 1000629999]",
    }
    pods = {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}
    here = {"matchLabels": {"kubernetes.io/metadata.name": admission.name}}
    kind = "ValidatingAdmissionPolicy"
    for manifest in (
        {"kind": kind, "spec": {
            "failurePolicy": "Fail", "validations": [rule],
            "matchConstraints": {"resourceRules": [pods], "namespaceSelector": here},
        }},
        {"kind": f"{kind}Binding", "spec": {"policyName": admission.name, "validationActions": ["Deny"]}},
    ):  # fmt: skip
        made = {"apiVersion": "admissionregistration.k8s.io/v1", "metadata": {"name": admission.name}, **manifest}
        control_plane.kubectl("create", "-f-", stdin=json.dumps(made))
    # the API server takes up a policy within moments
    installed.eventually(lambda: "ranges" in admission.send(Stage.TRAIN, templates.chart())[1], 30)
    yield admission
    for resource in ("validatingadmissionpolicies", "validatingadmissionpolicybindings"):
        control_plane.kubectl("delete", resource, admission.name)


def test_a_namespace_that_limits_cpu_refuses_a_stage_in_words_that_lead_on(admission: Admission) -> None:
    admission.limits(default={"cpu": "250m", "memory": "8Gi"}, defaultRequest={"cpu": "100m", "memory": "256Mi"})
    _, words = admission.send(Stage.PREFLIGHT, templates.chart(**SMALL))
    problem = diagnosis.refused("the pod", words)
    assert problem.reason is Reason.QUOTA_EXCEEDED
    assert "limits the cpu of a container to 250m, and the pod requests 500m" in problem.message
    assert "resources.limits" in problem.message


@pytest.mark.parametrize("which", templates.PODS)
def test_a_limit_in_the_chart_lets_every_pod_into_that_namespace(admission: Admission, which: Stage | None) -> None:
    admission.limits(default={"cpu": "250m", "memory": "8Gi"}, defaultRequest={"cpu": "100m", "memory": "256Mi"})
    chart = templates.chart(**SMALL, pods={"limits": {"cpu": "1"}})
    taken, words = admission.send(which, chart, resources={"gpus": 0, "requests": {"cpu": 4, "memory": "16Gi"}})
    assert taken, words
    assert {container["resources"]["limits"]["cpu"] for container in taken} == {"4"}


def test_a_limit_of_the_job_lets_its_training_into_that_namespace(admission: Admission) -> None:
    admission.limits(default={"cpu": "250m"})
    own = {"gpus": 0, "requests": {"cpu": 4}}
    assert admission.send(Stage.TRAIN, templates.chart(), resources=own)[0] == []
    assert admission.send(Stage.TRAIN, templates.chart(), resources={**own, "limits": {"cpu": 6}})[0]


@pytest.mark.parametrize("which", [Stage.TRAIN, None])
def test_a_default_limit_of_the_disk_gives_way_to_what_the_model_needs(
    admission: Admission, which: Stage | None
) -> None:
    admission.limits(default={"ephemeral-storage": "200Mi"}, defaultRequest={"ephemeral-storage": "50Mi"})
    taken, words = admission.send(which, templates.chart(), base=EIGHT)
    assert taken, words
    assert {container["resources"]["limits"]["ephemeral-storage"] for container in taken} == {"38Gi"}
    unknown, _ = admission.send(which, templates.chart())
    assert {container["resources"]["limits"]["ephemeral-storage"] for container in unknown} == {"200Mi"}
    own = {"gpus": 0, "requests": {"ephemeralStorage": "5Gi"}}
    taken, _ = admission.send(which, templates.chart(), resources=own)
    assert {container["resources"]["limits"]["ephemeral-storage"] for container in taken} == {"10Gi"}


def test_a_namespace_that_assigns_ids_takes_pods_that_leave_them_out(ranges: Admission) -> None:
    chart = templates.chart(securityContext=None)
    for which in templates.PODS:
        assert "ranges" in ranges.send(which, templates.chart())[1], which
        taken, words = ranges.send(which, chart)
        assert taken, words


def test_all_that_the_chart_can_say_stays_within_the_restricted_standard(
    control_plane: controlplane.ControlPlane, admission: Admission
) -> None:
    control_plane.kubectl("label", "namespace", admission.name, "pod-security.kubernetes.io/enforce=restricted")
    control_plane.kubectl("create", "-f-", stdin=json.dumps(
        {"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": "restricted-test"}, "handler": "runc"}
    ))  # fmt: skip
    context = {"runAsUser": 1000620000, "supplementalGroups": [2000], "fsGroupChangePolicy": "OnRootMismatch"}
    slice_ = {
        "resource": "nvidia.com/mig-1g.10gb",
        "multiNodeResources": {"rdma/hca": "1"},
        "runtimeClassName": "restricted-test",
    }
    chart = templates.chart(
        pods=EVERYTHING,
        gpuTypes={"mig-1g": slice_},
        securityContext=context,
        imagePullSecretsByNamespace={"ml": ["own"]},
        modelCache={"claimName": "models", "size": "500Gi"},
    )
    for which in templates.PODS:
        taken, words = admission.send(which, chart, resources={"gpus": 1, "gpuType": "mig-1g"}, nodes=2)
        assert taken, words
        assert taken[-1]["resources"]["limits"]["nvidia.com/mig-1g.10gb"] == "1"
        assert "Warning" not in words
