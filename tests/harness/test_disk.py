"""The cache folder: what it takes, and that clearing it spares what takes long to make again."""

import os
from pathlib import Path

import pytest

from localcluster import cluster, disk, machine, process
from toolbox import say


@pytest.fixture
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path))
    monkeypatch.setattr(machine, "RECORD", tmp_path / "none")
    for name in ("images", "registry", "containerd", "bin", "model", "bench", "logs"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_bytes(b"x" * 8192)
    return tmp_path


def test_clean_frees_images_and_keeps_binaries_model_and_logs(cache_folder: Path) -> None:
    disk.clean(everything=False)
    assert sorted(path.name for path in cache_folder.iterdir()) == ["bench", "bin", "logs", "model"]


def test_clean_all_frees_everything(cache_folder: Path) -> None:
    disk.clean(everything=True)
    assert list(cache_folder.iterdir()) == []


def test_clean_is_refused_while_a_cluster_runs(cache_folder: Path) -> None:
    state = cache_folder / "clusters" / "busy"
    (state / "processes").mkdir(parents=True)
    (state / "plan.json").write_text(
        '{"name": "busy", "bin": "", "address": "", "node": false, "scheduler": false, "s3": false}'
    )
    started = process.start_time(os.getpid())
    (state / "processes" / "etcd.json").write_text(
        f'{{"name": "etcd", "pid": {os.getpid()}, "started": {started}, "boot": "{process.boot_id()}",'
        ' "argv": [], "log": ""}'
    )
    with pytest.raises(say.Problem, match="still running: busy"):
        disk.clean(everything=True)
    assert (cache_folder / "images" / "file").exists()


def test_the_logs_of_thirty_ended_clusters_and_of_every_running_one_are_preserved(cache_folder: Path) -> None:
    for number in range(40):
        folder = cache_folder / "logs" / f"ended-{number}"
        folder.mkdir()
        os.utime(folder, (number, number))
    (cache_folder / "logs" / "file").unlink()
    (cache_folder / "clusters" / "ended-0").mkdir(parents=True)
    gone = {path.name for path in cluster.outdated_logs(cache_folder / "logs")}
    assert gone == {f"ended-{number}" for number in range(1, 10)}


def test_a_file_that_is_linked_twice_counts_once(tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(b"x" * 8192)
    alone = disk.size(tmp_path)
    (tmp_path / "two").hardlink_to(tmp_path / "one")
    assert disk.size(tmp_path) == alone >= 8192


@pytest.mark.parametrize(
    ("amount", "text"), [(0, "0 B"), (1536, "1.5 KB"), (12 << 20, "12 MB"), (int(7.46 * (1 << 30)), "7.5 GB")]
)
def test_sizes_are_for_people(amount: int, text: str) -> None:
    assert say.size(amount) == text
