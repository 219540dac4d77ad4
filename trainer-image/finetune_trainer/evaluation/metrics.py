"""Metrics of answers, pure: a contender's answers against the expected ones, example by example.

Each metric is a column of `evidence`, so that it comes with its interval and can be compared in pairs. Their meanings are
in finetune_api.gates.MEANINGS.
"""

import collections
import dataclasses
import functools
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from finetune_api import job
from finetune_trainer.data import toolcalls, values
from finetune_trainer.evaluation import evidence, retrieval

GRAM = 4
"""Words of the sequences (n-grams) whose repetition is counted."""

Columns = dict[job.Metric, evidence.Column]


@dataclasses.dataclass(frozen=True)
class Answer:
    """One answer of a contender. text and expected are None for plain text, which has no answer to compare."""

    text: str | None
    expected: str | None
    nats: float
    """The loss of the expected answer, summed over its tokens."""
    tokens: int
    stopped: bool = True
    """Whether the answer ended with a stop token."""
    called: toolcalls.CallScore | None = None
    """For an example with tools: the score of the answer's calls."""
    group: str | None = None
    """The example's group: answers of one group are not independent of each other."""


def measure(
    answers: Sequence[Answer], rules: job.Evaluation, wanted: frozenset[job.Metric] = frozenset(job.Metric)
) -> Columns:
    """Each wanted metric that is defined for these answers; the columns have a row for each."""
    found: Columns = {}
    totals = np.array([[answer.nats, answer.tokens] for answer in answers], dtype=np.float64).reshape(-1, 2)
    if totals[:, 1].any():
        defined = totals[:, 1] > 0
        found[job.Metric.LOSS] = evidence.Column(totals, evidence.ratio, defined)
        found[job.Metric.PERPLEXITY] = evidence.Column(totals, _perplexity, defined)
    pairs = [(one.text, one.expected) if one.expected is not None else None for one in answers]
    if any(pairs):
        for metric, score in SCORES.items():
            if metric not in wanted:
                continue
            found[metric] = evidence.mean([score(*pair) if pair else np.nan for pair in pairs], share=metric in BINARY)
        found[job.Metric.STOPPED] = evidence.mean(
            [one.stopped if pair else np.nan for one, pair in zip(answers, pairs, strict=True)], share=True
        )
        found[job.Metric.REPETITION] = _sums([repetition(pair[0]) if pair else None for pair in pairs])
        found[job.Metric.FIELD_F1] = _sums([fields(*pair) if pair else None for pair in pairs], _f1)
        if rules.labels:
            found |= classification(pairs, rules.labels)
        if rules.output_schema is not None:
            fits = validator(rules.output_schema)
            # A call is checked against its tool's parameters, not against the schema of answers.
            calling = [one.called is not None and one.called.valid is not None for one in answers]
            found[job.Metric.JSON_SCHEMA] = evidence.mean(
                [fits(pair[0]) if pair and not calls else np.nan for pair, calls in zip(pairs, calling, strict=True)],
                share=True,
            )
    if any(one.called for one in answers):
        found |= calls(answers)
    clusters = evidence.clusters([one.group for one in answers])
    return {
        metric: dataclasses.replace(found[metric], clusters=clusters, bounded=metric in job.SHARES)
        for metric in job.Metric
        if metric in found and metric in wanted and found[metric].examples
    }


def _perplexity(sums: evidence.Array) -> evidence.Array:
    return np.exp(np.minimum(evidence.ratio(sums), 700))


def _sums(rows: list[tuple[float, ...] | None], of: Callable[[Any], Any] = evidence.ratio) -> evidence.Column:
    """A column of each example's parts; None: not defined for it."""
    width = max((len(row) for row in rows if row), default=2)
    parts = np.array([row or (0.0,) * width for row in rows], dtype=np.float64)
    return evidence.Column(parts, of, np.array([row is not None for row in rows]))


# --- One answer ---


def exact_match(text: str | None, expected: str) -> float:
    return float((text or "").strip() == expected.strip())


def normalized_match(text: str | None, expected: str) -> float:
    return float(normalized(text or "") == normalized(expected))


@functools.lru_cache(maxsize=65_536)
def normalized(text: str) -> str:
    """Without case, punctuation and runs of white space. Text that consists of these alone stays as it is."""
    plain = unicodedata.normalize("NFC", text).lower()
    words = "".join(" " if unicodedata.category(letter)[0] == "P" else letter for letter in plain).split()
    return " ".join(words) or plain.strip()


def label(text: str) -> str:
    """A label without case and outer white space, and with all else: C, C# and C++ are three labels, A and A- two."""
    return unicodedata.normalize("NFC", text).strip().lower()


def json_valid(text: str | None, _: str) -> float:
    try:
        values.parsed(text)
    except ValueError:
        return 0.0
    return 1.0


def rouge_l(text: str | None, expected: str) -> float:
    """F-measure of the longest common subsequence of words, 0 to 1."""
    from rapidfuzz.distance import LCSseq

    found, wanted = retrieval.words(text or ""), retrieval.words(expected)
    return 2 * LCSseq.similarity(found, wanted) / max(1, len(found) + len(wanted))


def chrf(text: str | None, expected: str) -> float:
    return float(_sacrebleu("CHRF").sentence_score(text or "", [expected]).score) / 100


