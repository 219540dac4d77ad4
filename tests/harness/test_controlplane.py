"""Two real control planes at once, each on its own, and nothing left of them afterwards."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from localcluster import binaries, process
from toolbox import cache

pytestmark = pytest.mark.cluster
NAMES = (f"harness-a-{os.getpid() % 10000}", f"harness-b-{os.getpid() % 10000}")


def localcluster(*words: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, str(cache.REPOSITORY / "hack" / "localcluster"), *words]
    return subprocess.run(argv, capture_output=True, text=True, timeout=900, env={**os.environ, **(environment or {})})


def kubectl(summary: dict[str, Any], *words: str) -> str:
    argv = [f"{summary['bin']}/kubectl", "--kubeconfig", summary["kubeconfig"], *words]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def both() -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Two control planes, the second with an S3 server, started at the same moment."""
    script = [sys.executable, str(cache.REPOSITORY / "hack" / "localcluster"), "up", "--control-plane-only"]
    starts = [
        subprocess.Popen([*script, "--name", name, *extra], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for name, extra in zip(NAMES, ([], ["--s3", "--scheduler"]), strict=True)
    ]
    try:
        summaries = []
        for start in starts:
            output, errors = start.communicate(timeout=900)
            assert start.returncode == 0, errors
            summaries.append(json.loads(Path(output.splitlines()[-1]).read_text()))
        yield summaries[0], summaries[1]
    finally:
        for name in NAMES:
            localcluster("down", "--name", name)


Both = tuple[dict[str, Any], dict[str, Any]]


def test_each_has_its_own_objects(both: Both) -> None:
    first, second = both
    kubectl(first, "create", "configmap", "only-here")
    assert "only-here" in kubectl(first, "get", "configmaps", "-o", "name")
    assert "only-here" not in kubectl(second, "get", "configmaps", "-o", "name")


def test_service_accounts_have_real_tokens_and_only_the_rights_they_were_given(both: Both) -> None:
    first, _ = both
    token = kubectl(first, "create", "token", "default")
    assert token.count(".") == 2
    kubectl(first, "create", "role", "reader", "--verb=get", "--resource=configmaps")
    kubectl(first, "create", "rolebinding", "reader", "--role=reader", "--serviceaccount=default:default")
    user = "--as=system:serviceaccount:default:default"
    assert kubectl(first, "auth", "can-i", "get", "configmaps", user) == "yes"
    argv = [f"{first['bin']}/kubectl", "--kubeconfig", first["kubeconfig"], "auth", "can-i", "get", "secrets", user]
    assert subprocess.run(argv, capture_output=True, text=True).stdout.strip() == "no"


def test_a_namespace_can_enforce_restricted_pods(both: Both) -> None:
    first, _ = both
    kubectl(first, "label", "namespace", "default", "pod-security.kubernetes.io/enforce=restricted")
    argv = [f"{first['bin']}/kubectl", "--kubeconfig", first["kubeconfig"], "run", "plain", "--image=any"]
    refused = subprocess.run(argv, capture_output=True, text=True)
    assert "violates PodSecurity" in refused.stderr


def test_aggregated_servers_can_learn_whose_word_to_take_for_who_asks(both: Both) -> None:
    first, _ = both
    found = kubectl(first, "get", "configmap", "extension-apiserver-authentication", "-n=kube-system", "-o=json")
    assert json.loads(json.loads(found)["data"]["requestheader-allowed-names"]) == ["front-proxy-client"]


def test_requests_are_audited(both: Both) -> None:
    first, _ = both
    kubectl(first, "get", "configmaps")
    lines = [json.loads(line) for line in Path(first["auditLog"]).read_text().splitlines()]
    assert any(line["objectRef"].get("resource") == "configmaps" for line in lines if "objectRef" in line)


def test_s3_runs_where_it_was_requested(both: Both) -> None:
    import boto3

    first, second = both
    assert first["s3"] is None
    keys = second["s3"]
    client = boto3.client(
        "s3",
        endpoint_url=keys["endpoint"],
        aws_access_key_id=keys["accessKey"],
        aws_secret_access_key=keys["secretKey"],
        region_name=keys["region"],
    )
    client.create_bucket(Bucket="data")
    client.put_object(Bucket="data", Key="a", Body=b"x")
    assert client.get_object(Bucket="data", Key="a")["Body"].read() == b"x"


def test_up_again_changes_nothing(both: Both) -> None:
    first, _ = both
    records = cache.root() / "clusters" / first["name"] / "processes"
    before = process.load(records)
    again = localcluster("up", "--control-plane-only", "--name", first["name"])
    assert again.returncode == 0, again.stderr
    assert process.load(records) == before


def test_a_killed_process_is_restarted_by_up_and_nothing_is_lost(both: Both) -> None:
    first, _ = both
    records = cache.root() / "clusters" / first["name"] / "processes"
    kubectl(first, "create", "configmap", "survivor")
    process.end([process.load(records)["etcd"]], grace=0)
    again = localcluster("up", "--control-plane-only", "--name", first["name"])
    assert "starting etcd again" in again.stderr
    assert "survivor" in kubectl(first, "get", "configmaps", "-o", "name")


def test_a_paused_process_hangs_until_it_is_resumed_and_a_killed_one_stays_dead_until_it_is_restarted(
    both: Both,
) -> None:
    first, _ = both
    name = ("--name", first["name"])
    record = process.load(cache.root() / "clusters" / first["name"] / "processes")["kube-apiserver"]
    assert localcluster("pause", "kube-apiserver", *name).returncode == 0
    assert process.alive(record)
    assert Path(f"/proc/{record.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    assert localcluster("resume", "kube-apiserver", *name).returncode == 0
    kubectl(first, "get", "namespaces")
    assert localcluster("kill", "kube-apiserver", *name).returncode == 0
    assert not process.alive(record)
    assert localcluster("restart", "kube-apiserver", *name).returncode == 0
    kubectl(first, "get", "namespaces")
    refused = localcluster("pause", "nobody", *name)
    assert refused.returncode == 1
    assert "has no process 'nobody'; it has: etcd" in refused.stderr


def test_env_configures_kubectl_for_the_cluster(both: Both) -> None:
    first, _ = both
    lines = localcluster("env", "--name", first["name"]).stdout
    shell = subprocess.run(
        ["bash", "-c", f"{lines}\nkubectl config view --minify -o jsonpath={{.clusters[0].cluster.server}}"],
        capture_output=True,
        text=True,
    )
    assert shell.stdout == first["apiserver"]


def test_a_start_that_fails_shows_the_log_and_leaves_nothing(tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in binaries.CONTROL_PLANE:
        (programs / name).write_text("#!/bin/sh\necho cannot start: this machine is a test\nexit 3\n")
        (programs / name).chmod(0o755)
    environment = {"FINETUNE_CACHE": str(tmp_path / "cache"), "FINETUNE_BIN": str(programs)}
    failed = localcluster("up", "--control-plane-only", "--name", "broken", environment=environment)
    assert failed.returncode == 1
    assert "etcd ended" in failed.stderr
    assert "cannot start: this machine is a test" in failed.stderr
    assert str(tmp_path / "cache" / "logs" / "broken" / "etcd.log") in failed.stderr
    assert not (tmp_path / "cache" / "clusters" / "broken").exists()


def test_down_leaves_no_process_and_no_state_but_the_logs(both: Both) -> None:
    """The last test of this module: it takes both down."""
    for summary in both:
        state = Path(summary["kubeconfig"]).parent
        records = process.load(state / "processes").values()
        assert all(map(process.alive, records))
        assert localcluster("down", "--name", summary["name"]).returncode == 0
        assert not any(map(process.alive, records))
        assert not state.exists()
        assert Path(summary["auditLog"]).exists()
        commands = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.parent.name != "self"]
        assert not any(str(state).encode() in command for command in commands)
