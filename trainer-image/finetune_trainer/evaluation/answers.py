"""One model, and every contender asked the same questions. Used by the baseline stage and the evaluation."""

import dataclasses
import functools
import json
import pathlib
import re
import time
from collections.abc import Callable, Sequence

from finetune_api import job, reasons, run
from finetune_trainer.data import dataset, dialects, tokens, toolcalls
from finetune_trainer.evaluation import contenders, documents, engines, instructions, metrics, retrieval, server
from finetune_trainer.process import errors, log, machine
from finetune_trainer.store import folders, sources, storage


@dataclasses.dataclass
class ModelRunner:
    """A model that answers, and what turns examples into questions."""

    engine: engines.Engine
    encoder: tokens.Encoder
    script: contenders.Script
    rules: job.Evaluation

    def ending(self, which: job.Contender) -> engines.Ending:
        """When this contender's answers are over, and what they are held to."""
        schema = self.rules.output_schema if which is job.Contender.STRUCTURED else None
        limit = self.rules.generation.max_new_tokens
        return engines.Ending(self.encoder.stops, limit, schema=None if schema is None else json.dumps(schema))


@dataclasses.dataclass(frozen=True)
class Answers:
    """A contender's answers to the examples, in their order."""

    answers: list[metrics.Answer]
    generated: list[list[int]]
    """Token ids of each answer; empty for plain text."""
    prompts: list[list[int]]
    prefill: float = 0.0
    """Tokens per second of the losses, which read prompt and answer at once."""
    seconds: float = 0.0
    """Of answers and losses together."""
    usage: tuple[float, float] | None = None
    """Mean tokens of prompts and answers as an endpoint counts them; None: `prompts` and `generated` tell."""
    answering: float = 0.0
    """Seconds of the answers alone: what requests cost."""

    def and_then(self, more: "Answers") -> "Answers":
        return Answers(
            [*self.answers, *more.answers],
            [*self.generated, *more.generated],
            [*self.prompts, *more.prompts],
            more.prefill,
            self.seconds + more.seconds,
            more.usage or self.usage,
            self.answering + more.answering,
        )

    @property
    def prompt_tokens(self) -> float:
        """Mean tokens of a prompt."""
        if self.usage is not None:
            return self.usage[0]
        return sum(map(len, self.prompts)) / max(1, len(self.prompts))

    @property
    def answer_tokens(self) -> float:
        if self.usage is not None:
            return self.usage[1]
        return sum(map(len, self.generated)) / max(1, len(self.generated))


def load(
    spec: run.Run, store: storage.Storage, scale: float = 1.0, sidecar: server.Sidecar | None = None
) -> ModelRunner:
    """The base model without an adapter, in this process or in the server beside it, and the frozen split's training examples for
    FewShot. Raises Failure."""
    engine: engines.Engine
    folder = base_folder(spec, store, sidecar)
    encoder = tokens.load(folder, spec.training)
    if sidecar is not None:
        engine = server.Server(sidecar, spec.base_model.name)
    else:
        from finetune_trainer.evaluation import in_process  # the only one that needs torch

        engine = in_process.load(spec, folder, encoder.tokenizer, scale)
    positions = engine.positions or spec.training.max_sequence_length
    room = round(contenders.MARGIN * (positions - spec.evaluation.generation.max_new_tokens))
    room = min(room, contenders.MOST)
    script = with_passages(written(spec, encoder, room), spec, encoder, room)
    return ModelRunner(engine, encoder, script, spec.evaluation)


def base_folder(spec: run.Run, store: storage.Storage, sidecar: server.Sidecar | None) -> pathlib.Path:
    """The files of the base model. Raises Failure."""
    return sidecar.base if sidecar is not None else sources.resolve(spec.base_model, store, machine.work() / "base")


