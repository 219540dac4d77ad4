"""Rules of the stages: each starts when the previous one is done, and its outcome becomes its condition."""

import dataclasses
from typing import Any

from finetune_api import job, outcome, status
from finetune_api.reasons import Condition, Reason, Stage
from finetune_operator.decide import attempts, candidates, placement, progress, verdict
from finetune_operator.decide.attempts import Work
from finetune_operator.decide.verdict import Verdict
from finetune_operator.decide.world import World, fails


def preflight_is_not_done(world: World) -> Verdict | None:
    """Scenarios A to E, without a GPU."""
    if world.true(Condition.PREFLIGHT_PASSED):
        return None
    amounts = {"requests": job.Requests(), "limits": job.Limits()}
    wanted = world.spec.resources.model_copy(update={"gpus": 0, "gpu_type": None, **amounts})
    return attempts.advance(world, Work(Stage.PREFLIGHT, wanted), _preflight)


def _preflight(world: World, answer: outcome.Outcome) -> Verdict:
    found = answer.preflight
    if answer.reason is not None:
        failed = fails(world, Stage.PREFLIGHT, answer.reason, answer.message)
        return dataclasses.replace(failed, edits={**failed.edits, "preflight": found})
    text = f"{found.examples} training examples; {found.verdict}" if found else answer.message
    advice = " ".join(found.advice) if found else ""
    message = f"{text}. {advice}".strip(". ") + "."
    return verdict.says(
        Condition.PREFLIGHT_PASSED, "True", Reason.SUCCEEDED, message, edits={"preflight": found}, proceed=True
    )


def the_pool_does_not_fit(world: World) -> Verdict | None:
    """Scenario E. The ServingPool was edited or deleted since the job was accepted, or has no parser of tool calls for examples
    with tools: reported before the training starts."""
    if world.true(Condition.TRAINED) or world.state.stage == Stage.TRAIN:
        return None
    pool, problem = world.obs.pools.get(str(world.placement.pool)), world.placement.problem
    if pool is not None and not problem:
        problem = placement.without_parser(pool, world.obs.settings.serving.args, world.state.preflight)
    return verdict.says(Condition.TRAINED, "Unknown", world.placement.reason, problem) if problem else None


def training_is_not_done(world: World) -> Verdict | None:
    """Scenarios B to E."""
    if world.true(Condition.TRAINED):
        return None
    wanted = world.spec.resources
    work = Work(Stage.TRAIN, wanted, nodes=wanted.nodes)
    return progress.noted(world, attempts.advance(world, work, _trained))


def _trained(world: World, answer: outcome.Outcome) -> Verdict:
    if answer.training is None:
        text = "training succeeded but reported no adapter: check the trainer image"
        return fails(world, Stage.TRAIN, Reason.TRAINER_ERROR, text)
    done = answer.training
    whole = status.Progress(
        summary="100%",
        percent=100,
        step=done.steps,
        total_steps=done.steps,
        loss=f"{done.loss:.4f}",
        validation_loss=None if done.validation_loss is None else f"{done.validation_loss:.4f}",
        tokens_per_second=round(done.tokens_per_second),
        updated_at=world.now,
    )
    resumed = "" if done.resumed_from is None else f" (resumed from step {done.resumed_from})"
    notes = "".join(f"; {note}" for note in (done.passes, done.left_behind) if note)
    return verdict.says(
        Condition.TRAINED,
        "True",
        Reason.SUCCEEDED,
        f"{done.steps} steps{resumed}, loss {done.loss:.4f}: {done.adapter.uri}{notes}",
        edits={"artifacts": status.Artifacts(adapter=done.adapter), "progress": whole},
        proceed=True,
    )


def evaluation_is_not_done(world: World) -> Verdict | None:
    """Scenarios B to E."""
    if world.true(Condition.EVALUATED):
        return None
    serving = world.serving
    other = serving.adapter if serving is not None and serving.revision != world.wanted.revision else None
    wanted = attempts.evaluation_resources(world)
    return attempts.advance(world, Work(Stage.EVALUATE, wanted, adapter=world.adapter, serving=other), _evaluated)


def _evaluated(world: World, answer: outcome.Outcome) -> Verdict:
    found = answer.evaluation
    if found is None:
        text = "the evaluation succeeded but reported no results"
        return fails(world, Stage.EVALUATE, Reason.TRAINER_ERROR, text)
    edits = {"evaluation": found, "artifacts": status.Artifacts(adapter=world.adapter, report=answer.report)}
    if not found.passed:
        missed = "; ".join(
            f"{g.task or g.metric}: required {g.requirement}, observed {g.observed}"
            for g in found.gates
            if not g.passed
        )
        if following := candidates.follows(world, found):
            return _next_candidate(world, f"{missed}; {following.model} is trained next ({answer.report})", edits)
        failed = fails(
            world,
            Stage.EVALUATE,
            Reason.EVALUATION_BELOW_GATE,
            f"{missed}. See the report ({answer.report}), then improve data or training, or change evaluation.gates."
            + candidates.what_helps(world, found),
        )
        return dataclasses.replace(failed, edits={**failed.edits, **edits})
    gates = f"{len(found.gates)} of {len(found.gates)} gates passed" if found.gates else "no gates"
    best = f"; the best baseline: {found.best_baseline}" if found.best_baseline else ""
    again = f", evaluation {found.tries} of this job on them" if (found.tries or 1) > 1 else ""
    text = f"{gates} on {found.examples} test examples{again}{best}{candidates.skipped(world)}"
    return verdict.says(Condition.EVALUATED, "True", Reason.SUCCEEDED, text, edits=edits, proceed=True)


def _next_candidate(world: World, text: str, edits: dict[str, Any]) -> Verdict:
    """Evidence shows that this base model is not enough: its revision ends, and the next pass begins that of the next one."""
    return verdict.says(
        Condition.EVALUATED,
        "False",
        Reason.EVALUATION_BELOW_GATE,
        text,
        edits=edits,
        outcome=Reason.EVALUATION_BELOW_GATE,
        again=world.obs.now,
    )


def deployment_is_disabled(world: World) -> Verdict | None:
    """Scenario L: the end of a job without deployment."""
    if world.spec.deployment.enabled:
        return None
    report = world.state.artifacts.report if world.state.artifacts else None
    return Verdict(
        says=(
            verdict.Say(
                Condition.DEPLOYED, "False", Reason.DISABLED, "not served, because deployment.enabled is false"
            ),
            verdict.Say(
                Condition.COMPLETE, "True", Reason.SUCCEEDED, f"the adapter is trained and evaluated: {report}"
            ),
        ),
        edits={"failure": None},
        outcome=Reason.SUCCEEDED,
    )
