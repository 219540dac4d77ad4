"""The scoreboard of an evaluation: from every contender's answers to results.json and the status."""

import dataclasses
import datetime
import json
from collections.abc import Iterator, Sequence
from typing import Any

from finetune_api import job, results, run, status
from finetune_trainer import report
from finetune_trainer.data import dataset
from finetune_trainer.evaluation import (
    answers,
    engines,
    evidence,
    gates,
    headline,
    missed,
    pairwise,
    prices,
    task_gates,
)
from finetune_trainer.planning import learning_curve
from finetune_trainer.process import errors
from finetune_trainer.store import folders, storage

SAMPLES = 60
"""Examples in results.json with everybody's answer: the most telling ones; samples.jsonl has all."""

IN_STATUS = (
    job.Metric.TOOL_CALL_MATCH,
    job.Metric.EXACT_MATCH,
    job.Metric.JSON_VALID,
    job.Metric.ROUGE_L,
    job.Metric.LOSS,
    job.Metric.FORGETTING,
    job.Metric.CONSISTENCY,
    job.Metric.PERPLEXITY,
)
"""Metrics of the status besides those of the gates; results.json has all. The last are left out first where room is short."""


RETRIEVED = "retrieved"
"""Key in the manifest of the baseline before training: its `results.Retrieved`."""

OPTIMIZED = "optimized"
"""The same: its `results.Optimized`."""


@dataclasses.dataclass
class Findings:
    """What was measured, contender by contender."""

    asked: dict[job.Contender, answers.Answers] = dataclasses.field(default_factory=dict)
    values: gates.Values = dataclasses.field(default_factory=dict)
    prefill: float = 0.0
    """Tokens per second of reading a prompt."""
    groups: list[str | None] = dataclasses.field(default_factory=list)
    """The group of each example by dataset.groupBy."""
    judged: pairwise.Judged | None = None
    """What the judge decided; None without one."""
    reference: answers.Answers | None = None
    """With training.teacher: its prompts and answers, whose tokens are those that training saves; no contender."""
    harness: results.Harness | None = None
    """The results of the benchmarks; None without any."""
    benchmarks: task_gates.Found = dataclasses.field(default_factory=dict)
    """The same as their gates need them."""
    retrieved: results.Retrieved | None = None
    """How Retrieved was asked."""
    optimized: results.Optimized | None = None
    """How Optimized was asked."""
    structured: job.Contender | None = None
    """Whose prompt Structured got."""
    tries: results.Tries | None = None
    """How often the job was evaluated on these test examples."""
    left_out: list[str] = dataclasses.field(default_factory=list)
    """What was not measured, with the reason."""
    candidates: list[results.Candidate] = dataclasses.field(default_factory=list)
    """The models of evaluation.candidates, and how far they answered."""

    @property
    def tallies(self) -> dict[job.Contender, pairwise.Tally]:
        """The tuned model's pairwise comparisons; empty until they are judged."""
        return self.judged.tallies if self.judged else {}

    @property
    def win_losses(self) -> gates.WinLosses:
        found = {}
        for which, one in self.tallies.items():
            numbers = evidence.clusters([self.groups[place] for place in one.results]) if self.groups else None
            share = 1.0 if numbers is None else evidence.effective(numbers) / len(numbers)
            found[which] = dataclasses.replace(one.win_loss, independent=share)
        return found

    def headline(self, spec: run.Run) -> headline.Headline:
        rates = {which: one.rate for which, one in self.win_losses.items() if one.examples}
        rates.pop(job.Contender.SERVING, None)
        return headline.decide(spec.evaluation.stated, self.values, rates)


@dataclasses.dataclass(frozen=True)
class Provenance:
    """Where the evaluated adapter comes from, and how long its evaluation took."""

    sha256: str
    """Of the adapter's manifest."""
    seconds: float
    """The evaluation's duration."""
    training: dict[str, Any]
    """What training recorded in the adapter's manifest."""
    history: dict[str, Any]
    """Losses of training's steps and validations."""
    prompt: str | None = None
    """The system prompt that the adapter was trained and asked with; None: the examples' own."""
    engine: engines.Kind = job.EvaluationEngine.IN_PROCESS
    """What answered."""


