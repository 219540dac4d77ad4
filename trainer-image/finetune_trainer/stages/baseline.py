"""The baseline stage, before training: does a prompt alone pass the gates?

The base model is asked with the prompt in use today, and with a few examples, on validation examples; the test examples stay
unseen. A contender is asked in growing rounds, until it has passed or can no longer pass; each of the looks gets its share of
the error probability that the gate allows (Bonferroni).
"""

import json
import random

from finetune_api import course, job, outcome, reasons, results, run, status
from finetune_trainer.data import dataset
from finetune_trainer.evaluation import answers, contenders, evidence, gates, metrics, scoreboard
from finetune_trainer.process import log, machine, progress
from finetune_trainer.store import folders, storage

ROUNDS = (32, 64, 128, 256, 512)
"""Numbers of examples after which the gates are checked."""

Asked = dict[job.Contender, answers.Answers]


def baseline(spec: run.Run, attempt: int, scale: float = 1.0) -> outcome.Outcome:
    """Whether a prompt is enough. scale: as in the evaluation. Raises Failure, Stopped."""
    store = storage.of(spec.storage)
    folder = spec.layout.baseline(spec.evaluation_hash)
    manifest = folders.manifest(store, folder)
    if manifest is not None and folders.made_of(store, manifest, spec.layout.data):
        log.info("the baseline was measured before", baseline=folder)
        return outcome_of(spec, status.Baseline.model_validate(manifest.extra["baseline"]))
    split = answers.fetch(spec, store, {"validation.jsonl", "train.jsonl"})
    examples = [one for one in dataset.stream(machine.work() / "data" / "validation.jsonl") if one.answer is not None]
    random.Random(f"{spec.training.seed}:baseline").shuffle(examples)  # noqa: S311
    reporter = progress.Progress(spec, "baseline", attempt)
    asked: Asked = {}
    passing = None
    if examples:
        passing = run_rounds(
            spec, answers.load(spec, store, scale), examples[: spec.evaluation.maximum_examples], asked, reporter
        )
    found = summary(spec, asked, passing, len(examples))
    deliver(spec, store, split, found, asked, examples)
    reporter.end()
    return outcome_of(spec, found)


def outcome_of(spec: run.Run, found: status.Baseline) -> outcome.Outcome:
    """Under Enforce a prompt that is enough ends the job, unless a goal of the job needs training."""
    ends = course.prompt_is_enough(spec.intent, found)
    reason = reasons.Reason.PROMPT_ALREADY_SUFFICIENT if ends else None
    return outcome.Outcome(stage=reasons.Stage.BASELINE, reason=reason, message=found.message, baseline=found)


