"""Table rules about answers: unbalanced labels, constant answers, broken JSON, cut answers, inconsistent reasoning blocks,
languages.

They use only the rows of the training files: held-out files may differ.
"""

import numpy as np

from finetune_trainer.checks import languages, rule, table
from finetune_trainer.data import dataset

ENOUGH = 20
"""Rows below which shares mean nothing."""

LABELS = 50
"""More distinct answers than this, or fewer than PER_LABEL rows per answer on average, are not labels."""
PER_LABEL = 5

MOST, HALF, TIMES = 0.8, 0.5, 10
"""Imbalance: one label has this share; or half, and ten times as many rows as the rarest."""

CONSTANT = 0.95
JSON_SHARE = 0.8
"""Share of answers that parse from which the others should parse too."""

LONG, TOGETHER, FINISHED = 100, 10, 0.8
"""Cut answers: so many characters at least; so many different ones of the same length; and the share of unfinished answers among
those of that length, as of finished ones among all others."""

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
    largest, smallest = counts.max(), counts.min()
    if largest < MOST * len(rows) and not (largest >= HALF * len(rows) and largest >= TIMES * smallest):
        return rule.NONE
    example_row = rows[first[counts.argmax()]]
    share = f"{largest} of {len(rows)} examples ({largest / len(rows):.0%})"
    text = f"{share} have the same of {len(counts)} labels; the rarest has {smallest}"
    return rule.Hits(np.array([example_row]), len(rows), text, words=_answer, whole=True)


def constant_answers(found: table.Table, keep: rule.Mask) -> rule.Hits:
    rows = rule.rows(trained(found, keep))
    if len(rows) < ENOUGH:
        return rule.NONE
    _, first, counts = np.unique(found.answer[rows], return_index=True, return_counts=True)
    largest = counts.max()
    if largest < CONSTANT * len(rows):
        return rule.NONE
    text = f"{largest} of {len(rows)} examples ({largest / len(rows):.0%}) have the same answer"
    return rule.Hits(rows[first[counts.argmax()]][None], len(rows), text, words=_answer, whole=True)


def json_answers(found: table.Table, keep: rule.Mask) -> rule.Hits:
    rows = rule.rows(trained(found, keep) & ((found.marks & table.CALLS) == 0))
    parsed = (found.marks[rows] & table.JSON) > 0
    if len(rows) < ENOUGH or parsed.mean() < JSON_SHARE:
        return rule.NONE
    return rule.Hits(rows[~parsed], len(rows), "have an answer that is not valid JSON, unlike the others")


def cut_answers(found: table.Table, keep: rule.Mask) -> rule.Hits:
    rows = rule.rows(trained(found, keep) & ((found.marks & table.CALLS) == 0))
    unfinished = (found.marks[rows] & table.UNFINISHED) > 0
    long = unfinished & (found.characters[rows] >= LONG)
    different = np.zeros(len(rows), dtype=bool)
    different[np.unique(found.answer[rows], return_index=True)[1]] = True
    cut = np.zeros(len(rows), dtype=bool)
    limits = []
    for unit, column in (("characters", found.characters), ("tokens", found.learned)):
        lengths, group = np.unique(column[rows], return_inverse=True)
        counts = np.bincount(group, weights=long & different)
        limit = (counts >= TOGETHER) & (counts >= FINISHED * np.bincount(group, weights=different))
        cut |= long & limit[group]
        limits += [(count, f"{length} {unit}") for count, length in zip(counts[limit], lengths[limit], strict=True)]
    finished = 1 - unfinished[~cut].mean() if (~cut).sum() >= ENOUGH else 0.0
    if not limits or finished < FINISHED:
        return rule.NONE
    length = max(limits, key=lambda one: one[0])[1]
    text = f"have an answer that stops without closing punctuation at exactly the same length, most often {length}"
    return rule.Hits(rows[cut], len(rows), f"{text}; {finished:.0%} of the other answers end with it")


def reasoning_tags(found: table.Table, keep: rule.Mask) -> rule.Hits:
    rows = rule.rows(trained(found, keep))
    reasoning = (found.marks[rows] & table.REASONING) > 0
    unclosed = (found.marks[rows] & table.UNCLOSED) > 0
    share = reasoning.mean() if len(rows) else 0.0
    rarer = ~reasoning if share > 0.5 else reasoning
    text = "have no reasoning block, unlike the others" if share > 0.5 else "have a reasoning block, unlike the others"
    if unclosed.any() and share in (0.0, 1.0):
        text = "have a reasoning block that is not closed"
    hits = rows[(rarer if 0 < share < 1 else np.zeros_like(rarer)) | unclosed]
    return rule.Hits(hits, len(rows), text)


def language_mix(found: table.Table, keep: rule.Mask) -> rule.Hits:
    rows = rule.rows(trained(found, keep))
    answer_languages, prompt_languages = found.answer_language[rows], found.prompt_language[rows]
    known = answer_languages != languages.UNKNOWN
    if known.sum() < ENOUGH:
        return rule.NONE
    counts = np.bincount(answer_languages[known], minlength=len(languages.NAMES))
    main = int(counts.argmax())
    # Without a main language an answer can differ only from its prompt's language.
    other = known & (answer_languages != prompt_languages) & (prompt_languages != languages.UNKNOWN)
    if counts[main] >= MAIN_LANGUAGE * known.sum():
        other = known & (answer_languages != main) & (answer_languages != prompt_languages)
        text = f"have an answer that is neither in {languages.NAMES[main]}, as most are, nor in its prompt's language"
    else:
        text = "have an answer in another language than their prompt"
        if other.mean() > 0.5:  # a translation task
            return rule.NONE
    return rule.Hits(
        rows[other], len(rows), text, words=lambda example: languages.NAMES[languages.language(example.answer or "")]
    )


def _answer(example: dataset.Example) -> str:
    text = " ".join((example.answer or "").split())
    return f"“{text[:60]}{'…' if len(text) > 60 else ''}”"