def results_of(
    spec: run.Run,
    store: storage.Storage,
    found: Findings,
    gate_results: list[status.GateResult],
    examples: list[dataset.Example],
    provenance: Provenance,
    required: Sequence[job.Gate] = (),
) -> results.Results:
    """Everything that results.json says. required: the gates on metrics, the first of gate_results."""
    tuned = job.Contender.TUNED
    others = [which for which in found.asked if which is not tuned]
    head = found.headline(spec)
    saved = None
    replaced = found.reference or (found.asked[head.baseline] if head.baseline is not None else None)
    if replaced is not None and found.asked[tuned].prompts:
        saved = round(replaced.prompt_tokens - found.asked[tuned].prompt_tokens)
    spent = found.asked | ({job.Contender.PROMPT: found.reference} if found.reference else {})
    reported = values(found.values)
    gpus = spec.gpus * spec.nodes
    took = provenance.training.get("seconds")
    hours = gpus * took / 3600 if took else None
    try:
        checked = json.loads(store.read(spec.layout.preflight))
    except errors.NotFound:
        checked = {}
    preflight = checked.get("outcome", {}).get("preflight")
    more = more_data(spec, provenance.history, preflight)
    cost = hours * spec.price_per_gpu_hour if hours and spec.price_per_gpu_hour is not None else None
    priced = {which: prices.price(spec, which, one) for which, one in found.asked.items()}
    return results.Results(
        namespace=spec.namespace,
        name=spec.name,
        revision=spec.revision,
        base_model=spec.base_model.name,
        base_model_revision=spec.base_model.revision,
        smaller_models=spec.smaller or [],
        served_model_name=spec.served_model_name,
        rank=spec.training.lora.rank,
        adapter=provenance.sha256,
        intent=spec.intent,
        headline=head.metric,
        best_baseline=head.baseline,
        best_alternative=head.alternative,
        candidates=found.candidates,
        evaluation=summary(spec, reported, gate_results, len(examples), saved, found).model_copy(
            update={
                "more_data": more and more.text,
                "remedy": remedy(
                    learning_curve.remedy(more, provenance.history.get("validations", []), preflight),
                    required,
                    gate_results,
                    found,
                ),
            }
        ),
        values=reported,
        comparisons=[
            *(compared(metric, which, found) for which in others for metric in comparable(found, which)),
            *(one for which, counts in found.win_losses.items() if (one := as_comparison(which, counts))),
        ],
        judgement=judgement(spec, found),
        harness=found.harness,
        retrieved=found.retrieved,
        optimized=found.optimized,
        structured=found.structured,
        teacher=spec.training.teacher,
        tries=found.tries,
        left_out=found.left_out,
        tokens=[
            results.Tokens(
                contender=which,
                prompt=round(one.prompt_tokens, 1),
                answer=round(one.answer_tokens, 1),
                seconds=round(one.answering / len(one.prompts), 4) if one.answering and one.prompts else None,
                cost=priced.get(which),
            )
            for which, one in spent.items()
            if one.prompts or one.usage
        ],
        break_even_requests=prices.break_even(saved, took and took * max(gpus, spec.nodes), found.prefill),
        paid_back_requests=prices.paid_back(
            cost, priced.get(tuned), priced.get(head.alternative) if head.alternative else None
        ),
        currency=spec.currency,
        training=results.Training(
            **provenance.history,
            more_data=more,
            prompt=provenance.prompt,
            learning_rate=provenance.training.get("learning_rate"),
            seconds=took,
            tokens_per_second=provenance.training.get("tokens_per_second"),
            peak_memory=provenance.training.get("peak_memory"),
            gpu_hours=hours if gpus else None,
            cost=cost,
            currency=spec.currency if spec.price_per_gpu_hour is not None else None,
        ),
        preflight=preflight,
        baseline=before_training(spec, store),
        findings=checked.get("facts", {}).get("findings", []),
        engine=provenance.engine,
        seconds=round(provenance.seconds, 1),
        finished_at=datetime.datetime.now(datetime.UTC).replace(microsecond=0),
        samples=shown([sample(head.metric, *one, found) for one in enumerate(examples)], head.baseline),
    )


def more_data(spec: run.Run, history: dict[str, Any], preflight: dict[str, Any] | None) -> results.MoreData | None:
    """Whether more rows would help; None where the training's losses, or its rows, are not known."""
    if not history.get("history") or not preflight:
        return None
    rules = spec.training
    return learning_curve.of_training(
        history["history"], rules.batch_size, preflight["examples"], mixed=rules.replay is not None
    )


