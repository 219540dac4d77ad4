"""Many adapters on one pod of a ServingPool: `python tests/bench/pool` writes docs/benchmarks/pool.md.

On the real node with vLLM's CPU build. One job trains and is served by the pool; its status is copied to ADAPTERS suspended jobs,
each with an adapter of its own (random weights of a tiny model, so that each answers differently), which are delivered as a
verify stage does. Then clients send REQUESTS requests, while adapters come, change and go, the engine is killed and the pod is
deleted. Every answer is compared with the ones of the adapters that its name stood for at the time.
"""

import argparse
import base64
import concurrent.futures
import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import random
import signal
import statistics
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from typing import Any

REPOSITORY = pathlib.Path(__file__).resolve().parents[3]
sys.path[:0] = [str(REPOSITORY / "hack"), str(REPOSITORY / "tests"), str(REPOSITORY / "tests/trainer")]

from finetune_trainer.gateway import delivery  # noqa: E402
from support import site as sites  # noqa: E402
from support.site import NAMESPACE, Site  # noqa: E402
from toolbox import cache  # noqa: E402
from trainer import tiny  # noqa: E402

POOL, KEYS, KEY, CLAIM, FIRST = "many", "many-keys", "key-of-the-clients", "many-adapters", "firstborn"
ON_GPU, IN_MEMORY, RANK, CLIENTS = 8, 64, 8, 12
QUESTION = [{"role": "user", "content": "The router number 3 shines grey. Which colour?"}]
SETTLED = 90.0
"""Seconds after a change in which a name may answer with its former adapter as well."""
FOLDER = pathlib.Path(tempfile.gettempdir())


@dataclasses.dataclass
class Adapter:
    folder: pathlib.Path
    sha256: str
    bytes: int
    answer: str = ""


@dataclasses.dataclass
class Tally:
    """What clients saw."""

    answers: int = 0
    wrong: list[str] = dataclasses.field(default_factory=list)
    refused: Counter[int] = dataclasses.field(default_factory=Counter)
    seconds: list[float] = dataclasses.field(default_factory=list)


# -- adapters --


