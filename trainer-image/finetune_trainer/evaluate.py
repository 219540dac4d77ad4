"""The evaluation stage: base and tuned model, from one loaded model, on the same held-out examples.

test split -> greedy answers and losses of both contenders -> metrics -> gates -> results, samples, canary and report in
storage. A gate that does not pass is a result, not an error of the stage.
"""

import dataclasses
import json
import random
import time
from typing import Any

import torch

from finetune_api import job, outcome, reasons, results, run, status
from finetune_trainer import (
    adapter,
    batches,
    canary,
    dataset,
    errors,
    folders,
    gates,
    generate,
    log,
    lora,
    loss,
    machine,
    metrics,
    model,
    progress,
    report,
    signals,
    sources,
    storage,
    tokens,
)

TOKENS = {"cuda": 16_384, "cpu": 2_048}
"""Tokens of a batch whose losses are computed."""

Answers = dict[job.Contender, list[metrics.Answer]]


@dataclasses.dataclass
class Contest:
    """The loaded model and what it is asked."""

    tuned: Any
    head: loss.Head
    encoder: tokens.Encoder
    examples: list[dataset.Example]
    limit: int
    where: torch.device
    report: progress.Progress
    generated: dict[job.Contender, list[list[int]]] = dataclasses.field(default_factory=dict)

    def contender(self, which: job.Contender) -> Any:
        """The model as this contender, for as long as the context lasts."""
        return lora.disabled(self.tuned) if which is job.Contender.BASE else lora.enabled()

    def tell(self, percent: float) -> None:
        done = round(percent)
        steps = len(self.examples) * len(job.Contender)
        now = progress.now()
        self.report.tell(
            status.Progress(
                summary=f"{done}%", percent=done, step=round(steps * percent / 100), total_steps=steps, updated_at=now
            )
        )


def evaluate(spec: run.Run, uri: str | None, sha256: str | None, attempt: int) -> outcome.Outcome:
    """Scores the adapter at `uri` (absent: this revision's). Raises Failure, Stopped."""
    store = storage.of(spec.storage)
    uri = (uri or spec.layout.adapter).rstrip("/")
    work = machine.work()
    try:
        manifest = folders.load(store, uri, work / "tuned", expected=sha256)
    except errors.NotFound:
        raise errors.Failure(
            reasons.Reason.ADAPTER_INCOMPATIBLE, f"{uri} holds no complete adapter; run the train stage first"
        ) from None
    if done := finished(spec, store, manifest.sha256):
        return done
    contest = prepare(spec, store, attempt)
    contest.tell(0)
    history = training(work / "tuned")

    begun = time.monotonic()
    answers = {which: answer(contest, which, index) for index, which in enumerate(job.Contender)}
    values = {which: metrics.measure(found) for which, found in answers.items()}
    results = gates.check(spec.evaluation.gates, values)
    recorded = canary.record(contest.tuned, contest.head, *pairs(contest), contest.where)
    seconds = time.monotonic() - begun

    found = summary(spec, values, results, len(contest.examples))
    deliver(spec, store, contest, answers, found, recorded, history, manifest.sha256, seconds)
    contest.report.end()
    return answered(spec, found)


def finished(spec: run.Run, store: storage.Storage, sha256: str) -> outcome.Outcome | None:
    """The outcome of an earlier attempt that scored the same adapter in the same way."""
    manifest = folders.manifest(store, spec.layout.evaluation(spec.evaluation_hash))
    if manifest is None or manifest.extra.get("adapter") != sha256:
        return None
    log.info("the evaluation was done before", evaluation=spec.layout.evaluation(spec.evaluation_hash))
    return answered(spec, status.Evaluation.model_validate(manifest.extra["evaluation"]))


def answered(spec: run.Run, found: status.Evaluation) -> outcome.Outcome:
    failed = [f"{gate.requirement}: {gate.observed}" for gate in found.gates if not gate.passed]
    text = f"{len(failed)} of {len(found.gates)} gates failed: " + "; ".join(failed)
    if not failed:
        text = "every gate passed" if found.gates else "the job has no gates"
    return outcome.Outcome(stage=reasons.Stage.EVALUATE, message=text, evaluation=found, report=spec.layout.report)


