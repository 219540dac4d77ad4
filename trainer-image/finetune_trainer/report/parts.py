"""The parts of the page about training and its price, the data, and the facts of the measurement."""

import dataclasses
import math
from collections.abc import Iterable, Mapping

from finetune_api import candidates, job, results
from finetune_trainer.report import drawings, judgement, reading, words

Contender = job.Contender

RISEN = 1.01
"""A validation loss that ends above its minimum by more than this factor has risen."""


def points(listed: Iterable[Mapping[str, float]], which: str = "loss") -> list[drawings.Point]:
    pairs = [(one.get("step", math.nan), one.get(which, math.nan)) for one in listed]
    return [(step, value) for step, value in pairs if math.isfinite(step) and math.isfinite(value)]


def overfitting(validations: list[drawings.Point]) -> str:
    """The course of the validation loss, in words."""
    if not validations:
        return "There is no validation loss, so overfitting cannot be seen: set dataset.validation."
    step, lowest = min(validations, key=lambda point: point[1])
    last_step, last = validations[-1]
    if last > RISEN * lowest:
        return (
            f"The model overfits: the validation loss rose from its minimum {lowest:.3f} at step {step:g} to {last:.3f} at "
            f"step {last_step:g}, while the model memorised the training examples. Fewer epochs would save time, more examples "
            "would help."
        )
    return f"No sign of overfitting: the validation loss is lowest, {lowest:.3f}, at step {step:g}, and ends at {last:.3f}."


def chosen_adapter(training: results.Training) -> str:
    """Which adapter is used, and why; empty where nothing was validated."""
    best = _best_answers(training)
    if best is None:
        found = points(training.validations)
        return f"The adapter of step {min(found, key=lambda point: point[1])[0]:g} is used." if found else ""
    return (
        f"The adapter of step {best['step']:g} is used, by {training.scored_by} {best['score']:.3f} of the answers to validation "
        "examples: the best answers, and of equal ones the lowest loss."
    )


def score_curve(training: results.Training) -> drawings.Curves | None:
    """The scores by which the adapter was chosen; None where the loss decided, or there is one score."""
    best, scored = _best_answers(training), points(training.validations, "score")
    if best is None or training.scored_by is None or len(scored) < 2:
        return None
    last = max(step for step, _ in [*points(training.history), *points(training.validations)])
    return drawings.scores(training.scored_by, scored, (best["step"], best["score"]), last)


def _best_answers(training: results.Training) -> Mapping[str, float] | None:
    """The validation whose adapter is used; None where the loss decided."""
    scored = [one for one in training.validations if math.isfinite(one.get("score", math.nan))]
    if training.scored_by is None or not scored:
        return None
    sign = -1 if training.scored_by in job.LOWER_IS_BETTER else 1
    return max(scored, key=lambda one: (sign * one["score"], -one["loss"]))


def spent(one: candidates.Candidate, currency: str | None) -> str:
    """GPU-hours and cost of a base model that was tried."""
    hours = [f"{float(one.gpu_hours):.2f} GPU-hours"] if one.gpu_hours else []
    return ", ".join([*hours, *([words.price(float(one.amount), currency)] if one.amount else [])]) or "no GPU"


@dataclasses.dataclass(frozen=True)
class Tokens:
    who: Contender
    counted: results.Tokens
    over: str
    """Prompt tokens compared with the tuned model's."""


def tokens(found: results.Results) -> list[Tokens]:
    """The tokens of a request."""
    ours = reading.tokens(found, Contender.TUNED)
    made = []
    for who in (Contender.TUNED, *reading.alternatives(found), Contender.SERVING):
        one = reading.tokens(found, who)
        if one is None:
            continue
        over = "" if ours is None or who is Contender.TUNED else f"{one.prompt - ours.prompt:+,.0f}".replace("-", "−")
        made.append(Tokens(who, one, over))
    return made


def break_even(found: results.Results) -> str:
    """When the training pays off."""
    requests, cost = found.break_even_requests, found.training.cost
    price = words.price(cost, found.training.currency) if cost is not None else "the training's price"
    if requests is not None:
        return (
            f"Break-even after {words.count(requests)} requests: by then the prompt tokens saved are worth {price} at the "
            "measured speed of reading prompts."
        )
    return f"No break-even: {judgement.unpaid(found)}."


def places(finding: Mapping[str, object]) -> list[object]:
    """The places of a finding."""
    listed = finding.get("places")
    return list(listed) if isinstance(listed, list | tuple) else []


ENGINES = {
    job.EvaluationEngine.IN_PROCESS: "the trainer",
    job.EvaluationEngine.SERVER: "a vLLM server, as it will serve",
}


def tried(one: results.TriedRate) -> str:
    """A learning rate of a search, with its validation loss."""
    return f"{one.learning_rate:g}: {'diverged' if one.loss is None else f'{one.loss:.4f}'} after {one.steps} steps"


def facts(found: results.Results) -> dict[str, str]:
    """Cost of the training, and the facts of the measurement."""
    training = found.training
    rows = {
        "Training": None if training.seconds is None else words.duration(training.seconds),
        "Learning rate": None if training.learning_rate is None else f"{training.learning_rate:g}",
        "Learning rates tried": ", ".join(tried(one) for one in training.search) or None,
        "Speed": None if training.tokens_per_second is None else f"{words.count(training.tokens_per_second)} tokens/s",
        "Peak memory": None if training.peak_memory is None else words.size(training.peak_memory),
        "GPU hours": None if training.gpu_hours is None else f"{training.gpu_hours:,.2f}",
        "Price of the training": None if training.cost is None else words.price(training.cost, training.currency),
        "Evaluation": words.duration(found.seconds),
        "Answers by": ENGINES[found.engine],
        "Evaluated": None if found.finished_at is None else f"{found.finished_at:%Y-%m-%d %H:%M %Z}".strip(),
        "Base model": found.base_model,
        "Base model's revision": found.base_model_revision,
        "Revision of the job": found.revision,
        "LoRA rank": str(found.rank),
        "Adapter, SHA-256": found.adapter,
        "Served as": found.served_model_name,
        "Canary": found.evaluation.canary,
    }
    return {name: value for name, value in rows.items() if value is not None}