def make(base: pathlib.Path, folder: pathlib.Path, seed: int) -> Adapter:
    """A LoRA adapter of random weights, as the trainer saves one: PEFT's files and a manifest."""
    import peft
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    config = peft.LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM")
    tuned = peft.get_peft_model(model, config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in tuned.named_parameters():
            if "lora_" in name:
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.15)
    tuned.save_pretrained(folder, safe_serialization=True)
    (folder / "README.md").unlink(missing_ok=True)
    files = [path for path in sorted(folder.iterdir()) if path.is_file()]
    listed = [
        {"path": path.name, "size": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        for path in files
    ]
    text = json.dumps({"files": listed}, indent=1, sort_keys=True) + "\n"
    (folder / "manifest.json").write_text(text)
    return Adapter(folder, hashlib.sha256(text.encode()).hexdigest(), sum(path.stat().st_size for path in files))


# -- the pool and its jobs --


def objects(site: Site, folder: pathlib.Path) -> list[dict[str, Any]]:
    size = {"storage": "2Gi"}
    volume = {
        "capacity": size,
        "accessModes": ["ReadWriteMany"],
        "storageClassName": "",
        "hostPath": {"path": str(folder)},
        "persistentVolumeReclaimPolicy": "Retain",
    }
    claim = {
        "accessModes": ["ReadWriteMany"],
        "resources": {"requests": size},
        "storageClassName": "",
        "volumeName": CLAIM,
    }
    here = {"namespace": NAMESPACE}
    pool = {
        "baseModel": {"name": sites.MODEL},
        "resources": {"gpus": 0, "requests": {"cpu": "500m", "memory": "4Gi"}},
        "storage": {"endpoint": site.store.endpoint, "region": site.store.region, "credentialsSecret": sites.SECRET},
        "adapters": {"maxRank": RANK, "onGpu": ON_GPU, "inMemory": IN_MEMORY, "claimName": CLAIM},
        "contextLength": 256,
        "keysSecret": KEYS,
    }
    key = base64.b64encode(KEY.encode()).decode()
    return [
        {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": CLAIM}, "spec": volume},
        {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": CLAIM, **here}, "spec": claim},
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": KEYS, **here}, "data": {NAMESPACE: key}},
        {
            "apiVersion": "finetune.dev/v1alpha1",
            "kind": "ServingPool",
            "metadata": {"name": POOL, **here},
            "spec": pool,
        },
    ]


class Fleet:
    """The jobs that stand for adapters, by the names that clients send."""

    def __init__(self, site: Site, first: sites.Job) -> None:
        self._site, self._spec = site, {**first["spec"], "suspend": True}
        self._spec["deployment"] = {**self._spec["deployment"], "servedModelName": None}
        self._text = json.dumps(first["status"])
        self._release = json.loads(first["status"]["serving"])
        self._lock = threading.Lock()
        self._valid: dict[str, list[tuple[float, Adapter]]] = {}
        self._changes = 0

    def put(self, name: str, adapter: Adapter) -> None:
        """The job's status says that this adapter serves."""
        self._changes += 1
        state = json.loads(self._text.replace(FIRST, name))
        release = json.loads(json.dumps(self._release).replace(FIRST, name))
        release["name"] = f"{name}-{self._changes}"
        release["adapter"] |= {"sha256": adapter.sha256, "bytes": adapter.bytes, "rank": RANK}
        state["serving"] = json.dumps(release, separators=(",", ":"))  # as the operator writes it
        state.pop("observedGeneration", None)
        with self._lock:
            self._valid.setdefault(name, []).append((time.monotonic(), adapter))
        patch(f"http://{self._site.proxy}{sites.JOBS}/{name}/status", {"status": state})

    def create(self, names: list[str]) -> None:
        made = [
            {
                "apiVersion": "finetune.dev/v1alpha1",
                "kind": "FineTuneJob",
                "metadata": {"name": name, "namespace": NAMESPACE},
                "spec": {**self._spec, "deployment": {**self._spec["deployment"], "servedModelName": name}},
            }
            for name in names
        ]
        self._site.kube.apply(*made)

    def remove(self, name: str) -> None:
        with self._lock:
            self._valid.pop(name, None)
        self._site.delete(name)

    def names(self) -> list[str]:
        with self._lock:
            return sorted(self._valid)

    def answers(self, name: str, asked: float) -> set[str] | None:
        """What the name may answer to a request that began then; None once it is gone."""
        with self._lock:
            known = list(self._valid.get(name, []))
        if not known:
            return None
        recent = [adapter for since, adapter in known[:-1] if known[-1][0] + SETTLED > asked or since > asked]
        return {adapter.answer for adapter in (*recent, known[-1][1])}


def patch(url: str, body: Any) -> None:
    headers = {"Content-Type": "application/merge-patch+json"}
    request = urllib.request.Request(url, json.dumps(body).encode(), headers, method="PATCH")
    with urllib.request.urlopen(request, timeout=30):
        pass


def server(site: Site) -> dict[str, Any]:
    found = json.loads(site.raw(f"/api/v1/namespaces/{NAMESPACE}/pods"))["items"]
    mine = [pod for pod in found if pod["metadata"]["name"].startswith(f"{POOL}-")]
    live = [pod for pod in mine if not pod["metadata"].get("deletionTimestamp")]
    return live[0]


def ready_server(site: Site, seconds: float = 300) -> dict[str, Any]:
    end = time.monotonic() + seconds
    while True:
        with contextlib.suppress(IndexError):
            pod = server(site)
            if any(c["type"] == "Ready" and c["status"] == "True" for c in pod["status"].get("conditions", [])):
                return pod
        if time.monotonic() > end:
            raise SystemExit(f"the pool's pod is not ready after {seconds:.0f} s: {server(site)['status']}")
        time.sleep(1)


def memory(pod: dict[str, Any]) -> int:
    """Bytes of all processes of a pod on this machine, shared pages divided (Pss)."""
    total = 0
    for folder in pathlib.Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if folder.name.isdigit() and pod["metadata"]["uid"] in (folder / "cgroup").read_text():
                lines = (folder / "smaps_rollup").read_text().splitlines()
                total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) * 1024
    return total


# -- clients --


def ask(address: str, name: str, *, stream: bool = False) -> tuple[int, str, float]:
    """Status, text, and seconds to the whole answer (or, streaming, to its first byte)."""
    body = {"model": name, "messages": QUESTION, "max_tokens": 8, "temperature": 0, "stream": stream}
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
    request = urllib.request.Request(f"http://{address}:8000/v1/chat/completions", json.dumps(body).encode(), headers)
    begun = time.monotonic()
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            if stream:
                answer.readline()
                seconds = time.monotonic() - begun
                answer.read()
                return answer.status, "", seconds
            return answer.status, json.load(answer)["choices"][0]["message"]["content"], time.monotonic() - begun
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(errors="replace")[:200], time.monotonic() - begun
    except OSError as error:
        return 0, str(error), time.monotonic() - begun


class Clients:
    """Threads that ask random names until the number of answers is reached."""

    def __init__(self, site: Site, fleet: Fleet, wanted: int) -> None:
        self._site, self._fleet, self._wanted = site, fleet, wanted
        self.tally, self._lock = Tally(), threading.Lock()
        self._address = server(site)["status"]["podIP"]

    def done(self) -> bool:
        return self.tally.answers >= self._wanted

    def run(self, seed: int) -> None:
        dice = random.Random(seed)
        while not self.done():
            name = dice.choice(self._fleet.names())
            asked = time.monotonic()
            status, text, seconds = ask(self._address, name)
            allowed = self._fleet.answers(name, asked)
            with self._lock:
                self._note(name, status, text, seconds, allowed)
            if status != 200:
                time.sleep(0.2)
                with contextlib.suppress(Exception):
                    self._address = server(self._site)["status"].get("podIP", self._address)

    def _note(self, name: str, status: int, text: str, seconds: float, allowed: set[str] | None) -> None:
        if status != 200:
            # a name that was just removed is unknown, and so it should be
            self.tally.refused[status if allowed is not None else -status] += 1
            return
        self.tally.answers += 1
        self.tally.seconds.append(seconds)
        if allowed is not None and text not in allowed:
            self.tally.wrong.append(f"{name}: {text!r}")


# -- the run --


def deliver(site: Site, adapters: list[Adapter]) -> None:
    address = server(site)["status"]["podIP"]
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda one: delivery.deliver(one.folder, one.sha256, address, patience=600), adapters))


