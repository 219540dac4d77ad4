"""Table rules about rows that are equal or nearly so: duplicates, contradictions, leakage."""

import numpy as np

from finetune_trainer.checks import rule, similar, table
from finetune_trainer.data import split


def duplicates(found: table.Table, keep: rule.Mask) -> rule.Hits:
    rows = rule.rows(keep)
    same = split.mixed(found.same[rows]) + found.part[rows]
    _, first, inverse = np.unique(same, return_index=True, return_inverse=True)
    earlier = rows[first[inverse.reshape(-1)]]
    repeated = earlier != rows
    return rule.Hits(rows[repeated], len(rows), "repeat an earlier one", beside=earlier[repeated])


def near_duplicates(found: table.Table, keep: rule.Mask) -> rule.Hits:
    if found.sketches is None:
        return rule.NONE
    rows = rule.rows(keep)
    hits, beside = [], []
    for part in range(3):
        of_part = rows[found.part[rows] == part]
        distinct = of_part[np.unique(found.same[of_part], return_index=True)[1]] if len(of_part) else of_part
        linked = similar.pairs(found.sketches, np.sort(distinct))
        first = similar.first_of_group(len(found), linked)
        later = np.flatnonzero(first != np.arange(len(found)))
        hits.append(later)
        beside.append(first[later])
    return rule.Hits(
        np.concatenate(hits), len(rows), "are nearly the same as an earlier one", beside=np.concatenate(beside)
    )


def contradictions(found: table.Table, keep: rule.Mask) -> rule.Hits:
    rows = rule.rows(keep & (found.answer != 0))
    prompt, answer, rejected = found.prompts.last[rows], found.answer[rows], found.rejected[rows]
    if rejected.any():
        # Many pairs per prompt are normal; a contradiction is an answer that is chosen in one pair and rejected in another.
        better = np.stack([prompt, answer], axis=1)
        worse = np.stack([prompt, rejected], axis=1)
        number = np.unique(np.concatenate([better, worse]), axis=0, return_inverse=True)[1].reshape(-1)
        chosen, refused = number[: len(rows)], number[len(rows) :]
        wrong = np.isin(chosen, refused) | np.isin(refused, chosen)
        return rule.Hits(rows[wrong], len(rows), "choose an answer that another one rejects, or the reverse")
    _, group = np.unique(prompt, return_inverse=True)
    low = np.full(group.max(initial=-1) + 1, np.iinfo(np.uint64).max, dtype=np.uint64)
    high = np.zeros_like(low)
    np.minimum.at(low, group.reshape(-1), answer)
    np.maximum.at(high, group.reshape(-1), answer)
    return rule.Hits(
        rows[(low != high)[group.reshape(-1)]],
        len(rows),
        "have a prompt that has different answers elsewhere in the data",
    )


def leakage(found: table.Table, keep: rule.Mask) -> rule.Hits:
    """A held-out prompt among the prompts of any answer in an earlier part of the split, or a held-out group among its groups."""
    hits, drop = [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=np.int64)]
    for part in (1, 2):
        held_out_rows = rule.rows(keep & (found.part == part))
        earlier = rule.rows(keep & (found.part < part))
        held_out_prompts = found.prompts.last[held_out_rows]
        held_out_groups = found.group[held_out_rows]
        seen = np.isin(held_out_prompts, found.prompts.take(earlier).flat)
        learned = found.prompts.any_in(earlier, held_out_prompts)
        if held_out_groups.any():
            seen |= np.isin(held_out_groups, found.group[earlier])
            learned |= np.isin(found.group[earlier], held_out_groups)
        hits.append(held_out_rows[seen])
        drop.append(earlier[learned])
    held_out = int((keep & (found.part > 0)).sum())
    either = "prompt, or a group of dataset.groupBy," if found.group.any() else "prompt"
    text = f"held out have a {either} that is also in the training data"
    return rule.Hits(np.unique(np.concatenate(hits)), held_out, text, drop=np.unique(np.concatenate(drop)))


def near_leakage(found: table.Table, place: table.Array) -> rule.Hits:
    """After the split; place: int8 [rows], 0 train, 1 validation, 2 test, -1 left out."""
    held_out_rows = rule.rows(place > 0)
    if found.sketches is None or not len(held_out_rows):
        return rule.NONE
    rows = rule.rows(place >= 0)
    # Of equal rows in one part, one is enough.
    side = split.mixed(found.same[rows]) + (place[rows] > 0)
    distinct = np.sort(rows[np.unique(side, return_index=True)[1]])
    linked = similar.pairs(found.sketches, distinct)
    one, other = linked[:, 0], linked[:, 1]
    across = (place[one] > 0) != (place[other] > 0)
    one, other = one[across], other[across]
    held_out = np.where(place[one] > 0, one, other)
    learned = np.where(place[one] > 0, other, one)
    hits, index = np.unique(held_out, return_index=True)
    text = "held out are nearly the same as a training example"
    return rule.Hits(hits, len(held_out_rows), text, drop=np.unique(learned), beside=learned[index])
