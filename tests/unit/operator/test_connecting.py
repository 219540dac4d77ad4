"""How the operator comes to the API server: by the environment's proxy where there is one."""

import json
import pathlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web

from finetune_operator import cluster

PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


class Server:
    """Answers every request with its own words, and remembers whom they were meant for."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str | None]] = []
        self.address = ""

    async def answer(self, request: web.Request) -> web.Response:
        self.asked.append((request.host, request.headers.get("Authorization")))
        return web.json_response({"seen": await request.json() if request.can_read_body else None})


@pytest.fixture
async def server(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Server]:
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    found = Server()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", found.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    found.address = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield found
    await runner.cleanup()


def kubeconfig(folder: pathlib.Path, server: str) -> pathlib.Path:
    named: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": {"server": server}}],
        "users": [{"name": "u", "user": {"token": "ours"}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    }
    path = folder / "kubeconfig"
    path.write_text(json.dumps(named))
    return path


async def ask(path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("KUBECONFIG", str(path))
    monkeypatch.setattr("kubernetes.aio.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(path))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    api = await cluster.Cluster.connect()
    try:
        return await api.request("PATCH", "/apis/x", body={"a": 1})
    finally:
        await api.close()


async def test_requests_use_the_kubeconfigs_token_and_not_one_of_netrc(
    server: Server, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login somebody password else\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert await ask(kubeconfig(tmp_path, server.address), monkeypatch) == {"seen": {"a": 1}}
    assert [token for _, token in server.asked] == ["Bearer ours"]


async def test_a_proxy_of_the_environment_is_used(
    server: Server, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", server.address)
    monkeypatch.setenv("http_proxy", server.address)
    await ask(kubeconfig(tmp_path, "http://kubernetes.example:6443"), monkeypatch)
    assert [host.partition(":")[0] for host, _ in server.asked] == ["kubernetes.example"]
