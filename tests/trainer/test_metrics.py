import itertools
import json
import pathlib
from typing import Any

import pytest
from rouge_score import rouge_scorer

from finetune_api import job
from finetune_trainer.data import toolcalls
from finetune_trainer.evaluation import consistency, metrics

M = job.Metric


def measure(*pairs: tuple[str, str], **rules: Any) -> dict[job.Metric, float]:
    answers = [metrics.Answer(text, expected, 1.0, 2) for text, expected in pairs]
    found = metrics.measure(answers, job.Evaluation.model_validate(rules))
    return {metric: column.value for metric, column in found.items()}


def test_metrics_of_answers() -> None:
    answers = [
        metrics.Answer(' {"a": 1}\n', '{"a": 1}', 1.0, 2),
        metrics.Answer("the quick fox", "the quick brown fox", 3.0, 2, stopped=False),
        metrics.Answer("{'a': 1}", "no", 0.0, 0),
        metrics.Answer("NaN", "x", 0.0, 0),
    ]
    found = {metric: column.value for metric, column in metrics.measure(answers, job.Evaluation()).items()}
    assert found[M.EXACT_MATCH] == 0.25
    assert found[M.JSON_VALID] == 0.25
    assert found[M.STOPPED] == 0.75
    assert found[M.LOSS] == 1.0
    assert found[M.PERPLEXITY] == pytest.approx(2.71828, rel=1e-5)
    assert metrics.rouge_l("the quick fox", "the quick brown fox") == pytest.approx(6 / 7)
    assert 0 < found[M.ROUGE_L] < 1
    assert {M.JSON_SCHEMA, M.ACCURACY} & found.keys() == set(), "nobody said what they would be measured by"


WORDS = ["the quick brown fox", "The fox, quick?", "42 foxes... and a dog", "a a b a", "b a", "!", ""]


def test_rouge_l_is_that_of_rouge_score_in_english() -> None:
    peer = rouge_scorer.RougeScorer(["rougeL"])
    for text, expected in itertools.product(WORDS, WORDS):
        assert metrics.rouge_l(text, expected) == pytest.approx(peer.score(expected, text)["rougeL"].fmeasure)


@pytest.mark.parametrize(
    "text, expected, share",
    [
        ("Быстрая лиса", "быстрая бурая лиса", 4 / 5),
        ("café noir", "un café noir", 4 / 5),
        ("cafe\u0301 noir", "caf\u00e9 noir", 1),
        ("今日は雨", "今日は晴れ", 6 / 9),
    ],
)
def test_rouge_l_reads_every_script(text: str, expected: str, share: float) -> None:
    assert metrics.rouge_l(text, expected) == pytest.approx(share)


def test_plain_text_has_only_losses() -> None:
    assert set(metrics.measure([metrics.Answer(None, None, 4.0, 2)], job.Evaluation())) == {M.LOSS, M.PERPLEXITY}
    assert metrics.measure([], job.Evaluation()) == {}


def test_an_empty_answer_is_a_wrong_answer() -> None:
    found = measure(("", "yes"), ("yes", "yes"))
    assert found[M.EXACT_MATCH] == 0.5
    assert found[M.CHRF] == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize(
    "text, expected, same",
    [("Yes!", "yes", True), ("  a   b ", "A b", True), ("yes", "no", False), ("…", "...", False), ("!", "?", False)],
)
def test_normalized_match_compares_only_words(text: str, expected: str, same: bool) -> None:
    assert metrics.normalized_match(text, expected) == same


def test_classification_counts_labels_and_answers_that_are_no_label() -> None:
    pairs = [("spam", "Spam"), ("ham", "spam"), ("HAM\n", "ham"), ("I think it is ham", "ham"), ("spam", "other")]
    found = measure(*pairs, labels=["spam", "ham", "unused"])
    assert found[M.ACCURACY] == 0.5, "the last one expects what is no label"
    assert found[M.INVALID_LABELS] == 0.25
    # spam: 1 right of 2 expected, 1 answered; ham: 1 right of 2 expected, 2 answered; a label that nobody expects is left out.
    assert found[M.MACRO_F1] == pytest.approx((2 / 3 + 1 / 2) / 2)


@pytest.mark.parametrize(
    "labels", [["C", "C#", "C++"], ["A", "A-"], ["1-2", "1.2", "12"], ["ﬁ", "fi"], ["yes", "yes!"]]
)
def test_labels_differ_by_every_character_but_case_and_outer_white_space(labels: list[str]) -> None:
    answered = measure(*((f" {one.lower()}\n", one) for one in labels), labels=labels)
    assert (answered[M.ACCURACY], answered[M.MACRO_F1], answered[M.INVALID_LABELS]) == (1.0, 1.0, 0.0)
    confused = measure(*((labels[0], one) for one in labels), labels=labels)
    assert confused[M.ACCURACY] == pytest.approx(1 / len(labels))
    assert consistency.agreement(labels, metrics.label) == 0.0


