"""What the results say about fine-tuning, in words: the verdict, five reasons for it, two against. Pure, no HTML."""

import dataclasses
import enum
import math

from finetune_api import evaluation, job, results
from finetune_trainer.report import reading, words

Metric = job.Metric
Contender = job.Contender
Goal = job.Goal

SURE = 0.05
"""A gain counts when chance alone brings it about in fewer cases than this."""

FORGOTTEN = 0.05
"""A rise of the general loss that speaks against the model where no gate says what is too much."""

FEW = 50
"""Test examples below which intervals are so wide that the page says so first."""


class Mark(enum.Enum):
    FOR = "speaks for it"
    AGAINST = "speaks against it"
    CLEAR = "does not speak against it"
    UNDECIDED = "undecided"
    UNMEASURED = "not measured"


@dataclasses.dataclass(frozen=True)
class Verdict:
    passed: bool
    reason: str
    evidence: str
    cautions: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Reason:
    title: str
    seen: str
    """What was measured, or how to measure it."""
    mark: Mark
    meaning: str = ""
    """What the metric is."""
    asked: bool = False
    """Whether the job named it as a goal."""


def verdict(found: results.Results) -> Verdict:
    """Whether the model passed, what decided that, and what a reader must not miss."""
    return Verdict(found.evaluation.passed, _decided(found), _evidence(found), tuple(_cautions(found)))


def _decided(found: results.Results) -> str:
    gates = found.evaluation.gates
    failed = [gate for gate in gates if not gate.passed]
    if failed:
        first = failed[0]
        others = f" {len(failed)} of {len(gates)} gates failed; this is the first." if len(failed) > 1 else ""
        return f"{first.requirement} was required; measured: {first.observed}.{others}"
    if not gates:
        return "The job has no gates, so nothing was required: every model passes."
    if len(gates) == 1:
        return f"The only gate holds: {gates[0].requirement}; measured: {gates[0].observed}."
    return f"All {len(gates)} gates hold, first {gates[0].requirement}; measured: {gates[0].observed}."


def _evidence(found: results.Results) -> str:
    """The headline metric of the tuned model against the best baseline; empty where nothing was measured."""
    metric = found.headline
    if metric in job.PAIRWISE:
        duel = reading.duel(found, found.best_baseline)
        return _judged(found, duel) if duel else ""
    tuned = reading.value(found, metric, Contender.TUNED) if metric else None
    return f"{words.capital(_against(found, tuned))}." if tuned else ""


def _against(found: results.Results, tuned: results.Value) -> str:
    """ExactMatch 0.92 (0.85 to 0.96) against 0.61 by the base model with a prompt and 3 examples; ..."""
    metric = tuned.metric
    said = f"{metric} {words.measured(metric, tuned.value, tuned.low, tuned.high)}"
    lower = " (lower is better)" if metric in job.LOWER_IS_BETTER else ""
    other = reading.rival(found, metric)
    if other is None:
        return f"{said}{lower}, with no baseline to compare with"
    said += f" against {words.number(metric, other.value)} {words.beside(other.contender, found.intent.prompt)}{lower}"
    compared = reading.comparison(found, metric, other.contender)
    return f"{said}; {words.gained(compared.gain, compared.p_value)}" if compared else said


def _cautions(found: results.Results) -> list[str]:
    made = []
    baseline, examples = found.baseline, found.evaluation.examples
    if baseline is not None and baseline.sufficient is not None:
        who = words.described(baseline.sufficient, found.intent.prompt)
        made.append(f"{words.capital(who)} passes the gates without any training.")
    metric = found.headline
    if metric and _mark(found, metric) is Mark.AGAINST:
        made.append(
            f"By {metric} the best baseline is better than the tuned model: fine-tuning has not earned its place."
        )
    if metric and found.evaluation.passed and _mark(found, metric) is Mark.UNDECIDED and found.best_baseline:
        made.append(f"By {metric} it is not certain that the tuned model is better than the best baseline.")
    if examples < FEW:
        counted = f"{examples} test example{'s' if examples != 1 else ''}"
        made.append(f"Only {counted}: the intervals are wide, and a few answers more or less would move every number.")
    if found.preflight is not None and found.preflight.verdict == "NotRecommended":
        made.append("Before training, preflight advised against fine-tuning; see the data below.")
    if lost := reading.lost(found):
        listed = ", ".join(f"{one.task} ({one.metric})" for one in lost)
        made.append(f"The tuned model is worse than the base model in public benchmarks: {listed}.")
    return made


