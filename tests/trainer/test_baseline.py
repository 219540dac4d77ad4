"""Contenders, the baseline before training, and what only an evaluation measures: on a tiny model, really asked."""

import json
import pathlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.trainer import tiny

from finetune_api import evaluation, job, reasons, results, run, status
from finetune_trainer.data import dataset
from finetune_trainer.engine import lora, model
from finetune_trainer.evaluation import answers, consistency, contenders, doubt, evidence, gates, in_process, metrics
from finetune_trainer.process import errors, machine
from finetune_trainer.stages import baseline, evaluate, preflight, train
from finetune_trainer.store import folders, storage

World = Callable[..., run.Run]
BASE, PROMPT, FEW = job.Contender.BASE, job.Contender.PROMPT, job.Contender.FEW_SHOT
RETRIEVED, MANY = job.Contender.RETRIEVED, job.Contender.MANY_SHOT
CHAT = dataset.Example(
    "f:1",
    (
        dataset.Message("system", "old"),
        dataset.Message("user", "question"),
        dataset.Message("assistant", "answer"),
    ),
)
SHOT = dataset.Example("f:2", (dataset.Message("user", "like this"), dataset.Message("assistant", "so")))


def turns(example: dataset.Example) -> list[tuple[str, str]]:
    return [(turn.role, turn.content) for turn in example.messages]


def test_base_is_asked_as_the_examples_are_written() -> None:
    script = contenders.Script(job.Prompt(system="new"), (SHOT,))
    assert script.ask(CHAT, BASE) == script.ask(CHAT, job.Contender.TUNED) == CHAT


def test_todays_prompt_replaces_the_system_prompt_of_the_examples() -> None:
    script = contenders.Script(job.Prompt(system="new"), (SHOT,))
    assert turns(script.ask(CHAT, PROMPT)) == [("system", "new"), ("user", "question"), ("assistant", "answer")]


def test_few_examples_come_between_system_prompt_and_question() -> None:
    asked = contenders.Script(job.Prompt(), (SHOT,)).ask(CHAT, FEW)
    assert turns(asked) == [
        ("system", "old"),
        ("user", "like this"),
        ("assistant", "so"),
        ("user", "question"),
        ("assistant", "answer"),
    ]
    assert [turn.learned for turn in asked.messages if turn.role == "assistant"] == [False, True]


def test_a_template_without_a_system_turn_gets_its_text_before_the_first_question() -> None:
    script = contenders.Script(job.Prompt(system="new"), (SHOT,), inline=True)
    assert turns(script.ask(CHAT, PROMPT))[0] == ("user", "new\n\nquestion")
    assert [content for _, content in turns(script.ask(CHAT, FEW))] == ["new\n\nlike this", "so", "question", "answer"]


def test_different_answers_are_shown_first(base: pathlib.Path, world: World) -> None:
    spec = world()
    encoder = answers.tokens.load(base, spec.training)
    rows = [dataset.from_record({"source": str(n), **row}) for n, row in enumerate(tiny.examples(40))]
    chosen = contenders.few(rows, 2, None, 3, room=1000, encoder=encoder)
    assert len({example.answer for example in chosen}) == 2
    assert chosen == contenders.few(rows, 2, None, 3, room=1000, encoder=encoder), "by the seed"
    assert contenders.few(rows, 2, None, 3, room=10, encoder=encoder) == (), "no room"
    assert len(contenders.few(rows, 9, None, 3, room=1000, encoder=encoder)) == 9


def test_examples_with_tools_are_not_shown_and_get_none_shown(base: pathlib.Path, world: World) -> None:
    encoder = answers.tokens.load(base, world().training)
    plain = [dataset.from_record({"source": str(n), **row}) for n, row in enumerate(tiny.examples(9))]
    calling = [dataset.example(row, job.Format.CHAT, str(n)) for n, row in enumerate(tiny.calling(9))]
    chosen = contenders.few([*calling, *plain], 18, None, 3, room=9000, encoder=encoder)
    assert {one.source for one in chosen} == {one.source for one in plain}
    assert all(one.tools is None for one in chosen)
    script = contenders.Script(job.Prompt(), chosen)
    ring = answers.ModelRunner(None, encoder, script, job.Evaluation())  # type: ignore[arg-type]
    assert answers.obstacle(ring, FEW, plain) is None
    assert "without a result" in (answers.obstacle(ring, FEW, [*plain, *calling]) or "")


