"""One ServingPool: which objects to apply, and its status. Pure.

spec, base model -> manifests -> those that differ from what was last written
Deployment, pods, what their gateways report, the index -> status
"""

import dataclasses
import datetime
from collections.abc import Collection, Mapping, Sequence
from typing import Literal

from finetune_api import run, serving, servingpool
from finetune_api.reasons import BY_SOMEBODY, Condition, Reason
from finetune_operator import conditions, settings
from finetune_operator.decide import diagnosis, drift, idle, inference
from finetune_operator.manifests import gateway, meta
from finetune_operator.manifests import pool as manifests
from finetune_operator.observe import pools, projections

NAMED = 20
"""Adapters that the status names, at most."""
STEADY = 0.1
"""A rate that changed by less than this share is not written again."""


@dataclasses.dataclass(frozen=True)
class World:
    """All inputs. `base`: None if the catalogue lacks it. `readings`: by the name of the pod."""

    parent: pools.Parent
    base: run.ResolvedBaseModel | None
    server: projections.Server | None
    activator: projections.Server | None
    services: Mapping[str, projections.Service]
    budget: projections.Plain | None
    ingress: projections.Plain | None
    at_gateway: Mapping[str, Mapping[str, projections.Route]]
    """Kind -> name -> its objects of Gateway API, inference extension and llm-d."""
    lacking: Collection[str]
    """Kinds that the API server does not have."""
    pods: tuple[projections.Pod, ...]
    readings: Mapping[str, pools.Reading]
    index: serving.Index
    needs: str
    """Why one of its jobs needs the servers now, whether clients ask or not."""
    now: datetime.datetime
    settings: settings.Settings