def for_tuning(found: results.Results) -> list[Reason]:
    """The five reasons for which fine-tuning is the right tool, each with what was measured of it."""
    goals = set(found.intent.goals)
    return [
        _style(found, goals),
        _by_metric(
            found,
            "Domain",
            reading.TASK,
            "Give test examples of the domain with the answers that are expected (dataset.test).",
            asked=Goal.DOMAIN in goals,
        ),
        dataclasses.replace(_cost(found), asked=Goal.COST in goals),
        dataclasses.replace(_fewer(found), asked=Goal.TOKEN_REDUCTION in goals),
        _by_metric(
            found,
            "Consistency",
            (Metric.CONSISTENCY,),
            "Set evaluation.consistency, for example {samples: 5}: several sampled answers to one question are compared.",
            asked=Goal.CONSISTENCY in goals,
        ),
    ]


def against_tuning(found: results.Results) -> list[Reason]:
    """The two reasons against it that can be measured."""
    return [_forgetting(found), _sufficient(found)]


def _style(found: results.Results, goals: set[Goal]) -> Reason:
    """By what can be counted; by a judge where style is the goal, or where nothing of it was counted."""
    title, asked = "Style and format", bool(goals & {Goal.STYLE, Goal.FORMAT})
    duel = reading.hardest(found)
    counted = _by_metric(
        found,
        title,
        reading.FORMAT,
        "Set evaluation.outputSchema (a JSON Schema) or evaluation.labels. Style: let a language model compare answers in pairs "
        "(evaluation.judge), or people who do not know whose they are.",
        asked=asked,
    )
    if duel is None or duel.win_rate is None or (counted.mark is not Mark.UNMEASURED and Goal.STYLE not in goals):
        return counted
    meaning = f"{Metric.JUDGE_WIN_RATE}: {evaluation.MEANINGS[Metric.JUDGE_WIN_RATE]}."
    return Reason(title, _judged(found, duel), _preferred(duel), meaning, asked)


def _judged(found: results.Results, duel: results.PairwiseResult) -> str:
    rate = words.measured(Metric.JUDGE_WIN_RATE, duel.win_rate or 0.0, duel.low, duel.high)
    return (
        f"A judge gives the tuned model's answers a win rate of {rate} over {words.described(duel.over, found.intent.prompt)}: "
        f"{duel.wins} won, {duel.ties} tied, {duel.losses} lost."
    )


def _preferred(duel: results.PairwiseResult) -> Mark:
    sure = duel.p_value is not None and duel.p_value < SURE
    worse = duel.high is not None and duel.high < 0.5
    return Mark.FOR if sure else Mark.AGAINST if worse else Mark.UNDECIDED


def _by_metric(found: results.Results, title: str, metrics: tuple[Metric, ...], how: str, *, asked: bool) -> Reason:
    metric = reading.chosen(found, metrics)
    tuned = reading.value(found, metric, Contender.TUNED) if metric else None
    if metric is None or tuned is None:
        return Reason(title, how, Mark.UNMEASURED, asked=asked)
    meaning = f"{metric}: {evaluation.MEANINGS[metric]}."
    return Reason(title, f"{_against(found, tuned)}.", _mark(found, metric), meaning, asked)


def _mark(found: results.Results, metric: Metric) -> Mark:
    """What a metric says against the best baseline: by the paired comparison, else by intervals that do not overlap."""
    if metric in job.PAIRWISE:
        duel = reading.duel(found, found.best_baseline)
        return _preferred(duel) if duel else Mark.UNMEASURED
    tuned, other = reading.value(found, metric, Contender.TUNED), reading.rival(found, metric)
    if tuned is None:
        return Mark.UNMEASURED
    if other is None:
        return Mark.UNDECIDED
    compared = reading.comparison(found, metric, other.contender)
    if compared is not None:
        if compared.gain > 0 and compared.p_value < SURE:
            return Mark.FOR
        return Mark.AGAINST if compared.high < 0 else Mark.UNDECIDED
    if None in (tuned.low, tuned.high, other.low, other.high):
        return Mark.UNDECIDED
    above, below = tuned.low > other.high, tuned.high < other.low  # type: ignore[operator]
    if metric in job.LOWER_IS_BETTER:
        above, below = below, above
    return Mark.FOR if above else Mark.AGAINST if below else Mark.UNDECIDED


def _cost(found: results.Results) -> Reason:
    """Quality per token: what a right answer costs, with the wrong ones paid for too; and when the training is paid back."""
    title = "Cost"
    metric = reading.chosen(found, tuple(one for one in reading.TASK if one in reading.RIGHT_OR_WRONG))
    other = found.best_baseline
    ours, theirs = (_per_answer(found, metric, who) for who in (Contender.TUNED, other))
    if ours is None or theirs is None or other is None:
        return Reason(
            title,
            "Tokens for each right answer need ExactMatch, Accuracy or NormalizedMatch of the tuned model and of a baseline "
            "(evaluation.baselines). To compare with a larger model, run a job on it with the same test examples.",
            Mark.UNMEASURED,
        )
    said = (
        f"{_spent(ours)}, prompts and wrong answers included, against {_spent(theirs)} "
        f"{words.beside(other, found.intent.prompt)}. {_paid_back(found)}"
    )
    mark = Mark.FOR if ours < 0.95 * theirs else Mark.AGAINST if ours > 1.05 * theirs else Mark.UNDECIDED
    return Reason(title, said, mark)


