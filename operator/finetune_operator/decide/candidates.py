"""Several base models, the smallest first: whether the next one follows, and the table of them in the status.

Passed                    it serves; the larger ones are skipped
Missed, by evidence       the next one follows, as a revision of its own
Undecided                 the job ends: more test examples, rows or steps may be enough, which a larger model would hide
"""

from collections.abc import Mapping
from typing import Any

from finetune_api import candidates, status
from finetune_api.reasons import Condition, Reason
from finetune_operator.decide.verdict import AS_IT_IS, Verdict
from finetune_operator.decide.world import World

ENOUGH = ("Passed", "PromptSufficient")


def one_of(world: World) -> str:
    """For messages: which of how many it is; empty for a job of one base model."""
    names = [one.model for one in world.obs.candidates]
    return f", candidate {names.index(world.base_model.name) + 1} of {len(names)}" if _current(world) else ""


def follows(world: World, found: status.Evaluation) -> candidates.Candidate | None:
    """The candidate that is trained next, after this evaluation of the current one; None if none is."""
    if found.passed or not _missed(found):
        return None
    return next((one for one in _larger(world) if one.result != "Missed"), None)


def what_helps(world: World, found: status.Evaluation) -> str:
    """For the message of a job that ends because a gate was missed: why no larger candidate follows; empty for a job of one."""
    names = ", ".join(one.model for one in _larger(world))
    if _current(world) is None:
        return ""
    if _missed(found):
        return " No candidate passed: status.candidates has the figures of each."
    why = found.remedy or "Too few test examples decide whether it is good enough."
    follow = f" To train {names} anyway, take {world.base_model.name} out of baseModel.candidates." if names else ""
    return f" {why.rstrip('.')}.{follow}"


def skipped(world: World) -> str:
    """For the message of an evaluation that passed: the candidates that need not be trained; empty if there are none."""
    names = ", ".join(one.model for one in _larger(world) if one.result is None)
    return f"; not trained, because {world.base_model.name} is enough: {names}" if names else ""


def settle(world: World) -> Verdict:
    """In every world: the current candidate's result and cost, and what the larger ones are spared."""
    one = _current(world)
    if one is None or world.state.revision != world.wanted.revision:
        return AS_IT_IS
    mine = _measured(world, one)
    smaller = [each for each in world.obs.candidates if each not in (one, *_larger(world))]
    rows = [*smaller, mine, *(_after(each, mine) for each in _larger(world))]
    return Verdict(edits={"candidates": rows}) if rows != world.state.candidates else AS_IT_IS


def _current(world: World) -> candidates.Candidate | None:
    name = world.base.name if world.base is not None else None
    return next((one for one in world.obs.candidates if one.model == name), None)


def _larger(world: World) -> list[candidates.Candidate]:
    names, one = [each.model for each in world.obs.candidates], _current(world)
    return list(world.obs.candidates[names.index(one.model) + 1 :]) if one is not None else []


def _missed(found: status.Evaluation) -> bool:
    """Whether a larger model is the answer: the evidence is clear, and nothing else would help."""
    return found.missed == "ByEvidence" and not found.remedy


def _measured(world: World, before: candidates.Candidate) -> candidates.Candidate:
    if before.revision != world.state.revision:
        before = candidates.Candidate(model=before.model, parameters=before.parameters, revision=world.state.revision)
    result, message = _result(world)
    return before.model_copy(
        update={
            "result": result,
            "message": message[:1024],
            "data": world.state.preflight.data if world.state.preflight else None,
            "saved_gpu_hours": None,
            "saved_amount": None,
            **_cost(world, before),
        }
    )


def _result(world: World) -> tuple[str, str]:
    state, complete = world.state, world.condition(Condition.COMPLETE)
    if complete is not None and complete.status == "True" and complete.reason == Reason.PROMPT_ALREADY_SUFFICIENT:
        return "PromptSufficient", state.baseline.message if state.baseline else complete.message
    evaluated, failed = world.condition(Condition.EVALUATED), world.condition(Condition.FAILED)
    if evaluated is not None and evaluated.status == "True":
        return "Passed", evaluated.message
    if evaluated is not None and evaluated.reason == Reason.EVALUATION_BELOW_GATE and state.evaluation is not None:
        return "Missed" if _missed(state.evaluation) else "Undecided", evaluated.message
    if failed is not None and failed.status == "True":
        return "Failed", failed.message
    return "Running", ""


def _cost(world: World, before: candidates.Candidate) -> Mapping[str, Any]:
    """With what was counted in this pass."""
    now, counted = world.state.cost, world.obs.parent.status.cost
    if now is None or now == counted:
        return {}
    hours = float(now.gpu_hours) - (float(counted.gpu_hours) if counted else 0.0)
    added: dict[str, Any] = {"gpu_hours": f"{float(before.gpu_hours or 0) + hours:.6f}"}
    if now.amount is not None:
        amount = float(now.amount) - float(counted.amount or 0 if counted else 0)
        added["amount"] = f"{float(before.amount or 0) + amount:.6f}"
    return added


def _after(one: candidates.Candidate, mine: candidates.Candidate) -> candidates.Candidate:
    """A larger candidate: skipped if the current one is enough. What was measured of it stays."""
    if one.result in ("Passed", "Missed"):
        return one
    if mine.result not in ENOUGH:
        return one.model_copy(update={"result": None, "message": "", "saved_gpu_hours": None, "saved_amount": None})
    hours, amount = _in_proportion(one, mine, mine.gpu_hours), _in_proportion(one, mine, mine.amount)
    saved = f"; about {float(hours):.2f} GPU-hours not spent, in proportion to the parameters" if hours else ""
    return one.model_copy(
        update={
            "result": "Skipped",
            "message": f"{mine.model} is enough{saved}",
            "saved_gpu_hours": hours,
            "saved_amount": amount,
        }
    )


def _in_proportion(one: candidates.Candidate, to: candidates.Candidate, spent: str | None) -> str | None:
    if not spent or not float(spent) or not one.parameters or not to.parameters:
        return None
    return f"{float(spent) * one.parameters / to.parameters:.6f}"
