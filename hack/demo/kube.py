"""kubectl and helm: the demo uses clusters only through these two programs, as a user would."""

import json
import os
import queue
import re
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from demo import child
from toolbox import say, shell

Manifest = dict[str, Any]


@dataclass(frozen=True)
class Kube:
    kubectl: str
    helm: str
    config: str  # the kubeconfig

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "KUBECONFIG": self.config}

    def run(self, *arguments: str, stdin: str | None = None, timeout: float | None = 300, check: bool = True) -> str:
        argv = [self.kubectl, *arguments]
        return shell.run(argv, environment=self.environment, stdin=stdin, timeout=timeout, check=check)

    def get(self, kind: str, name: str, namespace: str = "") -> Manifest | None:
        """The object, or None when it, or its kind, does not exist."""
        where = ["--namespace", namespace] if namespace else []
        text = self.run("get", kind, *([name] if name else []), *where, "--ignore-not-found", "--output=json")
        return json.loads(text) if text.strip() else None

    def items(self, kind: str, selector: str = "", namespace: str = "") -> list[Manifest]:
        where = ["--namespace", namespace] if namespace else ["--all-namespaces"]
        chosen = ["--selector", selector] if selector else []
        text = self.run("get", kind, *where, *chosen, "--ignore-not-found", "--output=json")
        found: list[Manifest] = json.loads(text)["items"] if text.strip() else []
        return found

    def apply(self, *manifests: Manifest) -> None:
        """Server-side apply, so that fields set by others stay."""
        document = json.dumps({"apiVersion": "v1", "kind": "List", "items": list(manifests)})
        self.run("apply", "--server-side", "--force-conflicts", "--field-manager=finetune-demo", "-f-", stdin=document)

    def apply_folder(self, folder: Path) -> None:
        self.run("apply", "--server-side", "--force-conflicts", "--field-manager=finetune-demo", "-f", str(folder))

    def run_helm(self, *arguments: str, stdin: str | None = None) -> str:
        return shell.run([self.helm, *arguments], environment=self.environment, stdin=stdin, timeout=600)

    @contextmanager
    def forward(self, target: str, port: int, namespace: str) -> Iterator[str]:
        """Forwards a port of the cluster to this machine; yields the base URL, http://127.0.0.1:NNNNN."""
        process = child.start(
            [self.kubectl, "port-forward", "--namespace", namespace, target, f":{port}"],
            environment=self.environment,
        )
        try:
            assert process.stdout
            first = process.stdout.readline()
            found = re.search(r"127\.0\.0\.1:(\d+)", first)
            if not found:
                raise say.Problem(f"`kubectl port-forward {target}` gave no port: {first.strip() or 'see above'}")
            yield f"http://127.0.0.1:{found[1]}"
        finally:
            child.end(process)

    @contextmanager
    def proxy(self, *, quiet: bool = False) -> Iterator[str]:
        """The API server without credentials on this machine, for programs that have none; yields host and port. `quiet`: prints
        nothing when the API server is away."""
        arguments = [self.kubectl, "proxy", "--port=0"]
        process = child.start(arguments, environment=self.environment, stderr=subprocess.DEVNULL if quiet else None)
        try:
            assert process.stdout
            first = process.stdout.readline()
            found = re.search(r"127\.0\.0\.1:\d+", first)
            if not found:
                raise say.Problem(f"`kubectl proxy` gave no port: {first.strip() or 'see above'}")
            yield found[0]
        finally:
            child.end(process)

    @contextmanager
    def watch(self, kind: str, name: str, namespace: str) -> Iterator["queue.Queue[Manifest | None]"]:
        """A queue that gets the object now and after every change, and None when the watch ended."""
        process = child.start(
            [self.kubectl, "get", kind, name, "--namespace", namespace, "--watch", "--output=json"],
            environment=self.environment,
        )
        changes: queue.Queue[Manifest | None] = queue.Queue()
        assert process.stdout
        stdout = process.stdout

        def read() -> None:
            for document in documents(iter(stdout.readline, "")):
                changes.put(document)
            changes.put(None)

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        try:
            yield changes
        finally:
            child.end(process)
            reader.join(timeout=5)


def documents(lines: Iterator[str]) -> Iterator[Manifest]:
    """The JSON objects of `kubectl --watch --output=json`, which prints them one after another over many lines."""
    buffered = ""
    for line in lines:
        buffered += line
        if line.rstrip() == "}":
            yield json.loads(buffered)
            buffered = ""
