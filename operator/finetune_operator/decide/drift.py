"""Which object has to be applied: one that is missing, or that the operator would write differently than it last did.

The digest of what would be written is compared with the one in the object's annotation, never the object with the manifest:
what an admission controller or another manager changed is theirs, and named in the condition Overridden
(docs/adr/0039-what-others-change-is-theirs.md). One exception: the fields by which a Service routes requests are taken back
once from each manager.
"""

from collections.abc import Iterator

from finetune_api.reasons import Condition, Reason
from finetune_operator.decide import verdict
from finetune_operator.decide.verdict import AS_IT_IS, Verdict
from finetune_operator.decide.world import World
from finetune_operator.manifests import deployment, meta
from finetune_operator.observe import label, projections
from finetune_operator.observe.records import Release

OURS = (f"[{deployment.SERVER}].", f"[{deployment.FETCH}].")
"""Parts of the path of a field that a release prescribes, besides `replicas`."""


def server(present: projections.Server | None, manifest: meta.Manifest, replicas: int) -> tuple[meta.Manifest, ...]:
    """The Deployment, if it has to be applied. Its `replicas` are left out while another manager owns them, unless the job
    now requests another number."""
    fresh = projections.server(manifest)
    marked = meta.marked(manifest, fresh.guarded, **{label.REPLICAS: str(replicas)})
    if present is None:
        return (marked,)
    scaled = replicas != present.wanted
    if present.deleting or not (scaled or _differs(present, fresh, marked)):
        return ()
    if not scaled and "replicas" in present.others:
        marked["spec"] = {name: value for name, value in marked["spec"].items() if name != "replicas"}
    return (marked,)


def activator(present: projections.Server | None, marked: meta.Manifest) -> tuple[meta.Manifest, ...]:
    """The Deployment of an activator, if it has to be applied: all of its spec is prescribed, but the replicas."""
    if present is None or not (present.deleting or present.hash == meta.hash_of(marked)):
        return (marked,)
    return ()


def service(present: projections.Service | None, manifest: meta.Manifest) -> tuple[meta.Manifest, ...]:
    """The Service, if it has to be applied."""
    fresh = projections.service(manifest)
    marked = meta.marked(manifest, fresh.guarded)
    if present is None or _differs(present, fresh, marked):
        return (marked,)
    if new := _takers(present) - _known(present):
        return (meta.marked(manifest, fresh.guarded, **{label.TAKEN_BACK: ",".join(sorted(_known(present) | new))}),)
    return ()


def route(present: projections.Route | None, manifest: meta.Manifest) -> tuple[meta.Manifest, ...]:
    """The HTTPRoute, InferencePool or InferenceModelRewrite, if it has to be applied. Where it leads is never others' to
    change: a comparison counts on the weights, and a rollback has to hold. What else they add to it stays until the next
    weight."""
    fresh = projections.PROJECTIONS[manifest["kind"]](manifest)
    assert isinstance(fresh, projections.Route)
    marked = meta.marked(manifest, fresh.guarded)
    if present is None or present.hash != meta.hash_of(marked) or present.guarded != fresh.guarded:
        return (marked,)
    return ()


def _differs(
    present: projections.Server | projections.Service,
    fresh: projections.Server | projections.Service,
    marked: meta.Manifest,
) -> bool:
    """An object of an earlier version has no digest: it is compared itself."""
    return present.hash != meta.hash_of(marked) if present.hash else present.guarded != fresh.guarded


def _takers(present: projections.Service) -> set[str]:
    return set(present.taken.values())


def _known(present: projections.Service) -> set[str]:
    return set(filter(None, present.taken_back.split(",")))


def settle(world: World) -> Verdict:
    """In every world: what others changed in the servers and Services, and who."""
    releases = {release.name: release for release in (world.serving, world.candidate) if release is not None}
    names = {*releases, world.obs.parent.name}
    found = [text for release in releases.values() for text in _in_server(world, release)]
    found += [
        f"{path} of Service {name} by {manager}"
        for name, service in world.obs.services.items()
        for path, manager in service.taken.items()
        if name in names and manager in _known(service)
    ]
    if found:
        text = f"changed by others, and left as it is: {'; '.join(found)}"
        return verdict.says(Condition.OVERRIDDEN, "True", Reason.CHANGED_BY_OTHERS, text)
    return Verdict(forgets=(Condition.OVERRIDDEN,)) if world.condition(Condition.OVERRIDDEN) else AS_IT_IS


def _in_server(world: World, release: Release) -> Iterator[str]:
    present = world.obs.servers.get(release.name)
    if present is None or present.deleting:
        return
    for path, manager in present.others.items():
        if path == "replicas" or any(part in path for part in OURS):
            yield f"{path} of Deployment {release.name} by {manager}"
    seen = present.guarded["image"]
    ours = not any(path.endswith(f"[{deployment.SERVER}].image") for path in present.others)
    if ours and seen != release.image and present.hash == _written(world, release):
        yield f"image of Deployment {release.name} on admission, to {seen}"


def _written(world: World, release: Release) -> str:
    """The digest of this release's server."""
    selector = {label.UID: world.obs.parent.uid, label.RELEASE: release.name}
    return meta.digest_of(projections.prescribed(release.image, release.arguments, selector))


def diverted(world: World, release: Release) -> str:
    """Why requests to the job's Service do not reach this release; empty if they do."""
    present = world.obs.services.get(world.obs.parent.name)
    if present is None or not _takers(present):
        return ""
    selector = present.guarded["selector"] or {}
    wanted = {label.UID: world.obs.parent.uid, label.RELEASE: release.name}
    if wanted.items() <= selector.items():
        return ""
    managers = ", ".join(sorted(_takers(present)))
    return f"Service {present.name} selects other pods since {managers} changed it: delete the Service, and it is created again"


def replicas(world: World, present: projections.Server | None) -> int:
    """How many pods the release is to have: as many as the job requests, unless somebody else scaled the Deployment since."""
    requested = world.spec.deployment.replicas
    return present.replicas if present is not None and present.requested == requested else requested
