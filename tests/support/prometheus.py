"""A real Prometheus and its promtool, for tests: from Debian's package where the machine has none."""

import contextlib
import dataclasses
import json
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

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


@contextlib.contextmanager
def running(folder: Path, config: dict[str, Any]) -> Iterator[Prometheus]:
    """Prometheus with this configuration, on loopback; its data lies in `folder`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
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