@dataclasses.dataclass(frozen=True)
class Decision:
    """`again`: when to decide again without any event, in seconds; None: no need."""

    apply: tuple[meta.Manifest, ...]
    status: servingpool.Status
    again: float | None = None
    delete: tuple[tuple[str, str], ...] = ()
    """Kind and name."""


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The summary of a pool, for its conditions."""

    ready: Literal["True", "False"]
    reconciling: bool
    stalled: bool
    reason: Reason
    message: str
    again: float | None = None


def decide(world: World) -> Decision:
    """What to apply, and the whole status."""
    parent, spec = world.parent, world.parent.spec
    if spec is None:
        found = Verdict("False", False, True, Reason.INVALID_SPEC, parent.unreadable)
        return Decision((), _summarized(parent.status, found, world))
    if world.base is None:
        text = f"BaseModel {spec.base_model.name} does not exist: see `kubectl get basemodels`, or create it"
        found = Verdict("False", False, True, Reason.BASE_MODEL_NOT_FOUND, text)
        return Decision((), _summarized(_status(world, spec, spec.replicas), found, world))
    source = _source(world.base)
    if parent.status.source not in {None, source}:
        text = (
            f"BaseModel {spec.base_model.name} is at {source} now, and the pool's adapters were trained on "
            f"{parent.status.source}: the servers stay as they are. Restore the BaseModel, or create another ServingPool and "
            "move the jobs there"
        )
        found = Verdict("False", False, True, Reason.INVALID_SPEC, text)
        return Decision((), _summarized(_status(world, spec, spec.replicas), found, world))
    spec, lowered = _enough(world, spec)
    sleep = idle.find(_seen(world, spec))
    requested = 0 if sleep.ends else spec.replicas
    wanted = manifests.build(parent, spec, world.base, world.settings, requested, to_activator=sleep.activator)
    apply = tuple(made for manifest in wanted for made in _differing(world, manifest))
    changed = {one["metadata"]["name"] for one in apply if one["kind"] == "Deployment"}
    found = _stalled(_verdict(world, spec, sleep, pending=parent.name in changed), lowered)
    again = min((one for one in (found.again, sleep.again) if one is not None), default=None)
    state = _status(world, spec, requested).model_copy(update={"asleep_since": sleep.asleep_since})
    routed = inference.find(_routed(world, spec))
    state = _says(state, routed, world)
    delete = (*_leftover(world, wanted), *routed.delete)
    return Decision((*apply, *routed.apply), _summarized(state, found, world), again, delete)


def _enough(world: World, spec: servingpool.ServingPoolSpec) -> tuple[servingpool.ServingPoolSpec, str]:
    """The spec as it is applied, and what is to be said of it: no server is started that refuses an adapter of the pool."""
    highest = max(world.index.adapters, key=lambda one: one.rank, default=None)
    if highest is None or highest.rank <= spec.adapters.max_rank:
        return spec, ""
    text = (
        f"adapters.maxRank is {spec.adapters.max_rank}, and the pool holds adapters of rank {highest.rank} (FineTuneJob "
        f"{highest.namespace}/{highest.job}, revision {highest.revision}): its servers keep room for these. Set maxRank to "
        f"{highest.rank} again, or move such jobs to another place first"
    )
    enough = spec.adapters.model_copy(update={"max_rank": highest.rank})
    return spec.model_copy(update={"adapters": enough}), text


def _stalled(found: Verdict, lowered: str) -> Verdict:
    """A pool that sleeps or wakes says so to its jobs by the reason, which stays."""
    if not lowered:
        return found
    if found.reason in {Reason.ASLEEP, Reason.WAKING}:
        return dataclasses.replace(found, message=f"{found.message}. {lowered}")
    return dataclasses.replace(
        found, ready="False", reconciling=False, stalled=True, reason=Reason.INVALID_SPEC, message=lowered
    )


def _routed(world: World, spec: servingpool.ServingPoolSpec) -> inference.Seen:
    return inference.Seen(
        parent=world.parent,
        spec=spec,
        index=world.index,
        children=world.at_gateway,
        lacking=world.lacking,
        settings=world.settings,
    )


def _says(state: servingpool.Status, routed: inference.Found, world: World) -> servingpool.Status:
    """The status with the condition Routed, or without it."""
    if routed.value is None:
        return conditions.drop(state, Condition.ROUTED)
    generation, now = world.parent.generation, world.now
    return conditions.put(state, Condition.ROUTED, routed.value, routed.reason, routed.message, generation, now)


def _leftover(world: World, wanted: Sequence[meta.Manifest]) -> tuple[tuple[str, str], ...]:
    """What the spec has wanted before."""
    names = {(one["kind"], one["metadata"]["name"]) for one in wanted}
    activator = gateway.name_of_activator(world.parent.name)
    optional = ((world.ingress, ("Ingress", world.parent.name)), (world.activator, ("Deployment", activator)))
    return tuple(place for present, place in optional if present is not None and place not in names)


def _seen(world: World, spec: servingpool.ServingPoolSpec) -> idle.Seen:
    def readings(pods: list[projections.Pod]) -> list[pools.Reading]:
        return [world.readings.get(pod.name, pools.Reading()) for pod in pods]

    servers, server = _ready_pods(world), world.server
    return idle.Seen(
        idle=spec.idle,
        asleep_since=world.parent.status.asleep_since,
        now=world.now,
        servers=readings(servers),
        activators=readings(_ready_activators(world)),
        settled=server is not None and server.settled and len(servers) == server.replicas,
        ended=server is None or server.wanted == 0,
        needs=world.needs,
        etag=world.index.etag,
    )


def _source(base: run.ResolvedBaseModel) -> str:
    return f"{base.source}@{base.revision}" if base.revision else base.source


def refused(world: World, child: str, words: str, *, taken: bool) -> servingpool.Status:
    """The status of a pool one of whose objects the API server refuses."""
    problem = diagnosis.refused(child, words)
    text = f"{problem.message} It is retried automatically."
    if taken:
        text = f"{child} exists and is not this pool's: rename the pool, or delete that object"
    return _summarized(world.parent.status, Verdict("False", False, True, problem.reason, _in_a_pool(text)), world)


def _differing(world: World, manifest: meta.Manifest) -> tuple[meta.Manifest, ...]:
    """The manifest, if it has to be applied: what others changed in an object stays theirs (docs/adr/0039)."""
    kind, name = manifest["kind"], manifest["metadata"]["name"]
    if kind == "Service":
        return drift.service(world.services.get(name), manifest)
    if kind in {"PodDisruptionBudget", "Ingress"}:
        present = world.budget if kind == "PodDisruptionBudget" else world.ingress
        return () if present is not None and present.hash == meta.hash_of(manifest) else (manifest,)
    server, replicas = world.server if name == world.parent.name else world.activator, manifest["spec"]["replicas"]
    if server is None:
        return (manifest,)
    scaled = server.requested != replicas
    if server.deleting or not (scaled or server.hash != meta.hash_of(manifest)):
        return ()
    if not scaled and "replicas" in server.others:
        spec = {name: value for name, value in manifest["spec"].items() if name != "replicas"}
        return ({**manifest, "spec": spec},)
    return (manifest,)


# -- conditions --


def _verdict(world: World, spec: servingpool.ServingPoolSpec, sleep: idle.Found, *, pending: bool) -> Verdict:
    server, ready = world.server, _ready(world)
    if sleep.asleep_since is not None:
        return _sleeps(world, sleep)
    if server is None or pending or not server.settled or ready < spec.replicas:
        problem, since = _problem(world)
        if problem is None:
            what = "is being changed" if pending or server is None or not server.settled else "starts"
            text = f"{ready} of {spec.replicas} pods are ready, and the pool {what}"
            if sleep.text or _reason(world) == Reason.WAKING:
                why = f"the pool {sleep.text or 'wakes'}; {ready} of {spec.replicas} pods are ready"
                return Verdict("False", True, False, Reason.WAKING, why)
            return Verdict("False", True, False, Reason.STARTING, text)
        wait = world.settings.stalled_after_seconds
        age = wait if since is None else (world.now - since).total_seconds()
        by_somebody = problem.reason in BY_SOMEBODY and not (
            problem.reason == Reason.UNSCHEDULABLE and "Insufficient" in problem.message
        )
        stalled = problem.ends or (by_somebody and age >= wait)
        again = wait - age if by_somebody and not stalled else None
        return Verdict("False", not stalled, stalled, problem.reason, _in_a_pool(problem.message), again)
    models = len(world.index.models)
    text = f"{ready} of {spec.replicas} pods are ready; {models} model{'' if models == 1 else 's'}"
    if spec.ingress and not world.settings.ingress.enabled:
        text += ". There is no Ingress: the chart's ingress.enabled is false"
    if unread := [one for one in world.readings.values() if one.problem]:
        text += (
            f". The state of {len(unread)} pods cannot be read ({unread[0].problem}): allow the operator's pods to reach TCP "
            f"port {serving.DELIVERY_PORT} of the pool's pods (NetworkPolicy, service mesh); clients are not affected"
        )
    return Verdict("True", False, False, Reason.SERVING, text)


def _sleeps(world: World, sleep: idle.Found) -> Verdict:
    if _ready_activators(world):
        return Verdict("True", False, False, Reason.ASLEEP, f"{sleep.text}: the next one starts the servers")
    text = (
        f"{sleep.text}; the pod that takes requests (Deployment {gateway.name_of_activator(world.parent.name)}) starts"
    )
    return Verdict("False", True, False, Reason.STARTING, text)


def _reason(world: World) -> str:
    """The reason of Ready so far."""
    known = conditions.get(world.parent.status, Condition.READY)
    return known.reason if known is not None else ""


def _ready(world: World) -> int:
    """Ready pods: the Deployment and its pods are watched apart, and both must say so."""
    return min(world.server.ready if world.server else 0, len(_ready_pods(world)))


def _ready_pods(world: World) -> list[projections.Pod]:
    return [pod for pod in world.pods if pools.serves(pod)]


def _ready_activators(world: World) -> list[projections.Pod]:
    return [pod for pod in world.pods if pod.activator and pod.ready and not pod.deleting]


def _problem(world: World) -> tuple[diagnosis.Problem | None, datetime.datetime | None]:
    """Why pods are not ready, and since when the first of them has existed."""
    if world.server is not None and world.server.refusal:
        return diagnosis.refused("the pods of the pool", world.server.refusal), None
    for pod in sorted(world.pods, key=lambda one: (one.created or world.now, one.name), reverse=True):
        if not (pod.ready or pod.deleting or pod.activator) and (problem := diagnosis.server(pod)):
            return problem, pod.created
    return None, None


_WORDS = (
    ("the job's namespace", "the pool's namespace"),
    ("the job then continues", "the pool then continues"),
    ("The job then continues", "The pool then continues"),
    ("deployment.extraArgs", "extraArgs"),
    ("for all jobs in the chart", "in the chart"),
)


def _in_a_pool(message: str) -> str:
    """A diagnosis that was worded for jobs."""
    for of_a_job, of_a_pool in _WORDS:
        message = message.replace(of_a_job, of_a_pool)
    return message


def _summarized(state: servingpool.Status, found: Verdict, world: World) -> servingpool.Status:
    parent = world.parent
    values: dict[Condition, Literal["True", "False"]] = {
        Condition.READY: found.ready,
        Condition.RECONCILING: "True" if found.reconciling else "False",
        Condition.STALLED: "True" if found.stalled else "False",
    }
    made = state
    for kind, value in values.items():
        made = conditions.put(made, kind, value, found.reason, found.message, parent.generation, world.now)
    return made.model_copy(update={"observed_generation": parent.generation})


# -- numbers --


def _status(world: World, spec: servingpool.ServingPoolSpec, requested: int) -> servingpool.Status:
    """Everything but the conditions, which stay as they were."""
    parent, ready = world.parent, _ready(world)
    readings = {pod.name: world.readings.get(pod.name, pools.Reading()) for pod in _ready_pods(world)}
    gpus = requested * spec.resources.gpus
    rate = sum(one.requests_per_second for one in readings.values())
    return servingpool.Status(
        observed_generation=parent.generation,
        conditions=parent.status.conditions,
        base_model=world.base.name if world.base else None,
        source=parent.status.source or (_source(world.base) if world.base else None),
        endpoint=manifests.endpoint(parent),
        models=len(world.index.models),
        adapters=_counts(world.index, readings),
        problems=_problems(world.index, readings),
        replicas=len([pod for pod in world.pods if not (pod.deleting or pod.activator)]),
        ready_replicas=ready,
        pods=f"{ready}/{requested}",
        asleep_since=parent.status.asleep_since,
        selector=",".join(f"{name}={value}" for name, value in sorted(manifests.selector(parent).items())),
        requests_per_second=_steady(parent.status.requests_per_second, rate),
        gpus=gpus,
        gpus_saved=len(world.index.models) * spec.resources.gpus - gpus,
        unread=sum(bool(one.problem) or one.state is None for one in readings.values()),
    )


States = dict[str, dict[str, serving.AdapterState]]
"""Pod -> adapter -> its state there."""


def _states(readings: Mapping[str, pools.Reading]) -> States:
    return {pod: {a.sha256: a for a in one.state.adapters} for pod, one in readings.items() if one.state is not None}


def _on_pods(adapter: serving.Held, states: States) -> tuple[list[serving.AdapterState | None], list[str]]:
    """Its states on all pods that were read, and the messages of those that refuse it."""
    found = [on.get(adapter.sha256) for on in states.values()]
    return found, [one.message for one in found if one is not None and one.state == "Failed"]


def _counts(index: serving.Index, readings: Mapping[str, pools.Reading]) -> servingpool.AdapterCounts:
    total, size = len(index.adapters), sum(one.bytes for one in index.adapters)
    states = _states(readings)
    if not states:
        return servingpool.AdapterCounts(total=total, bytes=size)
    ready = failed = 0
    for adapter in index.adapters:
        found, failures = _on_pods(adapter, states)
        failed += bool(failures)
        ready += all(one is not None and one.state == "Ready" for one in found)
    resident = [sum(bool(one.resident) for one in on.values()) for on in states.values()]
    known = any(one.resident is not None for on in states.values() for one in on.values())
    return servingpool.AdapterCounts(
        total=total,
        ready=ready,
        loading=total - ready - failed,
        failed=failed,
        resident=max(resident) if known else None,
        bytes=size,
    )


def _problems(index: serving.Index, readings: Mapping[str, pools.Reading]) -> list[servingpool.Problem]:
    states, found = _states(readings), list[servingpool.Problem]()
    for adapter in index.adapters if states else []:
        on, failures = _on_pods(adapter, states)
        lacking = sum(one is None or one.state != "Ready" for one in on)
        if lacking:
            found.append(
                servingpool.Problem(
                    job=f"{adapter.namespace}/{adapter.job}",
                    revision=adapter.revision,
                    state="Failed" if failures else "Loading",
                    pods=lacking,
                    message=failures[0][:300] if failures else "",
                )
            )
    return sorted(found, key=lambda one: (one.state != "Failed", one.job, one.revision))[:NAMED]


def _steady(before: str | None, rate: float) -> str:
    """Two digits; the former text while the rate is about the same, so that the status is not written with every request."""
    text = f"{rate:.1f}" if rate < 10 else f"{float(f'{rate:.2g}'):.0f}"
    try:
        known = float(before or "nan")
    except ValueError:
        return text
    return str(before) if abs(known - rate) <= max(STEADY * known, 0.05) else text
