"""Which method is enough, as the baseline stage finds it: its own prompts, retrieval, rounds and verdict, asking models that are
rules. No model is loaded."""

import dataclasses
import json
import pathlib
import re
import types
from collections.abc import Sequence
from typing import Any, cast

import pytest
from tests.scenarios import methods
from tests.trainer import tiny

from finetune_api import evaluation, job, run
from finetune_trainer.data import dataset, tokens
from finetune_trainer.evaluation import answers, documents, engines, retrieval, selection
from finetune_trainer.stages import baseline

TURN = re.compile(r"<\|im_start\|>(\w+)\n(.*?)(?:<\|im_end\|>\n|$)", re.DOTALL)
POSITIONS = 16_384


class Rules:
    """An engine whose answers a rule writes."""

    kind, positions = job.EvaluationEngine.IN_PROCESS, POSITIONS

    def __init__(self, encoder: tokens.Encoder, model: methods.Model) -> None:
        self._encoder, self._model = encoder, model

    def refusal(self, prompt: list[int], ending: engines.Ending) -> str | None:
        return None

    def greedy(
        self, which: job.Contender, prompts: Sequence[list[int]], ending: engines.Ending, done: Any = None
    ) -> list[list[int]]:
        read, stop = self._encoder.tokenizer, min(ending.stops)
        texts = [self._model(TURN.findall(read.decode(ids))[:-1], ending.schema is not None) for ids in prompts]
        return [[*read.encode(text, add_special_tokens=False), stop] for text in texts]

    def likelihoods(self, which: job.Contender, encoded: Sequence[Any], done: Any = None) -> list[tuple[float, bool]]:
        return [(-1.0, False)] * len(encoded)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> tokens.Encoder:
    folder = tmp_path_factory.mktemp("tokenizer")
    tiny.make_tokenizer().save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "max_position_embeddings": POSITIONS}))
    return tokens.load(folder, job.Training(max_sequence_length=POSITIONS))


@pytest.fixture
def work(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    monkeypatch.setattr(selection, "LEAST", 1e6)  # rules answer as fast as the machine is
    monkeypatch.setenv("FINETUNE_WORK", str(tmp_path))
    (tmp_path / "data").mkdir()
    return tmp_path


def judged(task: methods.Task, encoder: tokens.Encoder, work: pathlib.Path) -> tuple[Any, baseline.Rounds]:
    """What the baseline stage says of a task, and what it asked."""
    examples = [
        {"source": f"a.jsonl:{n}", "messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]}
        for n, (q, a) in enumerate(task.pairs())
    ]
    (work / "data" / "train.jsonl").write_text(tiny.jsonl(examples[: -methods.QUESTIONS]))
    metric, minimum = task.gate
    rules = {
        "generation": {"maxNewTokens": 200},
        "gates": [{"metric": metric, "minimum": minimum}],
        "baselines": list(evaluation.BASELINES),
    }
    rules |= {"outputSchema": task.schema} if task.schema else {}
    document = tiny.run_document(
        "file:///none",
        ["file:///none/train.jsonl"],
        "file:///none/out",
        evaluation=rules,
        intent={"prompt": {"fewShot": task.few} | ({"system": task.system} if task.system else {})},
    )
    spec = run.Run.model_validate_json(json.dumps(document))
    script = answers.written(spec, encoder, task.room)
    if task.handbook is not None:
        passages = retrieval.Index(list(documents.cut(task.handbook())), str, lambda text: len(text) // 2)
        script = dataclasses.replace(script, passages=passages, room=task.room)
    runner = answers.ModelRunner(cast(Any, Rules(encoder, task.model)), encoder, script, spec.evaluation)
    rounds = baseline.Rounds([dataset.from_record(one) for one in examples[-methods.QUESTIONS :]])
    shares: list[int] = []
    reporter = cast(Any, types.SimpleNamespace(update=lambda known: shares.append(known.percent)))
    passing = baseline.run_rounds(spec, runner, rounds, reporter)
    assert sorted(shares) == shares
    assert max(shares) <= 100
    found = baseline.summary(spec, rounds, passing, len(rounds.examples), runner.script.structured)
    return found, rounds


@pytest.mark.parametrize("task", methods.TASKS, ids=str)
def test_the_method_that_is_enough_is_found(task: methods.Task, encoder: tokens.Encoder, work: pathlib.Path) -> None:
    found, rounds = judged(task, encoder, work)
    assert found.sufficient == task.enough, (
        found.message,
        {str(one): _right(given) for one, given in rounds.asked.items()},
    )
    if task.enough == "Retrieved":
        assert rounds.retrieved is not None
        assert rounds.retrieved.examples >= task.at_least
    assert rounds.limits.left_out == []


def test_what_there_is_no_time_for_is_named_and_the_others_are_asked(
    encoder: tokens.Encoder, work: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forty intents that retrieved examples would do for, and not a second for long prompts."""
    monkeypatch.setattr(selection, "LEAST", 0.0)
    monkeypatch.setattr(selection, "training_seconds", lambda pace, tokens: 0.0)
    (task,) = (one for one in methods.TASKS if one.name == "forty intents")
    more = dataclasses.replace(task, handbook=lambda: "nothing = 1", schema=methods.ORDER)
    found, rounds = judged(more, encoder, work)
    assert found.sufficient is None
    assert {job.Contender.BASE, job.Contender.FEW_SHOT, job.Contender.STRUCTURED} <= set(rounds.asked)
    assert not {job.Contender.RETRIEVED, job.Contender.MANY_SHOT} & set(rounds.asked)
    assert any(line.startswith("Retrieved with 4 examples: it would take") for line in rounds.limits.left_out)


def _right(given: answers.Answers) -> int:
    return sum(one.text == one.expected for one in given.answers)
