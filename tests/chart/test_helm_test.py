"""`helm test`: what it makes, and what its program says of operators that answer, that do not, and that do not lead."""

import http.server
import runpy
import ssl
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from tests.chart.conftest import CHART, Render
from tests.chart.test_operator import violations

from support import ports

PROGRAM = CHART / "files" / "check.py"


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setenv("PATIENCE", "0")
    return runpy.run_path(str(PROGRAM))


class Operator(http.server.BaseHTTPRequestHandler):
    """Answers as an operator does."""

    leads = "1.0"

    def do_GET(self) -> None:
        text = f"# HELP finetune_leader whether\nfinetune_leader {self.leads}\n" if self.path == "/metrics" else "ok\n"
        self.send_response(200)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def port() -> Iterator[int]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Operator)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port
    server.shutdown()
    server.server_close()


def test_its_pod_is_restricted_and_needs_the_operators_image_alone(render: Render, render_tests: Render) -> None:
    values = {"images": {"registry": "registry.example"}, "imagePullSecrets": ["key"]}
    pod = render_tests(values)["Pod"]["finetune-operator-test"]
    assert violations(pod["spec"]) == []
    (container,) = pod["spec"]["containers"]
    (operator,) = render(values)["Deployment"]["finetune-operator"]["spec"]["template"]["spec"]["containers"]
    assert container["image"] == operator["image"]
    assert pod["spec"]["imagePullSecrets"] == [{"name": "key"}]
    assert container["command"] == ["python", "-c"]
    assert container["args"][0].strip() == PROGRAM.read_text().strip()


def test_its_program_is_asked_about_the_service_and_a_namespace_of_jobs(render: Render, render_tests: Render) -> None:
    for namespaces, where in (([], "finetune-system"), (["ml", "research"], "ml")):
        values = {"namespaces": namespaces}
        arguments = render_tests(values)["Pod"]["finetune-operator-test"]["spec"]["containers"][0]["args"]
        service = render(values)["Service"]["finetune-operator-metrics"]
        name = f"{service['metadata']['name']}.{service['metadata']['namespace']}.svc"
        assert arguments[1:] == [name, str(service["spec"]["ports"][0]["port"]), where]


def test_it_may_create_finetunejobs_in_one_namespace_and_is_gone_afterwards(render_tests: Render) -> None:
    made = render_tests({"namespaces": ["ml"]})
    assert set(made) == {"ServiceAccount", "Role", "RoleBinding", "Pod"}
    role = made["Role"]["ml/finetune-operator-test"]
    assert role["rules"] == [{"apiGroups": ["finetune.dev"], "resources": ["finetunejobs"], "verbs": ["create"]}]
    assert made["RoleBinding"]["ml/finetune-operator-test"]["subjects"][0]["namespace"] == "finetune-system"
    for manifests in made.values():
        for manifest in manifests.values():
            notes = manifest["metadata"]["annotations"]
            assert notes["helm.sh/hook"] == "test"
            assert notes["helm.sh/hook-delete-policy"] == "before-hook-creation,hook-succeeded"


def test_neither_service_nor_deployment_takes_its_pod_for_theirs(render: Render, render_tests: Render) -> None:
    labels = render_tests()["Pod"]["finetune-operator-test"]["metadata"]["labels"]
    rendered = render()
    selectors = [rendered["Service"]["finetune-operator-metrics"]["spec"]["selector"]]
    selectors.append(rendered["Deployment"]["finetune-operator"]["spec"]["selector"]["matchLabels"])
    for selector in selectors:
        assert not selector.items() <= labels.items()


def test_the_test_expects_exactly_one_leader(
    program: dict[str, Any], port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert program["operators"]("127.0.0.1", port).startswith("1 operators answer, 1 of them")
    monkeypatch.setattr(Operator, "leads", "0.0")
    with pytest.raises(SystemExit, match=r"0 of them .*expected one leader"):
        program["operators"]("127.0.0.1", port)


def test_an_operator_that_does_not_answer_is_named(program: dict[str, Any]) -> None:
    closed = ports.free()
    with pytest.raises(SystemExit, match=f"http://127.0.0.1:{closed} does not answer"):
        program["operators"]("127.0.0.1", closed)


def test_it_trusts_the_clusters_own_authority_alone(program: dict[str, Any], tmp_path: Any, monkeypatch: Any) -> None:
    """Without the authority's certificate no token is sent."""
    monkeypatch.setitem(program["accepted"].__globals__, "ACCOUNT", tmp_path)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "1")
    (tmp_path / "token").write_text("t")
    with pytest.raises((FileNotFoundError, ssl.SSLError)):
        program["accepted"]("ml")