def remedy(
    promised: learning_curve.Remedy | None,
    required: Sequence[job.Gate],
    gate_results: Sequence[status.GateResult],
    found: Findings,
) -> str | None:
    """What may let the model pass, in a sentence; None where it passed, or where a gate is missed by evidence and by more than
    that promises: then a larger model is the answer."""
    shown = [place for place, one in enumerate(gate_results) if one.missed == "ByEvidence"]
    if promised is None or all(one.passed for one in gate_results):
        return None
    near = all(
        place < len(required) and missed.in_reach(required[place], promised.lower, found.values) for place in shown
    )
    return promised.text if near else None


def values(measured: gates.Values) -> list[results.Value]:
    """Every metric of every contender, with its interval."""
    found = []
    for metric in job.Metric:
        for which, columns in measured.items():
            if (column := columns.get(metric)) is not None:
                low, high = evidence.interval(column) or (None, None)
                if metric in job.SHARES and low is not None and high is not None:
                    low, high = max(low, 0.0), min(high, 1.0)
                found.append(
                    results.Value(
                        metric=metric, contender=which, value=column.value, low=low, high=high, examples=column.examples
                    )
                )
    return found


def comparable(found: Findings, other: job.Contender) -> list[job.Metric]:
    """Metrics that both have, except those without a better and a worse."""
    both = found.values[job.Contender.TUNED].keys() & found.values[other].keys()
    return [metric for metric in job.Metric if metric in both and metric is not job.Metric.LENGTH_RATIO]


def compared(metric: job.Metric, other: job.Contender, found: Findings) -> results.Comparison:
    one, two = found.values[job.Contender.TUNED][metric], found.values[other][metric]
    difference = evidence.compare(one, two, lower_is_better=metric in job.LOWER_IS_BETTER)
    return results.Comparison(
        metric=metric,
        over=other,
        gain=difference.gain,
        low=difference.low,
        high=difference.high,
        p_value=difference.p_value,
        examples=int((one.defined & two.defined).sum()),
        detectable=evidence.detectable(one, two) if one.share and two.share else None,
    )


def as_comparison(other: job.Contender, found: evidence.WinLoss) -> results.Comparison | None:
    """Pairwise comparisons as a paired difference: the gain is the win rate minus one half; None for fewer than two verdicts."""
    interval = found.interval()
    if interval is None:
        return None
    low, high = interval
    return results.Comparison(
        metric=job.Metric.JUDGE_WIN_RATE,
        over=other,
        gain=found.rate - 0.5,
        low=low - 0.5,
        high=high - 0.5,
        p_value=found.p_value_better,
        examples=found.examples,
    )


def judgement(spec: run.Run, found: Findings) -> results.Judgement | None:
    """The judge's results against each contender."""
    rules = spec.evaluation.judge
    if rules is None or found.judged is None:
        return None
    return results.Judgement(
        model=rules.model,
        criteria=rules.criteria or pairwise.CRITERIA,
        comparisons=[pairwise_result(which, one, found.win_losses[which]) for which, one in found.tallies.items()],
        problem=found.judged.problem,
    )


def pairwise_result(other: job.Contender, found: pairwise.Tally, measured: evidence.WinLoss) -> results.PairwiseResult:
    counts = found.counts
    low, high = measured.interval() or (None, None)
    return results.PairwiseResult(
        over=other,
        win_rate=measured.rate if measured.examples else None,
        low=low,
        high=high,
        p_value=measured.p_value_better if measured.examples else None,
        wins=counts.wins,
        ties=counts.ties,
        losses=counts.losses,
        same=found.same,
        swayed=found.swayed,
        unread=found.unread,
    )


def verdicts(judged: pairwise.Judged, examples: list[dataset.Example]) -> Iterator[dict[str, Any]]:
    """The lines of judge.jsonl: the verdict on each case in each order; winner null: unreadable."""
    for number, case in enumerate(judged.cases):
        line = {"source": examples[case.place].source, "over": case.over}
        if case.same:
            yield {**line, "same": True}
            continue
        for swapped in (False, True):
            verdict = judged.verdicts.get((number, swapped))
            tuned = "B" if swapped else "A"
            yield {**line, "tuned": tuned, "winner": verdict and verdict.winner, "reason": verdict and verdict.reason}