def prepared(world: World, minimum: float, **changes: Any) -> run.Run:
    gates = [{"metric": "JsonValid", "minimum": minimum, "confidence": 0.5}]
    evaluation = {"generation": {"maxNewTokens": 8}, "gates": gates} | changes.pop("evaluation", {})
    spec = world(tiny.examples(120), dataset={"validation": {"fraction": 0.4}}, evaluation=evaluation, **changes)
    preflight.preflight(spec)
    return spec


def test_a_prompt_that_does_not_pass_leaves_training_something_to_win(world: World) -> None:
    spec = prepared(world, 0.9)
    answer = baseline.baseline(spec, 1)
    assert answer.reason is None
    assert answer.baseline is not None
    assert answer.baseline.sufficient is None
    assert answer.baseline.examples == 32, "after the first look no contender can pass any more"
    assert {value.contender for value in answer.baseline.metrics} == {BASE, FEW, RETRIEVED, MANY}
    assert "no prompt meets the gates' bounds" in answer.message


def test_a_gate_against_the_prompt_is_left_to_training(world: World) -> None:
    gates = [
        {"metric": "JsonValid", "minimum": 0.0},
        {"metric": "ExactMatch", "over": "FewShot", "improvement": 0.2},
    ]
    answer = baseline.baseline(prepared(world, 0.0, evaluation={"gates": gates}), 1)
    assert answer.baseline is not None
    assert answer.baseline.sufficient is None
    assert "must still show: ExactMatch better than FewShot by at least 0.2" in answer.message


@pytest.mark.parametrize(
    "metric, hits, improvement, left",
    [
        ("ExactMatch", 97, 0.05, False),
        ("ExactMatch", 95, 0.05, True),
        ("ExactMatch", 100, None, False),
        ("ExactMatch", 99, None, True),
        ("InvalidLabels", 2, 0.05, False),
        ("InvalidLabels", 10, 0.05, True),
        ("InvalidLabels", 0, None, False),
    ],
)
def test_there_is_room_up_to_the_end_of_the_scale(
    metric: str, hits: int, improvement: float | None, left: bool
) -> None:
    gate = job.Gate.model_validate({"metric": metric, "over": "FewShot", "improvement": improvement})
    column = evidence.mean([1.0] * hits + [0.0] * (100 - hits), share=True)
    assert baseline.can_be_beaten(gate, {FEW: {gate.metric: column}}) is left
    assert baseline.can_be_beaten(gate, {}), "a contender that takes no part"


