import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from erniekit.data.mix import STRATEGIES, epoch_order, parse_shares
from erniekit.errors import ConfigError


def order(sizes, shares=None, *, strategy="random", num=None, shuffle=True, seed=0, epoch=0):
    return epoch_order(
        sizes, shares, mix_strategy=strategy, num_samples=num, shuffle=shuffle, seed=seed, epoch=epoch
    )


@given(
    size=st.integers(1, 50),
    strategy=st.sampled_from(STRATEGIES),
    seed=st.integers(0, 99),
    shuffle=st.booleans(),
)
def test_one_set_is_every_row_once(size, strategy, seed, shuffle):
    rows = order([size], strategy=strategy, seed=seed, shuffle=shuffle)
    assert sorted(rows[:, 1]) == list(range(size)) and not rows[:, 0].any()
    if not shuffle:
        assert list(rows[:, 1]) == list(range(size))


@given(sizes=st.lists(st.integers(1, 20), min_size=2, max_size=4), seed=st.integers(0, 99))
def test_concat_is_every_row_of_every_set_once(sizes, seed):
    rows = {tuple(row) for row in order(sizes, strategy="concat", seed=seed)}
    assert rows == {(s, r) for s, size in enumerate(sizes) for r in range(size)}


def test_random_keeps_the_shares_and_repeats_no_row_before_its_set_is_used_up():
    rows = order([1000, 1000], [0.8, 0.2], num=None)
    counts = np.bincount(rows[:, 0])
    assert len(rows) == 2000 and abs(counts[0] / 2000 - 0.8) < 0.05
    first = rows[rows[:, 0] == 0][:, 1]
    assert len(set(first[:1000])) == 1000
    assert len(set(rows[rows[:, 0] == 1][:, 1])) == counts[1]


def test_interleaving_by_hand():
    under = order([2, 4], [0.5, 0.5], strategy="interleave_under", shuffle=False)
    assert under.tolist() == [[0, 0], [1, 0], [0, 1]]
    over = order([2, 4], [0.5, 0.5], strategy="interleave_over", shuffle=False)
    assert over[:, 0].tolist() == [0, 1] * 4
    assert over[over[:, 0] == 0][:, 1].tolist() == [0, 1, 0, 1]
    third = order([9, 9], [2, 1], strategy="interleave_under", shuffle=False)
    assert np.bincount(third[:, 0]).tolist() == [9, 4]


@given(
    sizes=st.lists(st.integers(1, 30), min_size=2, max_size=4),
    weights=st.lists(st.integers(1, 9), min_size=4, max_size=4),
    shuffle=st.booleans(),
)
def test_interleaving_ends_where_a_set_is_used_up_and_keeps_the_shares(sizes, weights, shuffle):
    shares = weights[: len(sizes)]
    for strategy in ("interleave_under", "interleave_over"):
        rows = order(sizes, shares, strategy=strategy, shuffle=shuffle)
        counts = np.bincount(rows[:, 0], minlength=len(sizes))
        finished = [count >= size for count, size in zip(counts, sizes, strict=True)]
        if strategy == "interleave_under":
            assert any(finished) and all(count <= size for count, size in zip(counts, sizes, strict=True))
            last = int(rows[-1, 0])
            assert counts[last] == sizes[last] and sum(finished) == 1
        else:
            assert all(finished)
        wanted = np.array(shares) / sum(shares) * len(rows)
        assert np.all(np.abs(counts - wanted) <= len(sizes))


def test_an_epoch_that_would_never_end_is_refused():
    with pytest.raises(ConfigError, match="interleave_over with these shares"):
        order([10, 10_000_000], [1, 1e-4], strategy="interleave_over")


@given(strategy=st.sampled_from(STRATEGIES), epoch=st.integers(0, 3))
def test_the_order_follows_from_seed_and_epoch(strategy, epoch):
    def again(**changes):
        return order(
            [30, 20], [1, 1], **{"strategy": strategy, "seed": 5, "epoch": epoch, **changes}
        ).tolist()

    assert again() == again()
    assert again() != again(epoch=epoch + 1) and again() != again(seed=6)


def test_a_share_of_zero_leaves_a_set_out():
    for strategy in ("random", "interleave_under", "interleave_over"):
        assert not (order([5, 5], [1, 0], strategy=strategy)[:, 0] == 1).any()


def test_shares_are_checked():
    assert parse_shares("0.8, 0.2", 2, "k") == [0.8, 0.2] and parse_shares(None, 2, "k") is None
    for text, message in [
        ("a,b", "no comma list"),
        ("1", "1 shares for 2"),
        ("-1,2", "0 or above"),
        ("0,0", "above"),
    ]:
        with pytest.raises(ConfigError, match=message):
            parse_shares(text, 2, "k")