def summary(
    spec: run.Run,
    measured: list[results.Value],
    gate_results: list[status.GateResult],
    examples: int,
    saved: int | None,
    found: Findings,
) -> status.Evaluation:
    """The evaluation for the status: the gates' metrics, the deciding one, and the main ones."""
    applied = [gate.metric for gate in gate_results if gate.metric is not None]
    required = list(dict.fromkeys([*(gate.metric for gate in spec.evaluation.stated), *applied]))
    decisive = found.headline(spec).metric
    main = list(dict.fromkeys([*required, *([decisive] if decisive else []), *IN_STATUS]))

    def place(one: results.Value) -> tuple[bool, bool, int]:
        return one.metric not in required, one.contender.is_candidate, main.index(one.metric)

    reported = sorted((one for one in measured if one.metric in main), key=place)
    first = spec.evaluation.stated[0] if spec.evaluation.stated else None
    metric = first.metric if first else decisive
    score = [one.value for one in measured if one.metric is metric and one.contender is job.Contender.TUNED]
    if first and metric in job.PAIRWISE:
        score = [one.rate for which, one in found.win_losses.items() if which is first.over and one.examples]
    return status.Evaluation(
        passed=all(one.passed for one in gate_results),
        missed=missed_by(gate_results),
        score=f"{score[0]:.4f}" if score else None,
        examples=examples,
        metrics=[metric_value(one) for one in reported],
        tries=found.tries and found.tries.evaluations,
        gates=gate_results,
        best_baseline=found.headline(spec).baseline,
        left_out=found.left_out,
        unanswered=[f"{one.name}: {one.problem}" for one in found.candidates if one.problem],
        canary=f"{spec.layout.evaluation(spec.evaluation_hash)}/canary.json",
        tokens_saved_per_request=saved,
    )


def missed_by(gate_results: list[status.GateResult]) -> status.Missed | None:
    """By evidence if one of the gates is: all must be passed."""
    if all(one.passed for one in gate_results):
        return None
    return "ByEvidence" if any(one.missed == "ByEvidence" for one in gate_results) else "Undecided"


def metric_value(one: results.Value) -> status.MetricValue:
    return status.MetricValue(
        name=one.metric,
        contender=one.contender,
        value=f"{one.value:.4f}",
        low=None if one.low is None else f"{one.low:.4f}",
        high=None if one.high is None else f"{one.high:.4f}",
    )


def before_training(spec: run.Run, store: storage.Storage) -> status.Baseline | None:
    """The result of the baseline stage, where it ran."""
    extra = _of_baseline(spec, store)
    return status.Baseline.model_validate(extra["baseline"]) if extra else None


def retrieved_before_training(spec: run.Run, store: storage.Storage) -> results.Retrieved | None:
    """How the baseline stage asked Retrieved, where it did."""
    extra = _of_baseline(spec, store)
    return results.Retrieved.model_validate(extra[RETRIEVED]) if extra and extra.get(RETRIEVED) else None


def optimized_before_training(spec: run.Run, store: storage.Storage) -> results.Optimized | None:
    """How the baseline stage asked Optimized, where it did."""
    extra = _of_baseline(spec, store)
    return results.Optimized.model_validate(extra[OPTIMIZED]) if extra and extra.get(OPTIMIZED) else None


def _of_baseline(spec: run.Run, store: storage.Storage) -> dict[str, Any]:
    manifest = folders.manifest(store, spec.layout.baseline(spec.evaluation_hash))
    return manifest.extra if manifest is not None and folders.made_of(store, manifest, spec.examples) else {}


def shown(samples: list[results.Sample], baseline: job.Contender | None) -> list[results.Sample]:
    """The most telling ones: first those where the tuned model and the baseline differ."""
    return [one for _, one in report.choose(samples, baseline or job.Contender.BASE, SAMPLES)]


def sample(metric: job.Metric | None, index: int, example: dataset.Example, found: Findings) -> results.Sample:
    """`metric` says which answers are right, where it is a share of right ones."""
    right = {
        which: bool(columns[metric].parts[index, 0])
        for which, columns in found.values.items()
        if metric in columns and columns[metric].share and columns[metric].defined[index]
    }
    return results.Sample(
        source=example.source,
        messages=[{"role": turn.role, "content": turn.text} for turn in example.prompt] if example.messages else None,
        text=example.text,
        expected=example.answer,
        answers={which: one.answers[index].text for which, one in found.asked.items()},
        judged={which: one.results[index].value for which, one in found.tallies.items() if index in one.results},
        right=right if metric not in job.LOWER_IS_BETTER else {which: not hit for which, hit in right.items()},
    )
