"""What cleans up after an upgrade, with a double of the API server; `tests/cluster/test_cleanup.py` has a real one."""

import importlib.util
import urllib.error
from email.message import Message
from pathlib import Path
from typing import Any

import pytest
from tests.chart.conftest import CHART

Raw = dict[str, Any]
INGRESSES, ROUTES = "apis/networking.k8s.io/v1/ingresses", "apis/gateway.networking.k8s.io/v1/httproutes"


class Api:
    """Objects by kind; everything else does not exist."""

    def __init__(self) -> None:
        self.objects: dict[str, dict[str, Raw]] = {}
        self.refused: set[str] = set()
        self.deleted: list[str] = []

    def put(self, kind: str, name: str, owner: str, group: str = "finetune.dev/v1alpha1") -> None:
        owners = [{"kind": owner, "apiVersion": group}]
        self.objects.setdefault(kind, {})[name] = {
            "metadata": {"name": name, "namespace": "ml", "ownerReferences": owners}
        }

    def ask(self, method: str, path: str) -> Raw:
        kind = path.partition("?")[0]
        if kind in self.refused:
            raise urllib.error.HTTPError(path, 403, "Forbidden", Message(), None)
        if method == "DELETE":
            self.deleted.append(path)
        return {"metadata": {}, "items": list(self.objects.get(kind, {}).values())}


def loaded(monkeypatch: pytest.MonkeyPatch, *kinds: str) -> Any:
    monkeypatch.setenv("UNWANTED", " ".join(kinds))
    monkeypatch.setattr("sys.argv", ["-c"])
    spec = importlib.util.spec_from_file_location("cleanup", CHART / "files" / "cleanup.py")
    assert spec is not None
    assert spec.loader is not None
    program = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)
    return program


def clean(api: Api, monkeypatch: pytest.MonkeyPatch, *kinds: str) -> None:
    program = loaded(monkeypatch, *kinds)
    monkeypatch.setattr(program, "ask", api.ask)
    program.main()


def test_objects_of_values_that_are_off_are_deleted_if_a_job_or_a_pool_owns_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    api = Api()
    api.put(INGRESSES, "chat", "ServingPool")
    api.put(INGRESSES, "mine", "Deployment", "apps/v1")
    api.put(ROUTES, "tone", "FineTuneJob")
    clean(api, monkeypatch, INGRESSES)
    assert api.deleted == ["apis/networking.k8s.io/v1/namespaces/ml/ingresses/chat"]
    assert "1 ingresses" in capsys.readouterr().out
    clean(api, monkeypatch, ROUTES)
    assert api.deleted[1:] == ["apis/gateway.networking.k8s.io/v1/namespaces/ml/httproutes/tone"]


def test_a_refusal_keeps_it_from_nothing_else(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    api = Api()
    api.refused.add(INGRESSES)
    api.put("apis/rbac.authorization.k8s.io/v1/roles", "old-trainer", "FineTuneJob")
    clean(api, monkeypatch, INGRESSES)
    assert len(api.deleted) == 1
    printed = capsys.readouterr().out
    assert "may be left behind" in printed
    assert "1 objects of an earlier release were removed" in printed


def test_an_object_or_a_kind_that_is_refused_keeps_no_other_from_being_removed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    api = Api()
    for kind in (INGRESSES, ROUTES):
        for name in ("first", "second"):
            api.put(kind, name, "ServingPool")
    ingress, route = (
        kind.rpartition("/")[0] + "/namespaces/ml/" + kind.rpartition("/")[2] for kind in (INGRESSES, ROUTES)
    )
    api.refused.add(f"{ingress}/first")
    clean(api, monkeypatch, INGRESSES, ROUTES)
    assert api.deleted == [f"{ingress}/second", f"{route}/first", f"{route}/second"]
    printed = capsys.readouterr().out
    assert f"may be left behind: {ingress}/first: HTTP Error 403: Forbidden" in printed
    assert "1 ingresses, 2 httproutes" in printed
    api.deleted.clear()
    api.refused = {INGRESSES}
    clean(api, monkeypatch, INGRESSES, ROUTES)
    assert api.deleted == [f"{route}/first", f"{route}/second"]


def test_nothing_that_a_pod_may_need_is_removed_while_the_pods_cannot_be_listed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    api = Api()
    api.put("api/v1/configmaps", "tone-run", "FineTuneJob")
    api.put("apis/rbac.authorization.k8s.io/v1/roles", "old-trainer", "FineTuneJob")
    api.refused.add("api/v1/pods")
    clean(api, monkeypatch)
    assert api.deleted == ["apis/rbac.authorization.k8s.io/v1/namespaces/ml/roles/old-trainer"]


def test_an_api_server_that_does_not_answer_ends_it_before_the_deadline_of_its_job(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    now, started = [1000.0], 1000.0

    def silent(*_: Any, timeout: float, **__: Any) -> None:
        now[0] += timeout
        raise TimeoutError("timed out")

    monkeypatch.setattr("time.monotonic", lambda: now[0])
    monkeypatch.setattr("urllib.request.urlopen", silent)
    monkeypatch.setattr("ssl.create_default_context", lambda cafile: None)
    for name, value in {"ACCOUNT": tmp_path, "KUBERNETES_SERVICE_HOST": "api", "KUBERNETES_SERVICE_PORT": 443}.items():
        monkeypatch.setenv(name, str(value))
    (tmp_path / "token").write_text("t")
    program = loaded(monkeypatch, INGRESSES, ROUTES)
    monkeypatch.setattr("sys.argv", ["-c", *(f"team-{number}" for number in range(9))])
    program.main()
    assert now[0] - started == 180
    printed = capsys.readouterr().out
    assert "may be left behind: apis/networking.k8s.io/v1/namespaces/team-0/ingresses: timed out" in printed
    assert "may be left behind: apis/networking.k8s.io/v1/namespaces/team-8/ingresses: not tried" in printed
