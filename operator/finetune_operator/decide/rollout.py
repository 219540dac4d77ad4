"""From a judged adapter to requests: start the candidate, verify it, switch the Service, let the old release drain.

The candidate and what serves are both built from their `Release` record, so either can be made again at any moment.
"""

import datetime

from finetune_api import job, run, status
from finetune_api.reasons import Condition, Reason, Stage
from finetune_operator.decide import attempts, diagnosis
from finetune_operator.decide.draft import Draft, Ref
from finetune_operator.manifests import deployment, identity, meta, release, service
from finetune_operator.observe import projections


def advance(draft: Draft, base: run.ResolvedBaseModel, adapter: status.Adapter) -> None:
    """Take the rollout of the wanted release one step further."""
    name = draft.release_name
    if draft.serving is not None and draft.serving.name == name:
        # only its judgement was asked for again
        draft.say(Condition.DEPLOYED, "True", Reason.SERVING, f"revision {draft.serving.revision} serves")
        draft.edit(failure=None)
        draft.finish(Reason.SERVING)
        return
    canary = draft.status.evaluation.canary if draft.status.evaluation else None
    candidate = release.build(
        name,
        draft.wanted.revision,
        parent_name=draft.obs.parent.name,
        base_model=base,
        adapter=adapter,
        spec=draft.spec,
        chart=draft.obs.settings,
        canary=canary,
    )
    draft.candidate = candidate
    server = draft.obs.servers.get(name)
    if server is None and recreates(draft) and draft.serving is not None and draft.obs.pods_of(draft.serving.name):
        draft.enter_once(Stage.VERIFY)
        text = f"{draft.serving.name} is being stopped to make room (deployment.rollout.strategy: Recreate)"
        draft.say(Condition.DEPLOYED, "Unknown", Reason.STARTING, text)
        return
    attempts.furnish(draft, attempts.run_of(draft, candidate.revision, base))
    keep(draft, candidate, draft.spec.deployment.replicas)
    changing = any(manifest["kind"] == "Deployment" for manifest in draft.apply)
    if server is None or changing or not server.settled or server.ready < draft.spec.deployment.replicas:
        _starting(draft, name, server)
        return
    wanted = job.Resources(gpus=0, requests=draft.obs.settings.verify.requests)
    endpoint = service.endpoint(draft.obs.parent, name)
    answer = attempts.advance(
        draft,
        Stage.VERIFY,
        base,
        wanted,
        ["--endpoint", endpoint, *(["--canary", canary] if canary else [])],
        api_key_secret=draft.spec.deployment.api_key_secret,
    )
    if answer is not None:
        speed = answer.verification.tokens_per_second if answer.verification else None
        _switch(draft, candidate, round(speed) if speed is not None else None)


def recreates(draft: Draft) -> bool:
    return draft.spec.deployment.rollout.strategy == "Recreate" and draft.candidate is not None


def _starting(draft: Draft, name: str, server: projections.Server | None) -> None:
    draft.enter_once(Stage.VERIFY)
    # A verification of pods that were here before says nothing of these.
    attempt = draft.status.attempt or 1
    if meta.stage_job(draft.obs.parent, draft.wanted, Stage.VERIFY, attempt) in draft.obs.jobs:
        draft.edit(attempt=attempt + 1, retry_at=None)
    problems = [p for p in map(diagnosis.server, draft.obs.pods_of(name)) if p is not None]
    if server is not None and server.refusal:
        problems.append(diagnosis.refused("the server's pod", server.refusal))
    for problem in sorted(problems, key=lambda p: not p.ends)[:1]:
        if problem.ends:
            draft.fail(
                Stage.VERIFY, problem.reason, problem.message, exit_code=problem.exit_code, log_tail=problem.log_tail
            )
        else:
            draft.say(Condition.DEPLOYED, "Unknown", problem.reason, problem.message)
        return
    ready = server.ready if server else 0
    draft.say(
        Condition.DEPLOYED,
        "Unknown",
        Reason.STARTING,
        f"{name} starts: {ready} of {draft.spec.deployment.replicas} pods are ready",
    )


