"""The evaluation stage: every contender, from one loaded model, on the same held-out examples.

test split -> greedy answers and losses of each contender -> metrics with intervals, public benchmarks and verdicts of a judge
where the job names them -> gates -> results, samples, canary and report in storage. A gate that does not pass is a result, not
an error of the stage.
"""

import dataclasses
import functools
import json
import pathlib
import time
from collections.abc import Sequence
from typing import Any

from finetune_api import job, outcome, reasons, results, run, status
from finetune_trainer import report
from finetune_trainer.data import dataset, prompted
from finetune_trainer.evaluation import (
    answers,
    canary,
    candidates,
    chosen,
    consistency,
    contenders,
    divergence,
    engines,
    evidence,
    feasible,
    forgetting,
    gates,
    judge,
    metrics,
    missed,
    power,
    scoreboard,
    selection,
    server,
    structured,
    teacher,
    tries,
)
from finetune_trainer.harness import measures, play, tasks
from finetune_trainer.process import errors, log, machine, progress
from finetune_trainer.store import folders, storage


@dataclasses.dataclass
class Meter:
    """Reports how far the evaluation is, in parts of equal size."""

    reporter: progress.Progress
    parts: int
    examples: int
    over: int = 0

    def tell(self, share: float) -> None:
        """`share` of the present part is done; 1 ends it."""
        steps = self.examples * self.parts
        self.reporter.update(progress.of(int(steps * min(1.0, (self.over + share) / self.parts)), steps))
        self.over += share >= 1


@dataclasses.dataclass(frozen=True)
class ServingAdapter:
    """The adapter that is served now."""

    uri: str
    sha256: str


def evaluate(
    spec: run.Run,
    uri: str | None,
    sha256: str | None,
    attempt: int,
    serving: ServingAdapter | None = None,
    scale: float = 1.0,
    sidecar: server.Sidecar | None = None,
) -> outcome.Outcome:
    """Scores the adapter at `uri` (None: this revision's), also against the one that is served. scale: the share of the usual
    rows and tokens that is taken at once. sidecar: the server that answers; None: this process does. Raises Failure, Stopped."""
    store = storage.of(spec.storage)
    uri = (uri or spec.layout.adapter).rstrip("/")
    work = machine.work()
    try:
        manifest = folders.load(store, uri, work / "tuned", expected=sha256)
    except errors.NotFound:
        raise errors.Failure(
            reasons.Reason.ADAPTER_INCOMPATIBLE, f"{uri} has no complete adapter; run the train stage first"
        ) from None
    if done := finished(spec, store, manifest.sha256):
        return done
    feasible.check_frozen(spec, store)
    begun = time.monotonic()
    arbiter, others = judge.of(spec), candidates.of(spec, deciding=True)
    rules = spec.evaluation.harness
    benchmarks, problems = tasks.available_tasks(spec, rules, storage.of_data(spec)) if rules else ([], [])
    if rules is not None:
        feasible.check_benchmarks(rules, {task.name: measures.known(task) for task in benchmarks})
    split = answers.fetch(spec, store, {"test.jsonl", "train.jsonl", "validation.jsonl"})
    available = dataset.frozen(work / "data" / "test.jsonl")
    examples = contenders.choose(available, spec.evaluation.maximum_examples, spec.training.seed)
    parts = 4 + len(job.Contender) + len(others) + (arbiter is not None) + (rules is not None)
    meter = Meter(progress.Progress(spec, "evaluate", attempt), parts, len(examples))
    meter.tell(0)
    runner = answers.load(spec, store, scale, sidecar)
    ask_as_trained(runner, job.Contender.TUNED, manifest)
    found = measure(
        spec, store, runner, examples, serving, meter, manifest.extra.get("training", {}).get("seconds"), others
    )
    if runner.script.taught:
        found.reference = teacher.reference(runner, examples)
    if rules is not None:
        found.harness, found.benchmarks = play.measure(runner, benchmarks, problems, rules, meter.tell)
    if arbiter is not None:
        cases = judge.cases(arbiter.rules, examples, found.asked, spec.training.seed)
        found.judged = arbiter.compare(cases, meter.tell)
    if spec.evaluation.consistency is not None:
        measure_consistency(spec, spec.evaluation.consistency, runner, examples, found, meter)
    if examples:
        tested = tries.fingerprint(available)
        count = tries.record(spec, store, tested, manifest.sha256)
        found.tries = tries.of(count, tested, [*required_gates(spec, found), *(rules.required if rules else ())])
    gate_results = check_gates(spec, found)
    recorded = canary.record(runner.engine, *pairs(runner, examples, found))
    provenance = scoreboard.Provenance(
        manifest.sha256,
        time.monotonic() - begun,
        manifest.extra.get("training", {}),
        history(work / "tuned"),
        runner.script.trained.get(job.Contender.TUNED),
        runner.engine.kind,
    )
    scores = scoreboard.results_of(spec, store, found, gate_results, examples, provenance, required_gates(spec, found))
    deliver(spec, store, split, scores, found, examples, recorded, runner.script)
    meter.reporter.end()
    return outcome_of(spec, scores.evaluation)


