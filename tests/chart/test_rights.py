"""What the operator may do: exactly this list, in every mode of the chart."""

import re

from tests.chart.conftest import CHART, REPOSITORY, Manifest, Render, run
from tests.chart.test_operator import violations

Rights = dict[tuple[str, str], set[str]]

OWN: Rights = {
    ("finetune.dev", "finetunejobs"): {"list", "watch", "delete"},
    ("finetune.dev", "finetunejobs/status"): {"patch"},
    ("finetune.dev", "finetunejobs/finalizers"): {"update"},
    ("finetune.dev", "servingpools"): {"list", "watch"},
    ("finetune.dev", "servingpools/status"): {"patch"},
    ("finetune.dev", "servingpools/finalizers"): {"update"},
    ("policy", "poddisruptionbudgets"): {"list", "watch", "create", "patch"},
    ("batch", "jobs"): {"list", "watch", "create", "delete"},
    ("apps", "deployments"): {"list", "watch", "create", "patch", "delete"},
    ("", "services"): {"list", "watch", "create", "patch", "delete"},
    ("", "pods"): {"list", "watch"},
    ("", "events"): {"list", "create"},
}
QUEUES: Rights = {("kueue.x-k8s.io", "workloads"): {"list", "watch"}}
WAY_IN: Rights = {("networking.k8s.io", "ingresses"): {"list", "watch", "create", "patch", "delete"}}
ROUTES: Rights = {("gateway.networking.k8s.io", "httproutes"): {"list", "watch", "create", "patch", "delete"}}
INFERENCE: Rights = {
    ("inference.networking.k8s.io", "inferencepools"): {"list", "watch", "create", "patch", "delete"},
    ("llm-d.ai", "inferencemodelrewrites"): {"list", "watch", "create", "patch", "delete"},
}
CATALOGUE: Rights = {("finetune.dev", "basemodels"): {"list", "watch"}}
LEADER: Rights = {("coordination.k8s.io", "leases"): {"get", "create", "update", "patch"}}
CLEANUP: Rights = {
    ("rbac.authorization.k8s.io", "roles"): {"list", "delete"},
    ("rbac.authorization.k8s.io", "rolebindings"): {"list", "delete"},
    ("", "configmaps"): {"list", "delete"},
    ("", "serviceaccounts"): {"list", "delete"},
    ("", "pods"): {"list"},
    ("batch", "jobs"): {"list"},
    ("apps", "deployments"): {"list"},
}
WITHDRAWN: Rights = {place: {"list", "delete"} for place in (WAY_IN | ROUTES | INFERENCE)}
GROUPS = ("gateway.networking.k8s.io/v1", "inference.networking.k8s.io/v1", "llm-d.ai/v1alpha2")
"""Groups that not every cluster has."""

NAME = "finetune-operator-finetune-system"


def rights(role: Manifest) -> Rights:
    found: Rights = {}
    for rule in role["rules"]:
        for group in rule["apiGroups"]:
            for resource in rule["resources"]:
                assert (group, resource) not in found, f"{resource} is listed twice"
                found[group, resource] = set(rule["verbs"])
    return found


def test_the_cluster_role_has_exactly_these_verbs(render: Render) -> None:
    rendered = render()
    assert rights(rendered["ClusterRole"][NAME]) == OWN | CATALOGUE
    assert set(rendered["ClusterRole"]) == {NAME}
    assert set(rendered["Role"]) == {"finetune-operator-leader"}


def test_named_namespaces_get_roles_and_the_cluster_role_shrinks_to_the_catalogue(render: Render) -> None:
    rendered = render({"namespaces": ["ml", "research"]})
    assert rights(rendered["ClusterRole"][NAME]) == CATALOGUE
    assert set(rendered["Role"]) == {f"ml/{NAME}", f"research/{NAME}", "finetune-operator-leader"}
    assert rights(rendered["Role"][f"ml/{NAME}"]) == OWN
    assert rights(rendered["Role"][f"research/{NAME}"]) == OWN


def test_where_kueue_is_used_its_workloads_may_be_read_and_nowhere_else(render: Render) -> None:
    values = {"kueue": {"enabled": True}}
    assert rights(render(values)["ClusterRole"][NAME]) == OWN | QUEUES | CATALOGUE
    rendered = render(values | {"namespaces": ["ml"]})
    assert rights(rendered["ClusterRole"][NAME]) == CATALOGUE
    assert rights(rendered["Role"][f"ml/{NAME}"]) == OWN | QUEUES


