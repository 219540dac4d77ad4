"""The watches that keep the cache current: ServingPools, the children of both, and the catalogue.

Children are listed and watched with a server-side label selector. Kopf would watch every Pod and Job of the cluster and
filter here, at some milliseconds each (see docs/adr/0002-children-by-label.md).
"""

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Any

from finetune_operator import cluster, kueue, stored
from finetune_operator.cache import OF_GATEWAYS, Cache
from finetune_operator.observe import label, projections

LOG = logging.getLogger(__name__)
OURS = f"{label.MANAGED_BY}={label.MANAGER},{label.UID}"
SELECTORS = {"BaseModel": "", "ServingPool": "", "Workload": kueue.QUEUED_JOB}
"""Selectors of kinds without the operator's labels."""
LONGEST_PAUSES = {"Workload": 60.0, "ServingPool": 60.0, **dict.fromkeys(OF_GATEWAYS, 60.0)}
"""Maximum seconds between two tries; 10 for built-in kinds."""

NEWER = {
    "ServingPool": "apply the folder crds/ of this release to use it",
    "HTTPRoute": "install the CRDs of Gateway API, which the chart's gatewayAPI.enabled needs",
    "InferencePool": "install the CRDs of Gateway API's inference extension, which gatewayAPI.inference.enabled needs",
    "InferenceModelRewrite": "install the CRDs of llm-d's router, which gatewayAPI.inference.modelRewrites needs",
}
"""Kinds whose CRD a cluster may lack (Helm adds none in an upgrade), and what to do: as long as it does, there are none."""


async def follow_all(
    api: cluster.Cluster,
    cache: Cache,
    namespaces: Iterable[str],
    synced: asyncio.Event,
    *,
    queues: bool = False,
    ingresses: bool = False,
    routes: bool = False,
    inference: bool = False,
    rewrites: bool = False,
) -> None:
    """Follow all kinds of children and the catalogue; `synced` is set once each has been listed. With `ingresses`, `routes`,
    `inference` (InferencePools) and `rewrites` (InferenceModelRewrites), also those; with `queues`, also Kueue's Workloads, for
    which `synced` does not wait, since Kueue may be installed later."""
    places: list[str | None] = list(namespaces) or [None]
    sources: list[tuple[str, str | None]] = [("BaseModel", None)]
    of_gateways = zip(OF_GATEWAYS, (routes, inference, rewrites), strict=True)
    wanted = {"Ingress": ingresses, **dict(of_gateways)}
    kinds = [kind for kind in ("ServingPool", *projections.PROJECTIONS) if wanted.get(kind, True)]
    sources += [(kind, place) for kind in kinds for place in places]
    missing = set(sources)
    sources += [("Workload", place) for place in places if queues]

    def listed(source: tuple[str, str | None]) -> Callable[[], None]:
        def mark() -> None:
            missing.discard(source)
            if not missing:
                synced.set()

        return mark

    tasks: list[asyncio.Task[Any]] = [
        asyncio.create_task(follow(api, cache, kind, place, listed((kind, place)))) for kind, place in sources
    ]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def follow(
    api: cluster.Cluster, cache: Cache, kind: str, namespace: str | None, listed: Callable[[], None]
) -> None:
    """Keep the cache of one kind current, through outages and expired versions. `listed` is called after each full list."""
    selector = SELECTORS.get(kind, OURS)
    pause = 0.1
    while True:
        try:
            found, reached = set[tuple[str, str]](), ""
            async for items, at in api.pages(kind, namespace, selector):
                found, reached = found | cache.put(kind, items), at
            cache.lacks(kind, False)
            cache.complete(kind, namespace, found, reached)
            listed()
            while True:
                async for event, raw in api.watch(kind, namespace, selector, reached):
                    pause = 0.1
                    reached = stored.version(raw)
                    cache.receive(kind, namespace, event, raw)
        except cluster.Expired:
            continue
        except (cluster.Failure, *cluster.OUTAGES) as error:
            if kind in NEWER and isinstance(error, cluster.Failure) and error.status == 404:
                LOG.warning("the cluster has no CRD of %s: %s", kind, NEWER[kind])
                cache.lacks(kind, True)
                cache.complete(kind, namespace, set(), "0")
                listed()
                await asyncio.sleep(LONGEST_PAUSES[kind])
                continue
            LOG.warning("the watch of %s was interrupted, retrying in %.1f s: %s", kind, pause, error)
            await asyncio.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSES.get(kind, 10.0))