def finished(spec: run.Run, store: storage.Storage, sha256: str) -> outcome.Outcome | None:
    """The outcome of an earlier attempt that scored the same adapter in the same way."""
    manifest = folders.manifest(store, spec.layout.evaluation(spec.evaluation_hash))
    if manifest is None or manifest.extra.get("adapter") != sha256:
        return None
    if not folders.made_of(store, manifest, spec.examples):
        return None
    log.info("the evaluation was done before", evaluation=spec.layout.evaluation(spec.evaluation_hash))
    return outcome_of(spec, status.Evaluation.model_validate(manifest.extra["evaluation"]))


def outcome_of(spec: run.Run, found: status.Evaluation) -> outcome.Outcome:
    failed = [f"{gate.requirement}: {gate.observed}" for gate in found.gates if not gate.passed]
    text = f"{len(failed)} of {len(found.gates)} gates failed: " + "; ".join(failed)
    if not failed:
        text = "every gate passed" if found.gates else "no gates"
    if spec.trained_prompt is not None:
        text += "; clients must send the system prompt of intent.prompt, with which it was trained and evaluated"
    if spec.training.teacher is not None:
        text += f"; expected are the answers of {teacher.named(spec)}"
    if spec.training.teacher == job.PROMPTED:
        text += f"; {found.tokens_saved_per_request or 0} prompt tokens saved a request"
    text = "; ".join([text, *found.unanswered])
    return outcome.Outcome(stage=reasons.Stage.EVALUATE, message=text, evaluation=found, report=spec.layout.report)


def required_gates(spec: run.Run, found: scoreboard.Findings) -> list[job.Gate]:
    """The job's gates; without any, those that every job gets."""
    if spec.evaluation.gates is not None:
        return spec.evaluation.gates
    # A judge's win rate cannot be the headline of a job that states no gate on it.
    return gates.default(found.headline(spec).metric, found.values)


def check_gates(spec: run.Run, found: scoreboard.Findings) -> list[status.GateResult]:
    """The required gates with what was measured, those on benchmarks last; those that every job gets are marked as such."""
    required, stated = required_gates(spec, found), spec.evaluation.gates is not None
    on_benchmarks = spec.evaluation.harness.required if spec.evaluation.harness else []
    checked = gates.check(required, found.values, win_losses=found.win_losses)
    of_metrics = [
        one.model_copy(
            update={
                "requirement": one.requirement if stated else f"{one.requirement} (by default)",
                "power": "; ".join(each.text for each in power.after(gate, found.values)) or None,
                "missed": None if one.passed else missed.of_gate(gate, found.values, found.win_losses),
            }
        )
        for gate, one in zip(required, checked, strict=True)
    ]
    return of_metrics + missed.of_task_gates(on_benchmarks, found.benchmarks)


# --- Every contender answers ---


