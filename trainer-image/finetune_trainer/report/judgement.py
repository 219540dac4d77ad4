"""What the results say about fine-tuning: the verdict, five reasons for it, two against. Pure, no HTML."""

import dataclasses
import enum
import math

from finetune_api import evaluation, job, results, status
from finetune_trainer.report import reading, words

Metric = job.Metric
Contender = job.Contender
Goal = job.Goal

ALPHA = 0.05
"""A gain counts as significant when its p-value is below this."""

FEW = 50
"""Test examples below which the page warns that intervals are wide."""


class Mark(enum.Enum):
    FOR = "for fine-tuning"
    AGAINST = "against fine-tuning"
    CLEAR = "no evidence against it"
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
    measured: str
    """The measurement, or how to measure it."""
    mark: Mark
    meaning: str = ""
    """The meaning of the metric."""
    is_goal: bool = False
    """Whether it is a goal of the job."""


TAUGHT = "The expected answers are those of {} (training.teacher)."


def verdict(found: results.Results) -> Verdict:
    """Whether the model passed, why, and what a reader must not miss."""
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
        return f"The only gate passed: {gates[0].requirement}; measured: {gates[0].observed}."
    return f"All {len(gates)} gates passed; the first: {gates[0].requirement}, measured: {gates[0].observed}."


def _evidence(found: results.Results) -> str:
    """The headline metric of the tuned model against the best baseline; empty where nothing was measured."""
    metric = found.headline
    if metric in job.PAIRWISE:
        pairwise = reading.judged_against(found, found.best_baseline)
        return _judged(found, pairwise) if pairwise else ""
    tuned = reading.value(found, metric, Contender.TUNED) if metric else None
    taught = f" {TAUGHT.format(_teacher(found.teacher))}" if found.teacher else ""
    return f"{words.capital(_against(found, tuned))}.{taught}" if tuned else ""


def _teacher(name: str) -> str:
    return (
        "the base model with intent.prompt.system"
        if name == job.PROMPTED
        else f"the model {name} of evaluation.candidates"
    )


def _against(found: results.Results, tuned: results.Value) -> str:
    """ExactMatch 0.92 (0.85 to 0.96) against 0.61 by the base model with a prompt and 3 examples; ..."""
    metric = tuned.metric
    text = f"{metric} {words.measured(metric, tuned.value, tuned.low, tuned.high)}"
    lower = " (lower is better)" if metric in job.LOWER_IS_BETTER else ""
    other = reading.best_baseline_value(found, metric)
    if other is None:
        return f"{text}{lower}, with no baseline to compare with"
    text += f" against {words.number(metric, other.value)} {words.beside(other.contender, found.intent.prompt)}{lower}"
    compared = reading.comparison(found, metric, other.contender)
    return f"{text}; {words.gained(compared.gain, compared.p_value)}" if compared else text


def _cautions(found: results.Results) -> list[str]:
    made = []
    baseline, examples = found.baseline, found.evaluation.examples
    if baseline is not None and baseline.sufficient is not None:
        who = words.described(baseline.sufficient, found.intent.prompt)
        made.append(f"{words.capital(who)} passes the gates without any training.")
    if baseline is not None and baseline.sufficient is None and baseline.undecided:
        who = words.described(baseline.undecided[0], found.intent.prompt)
        made.append(
            f"{words.capital(who)} may pass the gates without any training: too few validation examples to decide."
        )
    metric = found.headline
    if metric and _mark(found, metric) is Mark.AGAINST:
        made.append(f"By {metric} the best baseline is better than the tuned model: fine-tuning was not worth it.")
    if metric and found.evaluation.passed and _mark(found, metric) is Mark.UNDECIDED and found.best_baseline:
        made.append(f"By {metric} it is not certain that the tuned model is better than the best baseline.")
    if metric and (better := _better_candidate(found, metric)):
        made.append(f"By {metric} the candidate {better} is better than the tuned model: compare what both cost.")
    if rungs := _strong_left_out(found):
        made.append(f"Not compared with {' and '.join(rungs)}, which may do better than the baselines above.")
    if found.tries is not None and found.tries.evaluations > 1:
        made.append(_tried(found.tries))
    if examples < FEW:
        counted = f"{examples} test example{'s' if examples != 1 else ''}"
        made.append(f"Only {counted}: the intervals are wide, and a few answers would change every number.")
    if found.preflight is not None and found.preflight.verdict == "NotRecommended":
        made.append("Before training, preflight advised against fine-tuning; see the data below.")
    if forgetting := reading.worse_benchmarks(found):
        listed = ", ".join(f"{one.task} ({one.metric})" for one in forgetting)
        made.append(f"The tuned model is worse than the base model in public benchmarks: {listed}.")
    return made