def test_a_prompt_that_passes_is_reported_and_ends_the_job_only_where_that_is_wanted(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = prepared(world, 0.0)  # anything passes
    answer = baseline.baseline(spec, 1)
    assert answer.baseline is not None
    assert (answer.baseline.sufficient, answer.reason) == (BASE, None)
    monkeypatch.setattr(answers, "load", None)  # a second attempt loads nothing
    strict = spec.model_copy(update={"intent": job.Intent(advice=job.Advice.ENFORCE)})
    assert baseline.baseline(strict, 2).reason is reasons.Reason.PROMPT_ALREADY_SUFFICIENT
    cheaper = job.Intent(advice=job.Advice.ENFORCE, goals=[job.Goal.TOKEN_REDUCTION])
    wanting = spec.model_copy(update={"intent": cheaper})
    assert baseline.baseline(wanting, 3).reason is None, "fewer tokens are still to be won"


def test_looks_share_the_doubt() -> None:
    gate = job.Gate(metric=job.Metric.EXACT_MATCH, minimum=0.5, over=BASE, improvement=0.1)
    shared = doubt.among([BASE, FEW, RETRIEVED])
    strict = shared.gate(gate, FEW, 40)
    assert strict.confidence == pytest.approx(1 - 0.05 / 6), "three contenders, two looks"
    assert shared.gate(gate, RETRIEVED, 40).confidence == pytest.approx(1 - 0.05 / 18), "a search pays for itself"
    assert (strict.over, strict.improvement) == (None, None)


@pytest.mark.parametrize("minimum, needed", [(0.8, 23), (0.9, 55), (0.95, 121)])
def test_it_is_known_how_many_right_answers_make_a_prompt_sure(minimum: float, needed: int) -> None:
    gate = job.Gate(metric=job.Metric.EXACT_MATCH, minimum=minimum)
    shared = doubt.among([*evaluation.BASELINES], 9)
    assert shared.needed(gate, FEW, 0, 1.0) == shared.needed(gate, FEW, 0) == needed

    def passes(examples: int) -> bool:
        values = {FEW: {gate.metric: evidence.mean([1.0] * examples, share=True)}}
        return gates.check([shared.gate(gate, FEW, examples)], values, FEW)[0].passed

    assert passes(needed)
    assert not passes(needed - 1)
    assert shared.needed(gate, FEW, 0, minimum) is None, "a prompt at the bound is never sure"


def test_a_gate_with_two_bounds_needs_answers_on_both_sides() -> None:
    shared = doubt.among([BASE])
    gate = job.Gate(metric=job.Metric.JSON_VALID, minimum=0.5, maximum=0.8)

    def passes(examples: int) -> bool:
        columns = [evidence.mean([1.0] * hits + [0.0] * (examples - hits), share=True) for hits in range(examples + 1)]
        strict = shared.gate(gate, BASE, examples)
        return any(gates.check([strict], {BASE: {gate.metric: one}}, BASE)[0].passed for one in columns)

    needed = shared.needed(gate, BASE, 0)
    assert needed is not None
    assert (passes(needed), any(passes(fewer) for fewer in range(1, needed))) == (True, False)
    low, none = gate.model_copy(update={"minimum": 0.0}), gate.model_copy(update={"minimum": None})
    assert shared.needed(low, BASE, 0) == shared.needed(none, BASE, 0) == shared.needed(low, BASE, 0, 0.0)
    high = gate.model_copy(update={"maximum": 1.0})
    assert shared.needed(high, BASE, 0, 1.0) == 5, "a maximum of 1 needs no evidence"


def judged(
    hits: dict[job.Contender, int],
    examples: int,
    world: World,
    *,
    available: int = 0,
    planned: int = 0,
    unmeasured: int = 0,
    **changes: Any,
) -> status.Baseline:
    rules = {"gates": [{"metric": "ExactMatch", "minimum": 0.8}], **changes}
    asked = {
        which: answers.Answers(
            [
                metrics.Answer("a" if n < right else "b", "a" if n < examples else None, 1, 1)
                for n in range(examples + unmeasured)
            ],
            [],
            [],
        )
        for which, right in hits.items()
    }
    rounds = baseline.Rounds(
        [CHAT] * (planned or examples), asked=asked, shared=doubt.among([*evaluation.BASELINES], 9)
    )
    return baseline.summary(world(evaluation=rules), rounds, None, available or examples)


def test_a_prompt_that_may_be_enough_is_undecided_and_the_examples_that_it_takes_are_named(world: World) -> None:
    found = judged({BASE: 2, FEW: 16, RETRIEVED: 15}, 16, world)
    assert (found.sufficient, found.undecided) == (None, [FEW, RETRIEVED])
    assert found.message == (
        "undecided: as measured the base model meets the gates' bounds with a few examples before the question, but 16 "
        "validation examples are too few to be sure: it takes about 23 (dataset.validation)"
    )
    assert "(evaluation.maximumExamples)" in judged({FEW: 16}, 16, world, available=40, maximumExamples=16).message
    assert "(evaluation.baselineBudget)" in judged({FEW: 16}, 16, world, available=40).message
    assert "(dataset.validation)" in judged({FEW: 16}, 16, world, available=20, unmeasured=4).message, "all were asked"
    more_looks = judged({FEW: 23}, 23, world, available=200, planned=200).message
    assert more_looks.endswith("it takes about 29 (evaluation.baselineBudget)"), "0.8 ** 29 is below 0.05 / 8 / 4"
    assert "it takes more (" in judged({FEW: 20}, 25, world).message
    assert "no prompt meets" in judged({FEW: 12}, 16, world).message
    gates = [{"metric": "ExactMatch", "minimum": 0.8}, {"metric": "JsonValid", "over": "FewShot"}]
    more = judged({FEW: 16}, 16, world, gates=gates)
    assert more.undecided == [], "it is not enough, however many examples there were"
    assert "too few to be sure" in more.message
    assert more.message.endswith("; training must still show: JsonValid better than FewShot")


def test_only_bounds_that_a_prompt_can_meet_decide() -> None:
    rules = job.Evaluation.model_validate(
        {
            "consistency": {},
            "gates": [
                {"metric": "ExactMatch", "minimum": 0.8},
                {"metric": "ExactMatch", "over": "Base"},
                {"metric": "Forgetting", "maximum": 0.1},
                {"metric": "Consistency", "minimum": 0.5},
            ],
        }
    )
    assert [gate.minimum for gate in rules.absolute] == [0.8]
    assert rules.decided_before_training
    lower = job.Evaluation.model_validate(
        {"gates": [{"metric": "Loss", "maximum": 1}, {"metric": "Loss", "over": "Base"}]}
    )
    assert not lower.decided_before_training, "a loss can always be lower"


def test_a_win_before_a_judge_is_for_training_to_show() -> None:
    gates = [{"metric": "ExactMatch", "minimum": 0.8}, {"metric": "JudgeWinRate", "over": "Base", "minimum": 0.6}]
    rules = job.Evaluation.model_validate({"judge": {"endpoint": "http://judge/v1", "model": "wise"}, "gates": gates})
    assert [gate.metric for gate in rules.absolute] == [job.Metric.EXACT_MATCH]
    assert not rules.decided_before_training
    serving_gate = job.Gate(metric=job.Metric.JUDGE_WIN_RATE, over=job.Contender.SERVING)
    rules = rules.model_copy(update={"gates": [rules.gates[0], serving_gate]})
    assert rules.decided_before_training, "what serves was tuned itself"


def test_without_preflight_there_is_nothing_to_ask(world: World) -> None:
    with pytest.raises(errors.Failure, match="run the preflight stage"):
        baseline.baseline(world(), 1)


def test_agreement_is_the_share_of_equal_pairs() -> None:
    assert consistency.agreement(["Yes.", "yes", "no"]) == pytest.approx(1 / 3)


def test_losses_match_transformers_however_long_the_shared_prefixes_are(base: pathlib.Path, world: World) -> None:
    """Own passes with shared beginnings against padded rows, of the base and of an adapted model, one of them long."""
    spec = world(training={"precision": "Float32"})
    plain = model.load(base, job.Precision.FLOAT32, torch.device("cpu"))
    encoder = answers.tokens.load(base, spec.training)
    rows = [dataset.from_record({"source": str(n), **row}) for n, row in enumerate(tiny.examples(9))]
    rows.append(dataset.from_record({"source": "t", "text": "Thank you for 678, it is great!"}))
    script = contenders.Script(job.Prompt(), tuple(rows[:2]))
    ours = in_process.InProcess(plain, model.head(plain), torch.device("cpu"), spec, encoder.tokenizer)
    asked = answers.ModelRunner(ours, encoder, script, spec.evaluation)
    encoded = [encoder.answered(script.ask(example, FEW)) for example in rows]
    for adapted in (False, True):
        which = job.Contender.TUNED if adapted else BASE
        if adapted:
            ours.model = lora.add(plain, spec.training.lora, "tiny-base").eval()
            for weight in lora.parameters(ours.model).values():
                torch.nn.init.normal_(weight, std=0.05)
        found = answers.losses_of(asked, which, [script.ask(example, FEW) for example in rows])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(in_process.decoding, "of", lambda *_: None)
            wanted = [-total for total, _ in ours.likelihoods(which, encoded)]
        assert [total for total, _ in found] == pytest.approx(wanted, rel=1e-4)
        assert [count for _, count in found] == [one.trainable for one in encoded]
    tuned = answers.losses_of(asked, job.Contender.TUNED, rows)
    assert answers.losses_of(asked, BASE, rows) != tuned, "the adapter counts where it is on"


@pytest.mark.slow
def test_an_evaluation_with_everything(world: World, tmp_path: pathlib.Path) -> None:
    """A prompt of today, documents, an own probe, consistency, a schema, labels, and an earlier adapter that serves."""
    (tmp_path / "handbook.md").write_text("Refunds are paid within a week. Praise goes to the team.")
    (tmp_path / "general.jsonl").write_text(tiny.jsonl([{"prompt": "the quick brown", "completion": "fox"}] * 4))
    schema = {"type": "object", "required": ["intent", "reply"]}
    refund, praise = ('{"intent": "refund", "reply": true}', '{"intent": "praise", "reply": false}')
    rules = {
        "baselines": list(evaluation.BASELINES),
        "generation": {"maxNewTokens": 24},
        "outputSchema": schema,
        "labels": [refund, praise],
        "consistency": {"samples": 3, "maximumExamples": 4},
        "forgetting": {"uris": [f"file://{tmp_path}/general.jsonl"]},
        "gates": [{"metric": "JsonSchema", "over": "Prompt"}, {"metric": "Loss", "over": "Serving"}],
    }
    spec = world(
        tiny.examples(80),
        dataset={"test": {"fraction": 0.2}},
        training={"maxSteps": 60},
        evaluation=rules,
        intent={
            "prompt": {"system": "Answer with JSON only.", "fewShot": 2},
            "retrieval": {"uris": [f"file://{tmp_path}/handbook.md"]},
        },
    )
    preflight.preflight(spec)
    train.train(spec, 1, 1.0)
    other = spec.model_copy(update={"revision": "r2", "training": spec.training.model_copy(update={"max_steps": 4})})
    preflight.preflight(other)
    train.train(other, 1, 1.0)
    store = storage.of(spec.storage)
    manifest = folders.manifest(store, spec.layout.adapter)
    assert manifest is not None
    answer = evaluate.evaluate(other, None, None, 1, evaluate.ServingAdapter(spec.layout.adapter, manifest.sha256))
    assert answer.evaluation is not None
    folder = pathlib.Path(other.layout.evaluation("e1").removeprefix("file://"))
    scores = results.Results.model_validate_json((folder / "results.json").read_text())
    values = {(one.metric, one.contender): one.value for one in scores.values}
    assert set(job.Contender) == {contender for _, contender in values}
    assert values[job.Metric.LOSS, job.Contender.SERVING] < values[job.Metric.LOSS, job.Contender.TUNED]
    seen: dict[str, status.GateResult] = {gate.requirement: gate for gate in answer.evaluation.gates}
    assert not seen["Loss not worse than Serving"].passed
    assert {m for m, _ in values} >= {
        job.Metric.JSON_SCHEMA,
        job.Metric.ACCURACY,
        job.Metric.MACRO_F1,
        job.Metric.FORGETTING,
        job.Metric.CONSISTENCY,
    }
    assert (job.Metric.GENERAL_ACCURACY, BASE) not in values, "questions of one's own have no wrong answers"
    asked = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert set(asked[0]["answers"]) == {str(which) for which in job.Contender}
    assert scores.optimized is not None
    assert len(scores.optimized.tried) == 9, "three instructions without, with few and with retrieved examples"
    assert f"- {refund}" in scores.optimized.tried[0].instruction


def test_an_adapter_of_another_model_is_not_compared_with(world: World, tmp_path: pathlib.Path) -> None:
    spec = world(training={"maxSteps": 2})
    preflight.preflight(spec)
    train.train(spec, 1, 1.0)
    answer = evaluate.evaluate(spec, None, None, 1, evaluate.ServingAdapter(f"file://{tmp_path}/nothing", "0" * 64))
    assert answer.evaluation is not None
    assert job.Contender.SERVING not in {value.contender for value in answer.evaluation.metrics}


def test_a_schema_that_cannot_be_used_is_refused_before_anything_is_taken(world: World) -> None:
    with pytest.raises(errors.Failure, match=r"outputSchema is not a usable JSON Schema.*strin") as caught:
        preflight.preflight(world(evaluation={"outputSchema": {"type": "strin"}}))
    assert caught.value.reason is reasons.Reason.INVALID_SPEC


def test_losses_of_half_as_much_at_once_are_the_same(
    base: pathlib.Path, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = world(training={"precision": "Float32"})
    plain = model.load(base, job.Precision.FLOAT32, torch.device("cpu"))
    encoder = answers.tokens.load(base, spec.training)
    rows = [dataset.from_record({"source": str(n), **row}) for n, row in enumerate(tiny.examples(24))]
    script = contenders.Script(job.Prompt(), ())
    ours = in_process.InProcess(plain, model.head(plain), torch.device("cpu"), spec, encoder.tokenizer)
    runner = answers.ModelRunner(ours, encoder, script, spec.evaluation)
    wanted = answers.losses_of(runner, BASE, rows)
    sizes: list[int] = []
    forward = in_process.decoder.Decoder.forward

    def noted(self: in_process.decoder.Decoder, batch: Any, **more: Any) -> Any:
        sizes.append(len(batch.ids))
        return forward(self, batch, **more)

    monkeypatch.setattr(in_process, "TOKENS", {"cpu": 400})
    monkeypatch.setattr(in_process.decoder.Decoder, "forward", noted)
    most = []
    for ours.scale in (1.0, 0.5):
        sizes.clear()
        assert [total for total, _ in answers.losses_of(runner, BASE, rows)] == pytest.approx(
            [t for t, _ in wanted], rel=1e-4
        )
        most.append(max(sizes))
    assert most[1] < 0.75 * most[0]


# -- a base that was trained in 4 bits --


def pod_with(memory: int, folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "memory.max").write_text(str(memory))
    monkeypatch.setattr(machine, "CGROUP", folder)


@pytest.mark.parametrize(
    ("method", "available", "expected"), [("QLoRA", 10**5, True), ("QLoRA", 10**9, False), ("LoRA", 10**5, False)]
)
def test_the_base_of_qlora_is_asked_in_4_bits_where_it_does_not_fit_otherwise(
    base: pathlib.Path,
    world: World,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    available: int,
    expected: bool,
) -> None:
    """A 70B that was trained with QLoRA ran out of memory in its evaluation, after the GPU hours were spent."""
    spec = world(training={"method": method})
    pod_with(available, tmp_path, monkeypatch)
    assert in_process.quantised(spec, base, torch.device("cpu")) is expected


def test_a_base_in_4_bits_answers_with_and_without_its_adapter(
    world: World, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = world(training={"method": "QLoRA"}, intent={"prompt": {"system": "Sort.", "fewShot": 0}})
    preflight.preflight(spec)
    store = storage.of(spec.storage)
    answers.fetch(spec, store, {"validation.jsonl", "train.jsonl"})
    examples = list(dataset.stream(machine.work() / "data" / "validation.jsonl"))[:2]
    with monkeypatch.context() as small:
        pod_with(10**5, tmp_path, small)
        runner = answers.load(spec, store)
    ours = runner.engine
    assert isinstance(ours, in_process.InProcess)
    assert any(hasattr(weight, "quant_state") for weight in ours.model.parameters())
    plain = answers.ask(runner, BASE, examples)
    ours.model = lora.add(ours.model, spec.training.lora, "base")
    tuned = answers.ask(runner, job.Contender.TUNED, examples)
    assert tuned.generated == plain.generated, "a fresh adapter changes nothing"
    assert len(plain.generated) == 2
