"""The baseline stage, before training: does a prompt alone pass the gates?

The base model is asked with the prompt in use today, and with a few examples, on validation examples; the test examples stay
unseen. A contender is asked in growing rounds, and no more once it is sure to pass or sure to fail; since several looks are
several chances, each is allowed its share of the doubt (Bonferroni).
"""

import json
import random

from finetune_api import job, outcome, reasons, results, run, status
from finetune_trainer.data import dataset
from finetune_trainer.evaluation import answers, contenders, evidence, gates, metrics, scoreboard
from finetune_trainer.process import log, machine, progress
from finetune_trainer.store import folders, storage

ROUNDS = (32, 64, 128, 256, 512)
"""Examples after which there is a look."""

Asked = dict[job.Contender, answers.Answers]


def baseline(spec: run.Run, attempt: int) -> outcome.Outcome:
    """Whether a prompt is enough. Raises Failure, Stopped."""
    store = storage.of(spec.storage)
    folder = spec.layout.baseline(spec.evaluation_hash)
    manifest = folders.manifest(store, folder)
    if manifest is not None and folders.made_of(store, manifest, spec.layout.data):
        log.info("the baseline was measured before", baseline=folder)
        return answered(spec, status.Baseline.model_validate(manifest.extra["baseline"]))
    split = answers.fetch(spec, store, {"validation.jsonl", "train.jsonl"})
    examples = [one for one in dataset.stream(machine.work() / "data" / "validation.jsonl") if one.answer is not None]
    random.Random(f"{spec.training.seed}:baseline").shuffle(examples)  # noqa: S311
    report = progress.Progress(spec, "baseline", attempt)
    asked: Asked = {}
    passing = None
    if examples:
        passing = play(spec, answers.load(spec, store), examples[: spec.evaluation.maximum_examples], asked, report)
    found = summary(spec, asked, passing, len(examples))
    deliver(spec, store, split, found, asked, examples)
    report.end()
    return answered(spec, found)


def answered(spec: run.Run, found: status.Baseline) -> outcome.Outcome:
    """Under Enforce a prompt that is enough ends the job, unless it wants what a prompt cannot give."""
    ends = found.sufficient and spec.intent.content_with_a_prompt
    reason = reasons.Reason.PROMPT_ALREADY_SUFFICIENT if ends else None
    return outcome.Outcome(stage=reasons.Stage.BASELINE, reason=reason, message=found.message, baseline=found)


def play(
    spec: run.Run, ring: answers.ModelRunner, examples: list[dataset.Example], asked: Asked, report: progress.Progress
) -> job.Contender | None:
    """Rounds until one contender meets every bound or none can any more; their answers are put into `asked`. Who meets them."""
    looks = [size for size in ROUNDS if size < len(examples)] + [len(examples)]
    strict = [sure(gate, len(looks)) for gate in spec.evaluation.absolute]
    playing = contenders.taking_part(spec.evaluation, ring.script, examples)
    playing = [which for which in playing if answers.able(ring, which, examples)]
    begun = 0
    for look in looks:
        for turn, which in enumerate(playing):
            report.tell(told(begun + (look - begun) * turn // len(playing), len(examples)))
            fresh = answers.ask(ring, which, examples[begun:look])
            asked[which] = asked[which].and_then(fresh) if which in asked else fresh
        begun = look
        values = {which: metrics.measure(one.answers, ring.rules) for which, one in asked.items()}
        for which in playing:
            if all(gate.passed for gate in gates.check(strict, values, which)):
                return which
        playing = [which for which in playing if not any(hopeless(gate, values[which]) for gate in strict)]
        log.info("baseline", examples=look, open=[str(which) for which in playing])
        if not playing:
            return None
    return None


def sure(gate: job.Gate, looks: int) -> job.Gate:
    """The gate as a prompt must pass it: its bounds alone, with the doubt shared among the looks."""
    confidence = gate.confidence if gate.confidence <= gates.POINT else 1 - (1 - gate.confidence) / looks
    return gate.model_copy(update={"over": None, "improvement": None, "confidence": confidence})


def hopeless(gate: job.Gate, columns: metrics.Columns) -> bool:
    """Whether a contender that just passes would seldom look like this."""
    column = columns.get(gate.metric)
    if column is None:
        return True
    allowed = 1 - max(gate.confidence, 0.95)
    low = gate.minimum is not None and column.value < gate.minimum
    high = gate.maximum is not None and column.value > gate.maximum
    return bool(
        (low and evidence.chance_at_most(column, float(gate.minimum or 0)) <= allowed)
        or (high and evidence.chance_at_least(column, float(gate.maximum or 0)) <= allowed)
    )


def told(done: int, examples: int) -> status.Progress:
    percent = round(100 * done / max(1, examples))
    return status.Progress(
        summary=f"{percent}%", percent=percent, step=done, total_steps=examples, updated_at=progress.now()
    )


def room(gate: job.Gate, values: gates.Values) -> bool:
    """Whether a model could be as much better than this contender as the gate wants."""
    column = values.get(gate.over, {}).get(gate.metric) if gate.over else None
    if column is None:
        return True
    limit = 0.0 if gate.metric in job.LOWER_IS_BETTER else 1.0
    return abs(limit - column.value) > max(gate.improvement or 0.0, gates.TOLERANCE) - gates.TOLERANCE


def summary(spec: run.Run, asked: Asked, passing: job.Contender | None, there: int) -> status.Baseline:
    """What was found; a prompt is enough that meets every bound, where no gate wants more than a prompt gives."""
    measured = {which: metrics.measure(one.answers, spec.evaluation) for which, one in asked.items()}
    wanted = [gate for gate in spec.evaluation.relative if room(gate, measured)]
    main = {gate.metric for gate in (*spec.evaluation.absolute, *spec.evaluation.relative)}
    return status.Baseline(
        sufficient=None if wanted else passing,
        examples=max((len(one.answers) for one in asked.values()), default=0),
        metrics=[scoreboard.metric_value(one) for one in scoreboard.values(measured) if one.metric in main],
        message=sentence(spec, passing, wanted, len(asked[passing].answers) if passing else there),
    )


def sentence(spec: run.Run, passing: job.Contender | None, wanted: list[job.Gate], examples: int) -> str:
    how = {
        job.Contender.BASE: "the base model meets the gates' bounds as it is",
        job.Contender.PROMPT: "the base model meets the gates' bounds with the prompt of today",
        job.Contender.FEW_SHOT: "the base model meets the gates' bounds with a few examples before the question",
    }
    if not examples:
        return "no baseline: there are no validation examples with answers"
    if passing is None:
        return (
            f"no prompt meets the gates' bounds, on up to {examples} validation examples: training has something to win"
        )
    text = f"{how[passing]}, on {examples} validation examples"
    if wanted:
        return f"{text}; left to be won: {', '.join(map(gates.requirement, wanted))}"
    if spec.intent.wants_more:
        return f"{text}; what training can still win is what the goals name, measured in the evaluation"
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
