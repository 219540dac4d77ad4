"""What LoRA costs the requests that use the base model: `make bench-pool-base` writes docs/benchmarks/pool-base.md.

Two pods of vLLM's CPU build on the real node, with a pool's arguments and with the same ones without LoRA; both serve
SmolLM2-135M. Clients ask the base model, of one pod and of the other in turns, so that whatever else the machine does meets both;
then half of the clients ask adapters of the pod that has them.
"""

import argparse
import concurrent.futures
import json
import pathlib
import statistics
import sys
import tempfile
import time
import urllib.request
from typing import Any

REPOSITORY = pathlib.Path(__file__).resolve().parents[3]
sys.path[:0] = [str(REPOSITORY / "hack"), str(REPOSITORY / "tests")]

from bench.pool.adapters import RANK, make  # noqa: E402
from demo import install  # noqa: E402
from support import site as sites  # noqa: E402
from toolbox import cache  # noqa: E402

PODS = ("without-lora", "with-lora")
BASE, SPACE = "smollm2-135m-instruct", "default"
ADAPTERS, CLIENTS, TOKENS = 8, 8, 32
LORA = ["--enable-lora", f"--max-lora-rank={RANK}", f"--max-loras={ADAPTERS}", f"--max-cpu-loras={ADAPTERS}"]
PAGE = REPOSITORY / "docs/benchmarks/pool-base.md"


def pod(name: str, images: dict[str, str], folder: pathlib.Path, more: list[str]) -> dict[str, Any]:
    serving = install.values(images, "unused")["serving"]
    arguments = ["--model=/base", f"--served-model-name={BASE}", "--port=8000", *serving["args"], *more]
    environment = {"HOME": "/tmp", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", **serving["env"]}
    places = {"base": cache.folder("model") / BASE, "adapters": folder}
    container = {
        "name": "server",
        "image": images["vllm-cpu"],
        "command": ["python3", "-m", "vllm.entrypoints.openai.api_server"],
        "args": arguments,
        "env": [{"name": key, "value": value} for key, value in environment.items()],
        "volumeMounts": [{"name": key, "mountPath": f"/{key}", "readOnly": True} for key in places]
        + [{"name": "shm", "mountPath": "/dev/shm"}],
        "readinessProbe": {"httpGet": {"path": "/health", "port": 8000}, "periodSeconds": 2},
    }
    volumes = [{"name": key, "hostPath": {"path": str(path)}} for key, path in places.items()]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": SPACE},
        "spec": {
            "containers": [container],
            "volumes": [*volumes, {"name": "shm", "emptyDir": {"medium": "Memory"}}],
            "automountServiceAccountToken": False,
            "terminationGracePeriodSeconds": 0,
        },
    }


def remove(site: sites.Site) -> None:
    site.kube.run("delete", "pod", *PODS, "--namespace", SPACE, "--ignore-not-found", "--now")


def ready(site: sites.Site, name: str, seconds: float = 600) -> str:
    """The pod's address."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        status = json.loads(site.raw(f"/api/v1/namespaces/{SPACE}/pods/{name}"))["status"]
        if any(one["type"] == "Ready" and one["status"] == "True" for one in status.get("conditions", [])):
            address: str = status["podIP"]
            return address
        time.sleep(1)
    raise SystemExit(f"pod {name} is not ready after {seconds:.0f} s: {status}")


def ask(address: str, model: str, number: int) -> float:
    """Seconds until the whole answer, always TOKENS long."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": f"Tell a story of the number {number}."}],
        "max_tokens": TOKENS,
        "temperature": 0,
        "ignore_eos": True,
    }
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"http://{address}:8000/v1/chat/completions", json.dumps(body).encode(), headers)
    begun = time.monotonic()
    with urllib.request.urlopen(request, timeout=300) as answer:
        counted = json.load(answer)["usage"]["completion_tokens"]
    assert counted == TOKENS, f"{model} answered {counted} tokens, expected {TOKENS}"
    return time.monotonic() - begun


def load(address: str, models: list[str], clients: int, requests: int) -> tuple[float, float]:
    """Tokens per second of all, and the median of the seconds of an answer of the base model."""
    begun = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(clients) as threads:
        named = [(models[number % len(models)], number) for number in range(requests)]
        seconds = list(threads.map(lambda one: ask(address, *one), named))
    of_base = [taken for (model, _), taken in zip(named, seconds, strict=True) if model == BASE]
    return requests * TOKENS / (time.monotonic() - begun), statistics.median(of_base)


def measure(site: sites.Site, work: pathlib.Path, rounds: int) -> str:
    adapters = make(cache.folder("model") / BASE, work, ADAPTERS)
    for file in work.rglob("*.safetensors"):
        file.chmod(0o644)  # the server is another user
    modules = [json.dumps({"name": f"a{n}", "path": f"/adapters/{one.folder.name}"}) for n, one in enumerate(adapters)]
    sides = dict(zip(PODS, ([], [*LORA, "--lora-modules", *modules]), strict=True))
    remove(site)
    for name, more in sides.items():
        site.kube.apply(pod(name, site.images, work, more))
    plain, pool = (ready(site, name) for name in sides)
    mixed = [name for number in range(ADAPTERS) for name in (BASE, f"a{number}")]
    runs = [
        ("base model alone, 1 client", 1, 8, [("without", plain, [BASE]), ("with", pool, [BASE])]),
        (f"base model alone, {CLIENTS} clients", CLIENTS, 32, [("without", plain, [BASE]), ("with", pool, [BASE])]),
        (
            f"half of {CLIENTS} clients' requests to {ADAPTERS} adapters",
            CLIENTS,
            32,
            [("without", plain, [BASE]), ("with", pool, mixed)],
        ),
    ]
    for address in (plain, pool):
        load(address, [BASE], CLIENTS, 16)
    load(pool, mixed, CLIENTS, 16)
    rows = []
    for what, clients, requests, both in runs:
        seen: dict[str, list[tuple[float, float]]] = {}
        for _ in range(rounds):
            for side, address, models in both:
                seen.setdefault(side, []).append(load(address, models, clients, requests))
        rows.append(
            (what, *(tuple(statistics.median(kind) for kind in zip(*seen[side], strict=True)) for side in seen))
        )
        print(rows[-1], flush=True)
    return page(rows, rounds)


def page(rows: list[tuple[Any, ...]], rounds: int) -> str:
    lines = [
        "# What LoRA costs the base model's requests",
        "",
        f"vLLM's CPU build on the real node, 2 cores, SmolLM2-135M in bfloat16, {ADAPTERS} adapters of rank {RANK} on all linear",
        f"layers; answers of {TOKENS} tokens, medians of {rounds} rounds, both pods in turns. Written by",
        "`make bench-pool-base`.",
        "",
        "| requests | tokens/s without LoRA | with | ratio | answer of the base model without | with |",
        "|---|---|---|---|---|---|",
    ]
    for what, (plain, plain_seconds), (pool, pool_seconds) in rows:
        lines.append(
            f"| {what} | {plain:.1f} | {pool:.1f} | {pool / plain:.2f} | {plain_seconds:.2f} s | {pool_seconds:.2f} s |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    wanted = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(dir=cache.folder("e2e")) as folder,
        sites.running(cache.folder("model") / BASE) as site,
    ):
        pathlib.Path(folder).chmod(0o755)
        try:
            text = measure(site, pathlib.Path(folder), wanted.rounds)
        finally:
            remove(site)
    PAGE.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
