"""What the gateway adds to a request: `python tests/bench/gateway.py` writes docs/benchmarks/gateway.md.

An engine that answers at once (tests/trainer/gateway/double.py) runs as a process of its own, and so does the gateway, with 200
adapters and a key. Requests come 50 in a second, at random moments, in turn to the engine itself and through the gateway: what
else the machine does meets both alike. With --litellm PYTHON, of an environment with litellm[proxy], LiteLLM's proxy is a
third, at 5 requests in a second: at 50 it is overloaded on one core, and its queue would be measured. How many requests a
second each can answer at most is measured by clients that ask one after the other.
"""

import argparse
import asyncio
import contextlib
import hashlib
import json
import multiprocessing
import os
import pathlib
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import aiohttp
from aiohttp import web

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY))

from tests.support import ports  # noqa: E402
from tests.trainer.gateway import double  # noqa: E402

PAGE = REPOSITORY / "docs" / "benchmarks" / "gateway.md"
RATE, LOW_RATE, CLIENTS = 50.0, 5.0, 16
"""Requests in a second for each side, the lower rate with LiteLLM; clients that ask one after the other."""
ADAPTERS, TOKENS, WORDS = 200, 32, " ".join(["word"] * 400)
KEY, POOL = "a-key-of-the-benchmark", "bench/pool"
QUIET = {"FINETUNE_LOG_LEVEL": "WARNING", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
MESSAGES = [{"role": "system", "content": WORDS}, {"role": "user", "content": "hello"}]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--seconds", type=float, default=40.0, help="of each measurement")
    options.add_argument("--litellm", metavar="PYTHON", help="Python of an environment with litellm[proxy]")
    options.add_argument("--output", type=pathlib.Path, default=PAGE)
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        results = asyncio.run(measure(pathlib.Path(folder), chosen.seconds, chosen.litellm, stack))
    chosen.output.write_text(page(*results, chosen.seconds))
    print(chosen.output.read_text())


async def measure(
    folder: pathlib.Path, seconds: float, litellm: str | None, stack: contextlib.ExitStack
) -> tuple[dict[tuple[str, float], dict[str, list[float]]], dict[str, float]]:
    """Seconds of every request: {(kind, rate): {side: [...]}}; whole answers a second: {side: ...}."""
    adapters = [adapter(folder, number) for number in range(ADAPTERS)]
    engine, index, clients, deliveries = (ports.free() for _ in range(4))
    stack.enter_context(engine_process(engine, serve_engine))
    stack.enter_context(process(gateway(folder, engine, index, clients, deliveries), folder / "gateway.log"))
    sides = {"direct": f"http://127.0.0.1:{engine}", "gateway": f"http://127.0.0.1:{clients}"}
    async with operator(index, adapters), aiohttp.ClientSession(headers={"Authorization": f"Bearer {KEY}"}) as session:
        await answers(session, f"http://127.0.0.1:{deliveries}/readyz", 300)
        if litellm:
            port = ports.free()
            stack.enter_context(process(peer(folder, litellm, engine, port), folder / "litellm.log"))
            sides["LiteLLM"] = f"http://127.0.0.1:{port}"
            await answers(session, f"{sides['LiteLLM']}/health/liveliness", 180)
        for url in sides.values():  # connections, caches
            await asyncio.gather(*(ask(session, url, number, stream=True) for number in range(20)))
        own = {side: url for side, url in sides.items() if side != "LiteLLM"}
        loads = [(RATE, own)] if own == sides else [(LOW_RATE, sides), (RATE, own)]
        return {
            (kind, rate): await load(session, asked, seconds, rate, stream=kind != "whole answer")
            for rate, asked in loads
            for kind in ("whole answer", "stream")
        }, {side: await most(session, url, seconds / 4) for side, url in sides.items()}


async def most(session: aiohttp.ClientSession, url: str, seconds: float) -> float:
    """Whole answers a second that CLIENTS get who ask one after the other."""
    begun = time.perf_counter()

    async def client(first: int) -> int:
        answered = 0
        while time.perf_counter() < begun + seconds:
            await ask(session, url, first + answered, stream=False)
            answered += 1
        return answered

    answered = sum(await asyncio.gather(*(client(number * ADAPTERS // CLIENTS) for number in range(CLIENTS))))
    return answered / (time.perf_counter() - begun)


async def load(
    session: aiohttp.ClientSession, sides: dict[str, str], seconds: float, rate: float, *, stream: bool
) -> dict[str, list[float]]:
    """Requests at random moments, `rate` a second for each side, whatever the answers take."""
    chance = random.Random(1)
    found: dict[str, list[float]] = {side: [] for side in sides}
    tasks: list[asyncio.Task[None]] = []

    async def one(side: str, number: int) -> None:
        found[side].append(await ask(session, sides[side], number, stream=stream))

    next_at = time.perf_counter()
    for number in range(int(seconds * rate) * len(sides)):
        next_at += chance.expovariate(rate * len(sides))
        if (wait := next_at - time.perf_counter()) > 0:
            await asyncio.sleep(wait)
        tasks.append(asyncio.create_task(one(list(sides)[number % len(sides)], number)))
    await asyncio.gather(*tasks)
    return found


async def ask(session: aiohttp.ClientSession, url: str, number: int, *, stream: bool) -> float:
    """Seconds to the whole answer, or of a stream to its first token."""
    body = {"model": f"model-{number % ADAPTERS}", "messages": MESSAGES, "stream": stream}
    begun = time.perf_counter()
    async with session.post(f"{url}/v1/chat/completions", json=body) as answer:
        if answer.status != 200:
            raise RuntimeError(f"{url}: HTTP {answer.status}: {await answer.text()}")
        if stream:
            await answer.content.readuntil(b"\n\n")
            seconds = time.perf_counter() - begun
            await answer.read()
            return seconds
        await answer.read()
        return time.perf_counter() - begun


# --- the processes ---


def adapter(folder: pathlib.Path, number: int) -> dict[str, Any]:
    """An adapter on the gateway's volume, as a delivery leaves it."""
    config = json.dumps({"peft_type": "LORA", "r": 8, "base_model_name_or_path": "/models/base"}, indent=1).encode()
    files = {"adapter_model.safetensors": f"answer {number}".encode(), "adapter_config.json": config}
    listed = [
        {"path": name, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()
    ]
    manifest = json.dumps({"files": listed}).encode()
    sha256 = hashlib.sha256(manifest).hexdigest()
    (folder / sha256).mkdir()
    for name, data in (*files.items(), ("manifest.json", manifest), (".adapter_config.json", config)):
        (folder / sha256 / name).write_bytes(data)
    size = sum(map(len, files.values()))
    return {"namespace": "bench", "job": f"job-{number}", "revision": "r1", "sha256": sha256, "rank": 8, "bytes": size}


def gateway(folder: pathlib.Path, engine: int, index: int, clients: int, deliveries: int) -> list[str]:
    (folder / "keys").mkdir()
    (folder / "keys" / "bench").write_text(KEY)
    return [
        sys.executable, "-m", "finetune_trainer", "gateway", "--pool", POOL, "--index", f"http://127.0.0.1:{index}",
        "--adapters", str(folder), "--keys", str(folder / "keys"), "--peers", "localhost", "--base-model", double.BASE,
        "--max-rank", "16", "--port", str(clients), "--delivery-port", str(deliveries), "--engine-port", str(engine),
        "--host", "127.0.0.1", "--grace", "1",
    ]  # fmt: skip


def peer(folder: pathlib.Path, python: str, engine: int, port: int) -> list[str]:
    """LiteLLM's proxy with the same models and a key, without its database and without logs."""
    models = [
        {
            "model_name": f"model-{number}",
            "litellm_params": {
                "model": f"openai/model-{number}", "api_base": f"http://127.0.0.1:{engine}/v1", "api_key": "none",
            },
        }
        for number in range(ADAPTERS)
    ]  # fmt: skip
    config = {"model_list": models, "general_settings": {"master_key": KEY}, "litellm_settings": {"set_verbose": False}}
    (folder / "litellm.json").write_text(json.dumps(config))  # JSON is YAML
    program = str(pathlib.Path(python).with_name("litellm"))
    return [program, "--config", str(folder / "litellm.json"), "--host", "127.0.0.1", "--port", str(port)]


@contextlib.contextmanager
def process(command: list[str], log: pathlib.Path) -> Iterator[None]:
    with log.open("wb") as output:
        running = subprocess.Popen(command, stdout=output, stderr=output, env=os.environ | QUIET)
    try:
        yield
    finally:
        running.terminate()
        running.wait(30)


@contextlib.contextmanager
def engine_process(port: int, serve: Callable[[int], None]) -> Iterator[None]:
    running = multiprocessing.get_context("spawn").Process(target=serve, args=(port,), daemon=True)
    running.start()
    try:
        yield
    finally:
        running.terminate()
        running.join(30)


def serve_engine(port: int) -> None:
    """Answers at once under every name that a side may send."""
    engine = double.Engine()
    engine.tokens, engine.text = TOKENS, " ".join(["word"] * TOKENS)
    engine.adapters = {f"model-{number}": "" for number in range(ADAPTERS)}
    web.run_app(engine.app(), host="127.0.0.1", port=port, print=None, access_log=None)


@contextlib.asynccontextmanager
async def operator(port: int, adapters: list[dict[str, Any]]) -> AsyncIterator[None]:
    index = double.Operator()
    models = [
        {
            "namespace": "bench",
            "job": one["job"],
            "name": f"model-{number}",
            "routes": [{"revision": "r1", "sha256": one["sha256"], "weight": 100}],
        }
        for number, one in enumerate(adapters)
    ]
    await index.set({"pool": POOL, "etag": "1", "models": models, "adapters": adapters})
    runner = web.AppRunner(index.app(), shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    try:
        yield
    finally:
        await runner.cleanup()


async def answers(session: aiohttp.ClientSession, url: str, seconds: float) -> None:
    async with asyncio.timeout(seconds):
        while True:
            try:
                async with session.get(url) as answer:
                    if answer.status == 200:
                        return
            except OSError:
                pass
            await asyncio.sleep(0.2)


# --- the page ---

NAMES = {"direct": "the engine's double itself"}


def page(results: dict[tuple[str, float], dict[str, list[float]]], rates: dict[str, float], seconds: float) -> str:
    lines = []
    for (kind, rate), sides in results.items():
        base = sides["direct"]
        for side, found in sides.items():
            added = (
                ["-", "-"]
                if side == "direct"
                else [f"{at(found, share) - at(base, share):.1f}" for share in (0.5, 0.99)]
            )
            measured = f"{at(found, 0.5):.1f} | {at(found, 0.99):.1f} | {added[0]} | {added[1]}"
            lines.append(f"| {kind} | {rate:.0f} | {NAMES.get(side, side)} | {measured} |")
    most = [f"| {NAMES.get(side, side)} | {rate:.0f} | {rate / rates['gateway']:.2f} |" for side, rate in rates.items()]
    return f"""# What the gateway adds to a request

Written by `make bench-gateway`; `ARGS="--litellm PYTHON"` adds LiteLLM's proxy, from an environment with `litellm[proxy]`.
{ADAPTERS} models behind one engine's double that answers at once, requests for each side at random
moments, in turn, for {seconds:.0f} s, {os.cpu_count()} cores for all of it: load generator, double and proxies. Times in
milliseconds; of streams to the first token. LiteLLM runs with one process, a master key and no database: it checks less than
with a key for each tenant. It is asked {LOW_RATE:.0f} times a second: at {RATE:.0f} its queue would be measured.

| request | a second | through | p50 | p99 | added p50 | added p99 |
|---|---|---|---|---|---|---|
{chr(10).join(lines)}

Whole answers a second, at most: {CLIENTS} clients who ask one after the other, for {seconds / 4:.0f} s, one side after the other.

| through | answers a second | to the gateway's |
|---|---|---|
{chr(10).join(most)}
"""


def at(found: list[float], share: float) -> float:
    """A quantile, in milliseconds."""
    return 1000 * statistics.quantiles(found, n=1000, method="inclusive")[round(share * 1000) - 1]


if __name__ == "__main__":
    main()
