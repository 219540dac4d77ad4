"""A stage and its attempts: one Job each, started, watched, and passed to `endings` when it is over."""

import dataclasses
import datetime
import itertools
from collections.abc import Callable
from typing import Any

from finetune_api import candidates, course, job, outcome, revision, run, status
from finetune_api.reasons import Reason, Stage
from finetune_operator import conditions
from finetune_operator.decide import diagnosis, drift, endings, gang, queue, verdict
from finetune_operator.decide.verdict import Verdict
from finetune_operator.decide.world import World
from finetune_operator.manifests import meta, service, sidecar, stages
from finetune_operator.observe import observation, projections

LINGERS = datetime.timedelta(seconds=10)
"""How long injected containers may need to notice that the stage's own one has ended; then the Job is deleted."""
HELD_UP = datetime.timedelta(seconds=30)
"""How long an injected container may take to start before the status names it."""
REFUSED_AGAIN = 15.0
"""Seconds after which a Job without a pod is checked again: whatever refuses its pods is not watched."""


@dataclasses.dataclass(frozen=True)
class Work:
    """The work of a stage."""

    stage: Stage
    resources: job.Resources
    nodes: int = 1
    adapter: status.Adapter | None = None
    serving: status.Adapter | None = None
    """The serving adapter, which is evaluated too."""
    arguments: tuple[str, ...] = ()
    api_key_secret: str | None = None


Read = Callable[[World, outcome.Outcome], Verdict]
"""The verdict on a stage's outcome."""


def advance(world: World, work: Work, read: Read) -> Verdict:
    """The next step of the stage: begin it, start its attempt, watch it, or read how it ended."""
    if world.state.stage != work.stage:
        return begin(work.stage)
    present = world.obs.jobs.get(name_of(world, work.stage))
    meeting = _meeting(world, max(work.nodes, present.nodes if present else 1))
    return dataclasses.replace(
        found := _step(world, work, present, read),
        apply=(*_where_different(world, meeting), *found.apply),
        nodes_service=meeting["metadata"]["name"] if meeting else None,
    )


def begin(stage: Stage) -> Verdict:
    """The first attempt of a stage."""
    nothing = dict.fromkeys(("retry_at", "failure", "micro_batch_scale"))
    return Verdict(edits={**nothing, "stage": stage, "attempt": 1, "failed_attempts": 0}, proceed=True)


def name_of(world: World, stage: Stage) -> str:
    """The name of the current attempt's Job."""
    return meta.stage_job(world.obs.parent, world.wanted, stage, world.attempt)


def had_ended(world: World, stage: Stage) -> bool:
    """Whether the current attempt's Job ended (and was not deleted)."""
    present = world.obs.jobs.get(name_of(world, stage))
    return present is not None and present.over and not present.deleting


def _step(world: World, work: Work, present: projections.StageJob | None, read: Read) -> Verdict:
    if world.state.retry_at is not None:
        if world.obs.now < world.state.retry_at:
            return Verdict(again=world.state.retry_at)
        return Verdict(edits={"retry_at": None}, proceed=True)
    content = run_of(world, world.wanted.revision, world.base_model)
    manifest = _manifest(world, work, content)
    if present is None:
        return _start(world, work, manifest)
    if present.deleting:
        return Verdict(job=present.name)
    pods = gang.of(world.obs, present)
    if present.over or present.ending or pods.disrupted or pods.overdrawn or pods.unserved:
        return endings.ending(world, work.stage, pods, read)
    if pods.lingering is not None and pods.lingering.terminated is not None:
        due = (pods.lingering.terminated.finished or world.obs.now) + LINGERS
        if world.obs.now < due:
            return dataclasses.replace(_watch(world, work.stage, pods), again=due)
        return endings.ending(world, work.stage, pods, read)
    if not pods.begun and present.hash and present.hash != meta.hash_of(manifest):
        # It has not started, and it differs from what is requested now (resources, image): the next attempt replaces
        # it.
        return endings.next_attempt(world)
    if present.suspended:
        return queue.wait(world, work.stage, present)
    return _watch(world, work.stage, pods)


def _manifest(world: World, work: Work, content: run.Run) -> meta.Manifest:
    share = world.state.micro_batch_scale
    given = course.arguments(work.stage, world.attempt, share, work.adapter, work.serving)
    return stages.build(
        world.obs.parent,
        world.obs.settings,
        content,
        name=name_of(world, work.stage),
        stage=work.stage,
        attempt=world.attempt,
        wanted=work.resources,
        arguments=[*given, *work.arguments],
        nodes=work.nodes,
        queue=world.spec.resources.queue_name if work.stage in stages.QUEUED else None,
        api_key_secret=work.api_key_secret,
        tokens=world.state.preflight.tokens if world.state.preflight else 0,
        server=_server(world, work),
    )


