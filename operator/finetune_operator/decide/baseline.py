"""Before training: a prompt may be enough; then the status says so, or the job is complete without training."""

from finetune_api import course, outcome
from finetune_api.reasons import Condition, Reason, Stage
from finetune_operator.decide import attempts, verdict
from finetune_operator.decide.verdict import Verdict
from finetune_operator.decide.world import World, fails

LATER = {Stage.TRAIN, Stage.EVALUATE, Stage.VERIFY}


def training_has_begun(world: World) -> bool:
    return world.state.stage in LATER or world.true(Condition.TRAINED)


def prompt_is_enough(world: World) -> bool:
    """A prompt passes the gates, and the job has no goal beyond that."""
    return course.prompt_is_enough(world.spec.intent, world.state.baseline) and not training_has_begun(world)


def baseline_is_not_wanted_any_more(world: World) -> Verdict | None:
    """Scenario N. intent.advice is Ignore now: a waiting baseline is not needed any more."""
    if _decides(world) or not world.spec.evaluation.decided_before_training or _is_settled(world):
        return None
    waits = world.condition(Condition.BASELINE_MEASURED) is not None
    return Verdict(forgets=(Condition.BASELINE_MEASURED,), proceed=True) if waits else None


def baseline_is_not_done(world: World) -> Verdict | None:
    """Scenarios B to E. Before the long training: does a prompt alone pass the gates?"""
    if not _decides(world) or _is_settled(world):
        return None
    wanted = attempts.evaluation_resources(world)
    return attempts.advance(world, attempts.Work(Stage.BASELINE, wanted), _measured)


def _decides(world: World) -> bool:
    return course.has_baseline(world.spec.intent, world.spec.evaluation, world.spec.training)


def _is_settled(world: World) -> bool:
    return world.true(Condition.BASELINE_MEASURED) or training_has_begun(world)


def _measured(world: World, answer: outcome.Outcome) -> Verdict:
    found = answer.baseline
    if found is None:
        return fails(world, Stage.BASELINE, Reason.TRAINER_ERROR, "the baseline succeeded but reported no results")
    reason = Reason.PROMPT_ALREADY_SUFFICIENT if found.sufficient else Reason.SUCCEEDED
    return verdict.says(
        Condition.BASELINE_MEASURED, "True", reason, found.message, edits={"baseline": found}, proceed=True
    )


def a_prompt_is_all_it_takes(world: World) -> Verdict | None:
    """Scenario L. intent.advice: Enforce: the job is complete without training."""
    found = world.state.baseline
    if found is None or not prompt_is_enough(world):
        return None
    text = f"{found.message}. Nothing was trained because intent.advice is Enforce; set it to Warn to train anyway"
    reason = Reason.PROMPT_ALREADY_SUFFICIENT
    return verdict.says(Condition.COMPLETE, "True", reason, text, edits={"failure": None}, outcome=reason)