def prepare(spec: run.Run, store: storage.Storage, attempt: int) -> Contest:
    """Examples, model and adapter in memory."""
    torch.set_num_threads(machine.threads())
    where = model.device()
    report_to = progress.Progress(spec, "evaluate", attempt)
    try:
        folders.load(store, spec.layout.data, machine.work() / "data", only={"test.jsonl"})
    except errors.NotFound:
        raise errors.Failure(
            reasons.Reason.DATASET_NOT_FOUND,
            f"{spec.layout.data} holds no frozen split; run the preflight stage of this revision first",
        ) from None
    examples = choose(dataset.frozen(machine.work() / "data" / "test.jsonl"), spec)
    folder = sources.resolve(spec.base_model, store, machine.work() / "base")
    encoder = tokens.load(folder, spec.training)
    base = model.load(folder, spec.training.precision, where)
    head = model.head(base)
    tuned = lora.add(base, spec.training.lora, spec.base_model.name)
    adapter.load(machine.work() / "tuned", tuned)
    tuned.eval()
    limit = spec.evaluation.generation.max_new_tokens
    log.info("evaluating", examples=len(examples), maximum_new_tokens=limit, threads=torch.get_num_threads())
    return Contest(tuned, head, encoder, examples, limit, where, report_to)


def choose(examples: list[dataset.Example], spec: run.Run) -> list[dataset.Example]:
    """At most evaluation.maximumExamples, drawn by the seed, in their order."""
    maximum = spec.evaluation.maximum_examples
    if len(examples) <= maximum:
        return examples
    drawn = random.Random(f"{spec.training.seed}:evaluation").sample(range(len(examples)), maximum)  # noqa: S311
    return [examples[index] for index in sorted(drawn)]


def answer(contest: Contest, which: job.Contender, index: int) -> list[metrics.Answer]:
    """What a contender writes for each example, and the loss it gives to what was expected."""
    share = 100 / len(job.Contender)
    asked = [place for place, example in enumerate(contest.examples) if example.answer is not None]
    prompts = [contest.encoder.prompt(contest.examples[place]) for place in asked]
    with contest.contender(which):
        found = generate.greedy(
            contest.tuned,
            contest.head,
            prompts,
            contest.encoder.stops,
            contest.limit,
            contest.where,
            lambda count: contest.tell(share * (index + 0.9 * count / max(1, len(prompts)))),
        )
        contest.generated[which] = found
        losses = nats(contest)
    texts: list[str | None] = [None] * len(contest.examples)
    for place, ids in zip(asked, found, strict=True):
        texts[place] = contest.encoder.tokenizer.decode(ids, skip_special_tokens=True)
    log.info("answered", contender=which, answers=len(found), tokens=sum(map(len, found)))
    return [
        metrics.Answer(text, example.answer, total, count)
        for text, example, (total, count) in zip(texts, contest.examples, losses, strict=True)
    ]


@torch.inference_mode()
def nats(contest: Contest) -> list[tuple[float, int]]:
    """The loss of each example's last answer, summed over its tokens, and how many these are."""
    encoded = [contest.encoder.answered(example) for example in contest.examples]
    found = [(0.0, 0)] * len(encoded)
    budget = TOKENS[contest.where.type]
    for part in batches.micro(range(len(encoded)), [len(one.ids) for one in encoded], budget):
        signals.check()
        rows = [encoded[index] for index in part]
        states, targets = model.labelled(
            contest.tuned, contest.head, [row.ids for row in rows], [row.learned for row in rows], contest.where
        )
        values = loss.log_probabilities(states, targets, contest.head).tolist()
        position = 0
        for index, row in zip(part, rows, strict=True):
            found[index] = (-sum(values[position : position + row.trainable]), row.trainable)
            position += row.trainable
    return found


def pairs(contest: Contest) -> tuple[list[list[int]], list[list[int]]]:
    """Prompts and tuned answers for the canary; plain text is cut into a beginning and its continuation."""
    examples = contest.examples[: canary.CANDIDATES]
    if examples and examples[0].text is not None:
        prompts = [contest.encoder.encode(example).ids[: canary.LENGTH] for example in examples]
        found = generate.greedy(
            contest.tuned, contest.head, prompts, contest.encoder.stops, canary.LENGTH, contest.where
        )
        return prompts, found
    prompts = [contest.encoder.prompt(example) for example in examples]
    return prompts, contest.generated.get(job.Contender.TUNED, [])[: len(prompts)]


