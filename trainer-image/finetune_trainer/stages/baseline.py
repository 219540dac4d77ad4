"""The baseline stage, before training: does a prompt alone pass the gates? With training.teacher it first writes the answers.

The base model is asked with the prompt in use today, and with examples of the training split before the question, on
validation examples; the test examples stay unseen. A contender is asked in growing rounds, until it has passed or can no longer
pass; each look at each contender, or variant of one, gets its share of the error probability that the gate allows (`doubt`).
"""

import dataclasses
import itertools
import json
import random

from finetune_api import course, evaluation, job, outcome, reasons, results, run, status
from finetune_trainer.data import dataset, tokens
from finetune_trainer.evaluation import (
    answers,
    candidates,
    contenders,
    doubt,
    evidence,
    feasible,
    gates,
    metrics,
    optimized,
    reflection,
    scoreboard,
    selection,
    server,
    structured,
    teacher,
)
from finetune_trainer.planning import epoch_count
from finetune_trainer.process import log, machine, progress
from finetune_trainer.store import folders, storage

Asked = dict[job.Contender, answers.Answers]


def baseline(spec: run.Run, attempt: int, scale: float = 1.0, sidecar: server.Sidecar | None = None) -> outcome.Outcome:
    """Whether a prompt is enough. scale, sidecar: as in the evaluation. Raises Failure, Stopped."""
    store = storage.of(spec.storage)
    folder = spec.layout.baseline(spec.evaluation_hash)
    manifest = folders.manifest(store, folder)
    if manifest is not None and folders.made_of(store, manifest, spec.examples):
        log.info("the baseline was measured before", baseline=folder)
        return outcome_of(spec, status.Baseline.model_validate(manifest.extra["baseline"]))
    reporter = progress.Progress(spec, "baseline", attempt)
    runner: answers.ModelRunner | None = None
    if spec.training.teacher is not None and not teacher.written(spec, store):
        runner = write_answers(spec, store, scale, sidecar, reporter)
    feasible.check_frozen(spec, store)
    split = answers.fetch(spec, store, {"validation.jsonl", "train.jsonl"})
    examples = [one for one in dataset.stream(machine.work() / "data" / "validation.jsonl") if one.answer is not None]
    random.Random(f"{spec.training.seed}:baseline").shuffle(examples)  # noqa: S311
    if spec.training.teacher is not None and not course.measures_a_baseline(spec.intent, spec.evaluation):
        examples = []
    others = candidates.of(spec, deciding=False) if examples else []
    rounds = Rounds(examples[: spec.evaluation.maximum_examples], {one.which: one for one in others})
    passing = None
    if examples:
        runner = runner or answers.load(spec, store, scale, sidecar)
        log.info("measuring the baseline", engine=runner.engine.kind)
        passing = run_rounds(spec, runner, rounds, reporter)
    unanswered = [f"{one.which}: {one.problem}" for one in others if one.problem]
    left_out = [*rounds.limits.left_out, *unanswered]
    prompt = runner.script.structured if runner and passing is job.Contender.STRUCTURED else None
    found = summary(spec, rounds, passing, len(examples), prompt)
    found = found.model_copy(update={"left_out": left_out})
    if spec.training.teacher is not None:
        found = found.model_copy(update={"message": of_teacher(spec, store, found)})
    deliver(spec, store, split, found, rounds, examples)
    reporter.end()
    return outcome_of(spec, found)


def write_answers(
    spec: run.Run, store: storage.Storage, scale: float, sidecar: server.Sidecar | None, reporter: progress.Progress
) -> answers.ModelRunner | None:
    """The teacher's answers to all examples; returns the base model where it wrote them, since it is asked next."""

    def done(answered: int, total: int) -> None:
        reporter.update(progress.of(answered, total))

    if (candidate := spec.teaching) is not None:
        asked = teacher.candidate(spec, candidate)
        encoder = tokens.load(answers.base_folder(spec, store, sidecar), spec.training)
        teacher.write(spec, store, asked, encoder, done)
        return None
    runner = answers.load(spec, store, scale, sidecar)
    teacher.write(spec, store, teacher.prompted(runner), runner.encoder, done)
    return runner


