import itertools
import random
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune_trainer.checks import similar

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def words(rng: random.Random, count: int) -> list[str]:
    return ["".join(rng.choices(LETTERS, k=rng.randint(3, 9))) for _ in range(count)]


def sketched(texts: list[str]) -> similar.Sketches:
    sketcher = similar.Sketcher()
    for text in texts:
        sketcher.add(text)
    return sketcher.finish()


def found(texts: list[str]) -> set[tuple[int, int]]:
    pairs = similar.pairs(sketched(texts), np.arange(len(texts)))
    return {(int(one), int(other)) for one, other in pairs}


def jaccard(one: str, other: str) -> float:
    """Of the windows, as the definition says."""
    width = similar.WINDOW
    left, right = ({text[i : i + width] for i in range(len(text) - width + 1)} for text in (one, other))
    return len(left & right) / len(left | right)


@pytest.mark.parametrize("changed", [0, 1, 3, 6, 12, 30])
def test_the_share_of_equal_bins_estimates_the_similarity(changed: int) -> None:
    rng = random.Random(changed)
    estimates, truths = [], []
    for _ in range(100):
        one = words(rng, 40)
        other = list(one)
        for place in rng.sample(range(40), changed):
            other[place] = words(rng, 1)[0]
        bins, valid = similar.sketch(
            [" ".join(text).encode() for text in (one, other)], np.zeros(2**similar.BITS, dtype=bool)
        )
        assert valid.all()
        estimates.append(float(np.mean(bins[0] == bins[1])))
        truths.append(jaccard(" ".join(one), " ".join(other)))
    assert np.mean(estimates) == pytest.approx(np.mean(truths), abs=0.03)


def test_edited_copies_are_found_among_thousands_and_nothing_else() -> None:
    rng = random.Random(5)
    texts = [" ".join(words(rng, rng.randint(20, 80))) for _ in range(4000)]
    planted = set()
    for one in rng.sample(range(4000), 300):
        copy = texts[one].split()
        copy[rng.randrange(len(copy))] = "lantern"
        planted.add((one, len(texts)))
        texts.append(" ".join(copy))
    seen = found(texts)
    assert not seen - planted
    assert len(seen & planted) > 0.98 * len(planted)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.integers(20, 60), st.integers(0, 19))
def test_a_copied_answer_is_found_anywhere_in_the_text(seed: int, count: int, at: int) -> None:
    rng = random.Random(seed)
    texts = [" ".join(words(rng, 30)) for _ in range(count)]
    texts.insert(at, texts[-1].upper() + "  ")
    assert found(texts) == {(at, count)}


def test_texts_of_any_length_and_script_are_sketched() -> None:
    rng = random.Random(6)
    texts = ["", "a", "\0", "ünï", "漢字" * 40, "x" * 100_000, *(" ".join(words(rng, 30)) for _ in range(30))]
    sketches = sketched([*texts, *texts])
    assert len(sketches.bins) == len(sketches.valid) == 2 * len(texts)
    assert found([*texts, *texts]) >= {(n, n + len(texts)) for n in range(6, len(texts))}
    assert not sketches.valid[:4].any()


def test_phrases_shared_by_a_tenth_of_the_texts_are_ignored() -> None:
    rng = random.Random(7)
    letterhead = " ".join(words(rng, 200))
    texts = [f"{letterhead} {' '.join(words(rng, 12))}" for _ in range(300)]
    assert found(texts) == set()
    assert found([*texts, texts[3] + " so"]) == {(3, 300)}
    few = [f"{letterhead} {n}" for n in range(5)]
    assert len(found([*few, *(" ".join(words(rng, 200)) for _ in range(200))])) == 10, (
        "five of two hundred are no letterhead"
    )


def test_batches_do_not_change_the_sketches(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(8)
    texts = [" ".join(words(rng, rng.randint(0, 90))) for _ in range(500)]
    whole = sketched(texts)
    monkeypatch.setattr(similar, "BATCH", 1000)
    parts = sketched(texts)
    assert np.array_equal(whole.bins, parts.bins)
    assert np.array_equal(whole.valid, parts.valid)


@pytest.mark.slow
def test_texts_are_not_stored() -> None:
    rng = random.Random(9)
    text = " ".join(words(rng, 120))
    sketcher = similar.Sketcher()
    for number in range(3000):
        sketcher.add(f"{number} {text}")
    tracemalloc.start()
    for number in range(20_000):
        sketcher.add(f"{number} {text} {number}")
    size = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert size < 20_000 * 120 + 2 * similar.BATCH


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)).filter(lambda pair: pair[0] < pair[1]), max_size=30))
def test_the_first_of_a_group_is_its_smallest_row(linked: list[tuple[int, int]]) -> None:
    lead = list(range(21))
    for _, (one, other) in itertools.product(range(21), linked):
        lead[one] = lead[other] = min(lead[one], lead[other])
    assert similar.first_of_group(21, np.array(linked, dtype=np.int64).reshape(-1, 2)).tolist() == lead