def _per_answer(found: results.Results, metric: Metric | None, who: Contender | None) -> float | None:
    """Tokens for each right answer; infinite where no answer is right."""
    if metric is None or who is None:
        return None
    spent, right = reading.tokens(found, who), reading.value(found, metric, who)
    if spent is None or right is None:
        return None
    return (spent.prompt + spent.answer) / right.value if right.value > 0 else float("inf")


def _spent(tokens: float) -> str:
    return f"{words.count(tokens, 'tokens')} for each right answer" if math.isfinite(tokens) else "no right answer"


def _paid_back(found: results.Results) -> str:
    training = found.training
    price = f" of {words.price(training.cost, training.currency)}" if training.cost is not None else ""
    if found.break_even_requests is not None:
        return f"The training{price} is paid back after {words.count(found.break_even_requests)} requests."
    return f"The training{price} has no break-even: {unpaid(found)}."


def unpaid(found: results.Results) -> str:
    """Why there is no break-even."""
    if not found.training.seconds:
        return "how long the training took is not known"
    ours, theirs = (reading.tokens(found, who) if who else None for who in (Contender.TUNED, found.best_baseline))
    if ours is None or theirs is None:
        return "tokens of requests were not compared"
    return (
        "no prompt tokens are saved"
        if round(theirs.prompt - ours.prompt) <= 0
        else "the speed of reading prompts was not measured"
    )


def _fewer(found: results.Results) -> Reason:
    title, other = "Fewer tokens", found.best_baseline
    ours = reading.tokens(found, Contender.TUNED)
    theirs = reading.tokens(found, other) if other else None
    if ours is None or theirs is None or other is None:
        return Reason(
            title,
            "Set intent.prompt to the prompt in use today, and keep Prompt or FewShot among evaluation.baselines.",
            Mark.UNMEASURED,
        )
    saved = theirs.prompt - ours.prompt
    share = saved / theirs.prompt if theirs.prompt else 0.0
    more = f"{words.count(abs(saved))} {'fewer' if saved >= 0 else 'more'} ({100 * abs(share):.0f} %)"
    said = (
        f"A prompt of {words.count(ours.prompt, 'tokens')} against {words.count(theirs.prompt)} "
        f"{words.beside(other, found.intent.prompt)}: {more}."
    )
    mark = Mark.FOR if share >= 0.05 else Mark.AGAINST if share <= -0.05 else Mark.UNDECIDED
    return Reason(title, said, mark)


def _forgetting(found: results.Results) -> Reason:
    title = "Forgetting: it gets worse elsewhere"
    lost = reading.value(found, Metric.FORGETTING, Contender.TUNED)
    pair = [reading.value(found, Metric.GENERAL_ACCURACY, who) for who in (Contender.BASE, Contender.TUNED)]
    if lost is None:
        return Reason(title, "Forgetting is measured on general questions; this evaluation had none.", Mark.UNMEASURED)
    said = (
        f"The loss on general questions changed by "
        f"{words.measured(lost.metric, lost.value, lost.low, lost.high, sign=True)} over the base model; a rise is forgetting."
    )
    if pair[0] is not None and pair[1] is not None:
        before, after = (words.number(Metric.GENERAL_ACCURACY, one.value) for one in pair if one is not None)
        said += f" It answers {after} of them rightly, the base model {before}."
    gates = [gate for gate in found.evaluation.gates if gate.metric is Metric.FORGETTING]
    too_much = not all(gate.passed for gate in gates) if gates else lost.value > FORGOTTEN
    limit = "" if gates else f" Above {100 * FORGOTTEN:.0f} % counts as too much, since no gate says otherwise."
    return Reason(title, said + limit, Mark.AGAINST if too_much else Mark.CLEAR)


def _sufficient(found: results.Results) -> Reason:
    title, baseline = "A prompt is sufficient", found.baseline
    if baseline is None:
        return Reason(
            title,
            "No baseline was measured before training. Set evaluation.gates, and intent.advice to Warn or Enforce.",
            Mark.UNMEASURED,
        )
    who = baseline.sufficient
    said = baseline.message or (
        f"{words.capital(words.described(who, found.intent.prompt))} passes the gates."
        if who
        else "No baseline passes the gates."
    )
    counted = f" Asked before training on {words.count(baseline.examples, 'validation examples')}."
    return Reason(title, _ended(said) + counted, Mark.AGAINST if who else Mark.CLEAR)


def _ended(said: str) -> str:
    return said if said.endswith((".", "!", "?")) else f"{said}."