def disturb(site: Site, fleet: Fleet, clients: Clients, spare: list[Adapter]) -> Counter[str]:
    """Adapters come, change and go; the engine is killed and the pod is deleted, once each."""
    done: Counter[str] = Counter()
    dice, number = random.Random(7), 0
    while not clients.done():
        share = clients.tally.answers / clients._wanted
        if share > 0.3 and not done["engine killed"]:
            os.kill(
                int(sites.processes(server(site)["metadata"]["uid"], "vllm.entrypoints.openai.api_server")[0].name),
                signal.SIGKILL,
            )
            done["engine killed"] += 1
        elif share > 0.6 and not done["pod deleted"]:
            site.kube.run("delete", "pod", server(site)["metadata"]["name"], "--namespace", NAMESPACE, "--wait=false")
            done["pod deleted"] += 1
        elif spare and share < 0.95:
            number += 1
            what, adapter = ("changed", "came", "went")[number % 3], spare[-1]
            name = dice.choice(fleet.names())
            if what == "went":
                fleet.remove(name)
            else:
                name = name if what == "changed" else f"late-{number}"
                if what == "came":
                    fleet.create([name])
                spare.pop()
                held(site, fleet, name, adapter)
            done[what] += 1
        time.sleep(4)
    return done


def held(site: Site, fleet: Fleet, name: str, adapter: Adapter) -> None:
    """The index has the adapter from now on, and it is delivered. (A job would have it verified first, under no name.)"""
    fleet.put(name, adapter)
    with contextlib.suppress(Exception):
        delivery.deliver(adapter.folder, adapter.sha256, server(site)["status"]["podIP"], patience=60)


@contextlib.contextmanager
def started(work: pathlib.Path) -> Iterator[tuple[Site, pathlib.Path]]:
    base = work / "base"
    base.mkdir()
    tiny.make_tiny_model(base)
    volume = cache.folder("e2e") / CLAIM
    volume.mkdir(exist_ok=True)
    volume.chmod(0o777)
    with sites.running(base) as site:
        yield site, base


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapters", type=int, default=200)
    parser.add_argument("--requests", type=int, default=10_000)
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, started(pathlib.Path(folder)) as (site, base):
        text = measure(site, base, pathlib.Path(folder), wanted.adapters, wanted.requests)
    (REPOSITORY / "docs/benchmarks/pool.md").write_text(text)
    print(text)


def measure(site: Site, base: pathlib.Path, work: pathlib.Path, count: int, requests: int) -> str:
    print(f"making {count} adapters and 40 to change to", flush=True)
    adapters = [make(base, work / f"adapter-{seed}", seed) for seed in range(count + 40)]
    site.kube.apply(*objects(site, cache.folder("e2e") / CLAIM))
    data = site.upload_rows("many/train.jsonl", sites.chats(60))
    training = {**site.spec(data)["training"], "maxSequenceLength": 256}
    site.apply(FIRST, site.spec(data, training=training, deployment={"pool": POOL, "servedModelName": FIRST}))
    first = site.until_condition(FIRST, "Ready", seconds=600)
    alone = memory(ready_server(site))
    fleet = Fleet(site, first)
    names = [f"job-{number}" for number in range(count)]
    fleet.create(names)
    for name, adapter in zip(names, adapters, strict=False):
        fleet.put(name, adapter)
    begun = time.monotonic()
    deliver(site, adapters[:count])
    delivered = time.monotonic() - begun
    print(f"{count} adapters delivered in {delivered:.0f} s", flush=True)
    _learn(site, names, adapters[:count], fleet)
    # the answers of the spare ones, by names that lead to them for a moment
    spare = adapters[count:]
    fleet.create(["probe"])
    for one in spare:
        held(site, fleet, "probe", one)
        one.answer = _settled(site, "probe", one)
    fleet.remove("probe")
    resident, cold = _first_tokens(site, names)
    full = memory(ready_server(site))
    clients = Clients(site, fleet, requests)
    begun = time.monotonic()
    threads = [threading.Thread(target=clients.run, args=(seed,), daemon=True) for seed in range(CLIENTS)]
    for thread in threads:
        thread.start()
    done = disturb(site, fleet, clients, spare)
    for thread in threads:
        thread.join()
    seconds = time.monotonic() - begun
    return report(count, clients.tally, done, seconds, delivered, (alone, full), (resident, cold))


