import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune_trainer.engine import prefix_tree, prefixes, sizes
from finetune_trainer.training import batches


@st.composite
def examples(draw: st.DrawFn) -> list[prefix_tree.TokenRow]:
    """Rows that share beginnings of all lengths, often: few tokens, prefixes from a few, some of them whole examples."""
    prefixes = draw(st.lists(st.lists(st.integers(0, 2), max_size=600), min_size=1, max_size=3))
    rows = []
    for _ in range(draw(st.integers(1, 8))):
        prefix = draw(st.sampled_from(prefixes))
        ids = prefix[: draw(st.integers(0, len(prefix)))] + draw(st.lists(st.integers(0, 2), min_size=1, max_size=30))
        learned = draw(st.lists(st.booleans(), min_size=len(ids), max_size=len(ids)))
        rows.append(prefix_tree.TokenRow(np.array(ids), np.array(learned)))
    return rows


def sight(batch: prefix_tree.Batch) -> np.ndarray:
    """[T, T]: whether token i sees token j, by `Batch.ends`."""
    at = np.arange(batch.tokens)
    seen: np.ndarray = (at[None] <= at[:, None]) & (at[:, None] < batch.ends.numpy()[None])
    return seen


@settings(max_examples=150, deadline=None)
@given(rows=examples(), share=st.booleans())
def test_every_label_is_predicted_from_exactly_the_tokens_before_it(
    rows: list[prefix_tree.TokenRow], share: bool
) -> None:
    batch = prefix_tree.build(rows, share=share)
    seen = sight(batch)
    labels = []
    for state, target, index in zip(batch.states.tolist(), batch.targets.tolist(), batch.rows.tolist(), strict=True):
        context = np.flatnonzero(seen[state])
        length = len(context)
        assert (batch.ids.numpy()[context] == rows[index].ids[:length]).all()
        assert (batch.positions.numpy()[context] == np.arange(length)).all()
        assert target == rows[index].ids[length]
        labels.append((index, length))
    wanted = [(index, at) for index, row in enumerate(rows) for at in range(1, len(row.ids)) if row.learned[at]]
    assert sorted(labels) == wanted, "every learned token once, also where examples part"
    assert batch.states.tolist() == sorted(batch.states.tolist())


@settings(max_examples=150, deadline=None)
@given(rows=examples(), share=st.booleans())
def test_tiles_see_what_their_tokens_see(rows: list[prefix_tree.TokenRow], share: bool) -> None:
    batch = prefix_tree.build(rows, share=share)
    seen = sight(batch)
    covered = []
    for tile in batch.tiles:
        before = [at for begin, end in tile.seen for at in range(begin, end)]
        start = tile.begin
        for length in tile.lengths:
            for offset in range(length):
                own = list(range(start, start + offset + 1))
                assert before + own == np.flatnonzero(seen[start + offset]).tolist()
            start += length
        assert start == tile.end
        covered += range(tile.begin, tile.end)
    assert covered == list(range(batch.tokens))


def test_a_shared_system_prompt_is_computed_once() -> None:
    prompt = np.arange(1, 401)
    rows = [
        prefix_tree.TokenRow(np.concatenate([prompt, np.full(20, 500 + at)]), np.arange(420) >= 410) for at in range(16)
    ]
    alone, together = prefix_tree.build(rows, share=False), prefix_tree.build(rows)
    assert alone.tokens >= 16 * 419
    assert together.tokens <= 400 + 16 * 19 + sizes.ROUND
    assert torch.equal(alone.targets.sort().values, together.targets.sort().values)


def test_tokens_that_no_learned_token_depends_on_are_left_out() -> None:
    row = prefix_tree.TokenRow(np.arange(100), np.arange(100) == 9)
    assert prefix_tree.needed(row) == 9
    assert prefix_tree.build([row]).tokens == sizes.ROUND
    silent = prefix_tree.TokenRow(np.arange(5), np.zeros(5, dtype=bool))
    assert prefix_tree.build([silent]).tokens == 0


@settings(max_examples=100, deadline=None)
@given(rows=examples(), budget=st.integers(1, 900), size=st.integers(1, 4))
def test_micro_batches_and_portions_keep_every_example_once(
    rows: list[prefix_tree.TokenRow], budget: int, size: int
) -> None:
    units = [[row] for row in rows]
    parts = [batches.share_of(units, rank, size) for rank in range(size)]
    assert sorted(index for part in parts for index in part) == list(range(len(rows)))
    found = batches.cut(units, budget)
    assert sorted(index for part in found for index in part) == list(range(len(rows)))
    for part in found:
        planted = prefix_tree.build([rows[index] for index in part])
        # short beginnings are not worth sharing, and the batch is filled up
        slack = sizes.ROUND + len(part) * prefixes.SHORTEST**2
        assert len(part) == 1 or planted.tokens <= budget + slack