def written(spec: run.Run, encoder: tokens.Encoder, room: int) -> contenders.Script:
    """How questions are written, with the examples that the baselines show before them within `room` tokens."""
    inline = not encoder.takes_system
    if spec.training.teacher == job.PROMPTED:
        return contenders.Script(spec.intent.prompt, inline=inline, taught=True)
    wanted = (contenders.SHOWN | {job.Contender.OPTIMIZED}).intersection(spec.evaluation.baselines)
    if not wanted or not encoder.tokenizer.chat_template:
        return contenders.Script(spec.intent.prompt, inline=inline)
    training = list(dataset.stream(machine.work() / "data" / "train.jsonl"))
    seed, index = spec.training.seed, None
    many: tuple[dataset.Example, ...] = ()
    few = spec.intent.prompt.few_shot if job.Contender.FEW_SHOT in wanted else 0
    shots = contenders.few(training, few, spec.evaluation.labels, seed, room=room, encoder=encoder)
    if len(shots) < few:
        log.info("fewer examples fit into the prompt than requested", shown=len(shots), requested=few, tokens=room)
    if job.Contender.MANY_SHOT in wanted:
        many = contenders.many(training, seed, room=room, encoder=encoder)
    if job.Contender.RETRIEVED in wanted and (chats := contenders.showable(training)):
        chosen = contenders.choose(chats, retrieval.INDEXED, seed)
        index = retrieval.Index(chosen, retrieval.question, functools.partial(contenders.size, encoder=encoder))
    made = contenders.Script(spec.intent.prompt, shots, inline, many, index, room=room)
    if job.Contender.OPTIMIZED in wanted:
        fits = functools.partial(fits_as_instruction, room, encoder)
        improved_by = instructions.optimizer(spec.intent.prompt.optimizer, training, fits, seed)
        made = dataclasses.replace(made, variants=prompts(made, training, spec, encoder), optimizer=improved_by)
    return made


def fits_as_instruction(room: int, encoder: tokens.Encoder, text: str) -> bool:
    """Whether an instruction takes at most a quarter of the room."""
    return len(encoder.tokenizer.encode(text, add_special_tokens=False)) <= room // 4


def prompts(
    script: contenders.Script, training: Sequence[dataset.Example], spec: run.Run, encoder: tokens.Encoder
) -> tuple[instructions.Variant, ...]:
    """The prompts that Optimized may have."""
    form = instructions.of(training, spec.evaluation.labels)
    if form is None:
        return ()
    there = {job.Contender.FEW_SHOT: bool(script.shots), job.Contender.RETRIEVED: script.index is not None}
    fits = functools.partial(fits_as_instruction, script.room, encoder)
    return instructions.variants(form, [which for which, shown in there.items() if shown], fits)


def with_passages(script: contenders.Script, spec: run.Run, encoder: tokens.Encoder, room: int) -> contenders.Script:
    """The script with the documents of intent.retrieval, where RAG takes part. Raises Failure when they cannot be read."""
    rules = spec.intent.retrieval
    if rules is None or script.taught or job.Contender.RAG not in spec.evaluation.baselines:
        return script
    found = list(documents.passages(storage.of_data(spec), rules.uris))
    if not found:
        log.warning("there is no contender RAG: the documents of intent.retrieval have no text", uris=rules.uris)
    if len(found) > retrieval.INDEXED:
        log.warning("not all passages are indexed", passages=len(found), indexed=retrieval.INDEXED)
    found = contenders.choose(found, retrieval.INDEXED, spec.training.seed)

    def size(passage: str) -> int:
        return len(encoder.tokenizer.encode(passage, add_special_tokens=False)) + 1

    index = retrieval.Index(found, str, size) if found else None
    return dataclasses.replace(script, passages=index, looked_up=rules.passages, room=room)


def fetch(spec: run.Run, store: storage.Storage, names: set[str]) -> folders.Manifest:
    """Files of the frozen split into the working folder; the whole split's manifest. Raises Failure when preflight did not write
    it."""
    try:
        return folders.load(store, spec.examples, machine.work() / "data", only=names)
    except errors.NotFound:
        raise errors.Failure(
            reasons.Reason.DATASET_NOT_FOUND,
            f"{spec.examples} has no frozen split; run the preflight stage of this revision first",
        ) from None


def can_answer(runner: ModelRunner, which: job.Contender, examples: list[dataset.Example], left_out: list[str]) -> bool:
    """Whether the questions can be put to a contender; one for which they cannot is named in `left_out`, with the reason."""
    problem = obstacle(runner, which, examples)
    if problem:
        left_out.append(f"{which}: {problem}")
        log.warning("a contender is skipped", contender=which, problem=problem)
    return problem is None


def obstacle(runner: ModelRunner, which: job.Contender, examples: list[dataset.Example]) -> str | None:
    """Why the questions cannot be put to this contender; None where they can."""
    if which is job.Contender.OPTIMIZED and any(example.tools for example in examples):
        return "an instruction on the form of the answer does not suit an answer that may be a call"
    if which in contenders.SHOWN and any(example.tools for example in examples):
        return (
            "examples before a question would call tools without a result, or tools that the question does not have; put "
            "examples of calls into intent.prompt.system"
        )
    try:
        for example in examples[:1]:
            runner.encoder.answered(runner.script.ask(example, which))
    except dataset.Wrong as wrong:
        return str(wrong)
    return refusal(runner, examples) if which is job.Contender.STRUCTURED else None


