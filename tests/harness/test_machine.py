"""What a node leaves on the machine: who may start one, and that another's rules are not touched."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from localcluster import cluster, machine, network, node, plan, ports, process
from toolbox import say

RULES = """*nat
:PREROUTING ACCEPT [0:0]
:DOCKER - [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-SEP-ABC - [0:0]
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A PREROUTING -j DOCKER
-A KUBE-SERVICES -d 10.96.0.1/32 -j KUBE-SEP-ABC
COMMIT
"""


def test_only_kubernetes_chains_and_the_jumps_into_them_are_removed() -> None:
    assert machine.chain_removal("nat", RULES).splitlines() == [
        "*nat",
        ":KUBE-SERVICES - [0:0]",
        ":KUBE-SEP-ABC - [0:0]",
        '-D PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES',
        "-X KUBE-SERVICES",
        "-X KUBE-SEP-ABC",
        "COMMIT",
    ]


def test_rules_without_kubernetes_are_left_alone() -> None:
    assert machine.chain_removal("nat", "*nat\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -j DOCKER\nCOMMIT\n") == ""


def record_node(folder: Path, monkeypatch: pytest.MonkeyPatch, started: int) -> None:
    """A node named `first` whose etcd is this very test, when `started` is its true start time."""
    monkeypatch.setenv("FINETUNE_CACHE", str(folder))
    monkeypatch.setattr(machine, "RECORD", folder / "node.json")
    left = machine.Node("first", str(folder), (), "0", str(folder / "containerd"))
    machine.RECORD.write_text(json.dumps({**left.__dict__}))
    records = left.state / "processes"
    records.mkdir(parents=True)
    fields = {"name": "etcd", "pid": os.getpid(), "started": started, "boot": process.boot_id(), "argv": [], "log": ""}
    (records / "etcd.json").write_text(json.dumps(fields))


def test_a_second_node_is_refused_with_the_name_of_the_first_and_how_to_stop_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record_node(tmp_path, monkeypatch, process.start_time(os.getpid()) or 0)
    with pytest.raises(say.Problem) as caught:
        machine.claim("second")
    shown = str(caught.value)
    assert "'first' is running" in shown
    assert "hack/localcluster down --name first" in shown
    assert "--control-plane-only --name second" in shown


def test_a_node_of_another_cache_folder_is_named_with_that_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record_node(tmp_path, monkeypatch, process.start_time(os.getpid()) or 0)
    monkeypatch.setenv("FINETUNE_CACHE", "/elsewhere")
    with pytest.raises(say.Problem, match=f"FINETUNE_CACHE={tmp_path} python3 hack/localcluster down"):
        machine.claim("second")


def test_what_a_dead_node_left_is_cleaned_before_the_next_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record_node(tmp_path, monkeypatch, started=1)
    cleaned: list[str] = []
    monkeypatch.setattr(machine, "clean", lambda left: cleaned.append(left.name))
    monkeypatch.setattr(machine, "foreign_node", lambda: None)
    machine.claim("second")
    assert cleaned == ["first"]


def test_a_kubelet_that_ended_but_was_not_reaped_is_no_other_node(tmp_path: Path) -> None:
    program = tmp_path / "kubelet"
    program.symlink_to("/bin/sleep")
    child = subprocess.Popen([program, "60"])
    try:
        assert machine.foreign_node() is not None
        child.kill()
        while process.start_time(child.pid) is not None:
            pass
        assert f"pid {child.pid}" not in str(machine.foreign_node())
    finally:
        child.kill()
        child.wait()


def test_the_first_subnet_that_the_machine_does_not_use_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "_used_networks", lambda: [network.ipaddress.IPv4Network("10.244.0.0/16")])
    assert network.choose_subnet() == "10.245.0.0/24"


def test_ports_of_another_cluster_are_not_given_out_twice(tmp_path: Path) -> None:
    given: set[int] = set()
    for name in ("one", "two", "three"):
        (tmp_path / name).mkdir()
        chosen = set(ports.reserve(["etcd", "apiserver"], tmp_path / name).values())
        assert len(chosen) == 2
        assert not chosen & given
        assert max(chosen) < 30000, "above lie NodePorts and the kernel's own choice"
        given |= chosen


def test_a_record_of_ports_that_was_cut_off_reserves_none(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "ports.json").write_text("{")
    assert ports.reserved(tmp_path) == set()


@pytest.mark.parametrize("name", ["", "Upper", "-a", "a-", "a" * 21, "a/b", "a.b"])
def test_names_that_could_not_be_a_folder_and_a_host_are_refused(name: str) -> None:
    with pytest.raises(say.Problem, match="is no cluster name"):
        plan.check_name(name)


def test_a_state_folder_too_long_for_a_socket_is_reported_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FINETUNE_CACHE", "/" + "long/" * 20)
    with pytest.raises(say.Problem, match="set FINETUNE_CACHE to a shorter folder"):
        plan.check_socket("local")


def test_taking_down_what_is_not_up_is_no_error_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path))
    (tmp_path / "clusters" / "half").mkdir(parents=True)
    cluster.down("half")
    assert not (tmp_path / "clusters" / "half").exists()


def test_images_that_newer_builds_replaced_go_under_all_of_their_names() -> None:
    listed = [
        ("127.0.0.1:5050/finetune-trainer:new", "sha256:1"),
        ("127.0.0.1:5050/finetune-trainer:old", "sha256:2"),
        ("127.0.0.1:5050/finetune-trainer@sha256:2", "sha256:2"),
        ("sha256:config-of-old", "sha256:2"),
        ("127.0.0.1:5050/finetune-trainer:same-as-new", "sha256:1"),
        ("127.0.0.1:5050/mine:old", "sha256:3"),
        ("localhost/pause:local", "sha256:4"),
    ]
    assert node.outdated(listed, "127.0.0.1:5050", {"finetune-trainer": ["new", "newer"]}) == [
        "127.0.0.1:5050/finetune-trainer:old",
        "127.0.0.1:5050/finetune-trainer@sha256:2",
        "sha256:config-of-old",
    ]
