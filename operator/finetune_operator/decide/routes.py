"""The HTTPRoute of a job with servers of its own: the share of the requests of each release, and what the Gateway says of it."""

from typing import Any

from finetune_api.reasons import Condition, Reason
from finetune_operator import conditions
from finetune_operator.decide import drift, sleep, verdict
from finetune_operator.decide.verdict import Ref, Verdict
from finetune_operator.decide.world import World
from finetune_operator.manifests import route
from finetune_operator.observe.records import Release


def share(world: World, candidate: Release) -> bool:
    """Whether the Gateway can share the traffic between the release that serves and this one, under the same name."""
    former = world.serving
    if former is None or candidate.pool is not None or former.place != candidate.place:
        return False
    return world.spec.deployment.route is not None and not world.obs.no_route


def settle(world: World) -> Verdict:
    """In every world: the HTTPRoute leads to what serves, and in a step to its candidate; without either, there is none."""
    wanted, serves, name = world.spec.deployment.route, world.serving, world.obs.parent.name
    present = world.obs.routes.get(name)
    remove = (Ref(route.KIND, name),) if present is not None else ()
    if wanted is None:
        return Verdict(delete=remove, forgets=(Condition.ROUTED,) if world.condition(Condition.ROUTED) else ())
    if world.obs.no_route:
        return _says("False", Reason.ROUTE_UNAVAILABLE, f"there is no HTTPRoute: {world.obs.no_route}")
    if serves is None or serves.pool is not None:
        return _says("False", Reason.WAITING, "no server of the job's own serves yet", delete=remove)
    weights = _weights(world, serves)
    places = [(_service(world, one), weight) for one, weight in weights]
    manifest = route.build(world.obs.parent, world.obs.settings, wanted.host, places)
    missing = drift.route(present, manifest)
    gateway = world.obs.settings.gateway_api.gateway
    place = f"Gateway {gateway.namespace}/{gateway.name}"
    if present is not None and present.accepted is False:
        text = f"{place} does not take HTTPRoute {name}: {present.problem}"
        return _says("False", Reason.ROUTE_UNAVAILABLE, text, apply=missing)
    if present is None or present.accepted is None:
        text = f"HTTPRoute {name} waits for {place}: no controller has accepted it yet"
        return _says("Unknown", Reason.STARTING, text, apply=missing)
    shares = ", ".join(f"{weight} % to {one.name}" for one, weight in weights)
    return _says("True", Reason.SERVING, f"requests for {wanted.host}/v1 go by {place}: {shares}", apply=missing)


def _service(world: World, release: Release) -> str:
    """The Service by which the Gateway reaches a release: of what serves and may sleep, or did until deployment.idle was removed,
    the job's, which then leads to the activator."""
    sleeps = release is world.serving and (world.spec.deployment.idle is not None or sleep.holds(world, release))
    return world.obs.parent.name if sleeps else release.name


def _weights(world: World, serves: Release) -> list[tuple[Release, int]]:
    candidate, rollout = world.candidate, world.state.rollout
    if candidate is None or rollout is None or rollout.release != candidate.name or not rollout.step:
        return [(serves, 100)]
    if not share(world, candidate):
        return [(serves, 100)]
    return [(serves, 100 - rollout.weight), (candidate, rollout.weight)]


def _says(value: conditions.State, reason: Reason, text: str, **more: Any) -> Verdict:
    return verdict.says(Condition.ROUTED, value, reason, text, **more)
