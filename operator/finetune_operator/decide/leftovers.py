"""In every world: objects that are neither serving nor wanted are deleted."""

import datetime

from finetune_operator.decide import sleep
from finetune_operator.decide.verdict import Ref, Verdict
from finetune_operator.decide.world import World
from finetune_operator.manifests import activator, gateway, stages


def releases(world: World) -> Verdict:
    """Failed candidates and Services without a release are deleted at once, the previous release after draining."""
    needed = {release.name for release in (world.serving, world.candidate) if release is not None}
    needed |= _of_activator(world)
    drained, due, delete = drained_at(world), None, list[Ref]()
    for name, server in world.obs.servers.items():
        if name in needed or server.deleting:
            continue
        former = world.serving is not None and name != world.release_name
        if former and world.obs.now < drained:
            due = drained
            needed.add(world.obs.parent.name)  # its clients may still come by the job's Service
        else:
            delete.append(Ref("Deployment", name))
    needed |= {world.obs.parent.name} if world.serving and world.serving.pool is None else set()
    needed |= {world.nodes_service} if world.nodes_service else set()
    unused = [name for name in world.obs.services if name not in needed and name not in world.obs.servers]
    return Verdict(delete=(*delete, *(Ref("Service", name) for name in unused)), again=due)


def _of_activator(world: World) -> set[str]:
    """The Deployment and Service that servers which may sleep have besides; without deployment.idle until servers are ready, and
    the Service as long as the Deployment has pods."""
    serves, name = world.serving, world.obs.parent.name
    if serves is None or serves.pool is not None:
        return set()
    if world.spec.deployment.idle is not None or sleep.holds(world, serves):
        return {gateway.name_of_activator(name), activator.name_of_servers(name)}
    return {activator.name_of_servers(name)} if any(pod.activator for pod in world.obs.pods) else set()


def drained_at(world: World) -> datetime.datetime:
    """Until when a former release keeps running beside the one that serves."""
    switched = world.state.deployment.switched_at if world.state.deployment else None
    return switched + datetime.timedelta(seconds=world.obs.settings.drain_seconds) if switched else world.obs.now


def jobs(world: World) -> Verdict:
    """Running Jobs of stages other than the active one. Finished ones stay for inspection."""
    running = [
        job.name
        for job in world.obs.jobs.values()
        if not (job.over or job.deleting) and job.name != world.active_job and job.attempt != stages.AGAIN
    ]
    return Verdict(delete=tuple(Ref("Job", name) for name in running))