STRONG = (Contender.RETRIEVED, Contender.OPTIMIZED, Contender.MANY_SHOT, Contender.RAG, Contender.STRUCTURED)
"""Baselines that often come near to a tuned model."""


def _strong_left_out(found: results.Results) -> list[str]:
    """Strong baselines without a value that the job names as left out, for whatever reason."""
    measured = reading.contenders(found)
    named = [text.partition(":")[0] for text in found.left_out]
    return [
        words.name(one) for one in STRONG if one not in measured and any(text.startswith(str(one)) for text in named)
    ]


def _better_candidate(found: results.Results, metric: Metric) -> Contender | None:
    """The best alternative, where it is another model and better than the tuned one."""
    who = found.best_alternative
    if who is None or not who.is_candidate:
        return None
    compared = reading.comparison(found, metric, who)
    return who if compared is not None and compared.high < 0 else None


def _tried(tries: results.Tries) -> str:
    """What it means that the same test examples decided before."""
    text = f"This is evaluation {tries.evaluations} of this job on the same test examples"
    if tries.false_pass is None:
        return f"{text}: their values, too, are the more flattering the more was tried."
    return (
        f"{text}: that one of {tries.evaluations} lets a model pass that misses a gate's bound may happen in up to "
        f"{100 * tries.false_pass:.3g} of 100 cases. New test examples start the count again."
    )


def for_tuning(found: results.Results) -> list[Reason]:
    """The five reasons for fine-tuning, each with its measurement."""
    goals = set(found.intent.goals)
    return [
        _style(found, goals),
        _by_metric(
            found,
            "Domain",
            reading.TASK,
            "Give test examples of the domain with expected answers (dataset.test).",
            is_goal=Goal.DOMAIN in goals,
        ),
        dataclasses.replace(_cost(found), is_goal=Goal.COST in goals),
        dataclasses.replace(_fewer(found), is_goal=Goal.TOKEN_REDUCTION in goals),
        _by_metric(
            found,
            "Consistency",
            (Metric.CONSISTENCY,),
            "Set evaluation.consistency, for example {samples: 5}: several sampled answers to one question are compared.",
            is_goal=Goal.CONSISTENCY in goals,
        ),
    ]


def against_tuning(found: results.Results) -> list[Reason]:
    """The two reasons against it that can be measured."""
    return [_forgetting(found), _sufficient(found)]


def _style(found: results.Results, goals: set[Goal]) -> Reason:
    """By metrics; by a judge where style is a goal, or where there is no such metric."""
    title, is_goal = "Style and format", bool(goals & {Goal.STYLE, Goal.FORMAT})
    pairwise = reading.lowest_win_rate(found)
    counted = _by_metric(
        found,
        title,
        reading.FORMAT,
        "Set evaluation.outputSchema (a JSON Schema) or evaluation.labels. Style: let a language model compare answers in pairs "
        "(evaluation.judge), or people who do not know which model wrote which answer.",
        is_goal=is_goal,
    )
    if (
        pairwise is None
        or pairwise.win_rate is None
        or (counted.mark is not Mark.UNMEASURED and Goal.STYLE not in goals)
    ):
        return counted
    meaning = f"{Metric.JUDGE_WIN_RATE}: {evaluation.MEANINGS[Metric.JUDGE_WIN_RATE]}."
    return Reason(title, _judged(found, pairwise), _pairwise_mark(pairwise), meaning, is_goal)


def _judged(found: results.Results, pairwise: results.PairwiseResult) -> str:
    rate = words.measured(Metric.JUDGE_WIN_RATE, pairwise.win_rate or 0.0, pairwise.low, pairwise.high)
    return (
        f"A judge gives the tuned model's answers a win rate of {rate} over "
        f"{words.described(pairwise.over, found.intent.prompt)}: {pairwise.wins} won, {pairwise.ties} tied, "
        f"{pairwise.losses} lost."
    )


def _pairwise_mark(pairwise: results.PairwiseResult) -> Mark:
    sure = pairwise.p_value is not None and pairwise.p_value < ALPHA
    worse = pairwise.high is not None and pairwise.high < 0.5
    return Mark.FOR if sure else Mark.AGAINST if worse else Mark.UNDECIDED


