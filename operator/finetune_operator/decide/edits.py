"""What an edit of the spec makes stale: the whole revision, its judgement, its release, or a failure that may now pass.

`finetune_operator.revisions` tells which sections changed; here the status forgets just as much, and the journey goes on from
there.
"""

import json

from finetune_api import revision, run
from finetune_api.reasons import Condition, Reason, Stage
from finetune_operator import conditions
from finetune_operator.decide.draft import ENDS, STAGES, Draft


def the_spec_asks_for_other_work(draft: Draft) -> bool:
    """Forget just as much as the edit made stale: all of it, the judgement, the release, or a failure that may now pass."""
    old, wanted = draft.status, draft.wanted
    release = draft.release_name if draft.spec.deployment.enabled else None
    if old.revision != wanted.revision:
        another_revision(draft)
    else:
        if old.evaluation_hash != wanted.evaluation_hash:
            draft.forget(Condition.EVALUATED, Condition.DEPLOYED)
            draft.edit(evaluation=None)
            if old.stage == Stage.BASELINE:
                draft.forget(Condition.BASELINE_MEASURED)
                draft.edit(baseline=None)
            if old.stage in {Stage.BASELINE, Stage.EVALUATE, Stage.VERIFY}:
                begin_again(draft)
        elif old.release != release:
            draft.forget(Condition.DEPLOYED)
            if old.stage == Stage.VERIFY or conditions.is_true(old, Condition.COMPLETE):
                begin_again(draft)
        train_after_all(draft)
        another_try(draft)
    base = run.ResolvedBaseModel.model_validate(wanted.resolved[revision.BASE_MODEL])
    draft.edit(
        resolved=json.dumps(wanted.resolved, separators=(",", ":")),
        evaluation_hash=wanted.evaluation_hash,
        release=release,
        base_model=base.name,
    )
    draft.say(Condition.ACCEPTED, "True", Reason.ACCEPTED, f"revision {wanted.revision} of base model {base.name}")
    return False


def train_after_all(draft: Draft) -> None:
    """The job had ended with a prompt that is enough, and now the spec wants the training too."""
    ended = conditions.is_true(draft.status, Condition.COMPLETE) and not conditions.is_true(
        draft.status, Condition.TRAINED
    )
    if ended and not draft.spec.intent.content_with_a_prompt:
        begin_again(draft)


def another_revision(draft: Draft) -> None:
    old = draft.status
    if old.revision is not None and old.completion_time is None:
        draft.remember(old.revision, Reason.SUPERSEDED)
    begin_again(draft)
    draft.forget(*STAGES)
    draft.edit(
        revision=draft.wanted.revision,
        micro_batch_scale=None,
        preflight=None,
        baseline=None,
        progress=None,
        checkpoint=None,
        artifacts=None,
        evaluation=None,
    )


def begin_again(draft: Draft) -> None:
    """The stage that is under way, or at which the job ended, is not what is asked for any more."""
    draft.forget(*ENDS)
    draft.edit(stage=None, attempt=None, failed_attempts=None, retry_at=None, failure=None, completion_time=None)
    draft.edit(start_time=draft.obs.now.replace(microsecond=0), queue=None)


INHERENT = {
    Reason.EVALUATION_BELOW_GATE,
    Reason.LOSS_DIVERGED,
    Reason.DATASET_INVALID,
    Reason.TOO_FEW_EXAMPLES,
    Reason.FINE_TUNING_NOT_RECOMMENDED,
    Reason.ADAPTER_INCOMPATIBLE,
}
"""Failures of the work itself: with more memory or other credentials it would end the same."""


def another_try(draft: Draft) -> None:
    """An edit of what surrounds a stage changes no result, and gives the stage that failed another try."""
    failure = draft.status.failure
    if failure is None or not conditions.is_true(draft.status, Condition.FAILED):
        return
    stage = Stage(failure.stage)
    changed = {section for section, paths in draft.wanted.changed.items() if paths}
    relevant = set() if failure.reason in INHERENT else {revision.ENVIRONMENT}
    relevant |= {revision.PREFLIGHT} if stage is Stage.PREFLIGHT else set()
    if changed & relevant:
        attempt = (draft.status.attempt or 1) + 1
        begin_again(draft)
        draft.forget(conditions.STAGE_CONDITIONS[stage])
        draft.edit(stage=stage, attempt=attempt, failed_attempts=0, micro_batch_scale=None)
