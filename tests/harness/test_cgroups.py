"""The pods' control group in both of the kernel's layouts, played by folders."""

from pathlib import Path

import pytest

from localcluster import cgroups
from toolbox import say


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(cgroups, "_ROOT", tmp_path)
    return tmp_path


def layout_v1(root: Path) -> None:
    for name in ("cpu", "cpuset", "memory"):
        (root / name).mkdir()
        (root / name / "cgroup.procs").write_text("1\n")
    (root / "mnt").mkdir()
    for name, content in (("cpuset.cpus", "0-1"), ("cpuset.mems", "0")):
        (root / "cpuset" / name).write_text(content)
        # The kernel makes these in every new group; here they must be there before.
        (root / "cpuset" / cgroups.NAME).mkdir(exist_ok=True)
        (root / "cpuset" / cgroups.NAME / name).write_text("\n")


def test_with_v1_there_is_a_group_below_every_controller(root: Path) -> None:
    layout_v1(root)
    cgroups.make()
    assert [folder.parent.name for folder in cgroups.folders()] == ["cpu", "cpuset", "memory"]
    assert all(folder.is_dir() for folder in cgroups.folders())


def test_with_v1_a_new_cpuset_gets_processors_and_memory(root: Path) -> None:
    layout_v1(root)
    cgroups.make()
    assert (root / "cpuset" / cgroups.NAME / "cpuset.cpus").read_text() == "0-1"
    assert (root / "cpuset" / cgroups.NAME / "cpuset.mems").read_text() == "0"


def test_with_v2_the_controllers_are_handed_down_to_one_group(root: Path) -> None:
    (root / "cgroup.controllers").write_text("cpu memory pids\n")
    (root / "cgroup.subtree_control").write_text("")
    cgroups.make()
    assert cgroups.folders() == [root / cgroups.NAME]
    # A kernel's file adds up what is written; a plain one has the last word.
    assert (root / "cgroup.subtree_control").read_text() == "+pids"


def test_processes_of_all_pods_are_found_and_no_others(root: Path) -> None:
    (root / "cgroup.controllers").write_text("")
    (root / "cgroup.procs").write_text("1\n")
    pod = root / cgroups.NAME / "kubepods" / "pod1"
    pod.mkdir(parents=True)
    (pod / "cgroup.procs").write_text("11\n12\n")
    # What the kernel shows for a process of another pid namespace.
    (root / cgroups.NAME / "cgroup.procs").write_text("0\n")
    assert cgroups.processes() == {11, 12}


def test_a_machine_without_control_groups_is_reported(root: Path) -> None:
    with pytest.raises(say.Problem, match="no control groups are mounted"):
        cgroups.make()
