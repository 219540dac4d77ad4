"""A real Gateway and Ingress controller in front of real servers: `make gateway-check` writes docs/benchmarks/gateway-check.md.

On the local node with vLLM's CPU build and a tiny model: Traefik, our chart with gatewayAPI and ingress enabled, a job with
deployment.route and rollout.steps whose clients ask by the Gateway all the time, and a pool behind an Ingress and an HTTPRoute.

The page is written with every finding, so that it has what was seen when something fails.

--only servers|pool   one of the two parts; the page goes to out/benchmarks
"""

import argparse
import json
import pathlib
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

# hack/ and tests/ have code shared by development tools and tests; they are not installable packages.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[3] / "hack"))
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from bench.routed import clients, controller, jobs, program, report, shares, watch
from demo import install
from support import site as sites
from support.site import NAMESPACE, Job, Site, condition
from toolbox import cache, say
from trainer import tiny

LONG = 900
"""Seconds for a revision, from the edit to its end."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["servers", "pool"])
    only = parser.parse_args().only
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # everything that was started ends with us
    folder = cache.REPOSITORY / ("out" if only else "docs") / "benchmarks"
    folder.mkdir(parents=True, exist_ok=True)
    program.ensure()
    found: list[report.Finding] = []
    with tempfile.TemporaryDirectory() as work:
        model = pathlib.Path(work, "model")
        tiny.make_tiny_model(model)
        with sites.running(model) as site:
            for one in check(site, pathlib.Path(work), only):
                say.line(f"  {'ok   ' if one.passed else 'WRONG'} {one.what}: {one.seen}")
                found.append(one)
                (folder / "gateway-check.md").write_text(report.page(found))
    return 0 if all(one.passed for one in found) else 1


def check(site: Site, work: pathlib.Path, only: str | None) -> Iterator[report.Finding]:
    controller.crds(site)
    site.kube.run_helm(
        "upgrade", install.RELEASE, str(install.CHART), "--namespace", install.SYSTEM, "--reuse-values",
        "--values", "-", "--wait", "--timeout", "5m", stdin=json.dumps(controller.VALUES),
    )  # fmt: skip
    if only != "pool":
        site.kube.apply(jobs.secret(f"{jobs.NAME}-key", API_KEY=jobs.KEY))
        site.apply(jobs.NAME, jobs.routed(site, "first", jobs.good(60)))
    address, public, other = controller.start(site, work)
    if only != "pool":
        yield from servers(site, clients.Host(jobs.HOST, address, public))
    if only != "servers":
        gateway = clients.Host(jobs.POOL_HOST, address, public)
        yield from pool(site, gateway, clients.Host(controller.INGRESS_HOST, address, other))


def servers(site: Site, host: clients.Host) -> Iterator[report.Finding]:
    with say.step("first revision"):
        site.until_condition(jobs.NAME, "Ready", seconds=LONG)
        routed = condition(site.until_condition(jobs.NAME, "Routed", seconds=60), "Routed")
    yield report.Finding("condition Routed", routed["message"], routed["reason"] == "Serving")
    yield from ways_in(host, jobs.KEY, "wrong", 401, jobs.NAME, "of the job's own server")
    with say.step("a good revision"):
        yield from rollout(site, host, "second", jobs.good(64), promoted)
    with say.step("a revision that answers worse"):
        yield from rollout(site, host, "bad", jobs.bad(), rolled_back)
    site.delete(jobs.NAME)


def promoted(job: Job, before: str) -> bool:
    ready = condition(job, "Ready").get("status") == "True"
    return ready and job["status"]["deployment"]["revision"] not in ("", before)


def rolled_back(job: Job, before: str) -> bool:
    return condition(job, "Failed").get("status") == "True"


def rollout(
    site: Site, host: clients.Host, data: str, rows: list[Any], over: Callable[[Job, str], bool]
) -> Iterator[report.Finding]:
    """An edit under clients, until it is over and half a minute longer."""
    before = site.job(jobs.NAME)["status"]["deployment"]["revision"]
    asking = clients.Clients(host, jobs.KEY, jobs.NAME)
    with watch.Watch(site, jobs.NAME) as seen, asking:
        site.apply(jobs.NAME, jobs.routed(site, data, rows))
        site.until(jobs.NAME, lambda job: job["status"].get("revision") != before, "in its next revision", 30)
        job = site.until(jobs.NAME, lambda job: over(job, before), "at the end of its rollout", LONG)
        time.sleep(30)
        end = time.time()
    text = f"{asking.answers} answers, {len(asking.failures)} others: {'; '.join(asking.failures[:5]) or 'none'}"
    yield report.Finding(f"{data}: requests", text, not asking.failures)
    yield report.Finding(
        f"{data}: looks at route and job", "; ".join(sorted(seen.problems)) or "no error", not seen.problems
    )
    found = shares.shares(seen.weights, end, controller.log(site), seen.pods)
    for one in found:
        yield report.share(data, one)
    yield report.weights(data, found, [step["weight"] for step in jobs.STEPS] if over is promoted else None)
    for number, look in sorted(seen.looks.items()):
        yield report.look(data, number, look)
    yield report.end(data, job, promoted=over is promoted)


def ways_in(host: clients.Host, key: str, wrong: str, status: int, model: str, what: str) -> Iterator[report.Finding]:
    """What clients get with a key, another one, none, and on other paths."""
    seen = {
        "with the key": (host.chat(key, model)[0], 200),
        "without": (host.chat("", model)[0], 401),
        "with another": (host.chat(wrong, model)[0], status),
        "/metrics": (host.ask("/metrics", key)[0], 404),
        "/health": (host.ask("/health", key)[0], 404),
    }
    text = ", ".join(f"{name} {got}" for name, (got, _) in seen.items())
    yield report.Finding(f"https://{host.name}/v1 {what}", text, all(got == wanted for got, wanted in seen.values()))
    yield report.streamed(host.stream(key, model))


def pool(site: Site, gateway: clients.Host, ingress: clients.Host) -> Iterator[report.Finding]:
    with say.step("pool and its first model"):
        site.kube.apply(*jobs.pool(site))
        site.apply(jobs.POOLED, jobs.pooled(site))
        site.until_condition(jobs.POOLED, "Ready", seconds=LONG)
    yield from ways_in(ingress, jobs.MINE, jobs.OTHERS, 404, jobs.MODEL, "of the pool, by its Ingress")
    yield from ways_in(gateway, jobs.MINE, jobs.OTHERS, 404, jobs.MODEL, "of the pool, by an HTTPRoute")
    site.delete(jobs.POOLED)
    site.kube.run("delete", "servingpool", jobs.POOL, "--namespace", NAMESPACE, "--wait=false")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except say.Problem as problem:
        say.line(f"gateway-check: {problem}")
        sys.exit(1)
    except KeyboardInterrupt:
        say.line("gateway-check: interrupted; all that it had started is ended")
        sys.exit(130)
