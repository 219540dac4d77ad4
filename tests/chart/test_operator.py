"""The operator's Deployment and what stands around it."""

import subprocess

from tests.chart.conftest import CHART, Manifest, Render

from finetune_api import serving

VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}


def violations(pod: Manifest) -> list[str]:
    """What the `restricted` Pod Security Standard, and a read-only root, would object to."""
    found = []
    security = pod.get("securityContext", {})
    if security.get("runAsNonRoot") is not True or not security.get("runAsUser"):
        found.append("the pod may run as root")
    if security.get("seccompProfile") != {"type": "RuntimeDefault"}:
        found.append("no seccomp profile")
    found += [f"pod sets {key}" for key in ("hostNetwork", "hostPID", "hostIPC") if pod.get(key)]
    for volume in pod.get("volumes", []):
        if not set(volume) - {"name"} <= VOLUMES:
            found.append(f"volume {volume['name']} is none of {sorted(VOLUMES)}")
    for container in pod["containers"] + pod.get("initContainers", []):
        own = container.get("securityContext", {})
        if own.get("allowPrivilegeEscalation") is not False:
            found.append(f"{container['name']} may escalate")
        if own.get("readOnlyRootFilesystem") is not True:
            found.append(f"{container['name']} has a writable root")
        if own.get("capabilities") != {"drop": ["ALL"]}:
            found.append(f"{container['name']} keeps capabilities")
        if own.get("privileged"):
            found.append(f"{container['name']} is privileged")
    return found


def pod_of(rendered: dict[str, dict[str, Manifest]]) -> Manifest:
    pod: Manifest = rendered["Deployment"]["finetune-operator"]["spec"]["template"]["spec"]
    return pod