def test_the_labels_of_the_case_are_three() -> None:
    lines = (pathlib.Path(__file__).parent / "cases/21-labels.jsonl").read_text().splitlines()
    expected = [json.loads(line)["completion"] for line in lines]
    labels = ["C", "C#", "C++"]
    assert measure(*((one, one) for one in expected), labels=labels)[M.ACCURACY] == 1.0
    always = measure(*(("C", one) for one in expected), labels=labels)
    assert always[M.ACCURACY] == pytest.approx(expected.count("C") / len(expected))
    assert always[M.MACRO_F1] < 0.2


@pytest.mark.parametrize("text, expected", [("²", "2"), ("a\u200bb", "a b"), ("５", "5"), ("a\x00b", "a b")])
def test_normalization_folds_only_case_punctuation_and_white_space(text: str, expected: str) -> None:
    assert (metrics.exact_match(text, expected), metrics.normalized_match(text, expected)) == (0.0, 0.0)


@pytest.mark.parametrize(
    "text, expected, right",
    [
        ('{"a": 1.0}', '{"a": 1}', 1.0),
        ('{"a": true}', '{"a": 1}', 0.0),
        ('{"a": "1"}', '{"a": 1}', 0.0),
        ('{"a": "X"}', '{"a": "x"}', 0.0),
        ('{"a": " x"}', '{"a": "x"}', 0.0),
        ('{"a/b": 1}', '{"a": {"b": 1}}', 0.0),
        ('{"a": {"0": 1}}', '{"a": [1]}', 0.0),
        ('{"a":' * 400 + "1" + "}" * 400, '{"a": 1}', 0.0),
    ],
)
def test_fields_are_equal_by_path_and_by_the_values_of_json(text: str, expected: str, right: float) -> None:
    assert measure((text, expected))[M.FIELD_F1] == right


def test_fields_of_json_are_compared_by_place() -> None:
    expected = json.dumps({"a": 1, "b": {"c": "x"}, "d": []})
    found = measure((json.dumps({"a": 1, "b": {"c": "y"}, "d": []}), expected))
    assert found[M.FIELD_F1] == pytest.approx(2 / 3)
    assert measure(("nonsense", expected))[M.FIELD_F1] == 0.0
    assert M.FIELD_F1 not in measure(("yes", "no")), "no fields are expected"


SCHEMA = {
    "type": "object",
    "required": ["a"],
    "properties": {"a": {"$ref": "#/$defs/n"}},
    "$defs": {"n": {"type": "integer"}},
}


def test_answers_are_held_against_the_schema() -> None:
    pairs = [('{"a": 1}', "x"), ('{"a": "1"}', "x"), ("no json", "x"), ("[" * 5000, "x")]
    assert measure(*pairs, outputSchema=SCHEMA)[M.JSON_SCHEMA] == 0.25


@pytest.mark.parametrize(
    "schema, message",
    [
        ({"type": "strin"}, "'strin' is not valid"),
        ({"$ref": "http://127.0.0.1/schema.json"}, "refers to another document"),
        ({"$ref": "#/$defs/none"}, "refers to nothing"),
        ({"$ref": "#"}, "refers to itself without an end"),
    ],
)
def test_a_schema_that_cannot_be_used_is_refused(schema: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        metrics.validator(schema)


def test_repetition_is_the_share_of_word_sequences_seen_before() -> None:
    assert metrics.repetition("a b c d a b c d") == (1.0, 5.0)
    assert metrics.repetition("a b c") is None
    assert measure(("talk on and on and on and on", "x"))[M.REPETITION] == pytest.approx(2 / 5)


def test_answer_lengths_are_compared() -> None:
    assert measure(("abcd", "ab"), ("a", "ab"))[M.LENGTH_RATIO] == pytest.approx(1.25)


def test_tool_calls_are_measured_and_not_checked_against_the_answer_schema() -> None:
    right, wrong, silent = (
        toolcalls.CallScore(match=True, valid=True),
        toolcalls.CallScore(match=False, valid=False),
        toolcalls.CallScore(match=True, valid=None),
    )
    answers = [
        metrics.Answer('{"name": "a", "arguments": {}}', '{"name": "a", "arguments": {}}', 1.0, 2, called=right),
        metrics.Answer("?", '{"name": "b", "arguments": {}}', 1.0, 2, called=wrong),
        metrics.Answer('{"ok": true}', '{"ok": true}', 1.0, 2, called=silent),
        metrics.Answer('{"ok": 1}', '{"ok": true}', 1.0, 2),
    ]
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    found = metrics.measure(answers, job.Evaluation.model_validate({"outputSchema": schema}))
    assert {metric: (column.value, column.examples) for metric, column in found.items() if column.share} == {
        M.EXACT_MATCH: (0.5, 4),
        M.NORMALIZED_MATCH: (0.5, 4),
        M.JSON_VALID: (0.75, 4),
        M.JSON_SCHEMA: (0.5, 2),
        M.TOOL_CALL_MATCH: (pytest.approx(2 / 3), 3),
        M.TOOL_CALL_VALID: (0.5, 2),
        M.STOPPED: (1.0, 4),
    }
    assert M.TOOL_CALL_MATCH not in metrics.measure(answers[3:], job.Evaluation())
