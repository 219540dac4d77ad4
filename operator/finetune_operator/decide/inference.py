"""A ServingPool with spec.route: its objects at the platform's Gateway, and what is said of them. Pure."""

import dataclasses
from collections.abc import Collection, Mapping

from finetune_api import serving, servingpool
from finetune_api.reasons import Reason
from finetune_operator import conditions, settings
from finetune_operator.decide import drift
from finetune_operator.manifests import inference, meta, pool, route
from finetune_operator.observe import pools, projections


@dataclasses.dataclass(frozen=True)
class Seen:
    """What is decided by. `children`: kind -> name -> object; `lacking`: kinds that the API server does not have."""

    parent: pools.Parent
    spec: servingpool.ServingPoolSpec
    index: serving.Index
    children: Mapping[str, Mapping[str, projections.Route]]
    lacking: Collection[str]
    settings: settings.Settings


@dataclasses.dataclass(frozen=True)
class Found:
    """`delete`: kind and name. `value`: of the condition Routed, None without it."""

    apply: tuple[meta.Manifest, ...] = ()
    delete: tuple[tuple[str, str], ...] = ()
    value: conditions.State | None = None
    reason: Reason = Reason.WAITING
    message: str = ""


def find(seen: Seen) -> Found:
    """The objects that differ from what is wanted, and those that are not wanted."""
    wanted = seen.spec.route
    if wanted is None:
        return Found(delete=_leftover(seen, ()))
    if problem := _unavailable(seen):
        # The HTTPRoute may still be the operator's to delete; objects whose CRD is missing come back with it.
        delete = () if seen.settings.gateway_api.inference.enabled else _leftover(seen, ())
        return Found((), delete, "False", Reason.ROUTE_UNAVAILABLE, f"there is no InferencePool: {problem}")
    unwritten = _unwritten(seen)
    made = inference.build(seen.parent, wanted, seen.index, seen.settings, rewrites=not unwritten)
    narrowed = _narrowed(seen)
    kinds = [one["kind"] for one in made if one["kind"] not in narrowed]
    apply = tuple(one for manifest in made if manifest["kind"] in kinds for one in _differing(seen, manifest))
    delete = _leftover(seen, kinds)
    value, reason, text = _answered(seen, wanted)
    return Found(apply, delete, value, reason, f"{text}. {unwritten}" if unwritten else text)


def _unavailable(seen: Seen) -> str:
    """Why there can be no objects; empty if there can."""
    if not seen.settings.gateway_api.inference.enabled:
        return "the chart's gatewayAPI.inference.enabled is false: ask the platform team to set it"
    for kind, crds in ((route.KIND, "Gateway API"), (inference.POOL, "Gateway API's inference extension")):
        if kind in seen.lacking:
            return (
                f"the cluster has no {kind}s: ask the platform team to install the CRDs of {crds}; the operator looks again "
                "every minute"
            )
    return ""


def _unwritten(seen: Seen) -> str:
    """Why models are not rewritten to their adapters; empty if they are."""
    if not seen.settings.gateway_api.inference.model_rewrites:
        return "The endpoint picker does not know adapters: the chart's gatewayAPI.inference.modelRewrites is false"
    if not seen.spec.rewritten:
        return (
            "The endpoint picker does not know adapters: of a pool with allowedNamespaces it would tell each tenant which names "
            "the others' models have"
        )
    if inference.REWRITE in seen.lacking:
        return (
            f"The endpoint picker does not know adapters: the cluster has no {inference.REWRITE}s ({inference.LLM_D}/v1alpha2), "
            "ask the platform team to install the CRDs of llm-d's router"
        )
    return ""


def _differing(seen: Seen, manifest: meta.Manifest) -> tuple[meta.Manifest, ...]:
    return drift.route(seen.children.get(manifest["kind"], {}).get(seen.parent.name), manifest)


def _narrowed(seen: Seen) -> tuple[str, ...]:
    """The InferencePool, if others added labels to its selector: server-side apply does not remove them, so it is written again
    once it is gone."""
    present = seen.children.get(inference.POOL, {}).get(seen.parent.name)
    more = present is not None and (present.guarded["selector"] or {}).keys() - pool.selector(seen.parent).keys()
    return (inference.POOL,) if more else ()


def _leftover(seen: Seen, wanted: Collection[str]) -> tuple[tuple[str, str], ...]:
    kinds = (route.KIND, inference.REWRITE, inference.POOL)
    name = seen.parent.name
    return tuple((kind, name) for kind in kinds if kind not in wanted and name in seen.children.get(kind, {}))


def _answered(seen: Seen, wanted: servingpool.Route) -> tuple[conditions.State, Reason, str]:
    """What the Gateway says."""
    gateway, name = seen.settings.gateway_api.gateway, seen.parent.name
    place = f"Gateway {gateway.namespace}/{gateway.name}"
    for kind in (route.KIND, inference.POOL):
        present = seen.children.get(kind, {}).get(name)
        if present is not None and present.accepted is False:
            return "False", Reason.ROUTE_UNAVAILABLE, f"{place} does not take {kind} {name}: {present.problem}"
        if present is None or not present.accepted:
            return "Unknown", Reason.STARTING, f"{kind} {name} waits for {place}: no controller has accepted it yet"
    picker = f"Service {wanted.endpoint_picker.service} picks the pod"
    return "True", Reason.SERVING, f"requests for {wanted.host}/v1 go by {place}, and {picker}"
