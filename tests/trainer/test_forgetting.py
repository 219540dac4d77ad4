"""The general questions: what is in their file, which of them are asked, and what is measured by them."""

import collections
import json
from typing import Any

import pytest

from finetune_api import job
from finetune_trainer.evaluation import evidence, forgetting

BASE, TUNED = job.Contender.BASE, job.Contender.TUNED


def lines() -> list[dict[str, Any]]:
    return [json.loads(line) for line in forgetting.BUILT_IN.read_text().splitlines()]


INSTRUCTIONS = [line for line in lines() if line["kind"] == forgetting.INSTRUCTIONS]


def test_there_are_hundreds_of_questions_of_every_kind_and_level() -> None:
    counted = collections.Counter((line["kind"], line["level"]) for line in lines())
    assert sum(counted.values()) >= 300
    assert {kind for kind, _ in counted} == {
        "arithmetic",
        "instructions",
        "knowledge",
        "language",
        "reading",
        "reasoning",
    }
    assert {level for _, level in counted} == {1, 2, 3}


def test_no_question_and_no_answer_to_one_is_there_twice() -> None:
    found = lines()
    assert len({line["question"].lower() for line in found}) == len(found)
    for line in found:
        assert line["right"] not in line["wrong"]
        assert len(set(line["wrong"])) == len(line["wrong"])
        assert len(line["wrong"]) == 3 or line["kind"] == forgetting.INSTRUCTIONS


@pytest.mark.parametrize("line", INSTRUCTIONS, ids=[line["question"][:40] for line in INSTRUCTIONS])
def test_the_reference_answer_passes_its_check_and_wrong_ones_do_not(line: dict[str, Any]) -> None:
    accepts = forgetting.checker(line)
    assert accepts(line["right"])
    assert accepts(f"  {line['right']}\n")
    assert line["wrong"]
    assert not any(map(accepts, [*line["wrong"], ""]))


def test_a_few_questions_have_every_kind_and_level_in_proportion() -> None:
    whole = list(enumerate(lines(), start=1))
    few = forgetting.stratified(whole, 64, 42)
    assert len(few) == len({number for number, _ in few}) == 64
    assert few == forgetting.stratified(whole, 64, 42)
    assert few != forgetting.stratified(whole, 64, 43)
    strata = collections.Counter((line["kind"], line["level"]) for _, line in whole)
    chosen = collections.Counter((line["kind"], line["level"]) for _, line in few)
    for stratum, count in strata.items():
        assert abs(chosen[stratum] - 64 * count / len(whole)) <= 1
    built = forgetting.built_in(64, 42)
    assert built.questions + len(built.instructions) == 64
    assert len(built.prompts) == 64


def test_all_questions_are_asked_without_a_maximum() -> None:
    built = forgetting.built_in()
    assert built.questions + len(built.instructions) == len(lines())
    assert len(built.examples) == 4 * built.questions


def test_forgetting_is_the_rise_of_the_loss_on_right_answers() -> None:
    questions = forgetting.Questions(forgetting.built_in().examples[:8], 4)
    before = [(1.0, 1), (2.0, 1), (2.0, 1), (2.0, 1)] * 2
    after = [(1.5, 1), (1.0, 1), (2.0, 1), (2.0, 1), (1.0, 1), (2.0, 1), (2.0, 1), (2.0, 1)]
    found = forgetting.measure(
        questions, forgetting.Asked(before, [True, True]), forgetting.Asked(after, [True, False])
    )
    assert found[TUNED][job.Metric.FORGETTING].value == pytest.approx(0.25)
    assert found[BASE][job.Metric.GENERAL_ACCURACY].value == 1.0
    assert found[TUNED][job.Metric.GENERAL_ACCURACY].value == 0.5
    assert found[BASE][job.Metric.INSTRUCTION_FOLLOWING].value == 1.0
    assert found[TUNED][job.Metric.INSTRUCTION_FOLLOWING].value == 0.5


def test_questions_of_ones_own_have_neither_wrong_answers_nor_instructions() -> None:
    questions = forgetting.Questions(forgetting.built_in().examples[:2], 1)
    found = forgetting.measure(questions, forgetting.Asked([(1.0, 1)] * 2, []), forgetting.Asked([(2.0, 1)] * 2, []))
    assert list(found[TUNED]) == [job.Metric.FORGETTING]
    assert found[TUNED][job.Metric.FORGETTING].value == pytest.approx(1.0)


def test_what_can_be_detected_shrinks_with_the_questions() -> None:
    def pair(examples: int, differing: int) -> float:
        one = [1.0] * examples
        return evidence.detectable(
            evidence.mean(one, share=True), evidence.mean([0.0] * differing + one[differing:], share=True)
        )

    assert pair(100, 0) == 0.05, "five losses of one direction are the fewest that McNemar's test shows"
    assert pair(100, 16) == pytest.approx(2.487 * 4 / 100)
    assert pair(400, 64) == pytest.approx(pair(100, 16) / 2)
    assert pair(4, 2) == 1.0


def test_a_loss_of_the_detectable_size_is_seen_in_four_of_five_evaluations() -> None:
    """By simulation: questions that differ, and as many more losses than wins as the formula says."""
    import numpy as np

    examples, share = 265, 0.15
    difference = 2.487 * (share / examples) ** 0.5
    draws = np.random.default_rng(1).multinomial(
        examples, [(share + difference) / 2, (share - difference) / 2, 1 - share], size=2000
    )
    seen = np.mean([evidence.mcnemar(losses, wins) <= 0.05 for losses, wins, _ in draws])
    assert 0.75 < seen < 0.85