def measure(
    spec: run.Run,
    store: storage.Storage,
    runner: answers.ModelRunner,
    examples: list[dataset.Example],
    serving: ServingAdapter | None,
    meter: Meter,
    trained: float | None = None,
    others: Sequence[candidates.Candidate] = (),
) -> scoreboard.Findings:
    """Baselines first, then the candidates, then the adapter that is served, then the tuned one, which stays in the engine.
    trained: seconds of the training."""
    log.info(
        "evaluating",
        engine=runner.engine.kind,
        examples=len(examples),
        maximum_new_tokens=spec.evaluation.generation.max_new_tokens,
    )
    found = scoreboard.Findings(groups=[one.group for one in examples])
    baselines = contenders.taking_part(spec.evaluation, runner.script, examples)
    # Forgetting is measured against the base model's losses, whether Base is among the baselines or not.
    questions = forgetting.load(spec, storage.of_data(spec), runner.engine.kind)
    before = forgetting.ask(runner, job.Contender.BASE, questions)
    for which in baselines:
        if which not in structured.LAST:
            measure_contender(runner, which, examples, found, meter)
    limits = measure_long_prompts(spec, store, runner, examples, found, meter, trained)
    measure_candidates(others, runner, examples, found, meter, limits)
    if serving is not None and add_serving_adapter(runner.engine, serving, store, spec):
        ask_as_trained(runner, job.Contender.SERVING, folders.manifest(store, serving.uri))
        measure_contender(runner, job.Contender.SERVING, examples, found, meter)
    if problem := runner.engine.add_adapter(job.Contender.TUNED, machine.work() / "tuned"):
        raise errors.Failure(reasons.Reason.ADAPTER_INCOMPATIBLE, f"the tuned adapter cannot be evaluated: {problem}")
    measure_contender(runner, job.Contender.TUNED, examples, found, meter)
    forgotten = forgetting.measure(questions, before, forgetting.ask(runner, job.Contender.TUNED, questions))
    for which, columns in forgotten.items():
        if which in found.values:
            found.values[which] |= columns
    as_asked = [runner.script.ask(one, job.Contender.TUNED) for one in examples]
    prompts = {job.Metric.DIVERGENCE: as_asked, job.Metric.GENERAL_DIVERGENCE: questions.prompts}
    for metric, few in prompts.items():
        if (column := divergence.measure(runner, few, spec.training.seed)) is not None:
            found.values[job.Contender.TUNED][metric] = column
    return found


def measure_long_prompts(
    spec: run.Run,
    store: storage.Storage,
    runner: answers.ModelRunner,
    examples: list[dataset.Example],
    found: scoreboard.Findings,
    meter: Meter,
    trained: float | None,
) -> selection.Budget:
    """Retrieved, Optimized, ManyShot and RAG, as far as there is time for them: `trained` are the seconds of the training; then
    Structured. Returns what is left of it."""
    limits = selection.budget(spec.evaluation, trained and trained * max(spec.gpus, 1) * spec.nodes)
    limits.left_out = found.left_out
    pace = functools.reduce(selection.Pace.after, found.asked.values(), selection.Pace())
    taking_part = contenders.taking_part(spec.evaluation, runner.script, examples)
    for which in [one for one in structured.LAST if one in taking_part]:
        if not answers.can_answer(runner, which, examples, found.left_out):
            continue
        if which is job.Contender.RETRIEVED and not chosen.retrieved(
            spec, store, runner, examples, found, limits, pace
        ):
            continue
        if which is job.Contender.OPTIMIZED and not chosen.prompt(spec, store, runner, examples, found, limits, pace):
            continue
        if which is job.Contender.STRUCTURED:
            found.structured = structured.choose(runner, spec.evaluation.stated, found.values, examples, limits, pace)
        limited = structured.is_limited(runner, which)
        if limited and not limits.allows(which, pace.seconds(runner, which, examples)):
            found.retrieved = None if which is job.Contender.RETRIEVED else found.retrieved
            found.optimized = None if which is job.Contender.OPTIMIZED else found.optimized
            continue
        measure_contender(runner, which, examples, found, meter)
        limits.spent += found.asked[which].seconds if limited else 0.0
        pace = pace.after(found.asked[which])
    return limits


def measure_candidates(
    others: Sequence[candidates.Candidate],
    runner: answers.ModelRunner,
    examples: list[dataset.Example],
    found: scoreboard.Findings,
    meter: Meter,
    limits: selection.Budget,
) -> None:
    """Other models, with the prompt that did best so far, as far as they answer in time."""
    for one in others:
        one.prompt = None if one.problem else candidates.best_prompt(runner.rules.stated, found.values)
        asked = one.ask(runner.script, examples, limits.rest, meter.tell)
        limits.spent += asked.seconds
        if measured := metrics.measure(asked.answers, runner.rules):
            found.asked[one.which], found.values[one.which] = asked, measured
        found.candidates.append(one.described(found.asked.get(one.which)))


def measure_consistency(
    spec: run.Run,
    rules: job.Consistency,
    runner: answers.ModelRunner,
    examples: list[dataset.Example],
    found: scoreboard.Findings,
    meter: Meter,
) -> None:
    """How consistent sampled answers are: of the best baseline and of the tuned model."""
    for which in (found.headline(spec).baseline, job.Contender.TUNED):
        if which is not None:
            column = consistency.measure(runner, which, examples, rules, spec.training.seed, meter.tell)
            together = evidence.clusters(found.groups)
            found.values[which][job.Metric.CONSISTENCY] = dataclasses.replace(column, clusters=together)


