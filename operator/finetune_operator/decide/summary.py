"""The sum of a status: Ready, Reconciling and Stalled by kstatus' rules, then the phase for people."""

from finetune_api.reasons import Condition, Reason, Stage
from finetune_operator import conditions
from finetune_operator.decide import diagnosis
from finetune_operator.decide.draft import STAGES, Draft
from finetune_operator.manifests import release
from finetune_operator.observe import projections


def sum_up(draft: Draft) -> None:
    """Ready, Reconciling and Stalled by kstatus' rules, then the phase."""
    state, serving = draft.status, draft.serving
    failed = conditions.get(state, Condition.FAILED)
    if failed is not None and failed.status == "True":
        if serving is not None:
            rolled = Reason.ROLLED_BACK if state.failure and state.failure.stage == Stage.VERIFY else Reason.SERVING
            draft.say(Condition.DEPLOYED, "True", rolled, f"revision {serving.revision} serves; the wanted one failed")
        _kstatus(draft, "False", False, True, failed.reason, failed.message + _meanwhile(serving))
    elif conditions.is_true(state, Condition.COMPLETE):
        complete = conditions.get(state, Condition.COMPLETE)
        enough = complete is not None and complete.reason == Reason.PROMPT_ALREADY_SUFFICIENT
        text = complete.message if complete is not None and enough else "done: nothing is to be served"
        why = Reason.PROMPT_ALREADY_SUFFICIENT if enough else Reason.SUCCEEDED
        _kstatus(draft, "True", False, False, why, text + _meanwhile(serving))
    elif conditions.is_true(state, Condition.SUSPENDED):
        text = "suspended: set spec.suspend to false to go on" + _meanwhile(serving)
        _kstatus(draft, "False", False, False, Reason.SUSPENDED, text)
    elif serving is not None and serving.name == draft.release_name and conditions.is_true(state, Condition.DEPLOYED):
        server = draft.obs.servers.get(serving.name)
        ready, replicas = (server.ready if server else 0), draft.spec.deployment.replicas
        text = f"{ready} of {replicas} pods of revision {serving.revision} are ready"
        problems = [] if ready else [p for p in map(_pod_problem, draft.obs.pods_of(serving.name)) if p]
        text = f"{text}: {problems[0]}" if problems else text
        _kstatus(draft, "True" if ready else "False", ready < replicas, False, Reason.SERVING, text)
    else:
        kinds = (Condition.ACCEPTED, *STAGES)
        found = [c for c in (conditions.get(state, kind) for kind in kinds) if c is not None and c.status != "True"]
        reason, text = (found[0].reason, found[0].message) if found else (Reason.WAITING, "starting")
        text += _meanwhile(serving)
        _kstatus(draft, "False", True, False, reason, text)
    draft.status = conditions.seen(draft.status, draft.obs.parent.generation)
    draft.edit(observed_generation=draft.obs.parent.generation, phase=conditions.phase(draft.status))


def _meanwhile(serving: release.Release | None) -> str:
    return f" (revision {serving.revision} goes on serving)" if serving is not None else ""


def _pod_problem(pod: projections.Pod) -> str:
    problem = diagnosis.server(pod)
    return problem.message if problem else ""


def _kstatus(
    draft: Draft, ready: conditions.State, reconciling: bool, stalled: bool, reason: str, message: str
) -> None:
    draft.say(Condition.READY, ready, reason, message)
    draft.say(Condition.RECONCILING, "True" if reconciling else "False", reason, message)
    draft.say(Condition.STALLED, "True" if stalled else "False", reason, message)