def test_ingresses_are_written_where_the_chart_says_so_and_nowhere_else(render: Render) -> None:
    values = {"ingress": {"enabled": True}}
    assert rights(render(values)["ClusterRole"][NAME]) == OWN | WAY_IN | CATALOGUE
    rendered = render(values | {"namespaces": ["ml"]})
    assert rights(rendered["ClusterRole"][NAME]) == CATALOGUE
    assert rights(rendered["Role"][f"ml/{NAME}"]) == OWN | WAY_IN


def test_httproutes_are_written_where_the_chart_says_so_and_nowhere_else(render: Render) -> None:
    values = {"gatewayAPI": {"enabled": True, "gateway": {"name": "public", "namespace": "gateways"}}}
    assert rights(render(values)["ClusterRole"][NAME]) == OWN | ROUTES | CATALOGUE
    rendered = render(values | {"namespaces": ["ml"]})
    assert rights(rendered["ClusterRole"][NAME]) == CATALOGUE
    assert rights(rendered["Role"][f"ml/{NAME}"]) == OWN | ROUTES


def test_inferencepools_and_rewrites_are_written_where_the_chart_says_so_and_nowhere_else(render: Render) -> None:
    gateway = {"name": "public", "namespace": "gateways"}
    values = {"gatewayAPI": {"enabled": True, "gateway": gateway, "inference": {"enabled": True}}}
    pools, _ = ({key: verbs} for key, verbs in INFERENCE.items())
    assert rights(render(values)["ClusterRole"][NAME]) == OWN | ROUTES | pools | CATALOGUE
    values["gatewayAPI"]["inference"] = {"enabled": True, "modelRewrites": True}
    assert rights(render(values)["ClusterRole"][NAME]) == OWN | ROUTES | INFERENCE | CATALOGUE


def test_leases_are_only_reached_in_the_release_namespace(render: Render) -> None:
    assert rights(render()["Role"]["finetune-operator-leader"]) == LEADER


def test_no_mode_touches_secrets_or_uses_wildcards(render: Render) -> None:
    for values in ({}, {"namespaces": ["ml"]}):
        rendered = render(values)
        for role in [*rendered["ClusterRole"].values(), *rendered["Role"].values()]:
            for (group, resource), verbs in rights(role).items():
                assert "*" not in {group, resource} | verbs
                assert resource.partition("/")[0] != "secrets"
                assert not verbs & {"escalate", "bind", "impersonate", "deletecollection"}
                assert resource not in {"pods/exec", "pods/attach", "pods/portforward", "serviceaccounts/token"}


def test_every_binding_gives_its_role_to_the_operator_alone(render: Render) -> None:
    rendered = render({"namespaces": ["ml"], "serviceAccount": {"name": "own"}})
    assert set(rendered["ServiceAccount"]) == {"own"}
    bindings = [*rendered["ClusterRoleBinding"].items(), *rendered["RoleBinding"].items()]
    assert len(bindings) == 3
    for name, binding in bindings:
        assert binding["subjects"] == [{"kind": "ServiceAccount", "name": "own", "namespace": "finetune-system"}]
        kind = binding["roleRef"]["kind"]
        assert kind == ("ClusterRole" if binding["kind"] == "ClusterRoleBinding" else "Role")
        place = f"{name.rpartition('/')[0]}/" if "/" in name else ""
        assert place + binding["roleRef"]["name"] in rendered[kind]


def test_it_may_hand_on_no_right_and_make_no_identity() -> None:
    assert not {"roles", "rolebindings", "serviceaccounts", "configmaps", "secrets"} & {name for _, name in OWN}


# -- after an upgrade, for a moment --


def test_what_cleans_up_after_an_upgrade_may_list_and_delete_and_is_gone_afterwards(render_upgrade: Render) -> None:
    whole = render_upgrade()
    granted = CLEANUP | {place: WITHDRAWN[place] for place in WAY_IN}
    assert rights(whole["ClusterRole"][f"{NAME}-cleanup"]) == granted
    assert "Role" not in whole
    some = render_upgrade({"namespaces": ["ml", "research"]})
    assert {name: rights(role) for name, role in some["Role"].items()} == dict.fromkeys(
        (f"ml/{NAME}-cleanup", f"research/{NAME}-cleanup"), granted
    )
    assert "ClusterRole" not in some
    for made in (whole, some):
        for manifest in [one for kind in made.values() for one in kind.values()]:
            hook = manifest["metadata"]["annotations"]
            assert hook["helm.sh/hook"] == "post-upgrade"
            assert hook["helm.sh/hook-delete-policy"] == "before-hook-creation,hook-succeeded,hook-failed"