def _by_metric(found: results.Results, title: str, metrics: tuple[Metric, ...], how: str, *, is_goal: bool) -> Reason:
    metric = reading.chosen(found, metrics)
    tuned = reading.value(found, metric, Contender.TUNED) if metric else None
    if metric is None or tuned is None:
        return Reason(title, how, Mark.UNMEASURED, is_goal=is_goal)
    meaning = f"{metric}: {evaluation.MEANINGS[metric]}."
    return Reason(title, f"{_against(found, tuned)}.", _mark(found, metric), meaning, is_goal)


def _mark(found: results.Results, metric: Metric) -> Mark:
    """A metric's verdict against the best baseline: by the paired comparison, else by intervals that do not overlap."""
    if metric in job.PAIRWISE:
        pairwise = reading.judged_against(found, found.best_baseline)
        return _pairwise_mark(pairwise) if pairwise else Mark.UNMEASURED
    tuned, other = reading.value(found, metric, Contender.TUNED), reading.best_baseline_value(found, metric)
    if tuned is None:
        return Mark.UNMEASURED
    if other is None:
        return Mark.UNDECIDED
    compared = reading.comparison(found, metric, other.contender)
    if compared is not None:
        if compared.gain > 0 and compared.p_value < ALPHA:
            return Mark.FOR
        return Mark.AGAINST if compared.high < 0 else Mark.UNDECIDED
    if None in (tuned.low, tuned.high, other.low, other.high):
        return Mark.UNDECIDED
    above, below = tuned.low > other.high, tuned.high < other.low  # type: ignore[operator]
    if metric in job.LOWER_IS_BETTER:
        above, below = below, above
    return Mark.FOR if above else Mark.AGAINST if below else Mark.UNDECIDED


def _cost(found: results.Results) -> Reason:
    """Quality per token: the price of a right answer, wrong ones included; and when the training pays off."""
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
    text = (
        f"{_spent(ours)}, prompts and wrong answers included, against {_spent(theirs)} "
        f"{words.beside(other, found.intent.prompt)}. {_paid_back(found)}{_in_money(found, metric)}"
    )
    mark = Mark.FOR if ours < 0.95 * theirs else Mark.AGAINST if ours > 1.05 * theirs else Mark.UNDECIDED
    return Reason(title, text, mark)


def _per_answer(found: results.Results, metric: Metric | None, who: Contender | None) -> float | None:
    """Tokens for each right answer; infinite where no answer is right."""
    if metric is None or who is None:
        return None
    spent, right = reading.tokens(found, who), reading.value(found, metric, who)
    if spent is None or right is None:
        return None
    return (spent.prompt + spent.answer) / right.value if right.value > 0 else float("inf")


def _in_money(found: results.Results, metric: Metric | None) -> str:
    """The price of 1,000 right answers against the best alternative's, and when the training has paid for itself."""
    other = found.best_alternative
    prices = [_price_of_right(found, metric, who) for who in (Contender.TUNED, other)]
    if other is None or None in prices:
        return ""
    ours, theirs = (words.price(one, found.currency) for one in prices if one is not None)
    text = f" 1,000 right answers cost {ours} to serve, against {theirs} {words.beside(other, found.intent.prompt)}"
    if found.paid_back_requests is None:
        return f"{text}: each request costs at least as much, so money never pays the training back."
    return f"{text}: the training is paid back after {words.count(found.paid_back_requests)} requests, on busy GPUs."


def _price_of_right(found: results.Results, metric: Metric | None, who: Contender | None) -> float | None:
    if metric is None or who is None:
        return None
    spent, right = reading.tokens(found, who), reading.value(found, metric, who)
    if spent is None or spent.cost is None or right is None or right.value <= 0:
        return None
    return spent.cost / right.value


def _spent(tokens: float) -> str:
    return f"{words.count(tokens, 'tokens')} for each right answer" if math.isfinite(tokens) else "no right answer"


def _paid_back(found: results.Results) -> str:
    training = found.training
    price = f" of {words.price(training.cost, training.currency)}" if training.cost is not None else ""
    if found.break_even_requests is not None:
        return f"The training{price} pays off after {words.count(found.break_even_requests)} requests."
    return f"The training{price} has no break-even: {unpaid(found)}."


def unpaid(found: results.Results) -> str:
    """Why there is no break-even."""
    if not found.training.seconds:
        return "the duration of the training is unknown"
    ours, theirs = (reading.tokens(found, who) if who else None for who in (Contender.TUNED, reading.replaced(found)))
    if ours is None or theirs is None:
        return "no baseline's tokens per request are known"
    return (
        "no prompt tokens are saved"
        if round(theirs.prompt - ours.prompt) <= 0
        else "the speed of reading prompts was not measured"
    )


