"""External metrics of one number, as an adapter serves them to the HPA controller: through the API server's aggregation layer.

Stands in for an adapter alone. The controller, the scale subresource and the aggregation are real.
"""

import contextlib
import dataclasses
import http.server
import json
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from support import authority, controlplane

GROUP, VERSION, METRIC = "external.metrics.k8s.io", "v1beta1", "waiting-requests"
NAMESPACE = "default"
Raw = dict[str, Any]


@dataclasses.dataclass
class Metric:
    """The value that the controller reads next, and how often it has read one."""

    value: int = 0
    read: int = 0


@contextlib.contextmanager
def serving(plane: controlplane.ControlPlane, folder: Path) -> Iterator[Metric]:
    """The group of external metrics exists within the block, with METRIC in every namespace."""
    metric = Metric()
    _, certificate, key = authority.issue(folder)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _handler(metric))
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, key)
    server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    made = _registration(server.server_address[1])
    try:
        plane.kubectl("apply", "--server-side", "-f", "-", stdin=json.dumps(made))
        plane.kubectl("wait", "--for=condition=Available", "--timeout=30s", f"apiservice/{VERSION}.{GROUP}")
        yield metric
    finally:
        plane.run("delete", "-f", "-", stdin=json.dumps(made))
        server.shutdown()
        server.server_close()
        thread.join(10)


def _registration(port: int) -> Raw:
    """The API server finds this machine by an ExternalName, since a Service without pods has no address."""
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "metrics", "namespace": NAMESPACE},
        "spec": {"type": "ExternalName", "externalName": "localhost", "ports": [{"port": port}]},
    }
    spec = {
        "group": GROUP,
        "version": VERSION,
        "groupPriorityMinimum": 100,
        "versionPriority": 100,
        "insecureSkipTLSVerify": True,
        "service": {"name": "metrics", "namespace": NAMESPACE, "port": port},
    }
    meta = {"name": f"{VERSION}.{GROUP}"}
    registered = {"apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService", "metadata": meta, "spec": spec}
    return {"apiVersion": "v1", "kind": "List", "items": [service, registered]}


def _handler(metric: Metric) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps(_answer(metric, self.path.partition("?")[0])).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    return Handler


def _answer(metric: Metric, path: str) -> Raw:
    version = f"{GROUP}/{VERSION}"
    if not path.endswith(METRIC):
        resource = {"name": METRIC, "namespaced": True, "kind": "ExternalMetricValueList", "verbs": ["get"]}
        found = {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": version}
        return {**found, "resources": [{**resource, "singularName": ""}]}
    metric.read += 1
    item = {"metricName": METRIC, "metricLabels": {}, "timestamp": "2026-01-01T00:00:00Z", "value": str(metric.value)}
    return {"kind": "ExternalMetricValueList", "apiVersion": version, "metadata": {}, "items": [item]}
