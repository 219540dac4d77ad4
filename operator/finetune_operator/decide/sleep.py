"""A job's own servers that end while no client asks (deployment.idle), by the rules of `idle`.

While they sleep, or whenever none is ready, the job's Service leads to the activator, which reaches them by a Service of their
own.
"""

import datetime

from finetune_api import deployment
from finetune_operator.decide import drift, idle
from finetune_operator.decide.world import World
from finetune_operator.manifests import activator, gateway, meta, service
from finetune_operator.observe import label, pools, projections, shared
from finetune_operator.observe.records import Release

STARTS = datetime.timedelta(minutes=2)
"""How long servers usually take to start."""


def find(world: World, serves: Release) -> idle.Found:
    """Whether the servers of this release, which serves, sleep."""
    server, ready = world.obs.servers.get(serves.name), _ready(world.obs.pods_of(serves.name))
    deployed = world.state.deployment
    if world.spec.deployment.idle is None:
        return idle.Found(activator=holds(world, serves))
    return idle.find(
        idle.Seen(
            idle=world.spec.deployment.idle,
            asleep_since=deployed.asleep_since if deployed is not None else None,
            now=world.now,
            servers=_readings(world, ready),
            activators=_readings(world, activators(world)),
            settled=server is not None and server.settled and 0 < server.replicas == len(ready),
            ended=server is None or server.wanted == 0,
            needs=_needs(world),
            etag="",
        )
    )


def again(world: World, serves: Release, found: idle.Found) -> datetime.datetime | None:
    """When to look again."""
    due = world.now + datetime.timedelta(seconds=found.again) if found.again is not None else None
    since = held_since(world, serves, found) if found.asleep_since is None else None
    held = since + _patience(world.spec.deployment.idle) if since is not None else None
    lasts = [time for time in _unread(world) if time > world.obs.now]
    return min((time for time in (due, held, *lasts) if time is not None), default=None)


def unread(world: World) -> str:
    """Why servers do not sleep, as when clients asked cannot be read; empty until that has lasted."""
    return next((problem for time, problem in _unread(world).items() if time <= world.obs.now), "")


def _unread(world: World) -> dict[datetime.datetime, str]:
    """When a problem of a ready pod has lasted for idle.UNREAD -> the problem."""
    serving = world.serving
    if serving is None or world.spec.deployment.idle is None:
        return {}
    found = _readings(world, [*_ready(world.obs.pods_of(serving.name)), *activators(world)])
    return {one.failing_since + idle.UNREAD: one.problem for one in found if one.failing_since is not None}


def held_since(world: World, serves: Release, found: idle.Found) -> datetime.datetime | None:
    """Since when no server is to be ready, as they sleep, or start while the first requests are held, or refused as usual; None:
    servers are to be ready, or no activator is."""
    deployed, wanted = world.state.deployment, world.spec.deployment.idle
    if deployed is None or wanted is None or not activators(world):
        return None
    if found.asleep_since is not None:
        return deployed.held_since or world.now
    since = deployed.held_since if deployed.asleep_since is None else world.now
    if since is None or world.obs.ready(serves.name):
        return None
    return since if world.now < since + _patience(wanted) else None


def held_in_pool(world: World, serves: Release) -> tuple[datetime.datetime | None, datetime.datetime | None]:
    """The same of a release in a pool, and when to look again."""
    pool, deployed = world.obs.pools.get(str(serves.pool)), world.state.deployment
    return (None, None) if deployed is None else held_by(pool, deployed.held_since, world.now)


def held_by(
    pool: shared.Pool | pools.Parent | None, before: datetime.datetime | None, now: datetime.datetime
) -> tuple[datetime.datetime | None, datetime.datetime | None]:
    """The same of what serves in this pool; before: since when, so far."""
    if pool is None or pool.spec is None or not pool.sleeps:
        return None, None
    until = pool.wakes_since + _patience(pool.spec.idle) if pool.wakes_since is not None else None
    return (before or now, until) if until is None or now < until else (None, None)


def _patience(wanted: deployment.Idle | None) -> datetime.timedelta:
    """How long the first requests after a sleep are held, or refused as usual."""
    holds = wanted is not None and wanted.requests == "Hold"
    return datetime.timedelta(seconds=deployment.seconds(wanted.hold_for)) if wanted and holds else STARTS


def front(world: World, serves: Release, found: idle.Found) -> tuple[meta.Manifest, ...]:
    """What clients reach, as far as it has to be applied: the job's Service, and with deployment.idle the activator."""
    parent, chart, wanted = world.obs.parent, world.obs.settings, world.spec.deployment.idle
    selector = {label.UID: parent.uid, label.RELEASE: serves.name}
    if found.activator:
        selector = gateway.selector_of_activator(parent)
    clients = service.to(parent, chart, parent.name, selector)
    mine = drift.service(world.obs.services.get(parent.name), clients)
    if wanted is None:
        return (*mine, *_behind(world, serves))
    made, servers = activator.build(parent, chart, serves, wanted)
    name = servers["metadata"]["name"]
    present = world.obs.servers.get(made["metadata"]["name"])
    own = world.obs.services.get(name)
    return (*mine, *drift.service(own, servers), *(drift.activator(present, made) if own else ()))


def _behind(world: World, serves: Release) -> tuple[meta.Manifest, ...]:
    """Without deployment.idle, for as long as an activator holds requests: the Service by which it reaches what serves now."""
    parent, name = world.obs.parent, activator.name_of_servers(world.obs.parent.name)
    own = world.obs.services.get(name)
    if own is None or not any(pod.activator for pod in world.obs.pods):
        return ()
    selector = {label.UID: parent.uid, label.RELEASE: serves.name}
    return drift.service(own, service.to(parent, world.obs.settings, name, selector))


def holds(world: World, serves: Release) -> bool:
    """Whether pods take requests while no server is ready: also without deployment.idle, as after it was removed in a sleep."""
    return bool(activators(world)) and not _ready(world.obs.pods_of(serves.name))


def activators(world: World) -> list[projections.Pod]:
    """The ready pods that take requests while no server is ready; none where the Service by which they reach servers is not the
    job's."""
    if activator.name_of_servers(world.obs.parent.name) not in world.obs.services:
        return []
    return [pod for pod in _ready(world.obs.pods) if pod.activator]


def _ready(found: "list[projections.Pod] | tuple[projections.Pod, ...]") -> list[projections.Pod]:
    return [pod for pod in found if pod.ready and not pod.deleting]


def _readings(world: World, found: list[projections.Pod]) -> list[pools.Reading]:
    return [world.obs.asked.get(pod.name, pools.Reading()) for pod in found]


def _needs(world: World) -> str:
    """In a step of a rollout the former release answers its share of the requests. A verification needs the candidate's servers
    alone."""
    candidate, rollout = world.candidate, world.state.rollout
    if candidate is None or rollout is None or rollout.release != candidate.name or not rollout.step:
        return ""
    return f"revision {candidate.revision} is in a step of its rollout"