def summary(spec: run.Run, values: gates.Values, results: list[status.GateResult], examples: int) -> status.Evaluation:
    """The evaluation for the status."""
    first = spec.evaluation.gates[0].metric if spec.evaluation.gates else job.Metric.EXACT_MATCH
    score = values[job.Contender.TUNED].get(first)
    return status.Evaluation(
        passed=all(result.passed for result in results),
        score=None if score is None else f"{score:.4f}",
        examples=examples,
        metrics=[
            status.MetricValue(name=metric, contender=which, value=f"{value:.4f}")
            for metric in job.Metric
            for which, measured in values.items()
            if (value := measured.get(metric)) is not None
        ],
        gates=results,
        canary=f"{spec.layout.evaluation(spec.evaluation_hash)}/canary.json",
    )


def deliver(
    spec: run.Run,
    store: storage.Storage,
    contest: Contest,
    answers: Answers,
    found: status.Evaluation,
    recorded: list[dict[str, Any]],
    history: dict[str, Any],
    sha256: str,
    seconds: float,
) -> None:
    """Everything into storage; the evaluation's manifest is last, after the report."""
    folder = machine.work() / "evaluation"
    folder.mkdir(exist_ok=True)
    samples = [
        {
            "source": example.source,
            "messages": [dataclasses.asdict(turn) for turn in example.prompt] if example.messages else None,
            "text": example.text,
            "expected": example.answer,
            **{which.lower(): answers[which][index].text for which in job.Contender},
        }
        for index, example in enumerate(contest.examples)
    ]
    (folder / "samples.jsonl").write_text(
        "".join(json.dumps(sample, ensure_ascii=False) + "\n" for sample in samples), encoding="utf-8"
    )
    first = contest.examples[0] if contest.examples else None
    document = canary.document(recorded, first, spec.served_model_name, spec.base_model.name, contest.limit)
    (folder / "canary.json").write_text(json.dumps(document), encoding="utf-8")
    told = {"evaluation": found.wire(), "adapter": sha256, "seconds": round(seconds, 1), **history}
    (folder / "results.json").write_text(json.dumps(told, indent=1), encoding="utf-8")
    store.write(spec.layout.report, report.page(reported(spec, found, samples, history, sha256, seconds)).encode())
    extra = {"adapter": sha256, "evaluation": found.wire()}
    folders.save(store, folder, spec.layout.evaluation(spec.evaluation_hash), extra)
    log.info("evaluated", passed=found.passed, score=found.score, report=spec.layout.report, seconds=round(seconds, 1))


def reported(
    spec: run.Run,
    found: status.Evaluation,
    samples: list[dict[str, Any]],
    history: dict[str, Any],
    sha256: str,
    seconds: float,
) -> results.Results:
    """What is known so far in the words of results.json."""
    return results.Results(
        namespace=spec.namespace,
        name=spec.name,
        revision=spec.revision,
        base_model=spec.base_model.name,
        base_model_revision=spec.base_model.revision,
        served_model_name=spec.served_model_name,
        rank=spec.training.lora.rank,
        adapter=sha256,
        intent=spec.intent,
        evaluation=found,
        values=[
            results.Value(metric=one.name, contender=one.contender, value=float(one.value), examples=found.examples)
            for one in found.metrics
        ],
        training=results.Training(**history),
        seconds=seconds,
        samples=[
            results.Sample(
                source=sample["source"],
                messages=sample["messages"],
                text=sample["text"],
                expected=sample["expected"],
                answers={which: sample.get(which.lower()) for which in job.Contender},
            )
            for sample in samples
        ],
    )


def training(folder: Any) -> dict[str, Any]:
    """The losses of the training, which travel with the adapter; nothing for an adapter from elsewhere."""
    path = folder / "training.json"
    return json.loads(path.read_text()) if path.is_file() else {}
