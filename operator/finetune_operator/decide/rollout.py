"""From an evaluated adapter to traffic: start the candidate, verify it, switch the Service, let the old release drain.

The candidate and the serving release are built from their `Release` records, so either can be recreated at any time.
"""

import dataclasses
import functools

from finetune_api import job
from finetune_api.reasons import Condition, Reason, Stage
from finetune_operator.decide import approval, attempts, diagnosis, drift, pooled, sleep, steps, switching, verdict
from finetune_operator.decide.verdict import AS_IT_IS, Verdict
from finetune_operator.decide.world import World, fails
from finetune_operator.manifests import deployment, meta, release, service
from finetune_operator.observe import label, projections
from finetune_operator.observe.records import Release


def the_release_is_not_rolled_out(world: World) -> Verdict:
    """Scenarios F and G: the last rule, which always matches. The next step of the rollout."""
    serving = world.serving
    if serving is not None and serving.name == world.release_name:
        # only its evaluation was requested again
        text = f"revision {serving.revision} serves"
        edits = {"failure": None}
        return verdict.says(Condition.DEPLOYED, "True", Reason.SERVING, text, edits=edits, outcome=Reason.SERVING)
    if world.state.stage != Stage.VERIFY:
        return attempts.begin(Stage.VERIFY)
    if world.placement.problem:
        return verdict.says(Condition.DEPLOYED, "Unknown", world.placement.reason, world.placement.problem)
    candidate = _candidate(world)
    if candidate.pool is not None:
        return dataclasses.replace(
            found := pooled.rolls_out(world, candidate), candidate=_unless_over(found, candidate)
        )
    server = world.obs.servers.get(candidate.name)
    if server is None and _recreates(world) and serving is not None and world.obs.pods_of(serving.name):
        text = f"{serving.name} is being stopped to free its resources (deployment.rollout.strategy: Recreate)"
        return verdict.says(Condition.DEPLOYED, "Unknown", Reason.STARTING, text, candidate=candidate)
    missing = keep(world, candidate, world.spec.deployment.replicas)
    changing = any(manifest["kind"] == "Deployment" for manifest in missing)
    enough = max(1, drift.replicas(world, server))
    if server is None or changing or not server.settled or world.obs.ready(candidate.name) < enough:
        found = _starting(world, candidate, server)
    elif approval.is_verified(world, candidate):
        found = steps.advance(world, candidate)
    else:
        found = _verify(world, candidate)
    if found.outcome is not None:
        return found
    return dataclasses.replace(found, candidate=candidate, apply=(*missing, *found.apply))


def _candidate(world: World) -> Release:
    return release.build(
        world.release_name,
        content=attempts.run_of(world, world.wanted.revision, world.base_model),
        adapter=world.adapter,
        spec=world.spec,
        chart=world.obs.settings,
        canary=world.state.evaluation.canary if world.state.evaluation else None,
        pool=world.placement.pool,
    )


def _unless_over(found: Verdict, candidate: Release) -> Release | None:
    return candidate if found.outcome is None else None


def _recreates(world: World) -> bool:
    return world.spec.deployment.rollout.strategy == "Recreate"


def _starting(world: World, candidate: Release, server: projections.Server | None) -> Verdict:
    """Scenario F."""
    # A verification of earlier pods says nothing about these.
    before = attempts.name_of(world, Stage.VERIFY) in world.obs.jobs or approval.is_verified(world, candidate)
    edits = {"attempt": world.attempt + 1, "retry_at": None, "rollout": None} if before else {}
    pods = world.obs.pods_of(candidate.name)
    problems = [p for p in map(diagnosis.server, pods) if p is not None]
    overdrawn = [pod for pod in pods if diagnosis.used_too_much(pod)]
    if overdrawn:
        problem = diagnosis.evicted("the server's pod", overdrawn[-1], "deployment.resources")
        problems.append(dataclasses.replace(problem, ends=len(overdrawn) > world.spec.training.retries))
    if server is not None and server.refusal:
        problems.append(diagnosis.refused("the server's pod", server.refusal))
    for problem in sorted(problems, key=lambda p: not p.ends)[:1]:
        if problem.ends:
            return fails(
                world,
                Stage.VERIFY,
                problem.reason,
                problem.message,
                exit_code=problem.exit_code,
                log_tail=problem.log_tail,
            )
        return verdict.says(Condition.DEPLOYED, "Unknown", problem.reason, problem.message, edits=edits)
    ready = world.obs.ready(candidate.name)
    text = f"{candidate.name} starts: {ready} of {drift.replicas(world, server)} pods are ready"
    return verdict.says(Condition.DEPLOYED, "Unknown", Reason.STARTING, text, edits=edits)


def _verify(world: World, candidate: Release) -> Verdict:
    """Scenario G."""
    canary = ("--canary", candidate.canary) if candidate.canary else ()
    work = attempts.Work(
        Stage.VERIFY,
        job.Resources(gpus=0),
        arguments=("--endpoint", service.endpoint(world.obs.parent, candidate.name), *canary),
        api_key_secret=world.spec.deployment.api_key_secret,
    )
    return attempts.advance(world, work, functools.partial(approval.verified, candidate))


def keep(world: World, wanted: Release, replicas: int) -> tuple[meta.Manifest, ...]:
    """The Deployment and Service of a release, as far as they have to be applied."""
    parent, chart = world.obs.parent, world.obs.settings
    content = attempts.run_of(world, wanted.revision, wanted.base_model).model_copy(update={"storage": wanted.storage})
    server = deployment.build(parent, chart, wanted, content, replicas)
    return (
        *drift.server(world.obs.servers.get(wanted.name), server, replicas),
        *expose(world, wanted.name, wanted.name),
    )


def expose(world: World, name: str, release_name: str) -> tuple[meta.Manifest, ...]:
    """The Service `name` of a release, if it has to be applied."""
    manifest = service.build(world.obs.parent, world.obs.settings, name, release_name)
    return drift.service(world.obs.services.get(name), manifest)


def keep_serving(world: World) -> Verdict:
    """In every world: the serving release keeps serving, whatever happens to the current revision, and is repaired if a part
    is removed."""
    serving = world.serving
    if serving is None:
        return AS_IT_IS
    if serving.pool is not None:
        return _counted_in_pool(world, serving)
    makes_room = world.candidate is not None and _recreates(world)
    found = sleep.find(world, serving)
    apply = (
        *keep(world, serving, 0 if makes_room or found.ends else world.spec.deployment.replicas),
        *sleep.front(world, serving, found),
    )
    server, deployed = world.obs.servers.get(serving.name), world.state.deployment
    counted = {
        "replicas": server.replicas if server else 0,
        "ready_replicas": world.obs.ready(serving.name),
        "selector": f"{label.UID}={world.obs.parent.uid},{label.RELEASE}={serving.name}",
        "asleep_since": found.asleep_since,
        "held_since": sleep.held_since(world, serving, found),
    }
    edits = {"deployment": deployed.model_copy(update=counted)} if deployed is not None else {}
    return Verdict(apply=apply, edits=edits, again=sleep.again(world, serving, found))


def _counted_in_pool(world: World, serving: Release) -> Verdict:
    """The pool keeps it serving; its pods are counted here."""
    deployed, found = world.state.deployment, switching.held(world, serving)
    if deployed is None:
        return AS_IT_IS
    since, again = sleep.held_in_pool(world, serving)
    counted = {"replicas": found.pods, "ready_replicas": found.ready, "selector": None, "held_since": since}
    return Verdict(edits={"deployment": deployed.model_copy(update=counted)}, again=again)
