"""Evaluations on the same test examples are counted, wherever these stand in their files, and what they mean is true."""

import dataclasses
import pathlib

import numpy as np
import pytest
from tests.report import example as reports
from tests.trainer import tiny

from finetune_api import job, results, run
from finetune_trainer.data import dataset
from finetune_trainer.evaluation import evidence, tries
from finetune_trainer.report import judgement
from finetune_trainer.store import storage


def spec(folder: pathlib.Path, revision: str = "r1", evaluation: str = "e1") -> run.Run:
    document = tiny.run_document("file:///base", ["file:///train.jsonl"], f"file://{folder}")
    made = run.Run.model_validate(document)
    return made.model_copy(update={"revision": revision, "evaluation_hash": evaluation})


def examples(count: int = 3, first: int = 1) -> list[dataset.Example]:
    return [
        dataset.example({"prompt": f"{n}?", "completion": "a"}, job.Format.PROMPT_COMPLETION, f"a.jsonl:{n + first}")
        for n in range(count)
    ]


def test_test_examples_that_were_moved_are_the_same_and_others_are_not() -> None:
    same = tries.fingerprint(examples())
    assert tries.fingerprint(reversed(examples(first=40))) == same
    assert tries.fingerprint(examples(4)) != same
    other = dataclasses.replace(examples()[0], messages=examples(4)[3].messages)
    assert tries.fingerprint([other, *examples()[1:]]) != same


def test_each_evaluation_counts_once_over_all_revisions_and_gates(tmp_path: pathlib.Path) -> None:
    store = storage.Storage()
    one = spec(tmp_path)
    assert tries.record(one, store, "t", "a") == 1
    assert tries.record(one, store, "t", "a") == 1, "a repeated attempt"
    assert tries.record(spec(tmp_path, evaluation="e2"), store, "t", "a") == 2, "other gates"
    assert tries.record(spec(tmp_path, revision="r2"), store, "t", "b") == 3
    assert tries.record(spec(tmp_path, revision="r2"), store, "other", "b") == 1, "other test examples"


def test_a_record_that_cannot_be_read_starts_again_and_one_without_end_does_not_grow(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, one = storage.Storage(), spec(tmp_path)
    for broken in (b"{", b"[]", b'{"evaluations": 3}'):
        store.write(one.layout.tries("t"), broken)
        assert tries.record(one, store, "t", "a") == 1
    monkeypatch.setattr(tries, "MOST", 3)
    assert [tries.record(one, store, "t", str(number)) for number in range(5)] == [2, 3, 3, 3, 3]


def test_the_bound_of_false_passes_is_that_of_the_strictest_promise_times_the_tries() -> None:
    gates = [job.Gate(metric="ExactMatch", minimum=0.8), job.Gate(metric="Loss", maximum=2, confidence=0.99)]
    assert tries.of(3, "t", gates).false_pass == 0.15
    assert tries.of(30, "t", gates).false_pass == 1.0
    assert tries.of(3, "t", [job.Gate(metric="Loss", maximum=2, confidence=0.5)]).false_pass is None


def test_trying_again_lets_a_model_pass_that_is_not_good_enough_and_no_more_often_than_the_bound() -> None:
    """Five models at the minimum itself, which miss it, on the same 60 questions, of which some are easier than others."""
    draw, trials, minimum = np.random.default_rng(5), 600, 0.8
    passed = []
    for _ in range(trials):
        easy = draw.beta(8, 2, 60)
        hits = (draw.random((5, 60)) < easy).sum(1)
        values = [evidence.mean([1.0] * int(n) + [0.0] * (60 - int(n)), share=True) for n in hits]
        passed.append([evidence.p_value_at_least(one, minimum) <= 0.05 for one in values])
    once, ever = np.mean(passed), np.mean(np.any(passed, axis=1))
    assert once <= 0.06
    assert once * 2 < ever <= 0.25


def test_the_report_warns_from_the_second_evaluation_on() -> None:
    def cautions(found: results.Tries | None) -> str:
        return " ".join(judgement.verdict(reports.changed(reports.everything(), tries=found)).cautions)

    assert "evaluation 7" in cautions(results.Tries(evaluations=7, test_set="t", false_pass=0.35))
    assert "35 of 100" in cautions(results.Tries(evaluations=7, test_set="t", false_pass=0.35))
    assert "flattering" in cautions(results.Tries(evaluations=7, test_set="t"))
    assert "same test examples" not in cautions(results.Tries(evaluations=1, test_set="t", false_pass=0.05))
    assert "same test examples" not in cautions(None)