def _learn(site: Site, names: list[str], adapters: list[Adapter], fleet: Fleet) -> None:
    """The answer of each adapter alone. All must differ, or a wrong one could not be told."""
    address = server(site)["status"]["podIP"]
    for name, adapter in zip(names, adapters, strict=True):
        adapter.answer = _until_answered(address, name)
    kinds = len({one.answer for one in adapters})
    print(f"{kinds} different answers of {len(adapters)} adapters", flush=True)


def _until_answered(address: str, name: str) -> str:
    end = time.monotonic() + 120
    while True:
        status, text, _ = ask(address, name)
        if status == 200:
            return text
        if time.monotonic() > end:
            raise SystemExit(f"{name} does not answer: {status} {text}")
        time.sleep(0.5)


def _settled(site: Site, name: str, adapter: Adapter) -> str:
    """The answer once the route leads to this adapter alone."""
    time.sleep(2)
    return _until_answered(server(site)["status"]["podIP"], name)


def _first_tokens(site: Site, names: list[str]) -> tuple[float, float]:
    """Median seconds to the first byte of adapters that were just asked, and of those that left the engine's memory."""
    address = server(site)["status"]["podIP"]
    for name in names[: IN_MEMORY + 20]:
        ask(address, name)
    cold = [ask(address, name, stream=True)[2] for name in names[-20:]]
    warm = [ask(address, name, stream=True)[2] for name in names[-20:] for _ in range(3)]
    return statistics.median(warm), statistics.median(cold)


def report(
    count: int,
    tally: Tally,
    done: Counter[str],
    seconds: float,
    delivered: float,
    sizes: tuple[int, int],
    firsts: tuple[float, float],
) -> str:
    times = sorted(tally.seconds)
    gone = sum(number for status, number in tally.refused.items() if status < 0)
    away = sum(number for status, number in tally.refused.items() if status >= 0)
    alone, full = (size / 2**20 for size in sizes)
    rows = [
        ("wrong answers", f"**{len(tally.wrong)}** of {tally.answers:,}"),
        ("requests that were refused while the engine or the pod was away", f"{away:,}"),
        ("requests for a name that had just been removed, refused", f"{gone:,}"),
        ("adapters that came, changed, went meanwhile", f"{done['came']}, {done['changed']}, {done['went']}"),
        ("engine killed; pod deleted", f"{done['engine killed']}; {done['pod deleted']}"),
        (f"time for the requests, {CLIENTS} clients at once", f"{seconds:.0f} s"),
        ("answer of 8 tokens, p50, p95", f"{times[len(times) // 2]:.2f} s, {times[int(len(times) * 0.95)]:.2f} s"),
        (f"{count} deliveries, 6 at once, to ready in the engine", f"{delivered:.0f} s"),
        (
            "first byte, adapter in memory; adapter that had left it",
            f"{firsts[0] * 1000:.0f} ms; {firsts[1] * 1000:.0f} ms",
        ),
        (f"memory of the pod with 1 adapter, with {count}", f"{alone:.0f} MiB, {full:.0f} MiB"),
        (
            f"the same with {count} dedicated servers, each as the pod with one adapter",
            f"{alone * count / 1024:,.0f} GiB",
        ),
    ]
    lines = [
        "# Many adapters on one pod",
        "",
        f"A ServingPool with one replica on the real node, vLLM's CPU build, {os.cpu_count()} cores, the tests' tiny model, "
        f"{count} adapters of rank {RANK}; onGpu {ON_GPU}, inMemory {IN_MEMORY}. Written by `make bench-pool`.",
        "",
        "| what | seen |",
        "|---|---|",
        *(f"| {what} | {seen} |" for what, seen in rows),
        "",
        *(f"- wrong: {one}" for one in tally.wrong[:20]),
    ]
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    main()