def of_teacher(spec: run.Run, store: storage.Storage, found: status.Baseline) -> str:
    """The message of a job with training.teacher."""
    measured = found.message if found.examples else "no baseline was measured"
    return f"the answers to learn are those of {teacher.named(spec)}{teacher.note(spec, store)}; without training: {measured}"


def outcome_of(spec: run.Run, found: status.Baseline) -> outcome.Outcome:
    """Under Enforce a prompt that is enough ends the job, unless a goal of the job needs training."""
    ends = course.prompt_is_enough(spec.intent, found)
    reason = reasons.Reason.PROMPT_ALREADY_SUFFICIENT if ends else None
    return outcome.Outcome(stage=reasons.Stage.BASELINE, reason=reason, message=found.message, baseline=found)


@dataclasses.dataclass
class Rounds:
    """The questions of the baseline, and what was asked so far."""

    examples: list[dataset.Example]
    others: dict[job.Contender, candidates.Candidate] = dataclasses.field(default_factory=dict)
    asked: Asked = dataclasses.field(default_factory=dict)
    limits: selection.Budget = dataclasses.field(default_factory=lambda: selection.Budget(selection.LEAST))
    pace: selection.Pace = dataclasses.field(default_factory=selection.Pace)
    retrieved: results.Retrieved | None = None
    optimized: results.Optimized | None = None
    shared: doubt.Doubt = dataclasses.field(default_factory=lambda: doubt.Doubt({}))

    @property
    def looks(self) -> list[int]:
        return [size for size in doubt.ROUNDS if size < len(self.examples)] + [len(self.examples)]

    def ask(
        self, runner: answers.ModelRunner, which: job.Contender, begun: int, look: int, gates: list[job.Gate]
    ) -> bool:
        """One contender's answers to the examples from `begun` to `look`; False: there is no time for them."""
        fresh = self.examples[begun:look]
        if which in self.others:
            return self._ask_other(runner, self.others[which], fresh, gates)
        if which is job.Contender.RETRIEVED and which not in self.asked:
            choice = selection.choose(runner, fresh, self.limits, self.pace, gates)
            if choice is None or choice.given is None:
                return False
            self.retrieved, self.asked[which] = choice.found, choice.given
            return True
        if which is job.Contender.OPTIMIZED and which not in self.asked:
            return self._choose_prompt(runner, fresh, gates)
        if which is job.Contender.STRUCTURED and which not in self.asked:
            values = {one: metrics.measure(given.answers, runner.rules) for one, given in self.asked.items()}
            structured.choose(runner, gates, values, fresh, self.limits, self.pace)
        limited = structured.is_limited(runner, which)
        if limited and not self.limits.allows(
            f"{which} on more than {begun} validation examples" if begun else which,
            self.pace.seconds(runner, which, fresh),
        ):
            return False
        found = answers.ask(runner, which, fresh)
        self.limits.spent += found.seconds if limited else 0.0
        self.asked[which] = self.asked[which].and_then(found) if which in self.asked else found
        self.pace = self.pace.after(found)
        return True

    def _choose_prompt(
        self, runner: answers.ModelRunner, fresh: list[dataset.Example], required: list[job.Gate]
    ) -> bool:
        """Optimized's prompt, chosen on these examples; False: there is no time for any."""
        retrieved = self.retrieved is not None
        choice = optimized.choose(runner, fresh, self.limits, self.pace, required, retrieved=retrieved)
        if choice is None or choice.given is None:
            return False
        self.optimized, self.asked[job.Contender.OPTIMIZED] = choice.found, choice.given
        return True

    def _ask_other(
        self,
        runner: answers.ModelRunner,
        other: candidates.Candidate,
        fresh: list[dataset.Example],
        required: list[job.Gate],
    ) -> bool:
        """A candidate, with the prompt that did best in the first round; False: it no longer answers, or answers no question."""
        if other.prompt is None:
            values = {one: metrics.measure(given.answers, runner.rules) for one, given in self.asked.items()}
            other.prompt = candidates.best_prompt(required, values)
        found = other.ask(runner.script, fresh, self.limits.rest)
        self.limits.spent += found.seconds
        if other.problem is not None or not any(one.expected is not None for one in found.answers):
            return False
        self.asked[other.which] = self.asked[other.which].and_then(found) if other.which in self.asked else found
        return True


