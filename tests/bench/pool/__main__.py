"""Many adapters on one pod of a ServingPool: `python tests/bench/pool` writes docs/benchmarks/pool.md.

On the real node with vLLM's CPU build. One job trains and is served by the pool; its status is copied to ADAPTERS suspended jobs,
each with an adapter of its own (random weights of a tiny model, so that each answers differently), which are delivered as a
verify stage does. Then clients send REQUESTS requests, while adapters come, change and go, the engine is killed and the pod is
deleted. Every answer is compared with the ones of the adapters that its name stood for at the time.
"""

import argparse
import concurrent.futures
import contextlib
import os
import pathlib
import random
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator

REPOSITORY = pathlib.Path(__file__).resolve().parents[3]
sys.path[:0] = [str(REPOSITORY / "hack"), str(REPOSITORY / "tests"), str(REPOSITORY / "tests/trainer")]

from bench.pool.adapters import Adapter, make  # noqa: E402
from bench.pool.clients import Clients, ask  # noqa: E402
from bench.pool.fleet import CLAIM, FIRST, IN_MEMORY, POOL, Fleet, memory, objects, ready_server, server  # noqa: E402
from bench.pool.report import CLIENTS, report  # noqa: E402
from finetune_trainer.gateway import delivery  # noqa: E402
from support import site as sites  # noqa: E402
from support.site import NAMESPACE, Site  # noqa: E402
from toolbox import cache  # noqa: E402
from trainer import tiny  # noqa: E402


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


SPARE = 40
"""Adapters that names change to, or that come, under load."""


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
    print(f"making {count} adapters and {SPARE} to change to", flush=True)
    adapters = make(base, work, count + SPARE)
    site.kube.apply(*objects(site, cache.folder("e2e") / CLAIM))
    data = site.upload_rows("many/train.jsonl", sites.chats(60))
    training = {**site.spec(data)["training"], "maxSequenceLength": 256}
    site.apply(FIRST, site.spec(data, training=training, deployment={"pool": POOL, "servedModelName": FIRST}))
    first = site.until_condition(FIRST, "Ready", seconds=600)
    alone = memory(ready_server(site))
    releases = _releases(site, first, 10)
    fleet = Fleet(site, first)
    names = [f"job-{number}" for number in range(len(adapters))]
    fleet.create(names)
    for name, adapter in zip(names, adapters, strict=True):
        fleet.put(name, adapter)
    begun = time.monotonic()
    deliver(site, adapters)
    delivered = time.monotonic() - begun
    print(f"{len(adapters)} adapters delivered in {delivered:.0f} s", flush=True)
    _learn(site, names, adapters, fleet)
    fleet.known = {adapter.answer: name for name, adapter in zip(names, adapters, strict=True)}
    for name in names[count:]:
        fleet.remove(name)
    names, spare = names[:count], adapters[count:]
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
    return report(
        count, clients.tally, done, seconds, (len(adapters), delivered), releases, (alone, full), (resident, cold)
    )


def _releases(site: Site, first: sites.Job, times: int) -> list[float]:
    """Seconds from a new release of an evaluated revision, whose adapter the pool has, to its traffic: verified in between."""
    found = []
    for number in range(times):
        name = f"{FIRST}-{number}"
        wanted = {**first["spec"]["deployment"], "servedModelName": name}
        begun = time.monotonic()
        site.apply(FIRST, {**first["spec"], "deployment": wanted})
        while (site.job(FIRST)["status"].get("deployment") or {}).get("model") != name:
            if time.monotonic() > begun + 300:
                raise SystemExit(f"{name} is not served after 300 s: {site.job(FIRST)['status']}")
            time.sleep(0.1)
        found.append(time.monotonic() - begun)
    return sorted(found)


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


def _first_tokens(site: Site, names: list[str]) -> tuple[float, float]:
    """Median seconds to the first byte of adapters that were just asked, and of those that left the engine's memory."""
    address = server(site)["status"]["podIP"]
    for name in names[: IN_MEMORY + 20]:
        ask(address, name)
    cold = [ask(address, name, stream=True)[2] for name in names[-20:]]
    warm = [ask(address, name, stream=True)[2] for name in names[-20:] for _ in range(3)]
    return statistics.median(warm), statistics.median(cold)


if __name__ == "__main__":
    main()