def run_rounds(
    spec: run.Run,
    runner: answers.ModelRunner,
    examples: list[dataset.Example],
    asked: Asked,
    reporter: progress.Progress,
) -> job.Contender | None:
    """Rounds until one contender meets every bound, or none can; their answers go into `asked`. Returns who meets the bounds."""
    looks = [size for size in ROUNDS if size < len(examples)] + [len(examples)]
    strict = [bounds_only(gate, len(looks)) for gate in spec.evaluation.absolute]
    undecided = contenders.taking_part(spec.evaluation, runner.script, examples)
    undecided = [which for which in undecided if answers.can_answer(runner, which, examples)]
    begun = 0
    for look in looks:
        for turn, which in enumerate(undecided):
            reporter.update(progress.of(begun + (look - begun) * turn // len(undecided), len(examples)))
            fresh = answers.ask(runner, which, examples[begun:look])
            asked[which] = asked[which].and_then(fresh) if which in asked else fresh
        begun = look
        values = {which: metrics.measure(one.answers, runner.rules) for which, one in asked.items()}
        for which in undecided:
            if all(gate.passed for gate in gates.check(strict, values, which)):
                return which
        undecided = [which for which in undecided if not any(cannot_pass(gate, values[which]) for gate in strict)]
        log.info("baseline", examples=look, open=[str(which) for which in undecided])
        if not undecided:
            return None
    return None


def bounds_only(gate: job.Gate, looks: int) -> job.Gate:
    """The gate as a prompt must pass it: only its bounds, at a confidence corrected for the number of looks."""
    confidence = gate.confidence if gate.confidence <= gates.POINT else 1 - (1 - gate.confidence) / looks
    return gate.model_copy(update={"over": None, "improvement": None, "confidence": confidence})


def cannot_pass(gate: job.Gate, columns: metrics.Columns) -> bool:
    """Whether a contender that meets the bounds would seldom score like this."""
    column = columns.get(gate.metric)
    if column is None:
        return True
    allowed = 1 - max(gate.confidence, 0.95)
    low = gate.minimum is not None and column.value < gate.minimum
    high = gate.maximum is not None and column.value > gate.maximum
    return bool(
        (low and evidence.p_value_at_most(column, float(gate.minimum or 0)) <= allowed)
        or (high and evidence.p_value_at_least(column, float(gate.maximum or 0)) <= allowed)
    )


def can_be_beaten(gate: job.Gate, values: gates.Values) -> bool:
    """Whether a model could be better than this contender by as much as the gate requires."""
    column = values.get(gate.over, {}).get(gate.metric) if gate.over else None
    if column is None:
        return True
    limit = 0.0 if gate.metric in job.LOWER_IS_BETTER else 1.0
    return abs(limit - column.value) > max(gate.improvement or 0.0, gates.TOLERANCE) - gates.TOLERANCE


def summary(spec: run.Run, asked: Asked, passing: job.Contender | None, available: int) -> status.Baseline:
    """The result. A prompt is enough if it meets every bound, and no gate requires more than a prompt can give."""
    measured = {which: metrics.measure(one.answers, spec.evaluation) for which, one in asked.items()}
    left = [gate for gate in spec.evaluation.relative if can_be_beaten(gate, measured)]
    main = {gate.metric for gate in (*spec.evaluation.absolute, *spec.evaluation.relative)}
    return status.Baseline(
        sufficient=None if left else passing,
        examples=max((len(one.answers) for one in asked.values()), default=0),
        metrics=[scoreboard.metric_value(one) for one in scoreboard.values(measured) if one.metric in main],
        message=explanation(spec, passing, left, len(asked[passing].answers) if passing else available),
    )


def explanation(spec: run.Run, passing: job.Contender | None, left: list[job.Gate], examples: int) -> str:
    how = {
        job.Contender.BASE: "the base model meets the gates' bounds as it is",
        job.Contender.PROMPT: "the base model meets the gates' bounds with the current prompt",
        job.Contender.FEW_SHOT: "the base model meets the gates' bounds with a few examples before the question",
    }
    if not examples:
        return "no baseline: there are no validation examples with answers"
    if passing is None:
        return (
            f"no prompt meets the gates' bounds, on up to {examples} validation examples: training may improve on that"
        )
    text = f"{how[passing]}, on {examples} validation examples"
    if left:
        return f"{text}; training must still show: {', '.join(map(gates.requirement, left))}"
    if spec.intent.wants_more:
        return f"{text}; whether training reaches the job's goals is measured in the evaluation"
    return f"{text}: training may not be worth its cost"


def deliver(
    spec: run.Run,
    store: storage.Storage,
    split: folders.Manifest,
    found: status.Baseline,
    asked: Asked,
    examples: list[dataset.Example],
) -> None:
    folder = machine.work() / "baseline"
    folder.mkdir(exist_ok=True)
    with (folder / "samples.jsonl").open("w", encoding="utf-8") as file:
        for index, example in enumerate(examples):
            answers = {which: one.answers[index].text for which, one in asked.items() if index < len(one.answers)}
            if not answers:
                break
            line = results.Sample(
                source=example.source,
                messages=[{"role": turn.role, "content": turn.text} for turn in example.prompt],
                expected=example.answer,
                answers=answers,
            )
            file.write(json.dumps(line.wire(), ensure_ascii=False) + "\n")
    (folder / "results.json").write_text(json.dumps(found.wire(), indent=1, ensure_ascii=False), encoding="utf-8")
    extra = {"baseline": found.wire(), folders.MADE_OF: split.sha256}
    folders.save(store, folder, spec.layout.baseline(spec.evaluation_hash), extra)
    log.info("baseline measured", sufficient=found.sufficient, examples=found.examples)
