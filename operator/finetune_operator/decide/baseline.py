"""Before training: a prompt may be enough, and then the job is told so, or ends well untrained."""

from finetune_api import job
from finetune_api.reasons import Condition, Reason, Stage
from finetune_operator import conditions
from finetune_operator.decide import attempts
from finetune_operator.decide.draft import Draft

LATER = {Stage.TRAIN, Stage.EVALUATE, Stage.VERIFY}


def training_has_begun(draft: Draft) -> bool:
    return draft.status.stage in LATER or conditions.is_true(draft.status, Condition.TRAINED)


def prompt_is_enough(draft: Draft) -> bool:
    """A prompt passes the gates, and the job wants no more than that."""
    found = draft.status.baseline
    sufficient = found is not None and found.sufficient is not None
    return sufficient and draft.spec.intent.content_with_a_prompt and not training_has_begun(draft)


def baseline_is_not_done(draft: Draft) -> bool:
    """Before training takes a GPU for long: does a prompt alone pass the gates? Not asked where there is nothing to decide."""
    measured = conditions.is_true(draft.status, Condition.BASELINE_MEASURED)
    if measured or training_has_begun(draft) or not draft.spec.evaluation.decided_before_training:
        return False
    if draft.spec.intent.advice is job.Advice.IGNORE:
        draft.forget(Condition.BASELINE_MEASURED)
        return False
    wanted = draft.spec.evaluation.resources or draft.spec.resources
    answer = attempts.advance(draft, Stage.BASELINE, draft.base_model, wanted, [])
    if answer is None:
        return True
    if answer.baseline is None:
        draft.fail(Stage.BASELINE, Reason.TRAINER_ERROR, "the baseline ended well but gave no results")
        return True
    found = answer.baseline
    draft.edit(baseline=found)
    reason = Reason.PROMPT_ALREADY_SUFFICIENT if found.sufficient else Reason.SUCCEEDED
    draft.say(Condition.BASELINE_MEASURED, "True", reason, found.message)
    return False


def a_prompt_is_all_it_takes(draft: Draft) -> bool:
    """intent.advice: Enforce: the job ends well, untrained."""
    found = draft.status.baseline
    if found is None or not prompt_is_enough(draft):
        return False
    text = f"{found.message}. Nothing was trained, since intent.advice is Enforce; set it to Warn to train all the same"
    draft.say(Condition.COMPLETE, "True", Reason.PROMPT_ALREADY_SUFFICIENT, text)
    draft.edit(failure=None)
    draft.finish(Reason.PROMPT_ALREADY_SUFFICIENT)
    return True
