"""Rules of the table about answers: few labels, always the same, JSON that breaks, reasoning here and there, languages.

They look at the training files' rows alone: held-out files may be as they are.
"""

import numpy as np

from finetune_trainer.checks import languages, rule, table
from finetune_trainer.data import dataset

ENOUGH = 20
"""Rows below which shares say nothing."""

LABELS = 50
"""More different answers than this are no labels, and neither are those that have fewer than PER_LABEL rows on average."""
PER_LABEL = 5

MOST, HALF, TIMES = 0.8, 0.5, 10
"""Imbalance: one label has this share; or half, and ten times the rows of the rarest."""

CONSTANT = 0.95
JSON_SHARE = 0.8
"""Share of answers that parse from which the others should parse too."""

MAIN_LANGUAGE = 0.6
"""Share of the answers of a known language that one language must have to be the main one."""


def trained(found: table.Table, keep: rule.Mask) -> rule.Mask:
    """Rows of the training files that have an answer."""
    mask: rule.Mask = keep & (found.part == 0) & (found.answer != 0)
    return mask


def label_imbalance(found: table.Table, keep: rule.Mask) -> rule.Hits:
    rows = rule.rows(trained(found, keep))
    _, first, counts = np.unique(found.answer[rows], return_index=True, return_counts=True)
    few = 2 <= len(counts) <= LABELS and len(rows) >= max(ENOUGH, PER_LABEL * len(counts))
    if not few:
        return rule.NONE
    most, least = counts.max(), counts.min()
    if most < MOST * len(rows) and not (most >= HALF * len(rows) and most >= TIMES * least):
        return rule.NONE
    named = rows[first[counts.argmax()]]
    share = f"{most} of {len(rows)} examples ({most / len(rows):.0%})"
    text = f"{share} have the same of {len(counts)} labels; the rarest has {least}"
    return rule.Hits(np.array([named]), len(rows), text, words=_answer, whole=True)


def constant_answers(found: table.Table, keep: rule.Mask) -> rule.Hits:
    rows = rule.rows(trained(found, keep))
    if len(rows) < ENOUGH:
        return rule.NONE
    _, first, counts = np.unique(found.answer[rows], return_index=True, return_counts=True)
    most = counts.max()
    if most < CONSTANT * len(rows):
        return rule.NONE
    text = f"{most} of {len(rows)} examples ({most / len(rows):.0%}) have the same answer"
    return rule.Hits(rows[first[counts.argmax()]][None], len(rows), text, words=_answer, whole=True)


def json_answers(found: table.Table, keep: rule.Mask) -> rule.Hits:
    rows = rule.rows(trained(found, keep) & ((found.marks & table.CALLS) == 0))
    parsed = (found.marks[rows] & table.JSON) > 0
    if len(rows) < ENOUGH or parsed.mean() < JSON_SHARE:
        return rule.NONE
    return rule.Hits(rows[~parsed], len(rows), "have an answer that is not valid JSON, as the others have")


def reasoning_tags(found: table.Table, keep: rule.Mask) -> rule.Hits:
    rows = rule.rows(trained(found, keep))
    reasoning = (found.marks[rows] & table.REASONING) > 0
    unclosed = (found.marks[rows] & table.UNCLOSED) > 0
    share = reasoning.mean() if len(rows) else 0.0
    rarer = ~reasoning if share > 0.5 else reasoning
    text = (
        "have no reasoning block, as the others have"
        if share > 0.5
        else "have a reasoning block, and the others have none"
    )
    if unclosed.any() and share in (0.0, 1.0):
        text = "have a reasoning block that is not closed"
    hits = rows[(rarer if 0 < share < 1 else np.zeros_like(rarer)) | unclosed]
    return rule.Hits(hits, len(rows), text)


def language_mix(found: table.Table, keep: rule.Mask) -> rule.Hits:
    rows = rule.rows(trained(found, keep))
    said, asked = found.answer_language[rows], found.prompt_language[rows]
    known = said != languages.UNKNOWN
    if known.sum() < ENOUGH:
        return rule.NONE
    counts = np.bincount(said[known], minlength=len(languages.NAMES))
    main = int(counts.argmax())
    # Without a main language the answers have no language to leave; then only their prompts' counts.
    other = known & (said != asked) & (asked != languages.UNKNOWN)
    if counts[main] >= MAIN_LANGUAGE * known.sum():
        other = known & (said != main) & (said != asked)
        text = f"have an answer that is neither in {languages.NAMES[main]}, as most are, nor in its prompt's language"
    else:
        text = "have an answer in another language than their prompt"
        if other.mean() > 0.5:  # a translator's work
            return rule.NONE
    return rule.Hits(
        rows[other], len(rows), text, words=lambda example: languages.NAMES[languages.language(example.answer or "")]
    )


def _answer(example: dataset.Example) -> str:
    text = " ".join((example.answer or "").split())
    return f"“{text[:60]}{'…' if len(text) > 60 else ''}”"
