"""The dashboard of pools: a real Prometheus that scrapes a running gateway answers every query of every panel."""

import asyncio
import math
import pathlib
import time

import pytest
from tests.trainer.gateway.conftest import World

from support import boards, prometheus

POOL = "shared"
PATIENCE = 60.0
"""Seconds until every query must have had data. Prometheus itself begins to scrape some 5 seconds after it started."""


@pytest.mark.slow
async def test_every_query_of_the_dashboard_returns_data(world: World, tmp_path: pathlib.Path) -> None:
    old, new = world.adapter("old"), world.adapter("new")
    world.serve("desk", (old, 50), (new, 50))
    pod = await world.pod()
    await world.delivered(pod, old, new)
    target = {"targets": [pod.deliveries.removeprefix("http://")], "labels": {"pool": POOL, "pod": "shared-0"}}
    scrape = {"job_name": "finetune-pools", "honor_labels": True, "static_configs": [target]}
    config = {"global": {"scrape_interval": "1s", "scrape_timeout": "1s"}, "scrape_configs": [scrape]}
    missing = [*boards.queries("pools"), *boards.choices("pools")]
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