def test_helm_lint_finds_nothing(helm: str) -> None:
    done = subprocess.run([helm, "lint", "--strict", str(CHART)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "[WARNING]" not in done.stdout
    assert "[ERROR]" not in done.stdout


def test_the_pod_is_restricted(render: Render) -> None:
    assert violations(pod_of(render())) == []


def test_the_pod_has_what_the_operator_needs(render: Render) -> None:
    pod = pod_of(render())
    (container,) = pod["containers"]
    environment = {entry["name"]: entry for entry in container["env"]}
    assert environment["POD_NAME"]["valueFrom"] == {"fieldRef": {"fieldPath": "metadata.name"}}
    assert environment["POD_NAMESPACE"]["valueFrom"] == {"fieldRef": {"fieldPath": "metadata.namespace"}}
    assert container["ports"] == [
        {"name": "metrics", "containerPort": 8080},
        {"name": "index", "containerPort": serving.INDEX_PORT},
    ]
    assert container["livenessProbe"]["httpGet"] == {"path": "/healthz", "port": "metrics"}
    assert container["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "metrics"}
    assert {mount["mountPath"] for mount in container["volumeMounts"]} == {"/etc/finetune-operator", "/tmp"}
    assert container["resources"] == {
        "requests": {"cpu": "100m", "memory": "200Mi"},
        "limits": {"memory": "512Mi"},
    }


def test_two_replicas_spread_and_survive_a_drain(render: Render) -> None:
    rendered = render()
    spec = rendered["Deployment"]["finetune-operator"]["spec"]
    assert spec["replicas"] == 2
    assert spec["strategy"]["type"] == "RollingUpdate"
    for constraint in pod_of(rendered)["topologySpreadConstraints"]:
        assert constraint["whenUnsatisfiable"] == "ScheduleAnyway"
        assert constraint["labelSelector"] == spec["selector"]
    budget = rendered["PodDisruptionBudget"]["finetune-operator"]["spec"]
    assert budget["maxUnavailable"] == 1
    assert budget["selector"] == spec["selector"]
    assert budget["unhealthyPodEvictionPolicy"] == "AlwaysAllow", "a replica that is not ready would hold up a drain"


def test_one_replica_gets_no_disruption_budget(render: Render) -> None:
    assert "PodDisruptionBudget" not in render({"replicas": 1})


def test_selectors_match_the_pods_and_nothing_of_the_version(render: Render) -> None:
    rendered = render({"podLabels": {"team": "ml"}})
    template = rendered["Deployment"]["finetune-operator"]["spec"]["template"]["metadata"]["labels"]
    selector = rendered["Deployment"]["finetune-operator"]["spec"]["selector"]["matchLabels"]
    assert selector.items() <= template.items()
    assert set(selector) == {"app.kubernetes.io/name", "app.kubernetes.io/instance"}
    assert rendered["Service"]["finetune-operator-metrics"]["spec"]["selector"] == selector
    assert template["team"] == "ml"


def test_images_follow_registry_tag_and_digest(render: Render) -> None:
    digest = "sha256:" + "a" * 64

    def image(values: Manifest) -> str:
        return str(pod_of(render({"images": values}))["containers"][0]["image"])

    assert image({}) == "finetune-operator:0.1.0"
    assert image({"registry": "registry.example/ml/"}) == "registry.example/ml/finetune-operator:0.1.0"
    assert image({"operator": {"repository": "localhost:5000/op", "tag": "dev"}}) == "localhost:5000/op:dev"
    assert image({"operator": {"tag": "dev", "digest": digest}}) == f"finetune-operator@{digest}"


def test_pull_secrets_reach_the_operator(render: Render) -> None:
    assert pod_of(render({"imagePullSecrets": ["registry-key"]}))["imagePullSecrets"] == [{"name": "registry-key"}]


def test_monitors_are_rendered_only_on_request(render: Render) -> None:
    assert not {"PodMonitor", "ServiceMonitor"} & set(render())
    both = render(
        {
            "monitoring": {
                "podMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
                "serviceMonitor": {"enabled": True, "interval": "15s"},
            }
        }
    )
    pods, services = both["PodMonitor"]["finetune-operator"], both["ServiceMonitor"]["finetune-operator"]
    assert pods["metadata"]["labels"]["release"] == "prometheus"
    endpoint = {"port": "metrics", "path": "/metrics", "honorLabels": True}
    assert pods["spec"]["podMetricsEndpoints"] == [endpoint | {"interval": "30s"}]
    assert services["spec"]["endpoints"] == [endpoint | {"interval": "15s"}]
    labels = both["Service"]["finetune-operator-metrics"]["metadata"]["labels"]
    assert services["spec"]["selector"]["matchLabels"].items() <= labels.items()


def test_names_stay_within_what_kubernetes_allows(render: Render) -> None:
    rendered = render({"namespaces": ["n" * 63]}, "r" * 53)
    for kind, manifests in rendered.items():
        for name in manifests:
            assert len(name.rpartition("/")[2]) <= 63, f"{kind} {name}"


def test_extra_labels_are_on_everything_but_the_selectors(render: Render, render_tests: Render) -> None:
    values = {
        "commonLabels": {"cost-centre": "42"},
        "namespaces": ["ml"],
        "networkPolicy": {"enabled": True},
        "monitoring": {name: {"enabled": True} for name in ("podMonitor", "serviceMonitor", "alerts", "dashboards")},
    }
    rendered = render(values)
    for manifests in (*rendered.values(), *render_tests(values).values()):
        for name, manifest in manifests.items():
            assert manifest["metadata"]["labels"]["cost-centre"] == "42", f"{manifest['kind']} {name}"
    deployment = rendered["Deployment"]["finetune-operator"]["spec"]
    assert deployment["template"]["metadata"]["labels"]["cost-centre"] == "42"
    assert "cost-centre" not in deployment["selector"]["matchLabels"], "a selector can never be changed"


def test_the_priority_of_the_operator_is_the_installations(render: Render) -> None:
    assert "priorityClassName" not in pod_of(render())
    assert (
        pod_of(render({"priorityClassName": "system-cluster-critical"}))["priorityClassName"]
        == "system-cluster-critical"
    )


def test_everything_carries_the_recommended_labels(render: Render) -> None:
    for kind, manifests in render({"namespaces": ["ml"], "networkPolicy": {"enabled": True}}).items():
        for name, manifest in manifests.items():
            labels = manifest["metadata"]["labels"]
            assert labels["app.kubernetes.io/name"] == "finetune-operator", f"{kind} {name}"
            assert labels["app.kubernetes.io/managed-by"] == "Helm", f"{kind} {name}"