def _switch(draft: Draft, candidate: release.Release, speed: int | None) -> None:
    """The Service now sends requests to the candidate; the release before it drains."""
    now = draft.obs.now.replace(microsecond=0)
    server = draft.obs.servers.get(candidate.name)
    record = candidate.model_copy(update={"tokens_per_second": speed})
    draft.edit(
        serving=record.model_dump_json(by_alias=True),
        deployment=status.Deployment(
            endpoint=service.endpoint(draft.obs.parent, draft.obs.parent.name),
            model=candidate.served_model_name,
            revision=candidate.revision,
            release=candidate.name,
            ready_replicas=server.ready if server else 0,
            tokens_per_second=speed,
            switched_at=now,
        ),
        retry_at=None,
        failure=None,
    )
    draft.candidate = None
    draft.active_job = None
    draft.say(Condition.DEPLOYED, "True", Reason.SERVING, f"revision {candidate.revision} was verified and serves")
    draft.finish(Reason.SERVING)


def keep(draft: Draft, wanted: release.Release, replicas: int) -> None:
    """A release's Deployment and its own Service exist and are as recorded."""
    parent, chart = draft.obs.parent, draft.obs.settings
    server = deployment.build(parent, chart, wanted, replicas)
    present = draft.obs.servers.get(wanted.name)
    fresh = projections.server(server)
    if present is None or (not present.deleting and (present.guarded, present.replicas) != (fresh.guarded, replicas)):
        chosen = wanted.storage.service_account_name
        draft.apply += [*identity.build(parent, chart, draft.wanted.revision, chosen), server]
    expose(draft, wanted.name, wanted.name)


def expose(draft: Draft, name: str, release_name: str) -> None:
    """The Service `name` stands before the pods of a release."""
    manifest = service.build(draft.obs.parent, draft.obs.settings, name, release_name)
    present = draft.obs.services.get(name)
    if present is None or present.guarded != projections.service(manifest).guarded:
        draft.apply.append(manifest)


def keep_serving(draft: Draft) -> None:
    """What serves goes on serving, whatever the wanted revision does, and heals when a part of it is removed."""
    serving = draft.serving
    if serving is None:
        return
    if meta.run_config(draft.obs.parent, serving.revision) not in draft.obs.configs:
        attempts.furnish(draft, attempts.run_of(draft, serving.revision, serving.base_model))
    keep(draft, serving, 0 if recreates(draft) else draft.spec.deployment.replicas)
    expose(draft, draft.obs.parent.name, serving.name)
    server = draft.obs.servers.get(serving.name)
    if draft.status.deployment is not None:
        ready = server.ready if server else 0
        draft.edit(deployment=draft.status.deployment.model_copy(update={"ready_replicas": ready}))


def retire(draft: Draft) -> None:
    """Releases that neither serve nor are wanted go: failed candidates at once, the former one after it drained."""
    keep_names = {r.name for r in (draft.serving, draft.candidate) if r is not None}
    switched = draft.status.deployment.switched_at if draft.status.deployment else None
    drained = switched + datetime.timedelta(seconds=draft.obs.settings.drain_seconds) if switched else draft.obs.now
    for name, server in draft.obs.servers.items():
        if name in keep_names or server.deleting:
            continue
        former = draft.serving is not None and name != draft.release_name
        if former and draft.obs.now < drained:
            draft.again_at(drained)
            continue
        draft.delete.append(Ref("Deployment", name))
    names = {draft.obs.parent.name} if draft.serving else set()
    names |= {draft.nodes_service} if draft.nodes_service else set()
    draft.delete += [
        Ref("Service", name)
        for name in draft.obs.services
        if name not in keep_names | names and name not in draft.obs.servers
    ]