def bleu(text: str | None, expected: str) -> float:
    return float(_sacrebleu("BLEU", effective_order=True).sentence_score(text or "", [expected]).score) / 100


@functools.cache
def _sacrebleu(name: str, **options: Any) -> Any:
    from sacrebleu import metrics

    return getattr(metrics, name)(**options)


def length_ratio(text: str | None, expected: str) -> float:
    return len((text or "").strip()) / max(1, len(expected.strip()))


def repetition(text: str | None) -> tuple[float, float] | None:
    """How many sequences of four words occurred before, of how many; None for shorter answers."""
    words = (text or "").split()
    grams = [tuple(words[start : start + GRAM]) for start in range(len(words) - GRAM + 1)]
    return (float(len(grams) - len(set(grams))), float(len(grams))) if grams else None


def fields(text: str | None, expected: str) -> tuple[float, float, float] | None:
    """Fields that are right, wrong or superfluous, and missing; None where no JSON with fields is expected."""
    try:
        wanted = collections.Counter(_leaves(values.parsed(expected)))
    except (ValueError, RecursionError):
        return None
    if not any(path for path, _ in wanted):
        return None
    try:
        found = collections.Counter(_leaves(values.parsed(text)))
    except (ValueError, RecursionError):
        found = collections.Counter()
    right = (wanted & found).total()
    return float(right), float(found.total() - right), float(wanted.total() - right)


def _leaves(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Places and values of a JSON document; an empty object or list is a value. Lists are compared by place, numbers as JSON
    does: 1 and 1.0 are one, 1 and true two."""
    if isinstance(value, dict | list) and value:
        for key, one in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _leaves(one, (*path, key))
    else:
        yield path, values.canonical(value)


def _f1(sums: evidence.Array) -> evidence.Array:
    right, extra, missing = sums[..., 0], sums[..., 1], sums[..., 2]
    total = 2 * right + extra + missing
    return 2 * right / np.where(total == 0, np.nan, total)


SCORES: dict[job.Metric, Callable[[str | None, str], float]] = {
    job.Metric.EXACT_MATCH: exact_match,
    job.Metric.NORMALIZED_MATCH: normalized_match,
    job.Metric.JSON_VALID: json_valid,
    job.Metric.ROUGE_L: rouge_l,
    job.Metric.CHRF: chrf,
    job.Metric.BLEU: bleu,
    job.Metric.LENGTH_RATIO: length_ratio,
}
BINARY = frozenset({job.Metric.EXACT_MATCH, job.Metric.NORMALIZED_MATCH, job.Metric.JSON_VALID})


# --- Tool calls ---


def calls(answers: Sequence[Answer]) -> Columns:
    """For examples with tools: whether the calls are the expected ones, and whether they are valid."""
    known = [one.called for one in answers]
    match = [np.nan if one is None else float(one.match) for one in known]
    valid = [np.nan if one is None or one.valid is None else float(one.valid) for one in known]
    return {
        job.Metric.TOOL_CALL_MATCH: evidence.mean(match, share=True),
        job.Metric.TOOL_CALL_VALID: evidence.mean(valid, share=True),
    }


# --- Labels and schemas of the job ---


def classification(pairs: Sequence[tuple[str | None, str] | None], labels: Sequence[str]) -> Columns:
    """Accuracy, macro F1 and the share of invalid labels; examples whose expected answer is no label are left out."""
    number = {label(one): index for index, one in enumerate(labels)}
    right: list[float] = []
    invalid: list[float] = []
    # Of each label: expected and answered, expected, answered.
    counts = np.zeros((len(pairs), 3, len(labels)))
    for row, pair in enumerate(pairs):
        wanted = number.get(label(pair[1])) if pair else None
        if pair is None or wanted is None:
            right.append(np.nan)
            invalid.append(np.nan)
            continue
        found = number.get(label(pair[0] or ""))
        right.append(float(found == wanted))
        invalid.append(float(found is None))
        counts[row, 1, wanted] = 1
        if found is not None:
            counts[row, 2, found] = 1
            counts[row, 0, wanted] = float(found == wanted)
    defined = ~np.isnan(np.array(right))
    macro = evidence.Column(counts.reshape(len(pairs), -1), functools.partial(_macro, len(labels)), defined)
    return {
        job.Metric.ACCURACY: evidence.mean(right, share=True),
        job.Metric.MACRO_F1: macro,
        job.Metric.INVALID_LABELS: evidence.mean(invalid, share=True),
    }


def _macro(labels: int, sums: evidence.Array) -> evidence.Array:
    """The mean F1 of the labels that were expected; float [..., 3 * labels] -> [...]."""
    right, expected, answered = np.moveaxis(sums.reshape(*sums.shape[:-1], 3, labels), -2, 0)
    each = np.divide(2 * right, expected + answered, out=np.zeros_like(right), where=expected + answered > 0)
    there = expected > 0
    found: evidence.Array = np.where(there, each, 0).sum(-1) / np.maximum(there.sum(-1), 1)
    return found


def validator(schema: dict[str, Any]) -> Callable[[str | None], float]:
    """1 for an answer in JSON that fits the schema, else 0. Raises ValueError as `values.fits`."""
    valid = values.fits(schema)

    def fits(text: str | None) -> float:
        try:
            return float(valid(values.parsed(text)))
        except ValueError:
            return 0.0

    return fits