def _server(world: World, work: Work) -> sidecar.Plan | None:
    """The server that answers the questions of baseline and evaluation; None where the stage answers them itself."""
    if work.stage not in sidecar.STAGES or not world.spec.evaluation.asks_a_server(work.resources.gpus):
        return None
    ranks = [world.spec.training.lora.rank, *(one.rank for one in (work.adapter, work.serving) if one is not None)]
    return sidecar.Plan(world.spec.deployment.image, tuple(world.spec.deployment.extra_args), max(ranks))


def _start(world: World, work: Work, manifest: meta.Manifest) -> Verdict:
    """Create the current attempt's Job, once no earlier one is running."""
    name = manifest["metadata"]["name"]
    if others := _others(world, work.stage, name):
        return dataclasses.replace(_lost(world, work.stage, others), job=name)
    reason = Reason.RETRYING if world.state.failure else Reason.WAITING
    waits = _waits(world, work.stage, work.nodes, work.nodes, reason)
    return dataclasses.replace(waits, job=name, apply=(manifest,))


def _others(world: World, stage: Stage, name: str) -> list[projections.StageJob]:
    """Earlier attempts that are still saving their checkpoint: two never run at once."""
    return [
        other
        for other in world.obs.jobs.values()
        if other.stage == stage
        and other.name != name
        and other.attempt != stages.AGAIN
        and (not other.over or any(pod.deleting and pod.terminated is None for pod in world.obs.pods_of(other.name)))
    ]


def _lost(world: World, stage: Stage, others: list[projections.StageJob]) -> Verdict:
    """An earlier attempt that cannot end, because the node of one of its pods is unreachable."""
    pods = [pod for other in others for pod in world.obs.pods_of(other.name) if pod.unreachable]
    problem = diagnosis.disrupted(pods[0] if pods else None)
    if problem is None:
        return verdict.AS_IT_IS
    text = f"attempt {world.state.attempt} of {stage} waits: {problem.message}"
    return verdict.says(conditions.STAGE_CONDITIONS[stage], "Unknown", problem.reason, text)


def _watch(world: World, stage: Stage, pods: gang.Gang) -> Verdict:
    """Report what the pods wait for, or that they run."""
    present, kind = pods.job, conditions.STAGE_CONDITIONS[stage]
    refusal = world.obs.refusals.get(present.name, "")
    held, due = _held_up(world, pods)
    problems = [p for p in (diagnosis.not_started(pod, refusal) for pod in pods.pods) if p is not None] or held
    taken = [p for p in map(diagnosis.disrupted, pods.pods) if p is not None]
    if taken:
        found = verdict.says(kind, "Unknown", taken[0].reason, taken[0].message)
    elif problems:
        several = f"{len(problems)} of {present.nodes} pods wait: " if present.nodes > 1 else ""
        found = verdict.says(kind, "Unknown", problems[0].reason, several + problems[0].message)
    elif not pods.begun:
        started = sum(pod.started is not None for pod in pods.present)
        found = _waits(world, stage, present.nodes - started, present.nodes, Reason.WAITING, _earlier(pods))
    else:
        found = _runs(world, stage, pods)
    times = [time for time in (_patience(world, pods), due) if time is not None]
    return dataclasses.replace(found, job=present.name, again=min(times, default=None))


def _held_up(world: World, pods: gang.Gang) -> tuple[list[diagnosis.Problem], datetime.datetime | None]:
    """Pods that an injected container keeps from starting, and when to look again at those that may still start."""
    held, due = [], []
    for pod in pods.present:
        if pod.blocking and pod.placed is not None:
            late = pod.placed + HELD_UP
            if world.obs.now < late:
                due.append(late)
            else:
                held.append(diagnosis.held_up(pod, f"container {pod.blocking} does not start, or does not end"))
    return held, min(due, default=None)


def _earlier(pods: gang.Gang) -> str:
    """What became of the pod before."""
    before = next((pod for pod in reversed(pods.replaced) if pod.words or pod.disruption), None)
    return f"; pod {before.name} before it was ended by others ({before.words or before.disruption})" if before else ""


def _patience(world: World, pods: gang.Gang) -> datetime.datetime | None:
    """When to look up why a Job has no pods, or too few."""
    if None not in pods.pods:
        return None
    age = (world.obs.now - pods.job.created).total_seconds() if pods.job.created else 0.0
    seconds = observation.PATIENCE - age + 0.1 if age < observation.PATIENCE else REFUSED_AGAIN
    return world.obs.now + datetime.timedelta(seconds=seconds)


def _waits(world: World, stage: Stage, missing: int, nodes: int, reason: Reason, more: str = "") -> Verdict:
    whom = f"{missing} of its {nodes} pods" if nodes > 1 else "its pod"
    text = f"{stage} attempt {world.state.attempt} waits for {whom}{more}"
    return verdict.says(conditions.STAGE_CONDITIONS[stage], "Unknown", reason, text)


