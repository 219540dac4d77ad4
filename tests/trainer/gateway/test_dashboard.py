"""A real Prometheus that scrapes a running gateway answers every query of the pools' dashboard and of the autoscalers."""

import asyncio
import math
import pathlib
import time

import pytest
import yaml
from tests.trainer.gateway.conftest import World

from support import boards, prometheus

POOL = "chat"
PATIENCE = 60.0
"""Seconds until every query must have had data. Prometheus itself begins to scrape some 5 seconds after it started."""


def autoscaler_queries() -> list[boards.Query]:
    """Of KEDA's triggers, and of prometheus-adapter where it looks for series."""
    folder = boards.FOLDER.parents[2] / "examples" / "autoscaling"
    triggers = yaml.safe_load((folder / "keda.yaml").read_text())["spec"]["triggers"]
    rules = yaml.safe_load((folder / "prometheus-adapter.yaml").read_text())["rules"]["custom"]
    found = [boards.Query("keda", trigger["name"], trigger["metadata"]["query"]) for trigger in triggers]
    return found + [boards.Query("prometheus-adapter", rule["name"]["as"], rule["seriesQuery"]) for rule in rules]


@pytest.mark.slow
async def test_every_query_of_dashboard_and_autoscalers_returns_data(world: World, tmp_path: pathlib.Path) -> None:
    old, new = world.adapter("old"), world.adapter("new")
    world.serve("desk", (old, 50), (new, 50))
    pod = await world.pod()
    await world.delivered(pod, old, new)
    target = {
        "targets": [pod.deliveries.removeprefix("http://")],
        "labels": {"namespace": "ml", "pool": POOL, "pod": "chat-0"},
    }
    scrape = {"job_name": "finetune-pools", "honor_labels": True, "static_configs": [target]}
    config = {"global": {"scrape_interval": "1s", "scrape_timeout": "1s"}, "scrape_configs": [scrape]}
    missing = [*boards.queries("pools"), *boards.choices("pools"), *autoscaler_queries()]
    begun = time.time()
    with prometheus.running(tmp_path, config) as server:
        while missing and time.time() < begun + PATIENCE:  # a rate needs requests after the first scrape
            for stream in (False, True):
                for user in range(4):
                    assert (await world.ask(pod, "desk", user=str(user), stream=stream)).status == 200
            assert (await world.ask(pod, "nothing")).status == 404
            await asyncio.sleep(1)
            missing = [query for query in missing if not await asyncio.to_thread(answered, server, query, begun)]
    assert not missing, f"no data: {missing}"


def answered(server: prometheus.Prometheus, query: boards.Query, begun: float) -> bool:
    """If some point of the query's graph since then is a number."""
    found = server.range(query.filled({"pool": POOL}), begun, time.time(), 1)
    return any(math.isfinite(float(value)) for series in found for _, value in series["values"])