def _fewer(found: results.Results) -> Reason:
    title, other = "Fewer tokens", reading.replaced(found)
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
    text = (
        f"A prompt of {words.count(ours.prompt, 'tokens')} against {words.count(theirs.prompt)} "
        f"{words.beside(other, found.intent.prompt)}: {more}."
    )
    mark = Mark.FOR if share >= 0.05 else Mark.AGAINST if share <= -0.05 else Mark.UNDECIDED
    return Reason(title, text, mark)


def _forgetting(found: results.Results) -> Reason:
    title = "Forgetting: worse at other tasks"
    forgetting = reading.value(found, Metric.FORGETTING, Contender.TUNED)
    pair = [reading.value(found, Metric.GENERAL_ACCURACY, who) for who in (Contender.BASE, Contender.TUNED)]
    if forgetting is None:
        return Reason(title, "Forgetting is measured on general questions; this evaluation had none.", Mark.UNMEASURED)
    text = (
        "The loss on general questions changed by "
        f"{words.measured(forgetting.metric, forgetting.value, forgetting.low, forgetting.high, sign=True)} over the "
        "base model; a rise is forgetting."
    )
    if pair[0] is not None and pair[1] is not None:
        before, after = (words.number(Metric.GENERAL_ACCURACY, one.value) for one in pair if one is not None)
        text += f" Its accuracy on them is {after}, the base model's {before}."
    text += _resolution(found) + _divergence(found)
    gates = [gate for gate in found.evaluation.gates if gate.metric is Metric.FORGETTING]
    too_much = not all(gate.passed for gate in gates) if gates else forgetting.value > evaluation.FORGOTTEN
    limit = (
        "" if gates else f" Above {100 * evaluation.FORGOTTEN:.0f} % counts as too much, unless a gate says otherwise."
    )
    advice = " training.replay mixes general examples into the training, which lowers it." if too_much else ""
    return Reason(title, text + limit + advice, Mark.AGAINST if too_much else Mark.CLEAR)


def _resolution(found: results.Results) -> str:
    """What the general questions can show."""
    compared = reading.comparison(found, Metric.GENERAL_ACCURACY, Contender.BASE)
    followed = reading.comparison(found, Metric.INSTRUCTION_FOLLOWING, Contender.BASE)
    text = ""
    if compared is not None and compared.detectable is not None:
        text = (
            f" On {words.count(compared.examples)} questions a loss below {_points(compared.detectable)} can go unseen."
        )
    if followed is not None and followed.detectable is not None:
        before, after = (
            f"{100 * one.value:.0f} %"
            for who in (Contender.BASE, Contender.TUNED)
            if (one := reading.value(found, Metric.INSTRUCTION_FOLLOWING, who)) is not None
        )
        text += (
            f" Of {words.count(followed.examples)} instructions on the form of an answer it follows {after}, the base model "
            f"{before}; a loss below {_points(followed.detectable)} can go unseen."
        )
    return text


def _points(share: float) -> str:
    return f"{100 * share:.0f} percentage points"


def _divergence(found: results.Results) -> str:
    """How far the tuned model has moved, where that was measured."""
    places = {Metric.DIVERGENCE: "the task's prompts", Metric.GENERAL_DIVERGENCE: "general ones"}
    measured = [
        f"{words.measured(metric, one.value, one.low, one.high)} nats per token on {where}"
        for metric, where in places.items()
        if (one := reading.value(found, metric, Contender.TUNED)) is not None
    ]
    return f" Its divergence from the base model is {' and '.join(measured)}." if measured else ""


def _sufficient(found: results.Results) -> Reason:
    title, baseline = "A prompt is sufficient", found.baseline
    if baseline is None:
        return Reason(
            title,
            "No baseline was measured before training. Set evaluation.gates, and intent.advice to Warn or Enforce.",
            Mark.UNMEASURED,
        )
    who = baseline.sufficient
    text = baseline.message or (
        f"{words.capital(words.described(who, found.intent.prompt))} passes the gates."
        if who
        else "No baseline passes the gates."
    )
    counted = f" Measured before training on {words.count(baseline.examples, 'validation examples')}."
    return Reason(title, _sentence(text) + counted, _of_baseline(baseline))


def _of_baseline(found: status.Baseline) -> Mark:
    if found.sufficient:
        return Mark.AGAINST
    return Mark.UNDECIDED if found.undecided else Mark.CLEAR


def _sentence(text: str) -> str:
    return text if text.endswith((".", "!", "?")) else f"{text}."