def run_rounds(
    spec: run.Run, runner: answers.ModelRunner, rounds: Rounds, reporter: progress.Progress
) -> job.Contender | None:
    """Rounds until one contender meets every bound, or none can. Returns who meets the bounds."""
    open_ = contenders.taking_part(spec.evaluation, runner.script, rounds.examples)
    open_ = [which for which in open_ if answers.can_answer(runner, which, rounds.examples, rounds.limits.left_out)]
    open_ += [which for which, one in rounds.others.items() if one.problem is None]
    written = len(runner.script.variants) + (reflection.MOST if runner.script.optimizer else 0)
    rounds.shared = shared = doubt.among(open_, written)
    bounds = spec.evaluation.absolute
    strict = {which: [shared.gate(gate, which, len(rounds.examples)) for gate in bounds] for which in open_}
    trained = training_tokens(spec, runner)
    for begun, look in itertools.pairwise([0, *rounds.looks]):
        asked = list(open_)
        for turn, which in enumerate(asked):
            done = begun + (look - begun) * turn // len(asked)
            reporter.update(progress.of(done, len(rounds.examples)))
            limits = selection.budget(spec.evaluation, selection.training_seconds(rounds.pace, trained))
            rounds.limits.seconds = max(rounds.limits.seconds, limits.seconds)
            if not rounds.ask(runner, which, begun, look, spec.evaluation.stated):
                open_.remove(which)
        values = {which: metrics.measure(one.answers, runner.rules) for which, one in rounds.asked.items()}
        for which in open_:
            if all(gate.passed for gate in gates.check(strict[which], values, which)):
                return which
        open_ = [which for which in open_ if not any(cannot_pass(gate, values[which]) for gate in strict[which])]
        log.info("baseline", examples=look, open=[str(which) for which in open_])
        if not open_:
            return None
    return None


def training_tokens(spec: run.Run, runner: answers.ModelRunner) -> float:
    """Tokens that training will read, by the mean of its first examples."""
    training = list(dataset.stream(machine.work() / "data" / "train.jsonl"))
    few = training[:64]
    mean = sum(len(runner.encoder.encode(one).ids) for one in few) / max(1, len(few))
    return mean * epoch_count.total_examples(len(training), spec.training)


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
    over = evaluation.compared_with(gate.over, values)
    columns = [values[one][gate.metric] for one in over if gate.metric in values[one]]
    limit = 0.0 if gate.metric in job.LOWER_IS_BETTER else 1.0
    room = max(gate.improvement or 0.0, gates.TOLERANCE) - gates.TOLERANCE
    return all(abs(limit - column.value) > room for column in columns)


def summary(
    spec: run.Run,
    rounds: Rounds,
    passing: job.Contender | None,
    available: int,
    prompt: job.Contender | None = None,
) -> status.Baseline:
    """The result. A prompt is enough if it meets every bound, and no gate requires more than a prompt can give. available:
    validation examples with answers; prompt: whose Structured had."""
    measured = {which: metrics.measure(one.answers, spec.evaluation) for which, one in rounds.asked.items()}
    left = [gate for gate in spec.evaluation.relative if can_be_beaten(gate, measured)]
    main = {gate.metric for gate in (*spec.evaluation.absolute, *spec.evaluation.relative)}
    required, planned = spec.evaluation.absolute, len(rounds.examples)
    unsure = [] if passing else doubt.undecided(rounds.shared, required, measured, planned)
    if not available:
        text = "no baseline: there are no validation examples with answers"
    elif passing is not None:
        asked = len(rounds.asked[passing].answers)
        text = f"{ENOUGH.get(passing, '')}{meeting(passing, prompt, rounds.optimized)}, on {asked} validation examples"
        text = _with_consequence(spec, text, left)
    elif unsure:
        how = meeting(unsure[0].which, prompt, rounds.optimized)
        asked = len(rounds.asked[unsure[0].which].answers)
        text = f"undecided: as measured {how}, but {too_few(spec, unsure[0], asked, available)}"
        text = f"{text}; {_still_to_show(left)}" if left else text
    else:
        text = (
            f"no prompt meets the gates' bounds, on up to {available} validation examples: training may improve on that"
        )
    return status.Baseline(
        sufficient=None if left else passing,
        undecided=[] if left else [one.which for one in unsure],
        examples=max((len(one.answers) for one in rounds.asked.values()), default=0),
        metrics=[scoreboard.metric_value(one) for one in scoreboard.values(measured) if one.metric in main],
        message=text,
    )