def _runs(world: World, stage: Stage, pods: gang.Gang) -> Verdict:
    others = pods.job.nodes - 1
    where = f"in pod {pods.present[0].name}" + (f" and {others} more" if others else "")
    # the kubelet calls a pod pending until its init containers have ended
    does = "gets the base model" if pods.present[0].phase == "Pending" else "runs"
    text = f"{stage} attempt {world.state.attempt} {does} {where}{_earlier(pods)}"
    kind, before = conditions.STAGE_CONDITIONS[stage], conditions.get(world.state, conditions.STAGE_CONDITIONS[stage])
    reading = world.obs.reading or projections.Reading("")
    if reading.pod == pods.present[0].name and reading.problem:
        text += f"; {reading.problem}"
    elif reading.report is None and before is not None and before.message.startswith(f"{text}; "):
        text = before.message  # a new leader keeps what the one before it found, until it knows better
    return verdict.says(kind, "Unknown", Reason.RUNNING, text)


# -- what the pods of a stage need in addition to their Job --


def evaluation_resources(world: World) -> job.Resources:
    """What baseline and evaluation request: what the spec says, or as many of the training's GPUs as the estimate needs."""
    own, training = world.spec.evaluation.resources, world.spec.resources
    needed = world.state.preflight.estimated_evaluation if world.state.preflight else None
    if own is not None:
        return own
    if needed is None or needed.gpu_type != training.gpu_type or needed.gpus >= training.gpus:
        return training
    return training.model_copy(update={"gpus": needed.gpus})


def run_of(world: World, named: str, base: run.ResolvedBaseModel) -> run.Run:
    """The run file of the revision of this name."""
    parent = world.obs.parent
    made = revision.run_of(
        world.spec,
        base,
        name=parent.name,
        namespace=parent.namespace,
        uid=parent.uid,
        revision=named,
        evaluation_hash=world.wanted.evaluation_hash,
        memory=_memory(world, world.spec.resources),
        evaluating=_place(world, world.spec.evaluation.resources or world.spec.resources, _serving(world, base)),
        serving=_place(world, world.spec.deployment.resources, _serving(world, base))
        if world.spec.deployment.enabled and not world.placement.pool
        else None,
        **_price(world),
    )
    return made.model_copy(
        update={
            "measured": list(world.obs.measured) or None,
            "smaller": _smaller(world, base.name) or None,
            "gpu_types": _gpu_types(world) or None if made.gpus or made.evaluating or made.serving else None,
        }
    )


def _gpu_types(world: World) -> dict[str, float]:
    return {name: one.memory_gi_b for name, one in world.obs.settings.gpu_types.items() if one.memory_gi_b}


def _smaller(world: World, name: str) -> list[candidates.Candidate]:
    """The base models that were evaluated before this one; their results change no more."""
    before = itertools.takewhile(lambda one: one.model != name, world.obs.candidates)
    return [one for one in before if one.result == "Missed"]


def _place(world: World, wanted: job.Resources, arguments: list[str] | None = None) -> run.Place | None:
    """What a later stage may use, for preflight's verdict; None on CPUs."""
    if not wanted.gpus:
        return None
    return run.Place(gpus=wanted.gpus, memory=_memory(world, wanted), arguments=arguments or [])


def _serving(world: World, base: run.ResolvedBaseModel) -> list[str]:
    """The server's arguments that matter for its memory, the last of a name being the one that counts."""
    return [*world.obs.settings.serving.args, *base.extra_args, *world.spec.deployment.extra_args]


def _memory(world: World, wanted: job.Resources) -> str | None:
    """The memory that a pod may use, of each GPU where it has any, as far as chart and spec say."""
    if not wanted.gpus:
        return wanted.requests.memory
    known = world.obs.settings.gpu_types.get(wanted.gpu_type or "")
    return f"{known.memory_gi_b:g}Gi" if known is not None and known.memory_gi_b else None


def _price(world: World) -> dict[str, Any]:
    """The hourly price of the training's GPUs, if the chart has it, and the currency of all prices."""
    known = world.obs.settings.gpu_types.get(world.spec.resources.gpu_type or "")
    price = None if known is None else known.price_per_hour
    return {"price_per_gpu_hour": price, "currency": world.obs.settings.currency}


def _meeting(world: World, nodes: int) -> meta.Manifest | None:
    """With several training pods, a Service gives each a DNS name."""
    if nodes == 1:
        return None
    return service.nodes(world.obs.parent, world.obs.settings, world.wanted.revision)


def _where_different(world: World, manifest: meta.Manifest | None) -> tuple[meta.Manifest, ...]:
    if manifest is None:
        return ()
    return drift.service(world.obs.services.get(manifest["metadata"]["name"]), manifest)