def refusal(runner: ModelRunner, examples: list[dataset.Example]) -> str | None:
    """Why answers cannot be held to evaluation.outputSchema while they are written; None where they can."""
    if any(example.tools for example in examples):
        return "an answer that is held to evaluation.outputSchema calls no tools, and examples have some"
    asked = next((example for example in examples if example.answer is not None), None)
    if asked is None:
        return None
    problem = runner.engine.refusal(runner.encoder.prompt(asked), runner.ending(job.Contender.STRUCTURED))
    return problem and f"answers cannot be held to evaluation.outputSchema: {problem}"


def ask(
    runner: ModelRunner,
    which: job.Contender,
    examples: list[dataset.Example],
    done: Callable[[float], None] = lambda share: None,
    written: Sequence[dataset.Example] | None = None,
) -> Answers:
    """The contender's answer to each example, and its loss on the expected answer. `done` is called with the share that is
    done. written: the examples as they are put to it; None: as the script does."""
    if any(example.tools for example in examples) and runner.encoder.tool_support.dialect is None:
        log.warning("tool calls are not measured: the model writes them in no known dialect", contender=which)
    asked = list(written or [runner.script.ask(example, which) for example in examples])
    places = [place for place, example in enumerate(examples) if example.answer is not None]
    prompts = [runner.encoder.prompt(asked[place]) for place in places]
    started = time.monotonic()
    found = runner.engine.greedy(
        which, prompts, runner.ending(which), lambda count: done(0.9 * count / max(1, len(prompts)))
    )
    begun = time.monotonic()
    losses = losses_of(runner, which, asked)
    read = sum(map(len, prompts)) / max(time.monotonic() - begun, 1e-9)
    done(1.0)
    texts: list[tuple[str | None, toolcalls.CallScore | None, bool]] = [(None, None, True)] * len(examples)
    for place, ids in zip(places, found, strict=True):
        stopped = bool(ids) and ids[-1] in runner.encoder.stops
        texts[place] = *decode_answer(runner.encoder, examples[place], ids), stopped
    log.info("answered", contender=which, answers=len(found), tokens=sum(map(len, found)))
    answers = [
        metrics.Answer(text, example.answer, total, count, stopped, called, example.group)
        for (text, called, stopped), example, (total, count) in zip(texts, examples, losses, strict=True)
    ]
    return Answers(answers, found, prompts, read, time.monotonic() - started, answering=begun - started)


def decode_answer(
    encoder: tokens.Encoder, example: dataset.Example, ids: list[int]
) -> tuple[str, toolcalls.CallScore | None]:
    """An answer as text, its calls as `Example.answer` writes them, and the score of the calls.

    None: the example has no tools, or the model writes calls in no known dialect.
    """
    plain = without_reasoning(encoder.tokenizer.decode(ids, skip_special_tokens=True), example)
    dialect = encoder.tool_support.dialect if example.tools is not None else None
    if example.tools is None or dialect is None:
        return plain, None
    # Some families mark calls by special tokens.
    trimmed = ids[:-1] if ids and ids[-1] in encoder.stops else ids
    raw: str = encoder.tokenizer.decode(trimmed, skip_special_tokens=False)
    reply = dialects.READERS[dialect](raw)
    judged = toolcalls.score(reply, example.messages[-1].calls, example.tools)
    if reply.broken:
        return raw, judged
    return toolcalls.written(reply.content, reply.calls) if reply.calls else plain, judged


_REASONING = re.compile(r"\s*<think>.*?</think>\s*", re.DOTALL)


def without_reasoning(text: str, example: dataset.Example) -> str:
    """An answer without the reasoning before it, where the data have reasoning beside the answer and not in it."""
    found = _REASONING.match(text) if example.messages and example.messages[-1].reasoning else None
    return text if found is None else text[found.end() :]


def losses_of(runner: ModelRunner, which: job.Contender, asked: list[dataset.Example]) -> list[tuple[float, int]]:
    """A contender's loss of each example's last answer, summed over its tokens, and how many these are."""
    encoded = [runner.encoder.answered(example) for example in asked]
    scored = runner.engine.likelihoods(which, encoded)
    return [(-total, one.trainable) for (total, _), one in zip(scored, encoded, strict=True)]