def test_it_removes_what_a_value_that_is_off_had_made(render_upgrade: Render) -> None:
    def removes(values: Manifest) -> Rights:
        made = render_upgrade(values, GROUPS)
        found = rights(made["ClusterRole"][f"{NAME}-cleanup"])
        (container,) = made["Job"]["finetune-operator-cleanup"]["spec"]["template"]["spec"]["containers"]
        (named,) = container["env"]
        granted = {place: verbs for place, verbs in found.items() if place not in CLEANUP}
        kinds = [kind.split("/") for kind in named["value"].split()]
        assert {(group, plural) for _, group, _, plural in kinds} == granted.keys()
        assert {f"{group}/{version}" for _, group, version, _ in kinds} <= {*GROUPS, "networking.k8s.io/v1"}
        return granted

    assert removes({}) == WITHDRAWN
    gateway = {"name": "public", "namespace": "gateways"}
    values: Manifest = {"ingress": {"enabled": True}, "gatewayAPI": {"enabled": True, "gateway": gateway}}
    assert removes(values).keys() == INFERENCE.keys()
    values["gatewayAPI"]["inference"] = {"enabled": True, "modelRewrites": True}
    assert removes(values) == {}


def test_it_runs_after_an_upgrade_alone_and_can_be_left_out(render: Render, helm: str) -> None:
    assert not [name for kind in render().values() for name in kind if "cleanup" in name]
    done = run(helm, {"upgrade": {"cleanUp": False}}, "finetune-operator", "--is-upgrade")
    assert done.returncode == 0
    assert "cleanup" not in done.stdout


def test_its_pod_is_restricted_and_gets_the_namespaces(render: Render, render_upgrade: Render) -> None:
    values = {"namespaces": ["ml", "research"], "images": {"registry": "registry.example"}}
    made = render_upgrade(values)
    pod = made["Job"]["finetune-operator-cleanup"]["spec"]["template"]
    assert violations(pod["spec"]) == []
    (container,) = pod["spec"]["containers"]
    (operator,) = render(values)["Deployment"]["finetune-operator"]["spec"]["template"]["spec"]["containers"]
    assert container["image"] == operator["image"]
    assert container["args"][0].strip() == (CHART / "files" / "cleanup.py").read_text().strip()
    assert container["args"][1:] == ["ml", "research"]
    service = render(values)["Service"]["finetune-operator-metrics"]["spec"]["selector"]
    assert not service.items() <= pod["metadata"]["labels"].items()
    for binding in made["RoleBinding"].values():
        assert binding["subjects"] == [
            {"kind": "ServiceAccount", "name": "finetune-operator-cleanup", "namespace": "finetune-system"}
        ]


def test_only_pods_that_ask_get_the_operators_token(render: Render) -> None:
    rendered = render()
    assert rendered["ServiceAccount"]["finetune-operator"]["automountServiceAccountToken"] is False
    pod = rendered["Deployment"]["finetune-operator"]["spec"]["template"]["spec"]
    assert pod["automountServiceAccountToken"] is True


def documented() -> list[Rights]:
    """The tables of docs/security.md: in the namespaces of jobs, with Kueue, Ingresses, HTTPRoutes, InferencePools, in the
    cluster, in the operator's, and of what cleans up after an upgrade, for the kinds of values that are off as well."""
    found: list[Rights] = []
    for line in (REPOSITORY / "docs" / "security.md").read_text().splitlines():
        if line.startswith("| group |"):
            found.append({})
        elif found and re.match(r"\| ?[-a-z.0-9]* ?\| [a-z/]+ \| [a-z, ]+ \|", line):
            group, resource, verbs = (cell.strip() for cell in line.split("|")[1:4])
            found[-1][group, resource] = set(verbs.split(", "))
    return found


def test_the_page_on_security_lists_every_right() -> None:
    assert documented() == [OWN, QUEUES, WAY_IN, ROUTES, INFERENCE, CATALOGUE, LEADER, CLEANUP, WITHDRAWN]


def test_every_test_that_the_page_on_security_names_exists() -> None:
    named = set(re.findall(r"`(test_\w+)`", (REPOSITORY / "docs" / "security.md").read_text()))
    code = "".join(path.read_text() for path in (REPOSITORY / "tests").rglob("test_*.py"))
    assert len(named) > 15
    assert {name for name in named if f"def {name}(" not in code} == set()
