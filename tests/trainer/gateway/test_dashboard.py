"""The dashboard of pools: a real Prometheus that scrapes a running gateway answers every query of every panel."""

import asyncio
import math
import pathlib
import time

import pytest
from tests.trainer.gateway.conftest import World

from support import boards, prometheus

POOL = "shared"


@pytest.mark.slow
async def test_every_query_of_the_dashboard_returns_data(world: World, tmp_path: pathlib.Path) -> None:
    old, new = world.adapter("old"), world.adapter("new")
    world.serve("desk", (old, 50), (new, 50))
    pod = await world.pod()
    await world.delivered(pod, old, new)
    target = {"targets": [pod.deliveries.removeprefix("http://")], "labels": {"pool": POOL, "pod": "shared-0"}}
    scrape = {"job_name": "finetune-pools", "honor_labels": True, "static_configs": [target]}
    config = {"global": {"scrape_interval": "1s", "scrape_timeout": "1s"}, "scrape_configs": [scrape]}
    begun = time.time()
    with prometheus.running(tmp_path, config) as server:
        for number in range(6):
            for stream in (False, True):
                assert (await world.ask(pod, "desk", user=str(number), stream=stream)).status == 200
            assert (await world.ask(pod, "nothing")).status == 404
            await asyncio.sleep(1)
        await asyncio.sleep(2)
        for query in (*boards.queries("pools"), *boards.choices("pools")):
            found = await asyncio.to_thread(server.range, query.filled({"pool": POOL}), begun, time.time(), 1)
            finite = [value for series in found for _, value in series["values"] if math.isfinite(float(value))]
            assert finite, f"no data: {query}"
