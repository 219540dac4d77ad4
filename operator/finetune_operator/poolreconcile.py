"""One ServingPool, one pass: gather its world, decide, apply, write the status once, then record events."""

import contextlib
import datetime
import logging
from collections.abc import Callable
from typing import Any

from finetune_api import revision, run, servingpool
from finetune_api.reasons import Condition, Reason
from finetune_operator import cache, cluster, conditions, index, pace, settings
from finetune_operator.decide import servingpool as decide
from finetune_operator.manifests import gateway
from finetune_operator.manifests import pool as manifests
from finetune_operator.observe import observation, pools
from finetune_operator.reconcile import FORBIDDEN, REFUSALS, RESYNC, Conflict, difference

LOG = logging.getLogger(__name__)


class Reconciler:
    """Has the cluster, the cache, the indexes and the settings; keeps no state of a pool."""

    def __init__(
        self,
        api: cluster.Cluster,
        facts: cache.Cache,
        indexes: index.Indexes,
        chart: settings.Settings,
        clock: Callable[[], datetime.datetime],
    ) -> None:
        self._api, self._facts, self._indexes, self._settings = api, facts, indexes, chart
        self._clock, self._pace = clock, pace.Pace()

    async def reconcile(self, uid: str) -> float | None:
        """The next step of the pool. Returns in how many seconds to reconcile it again; None if it is gone.

        Raises:
            Conflict: the cache is behind the API server.
            cluster.Failure, cluster.OUTAGES: the API server refused or was away.
        """
        parent = self._facts.pools.get(uid)
        if parent is None or parent.deleting:
            return None
        world = self._gather(parent)
        decision = decide.decide(world)
        waits = [self._pace.wait(self._place(parent, one), world.now) for one in decision.apply]
        apply = [one for one, wait in zip(decision.apply, waits, strict=True) if not wait]
        if apply and not await self._api.exists(manifests.KIND, parent.namespace, parent.name, uid):
            return None  # its deletion will arrive; nothing is created for it
        for kind, name in decision.delete:
            with self._facts.writing(kind, parent.namespace, name):
                await self._api.delete(kind, parent.namespace, name)
        state, refusal = decision.status, None
        for manifest in apply:
            try:
                await self._apply(parent, manifest, world.now)
            except cluster.Failure as failure:
                kind = manifest["kind"]
                lacking = failure.status == FORBIDDEN and not await self._may_write(kind, parent.namespace)
                if failure.status not in REFUSALS or lacking:
                    raise
                name = f"{kind} {manifest['metadata']['name']}"
                state = decide.refused(world, name, str(failure), taken=failure.status == 409)
                refusal = failure
                break
        await self._write(parent, state)
        if refusal is not None:
            raise refusal
        later = [wait for wait in (*waits, decision.again) if wait]
        return min([RESYNC, *later])

    def _gather(self, parent: pools.Parent) -> decide.World:
        kinds = observation.by_kind(self._facts.children.get(parent.uid, {}))
        return decide.World(
            parent=parent,
            base=self._base(parent),
            server=kinds["Deployment"].get(parent.name),
            activator=kinds["Deployment"].get(gateway.name_of_activator(parent.name)),
            services=kinds["Service"],
            budget=kinds["PodDisruptionBudget"].get(parent.name),
            ingress=kinds["Ingress"].get(parent.name),
            at_gateway={kind: kinds[kind] for kind in cache.OF_GATEWAYS},
            lacking=self._facts.lacking,
            pods=tuple(kinds["Pod"].values()),
            readings=self._facts.pool_states.get(parent.uid, {}),
            index=self._indexes.of(parent),
            needs=self._needs(parent),
            now=self._clock(),
            settings=self._settings,
        )

    def _needs(self, parent: pools.Parent) -> str:
        """Why one of the jobs of the pool needs its servers now."""
        parts = self._facts.members.get(parent.key, {}).values()
        spec = parent.spec
        admitted = (
            one for one in parts if spec and one.adapters and spec.admits(parent.namespace, one.adapters[0].namespace)
        )
        return next((one.needs for one in admitted if one.needs), "")

    def _base(self, parent: pools.Parent) -> run.ResolvedBaseModel | None:
        if parent.spec is None:
            return None
        name = parent.spec.base_model.name
        return revision.resolve(parent.spec.base_model, self._facts.catalogue.get(name) if name else None)

    def _place(self, parent: pools.Parent, manifest: dict[str, Any]) -> tuple[str, str, str]:
        return manifest["kind"], parent.namespace, manifest["metadata"]["name"]

    async def _apply(self, parent: pools.Parent, manifest: dict[str, Any], now: datetime.datetime) -> None:
        """An object that was never seen may belong to somebody else: a first apply is never forced."""
        place = self._place(parent, manifest)
        LOG.info("apply %s %s", place[0], place[2], extra=about(parent))
        ours = (place[0], place[2]) in self._facts.children.get(parent.uid, {})
        with self._facts.writing(*place):
            self._facts.wrote_child(await self._api.apply(manifest, ours))
        self._pace.note(place, now)

    async def _may_write(self, kind: str, namespace: str) -> bool:
        return all([await self._api.may(verb, kind, namespace) for verb in ("patch", "create")])

    async def _write(self, parent: pools.Parent, state: servingpool.Status) -> None:
        """Write the status if it differs, and an event if the pool became ready, stopped being it, fell asleep, or stalled."""
        changes = difference(dict(parent.written), state.wire())
        if not changes:
            return
        try:
            with self._facts.writing(manifests.KIND, parent.namespace, parent.name):
                fresh = await self._api.patch_status(
                    parent.namespace, parent.name, parent.version, changes, manifests.KIND
                )
                self._facts.put_pool(fresh)
        except cluster.Failure as failure:
            if failure.status == 404:
                return
            if failure.status == 409:
                raise Conflict from None
            raise
        for kind in (Condition.READY, Condition.STALLED):
            before, after = conditions.get(parent.status, kind), conditions.get(state, kind)
            if after is None:
                continue
            sleeps = kind is Condition.READY and after.reason == Reason.ASLEEP != (before.reason if before else "")
            if (before.status if before else "False") == after.status and not sleeps:
                continue
            good = kind is Condition.READY and (after.status == "True" or after.reason == Reason.WAKING)
            if kind is Condition.STALLED and after.status == "False":
                continue
            with contextlib.suppress(cluster.Failure, *cluster.OUTAGES):
                level = "Normal" if good else "Warning"
                text = f"{kind}: {after.message}"
                await self._api.event(dict(fresh), level, after.reason, text, manifests.KIND)


def about(parent: pools.Parent) -> dict[str, Any]:
    """Fields of a log line."""
    return {"namespace": parent.namespace, "pool": parent.name}
