"""The pods of pools as processes: the gateway with the pod's own arguments, before a double of the engine that has a queue.

Stands in for scheduler, kubelet and DNS. Each pod has an address of its own on loopback, where its gateway listens on the
contract's ports, so that Prometheus and the operator find it as they do in a cluster.
"""

import asyncio
import contextlib
import dataclasses
import itertools
import os
import pathlib
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from typing import Any

import kubernetes.client
import urllib3
from aiohttp import web
from tests.trainer.gateway import double

from finetune_api import serving
from finetune_operator.observe import label
from support import installed, ports

BATCH, SECONDS, CACHE = 2, 2.0, 0.25
"""Requests that an engine answers at a time, seconds for each, and the share of the KV cache that each takes."""
NETWORK = "127.0.81"
"""Of the pods' addresses."""
Raw = dict[str, Any]


class Engine(double.Engine):
    """BATCH requests at a time; the others wait, as its metrics say."""

    def __init__(self) -> None:
        super().__init__()
        self.pause, self.running, self.waiting = SECONDS, 0, 0
        self._free = asyncio.Semaphore(BATCH)

    async def answer(self, request: web.Request, kind: str) -> web.StreamResponse:
        self.waiting += 1
        try:
            await self._free.acquire()
        finally:
            self.waiting -= 1
        self.running += 1
        try:
            return await super().answer(request, kind)
        finally:
            self.running -= 1
            self._free.release()

    async def metrics(self, _: web.Request) -> web.Response:
        labels = f'{{engine="0",model_name="{double.BASE}"}}'
        shown = {
            "vllm:num_requests_running": self.running,
            "vllm:num_requests_waiting": self.waiting,
            "vllm:kv_cache_usage_perc": CACHE * self.running,
        }
        return web.Response(text="".join(f"# TYPE {name} gauge\n{name}{labels} {n}\n" for name, n in shown.items()))


class Engines:
    """All engines, in a thread of this process."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()

    def start(self) -> int:
        """Port of a new engine."""
        port = ports.free()
        asyncio.run_coroutine_threadsafe(self._serve(port), self._loop).result(10)
        return port

    async def _serve(self, port: int) -> None:
        runner = web.AppRunner(Engine().app(), handler_cancellation=True)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()


@dataclasses.dataclass
class Pod:
    """One that runs."""

    address: str
    activator: bool
    process: subprocess.Popen[bytes]
    ready: bool = False


class Pods:
    """Those of a namespace with one pool. `index`: URL of the operator's."""

    def __init__(self, client: kubernetes.client.ApiClient, namespace: str, index: str, folder: pathlib.Path) -> None:
        self.namespace, self._index, self._folder = namespace, index, folder
        self._core = kubernetes.client.CoreV1Api(client)
        self._client, self._engines = client, Engines()
        self.running: dict[str, Pod] = {}
        """Pods by their UID."""

    def listed(self, selector: str = label.POOL) -> list[Raw]:
        found = self._core.list_namespaced_pod(self.namespace, label_selector=selector)
        return [self._client.sanitize_for_serialization(pod) for pod in found.items]

    def front(self) -> list[str]:
        """Where the pool's Service leads: to ready servers, or else to the activator."""
        ready = [pod for pod in list(self.running.values()) if pod.ready]
        servers = [pod.address for pod in ready if not pod.activator]
        return servers or [pod.address for pod in ready]

    def step(self) -> None:
        """Starts pods that are new, reports those that are ready, ends those that are gone."""
        there = {pod["metadata"]["uid"]: pod for pod in self.listed()}
        for uid in self.running.keys() - there.keys():
            end(self.running.pop(uid))
        for uid, pod in there.items():
            if uid not in self.running:
                self.running[uid] = self._start(pod)
                self._report(pod, self.running[uid])
            elif not self.running[uid].ready and answers(self.running[uid].address):
                self.running[uid].ready = True
                self._report(pod, self.running[uid])

    def _start(self, pod: Raw) -> Pod:
        activator = label.ACTIVATOR in pod["metadata"]["labels"]
        taken = {one.address for one in self.running.values()}
        numbers = itertools.count(200 if activator else 1)
        address = next(a for n in numbers if (a := f"{NETWORK}.{n}") not in taken)
        (gateway,) = [c for c in pod["spec"]["containers"] if c["name"] == label.GATEWAY]
        folder = self._folder / pod["metadata"]["name"]
        folder.mkdir(parents=True)
        here = {
            "--index": self._index, "--adapters": folder, "--peers": f"{NETWORK}.1", "--grace": 1,
            "--host": address, "--engine-port": self._engines.start(),
        }  # fmt: skip
        words = [*gateway["args"], *(f"{name}={value}" for name, value in here.items())]
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "finetune_trainer", *words],
                stdout=log, stderr=log, env=os.environ | {"FINETUNE_LOG_LEVEL": "WARNING"},
            )  # fmt: skip
        return Pod(address, activator, process)

    def _report(self, pod: Raw, run: Pod) -> None:
        """As the kubelet does."""
        state = {"running": {"startedAt": installed.now()}}
        containers = [
            {"name": c["name"], "ready": run.ready, "started": True, "restartCount": 0, "image": "i", "imageID": "i"}
            for c in pod["spec"]["containers"]
        ]
        status = {
            "phase": "Running", "startTime": installed.now(), "podIP": run.address, "podIPs": [{"ip": run.address}],
            "conditions": [{"type": "Ready", "status": str(run.ready)}],
            "containerStatuses": [container | {"state": state} for container in containers],
        }  # fmt: skip
        try:
            self._core.patch_namespaced_pod_status(pod["metadata"]["name"], self.namespace, {"status": status})
        except kubernetes.client.ApiException as error:
            if error.status != 404:
                raise


def answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://{address}:{serving.DELIVERY_PORT}/readyz", timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def end(pod: Pod) -> None:
    pod.process.terminate()
    pod.process.wait(30)


@contextlib.contextmanager
def playing(of: Pods) -> Iterator[None]:
    """They run as long as the block lasts."""
    over = threading.Event()

    def play() -> None:
        while not over.wait(0.5):
            with contextlib.suppress(OSError, urllib3.exceptions.HTTPError, kubernetes.client.ApiException):
                of.step()

    thread = threading.Thread(target=play)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        for pod in of.running.values():
            end(pod)