ENOUGH = {
    job.Contender.OPTIMIZED: "an optimized prompt is enough: ",
    job.Contender.STRUCTURED: "structured decoding is enough: ",
}


def meeting(which: job.Contender, prompt: job.Contender | None, chosen: results.Optimized | None) -> str:
    """Who meets the bounds, and how it was asked."""
    with_what = {
        job.Contender.BASE: "as it is",
        job.Contender.PROMPT: "with the current prompt",
        job.Contender.FEW_SHOT: "with a few examples before the question",
        job.Contender.RETRIEVED: "with the training examples most similar to the question before it",
        job.Contender.OPTIMIZED: f"with {optimized.described(chosen)}",
        job.Contender.MANY_SHOT: "with as many examples as fit before the question",
        job.Contender.RAG: "with passages of the documents before the question",
        job.Contender.STRUCTURED: f"with evaluation.outputSchema in each request, asked like {prompt}",
    }
    if which in with_what:
        return f"the base model meets the gates' bounds {with_what[which]}"
    return f"the candidate {which} meets the gates' bounds with the best prompt found"


def _still_to_show(left: list[job.Gate]) -> str:
    return f"training must still show: {', '.join(map(gates.requirement, left))}"


def _with_consequence(spec: run.Run, text: str, left: list[job.Gate]) -> str:
    if left:
        return f"{text}; {_still_to_show(left)}"
    if spec.intent.wants_more:
        return f"{text}; whether training reaches the job's goals is measured in the evaluation"
    return f"{text}: training may not be worth its cost"


def too_few(spec: run.Run, found: doubt.Undecided, asked: int, available: int) -> str:
    """How many validation examples it takes, and where they come from."""
    unit = "" if found.unit == "examples" else f" {found.unit}"
    takes = f"about {found.needed:,}" if found.needed else "more"
    text = f"{found.examples} validation examples are too few to be sure: it takes {takes}{unit}"
    if asked < min(available, spec.evaluation.maximum_examples):
        return f"{text} (evaluation.baselineBudget)"
    if asked < available:
        return f"{text} (evaluation.maximumExamples)"
    return f"{text} (dataset.validation)"


def deliver(
    spec: run.Run,
    store: storage.Storage,
    split: folders.Manifest,
    found: status.Baseline,
    rounds: Rounds,
    examples: list[dataset.Example],
) -> None:
    folder = machine.work() / "baseline"
    folder.mkdir(exist_ok=True)
    with (folder / "samples.jsonl").open("w", encoding="utf-8") as file:
        for index, example in enumerate(examples):
            answers = {
                which: one.answers[index].text for which, one in rounds.asked.items() if index < len(one.answers)
            }
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
    chosen = {
        scoreboard.RETRIEVED: rounds.retrieved and rounds.retrieved.wire(),
        scoreboard.OPTIMIZED: rounds.optimized and rounds.optimized.wire(),
    }
    if rounds.optimized is not None:
        (folder / "prompt.json").write_text(json.dumps(rounds.optimized.wire(), indent=1, ensure_ascii=False), "utf-8")
    extra = {"baseline": found.wire(), **chosen, folders.MADE_OF: split.sha256}
    folders.save(store, folder, spec.layout.baseline(spec.evaluation_hash), extra)
    log.info("baseline measured", sufficient=found.sufficient, examples=found.examples)