def measure_contender(
    runner: answers.ModelRunner,
    which: job.Contender,
    examples: list[dataset.Example],
    found: scoreboard.Findings,
    meter: Meter,
) -> None:
    """One contender's answers and metrics, unless the questions cannot be put to it."""
    if not answers.can_answer(runner, which, examples, found.left_out):
        return
    found.asked[which] = answers.ask(runner, which, examples, meter.tell)
    found.values[which] = metrics.measure(found.asked[which].answers, runner.rules)
    found.prefill = max(found.prefill, found.asked[which].prefill)


def ask_as_trained(runner: answers.ModelRunner, which: job.Contender, manifest: folders.Manifest | None) -> None:
    """From now on an adapter is asked with the system prompt that its manifest names, if it was trained with one."""
    if manifest is not None and (text := manifest.extra.get(prompted.KEY)):
        runner.script = dataclasses.replace(runner.script, trained={**runner.script.trained, which: text})


def add_serving_adapter(engine: engines.Engine, serving: ServingAdapter, store: storage.Storage, spec: run.Run) -> bool:
    """Whether the adapter that is served now answers as Serving; where it does not fit, the log says why.

    Raises Failure when it cannot be read: a gate over it must not pass only because it has no answers.
    """
    folder = machine.work() / "serving"
    try:
        folders.load(store, serving.uri, folder, expected=serving.sha256)
    except errors.NotFound:
        log.warning("the served adapter is no longer in storage", adapter=serving.uri)
        return False
    base = json.loads((folder / engines.ADAPTER_CONFIG).read_text())["base_model_name_or_path"]
    problem: str | None = f"it is for {base}"
    if base == spec.base_model.name:
        problem = engine.add_adapter(job.Contender.SERVING, folder)
    if problem:
        log.warning(
            "the served adapter does not fit the base model: there is no comparison with it",
            adapter=serving.uri,
            problem=problem,
        )
    return problem is None


def pairs(
    runner: answers.ModelRunner, examples: list[dataset.Example], found: scoreboard.Findings
) -> tuple[list[list[int]], list[list[int]]]:
    """Prompts and tuned answers for the canary; plain text is cut into a beginning and its continuation."""
    if examples and examples[0].text is not None:
        few = examples[: canary.CANDIDATES]
        prompts = [runner.encoder.encode(example).ids[: canary.LENGTH] for example in few]
        ending = engines.Ending(runner.encoder.stops, canary.LENGTH)
        return prompts, runner.engine.greedy(job.Contender.TUNED, prompts, ending)
    tuned = found.asked[job.Contender.TUNED]
    return tuned.prompts[: canary.CANDIDATES], tuned.generated[: canary.CANDIDATES]


def history(folder: pathlib.Path) -> dict[str, Any]:
    """The losses of the training, stored with the adapter; empty for an adapter from elsewhere."""
    path = folder / "training.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def deliver(
    spec: run.Run,
    store: storage.Storage,
    split: folders.Manifest,
    scores: results.Results,
    found: scoreboard.Findings,
    examples: list[dataset.Example],
    recorded: list[dict[str, Any]],
    script: contenders.Script,
) -> None:
    """Everything into storage; the evaluation's manifest is last, after the report."""
    folder = machine.work() / "evaluation"
    folder.mkdir(exist_ok=True)
    with (folder / "samples.jsonl").open("w", encoding="utf-8") as file:
        for index, example in enumerate(examples):
            sample = scoreboard.sample(scores.headline, index, example, found)
            file.write(json.dumps(sample.wire(), ensure_ascii=False) + "\n")
    if found.judged is not None:
        lines = (json.dumps(line) for line in scoreboard.verdicts(found.judged, examples))
        (folder / "judge.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    # A server that cannot read calls must not pass because the first example has no tools.
    first = next((one for one in examples if one.tools), examples[0] if examples else None)
    first = first and script.ask(first, job.Contender.TUNED)
    limit = spec.evaluation.generation.max_new_tokens
    document = canary.document(recorded, first, spec.served_model_name, spec.base_model.name, limit)
    (folder / "canary.json").write_text(json.dumps(document), encoding="utf-8")
    (folder / "results.json").write_text(json.dumps(scores.wire(), indent=1, ensure_ascii=False), encoding="utf-8")
    store.write(spec.layout.report, report.page(scores).encode())
    extra = {"adapter": scores.adapter, "evaluation": scores.evaluation.wire(), folders.MADE_OF: split.sha256}
    folders.save(store, folder, spec.layout.evaluation(spec.evaluation_hash), extra)
    log.info("evaluated", passed=scores.evaluation.passed, score=scores.evaluation.score, report=spec.layout.report)
