"""A real Prometheus and its promtool, for tests: from Debian's package where the machine has none."""

import contextlib
import dataclasses
import http.server
import json
import re
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from support import ports
from toolbox import debian, shell

Series = dict[str, Any]
"""{"metric": labels, "values": [[time, value], ...]}, as Prometheus answers."""


def program(name: str) -> str:
    debian.ensure([name], "the test of metrics")
    found = shell.find(name)
    assert found is not None
    return found


def problems(exposition: str) -> str:
    """What `promtool check metrics` has to say of what an endpoint answers; empty when all is well."""
    done = subprocess.run([program("promtool"), "check", "metrics"], input=exposition, capture_output=True, text=True)
    return (done.stdout + done.stderr).strip() if done.returncode else ""


@dataclasses.dataclass(frozen=True)
class Prometheus:
    """A running server."""

    url: str

    def get(self, path: str, **query: Any) -> Any:
        """The data of an answer; a query that Prometheus refuses fails with its words."""
        try:
            with urllib.request.urlopen(f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(query)}", timeout=30) as got:
                return json.load(got)["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{query}: {error.read().decode()}") from error

    def range(self, query: str, start: float, end: float, step: float = 5) -> list[Series]:
        """The series of a query over a span, as a graph asks for them."""
        return list(self.get("query_range", query=query, start=start, end=end, step=step)["result"])

    def now(self, query: str) -> list[Series]:
        return list(self.get("query", query=query)["result"])

    def targets(self) -> dict[str, str]:
        """URL of each target -> up, down or unknown."""
        return {target["scrapeUrl"]: target["health"] for target in self.get("targets")["activeTargets"]}


def of_cluster(
    configs: list[dict[str, Any]], discovery: str, *, proxy: str | None = None, interval: str = "2s"
) -> dict[str, Any]:
    """A configuration that scrapes a cluster by these scrape rules, for example by the chart's own (`chart`).

    Debian builds Prometheus without the discovery of Kubernetes: `discovery` is the address of what stands in for it (see
    `discovering`); every other word is the rules'. `proxy`: the address of a `kubectl proxy`, by which pods are read that
    cannot be reached from here.
    """
    through = [
        {
            "source_labels": [f"{META}{part}" for part in ("namespace", "pod_name", "pod_container_port_number")],
            "regex": "(.+);(.+);(.+)",
            "target_label": "__metrics_path__",
            "replacement": "/api/v1/namespaces/$1/pods/$2:$3/proxy/metrics",
        },
        {"target_label": "__address__", "replacement": proxy},
    ]
    found = []
    for config in configs:
        (asked,) = config["kubernetes_sd_configs"]
        assert asked["role"] == "pod"
        selectors = [selector["label"] for selector in asked.get("selectors", [])]
        places = (asked.get("namespaces") or {}).get("names", [])
        query = urllib.parse.urlencode({"selector": ",".join(selectors), "namespaces": ",".join(places)})
        stand_in = [{"url": f"http://{discovery}/?{query}", "refresh_interval": "5s"}]  # and its timeout
        found.append(
            {key: value for key, value in config.items() if key != "kubernetes_sd_configs"}
            | {
                "http_sd_configs": stand_in,
                "relabel_configs": config["relabel_configs"] + (through if proxy else []),
            }
        )
    return {"global": {"scrape_interval": interval, "scrape_timeout": interval}, "scrape_configs": found}


def chart(folder: Path) -> list[dict[str, Any]]:
    """The scrape rules that a chart ships for a Prometheus without the Prometheus operator."""
    found: list[dict[str, Any]] = yaml.safe_load((folder / "monitoring" / "scrape-configs.yaml").read_text())
    return found


META = "__meta_kubernetes_"


def targets_of(pod: dict[str, Any]) -> list[dict[str, Any]]:
    """A pod as the discovery of Kubernetes describes it: one target for each port of each container."""
    meta, state = pod["metadata"], pod.get("status", {})
    labels = {
        f"{META}namespace": meta["namespace"],
        f"{META}pod_name": meta["name"],
        f"{META}pod_phase": state.get("phase", "Unknown"),
    }
    for key, value in meta.get("labels", {}).items():
        word = re.sub(r"[^a-zA-Z0-9_]", "_", key)
        labels |= {f"{META}pod_label_{word}": value, f"{META}pod_labelpresent_{word}": "true"}
    ports = [
        (container["name"], port) for container in pod["spec"]["containers"] for port in container.get("ports", [])
    ]
    return [
        {
            "targets": [f"{state['podIP']}:{port['containerPort']}"],
            "labels": labels
            | {
                f"{META}pod_container_name": container,
                f"{META}pod_container_port_name": port.get("name", ""),
                f"{META}pod_container_port_number": str(port["containerPort"]),
            },
        }
        for container, port in ports
        if state.get("podIP")
    ]


@contextlib.contextmanager
def discovering(pods: Callable[[str], list[dict[str, Any]]]) -> Iterator[str]:
    """Tells Prometheus of the pods that `pods` lists for a label selector; gives host and port."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            query = urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query)
            (selector,), (places,) = query.get("selector", [""]), query.get("namespaces", [""])
            found = [pod for pod in pods(selector) if not places or pod["metadata"]["namespace"] in places.split(",")]
            body = json.dumps([target for pod in found for target in targets_of(pod)]).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()


@contextlib.contextmanager
def running(folder: Path, config: dict[str, Any]) -> Iterator[Prometheus]:
    """Prometheus with this configuration, on loopback; its data lies in `folder`."""
    address = f"127.0.0.1:{ports.free()}"
    file = folder / "prometheus.yml"
    file.write_text(yaml.safe_dump(config))
    with (folder / "prometheus.log").open("wb") as log:
        words = [
            program("prometheus"), f"--config.file={file}", f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address={address}", "--log.level=warn",
        ]  # fmt: skip
        process = subprocess.Popen(words, stdout=log, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + 60
        while True:
            assert process.poll() is None, (folder / "prometheus.log").read_text()
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://{address}/-/ready", timeout=2).read()
                break
            assert time.monotonic() < deadline, "Prometheus does not become ready"
            time.sleep(0.1)
        yield Prometheus(f"http://{address}")
    finally:
        process.terminate()
        process.wait(30)
