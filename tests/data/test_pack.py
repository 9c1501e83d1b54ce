from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from erniekit.data.pack import collate, pack
from erniekit.data.sample import Sample, make_sample


def sample(length, tag):
    ids = np.arange(length, dtype=np.int32) + 100 * tag
    return Sample(ids, ids + 1, f"f:{tag}")


@given(lengths=st.lists(st.integers(1, 20), min_size=1, max_size=40), room=st.integers(20, 60))
def test_every_sample_once_and_no_row_too_long(lengths, room):
    samples = [sample(length, tag) for tag, length in enumerate(lengths)]
    rows = pack(samples, room)
    assert sorted(s.origin for row in rows for s in row) == sorted(s.origin for s in samples)
    assert all(sum(map(len, row)) <= room for row in rows)
    # First-fit decreasing: no two rows could have been one.
    totals = sorted(sum(map(len, row)) for row in rows)
    assert len(totals) < 2 or totals[0] + totals[1] > room


def test_first_fit_decreasing_by_hand():
    rows = pack([sample(n, n) for n in (4, 7, 3, 5, 1)], 10)
    assert [[len(s) for s in row] for row in rows] == [[7, 3], [5, 4, 1]]


def test_a_batch_by_hand():
    batch = collate([(sample(3, 1), sample(2, 2)), (sample(4, 3),)], pad_id=9)
    assert batch.input_ids.tolist() == [
        [100, 101, 102, 200, 201, 9, 9, 9],
        [300, 301, 302, 303, 9, 9, 9, 9],
    ]
    assert batch.labels.tolist()[0] == [101, 102, 103, 201, 202, -100, -100, -100]
    assert batch.position_ids.tolist()[0] == [0, 1, 2, 0, 1, 0, 0, 0]
    assert batch.attend_from.tolist() == [[0, 0, 0, 3, 3, 5, 6, 7], [0, 0, 0, 0, 4, 5, 6, 7]]
    assert batch.num_tokens == 9
    assert batch.origins == [["f:1", "f:2"], ["f:3"]]
    assert collate([(sample(3, 1),)], pad_id=0, pad_to=20).input_ids.shape == (1, 20)
    # Columns that three can share, however many were asked for.
    assert collate([(sample(3, 1),)], pad_id=0, num_parts=3).input_ids.shape == (1, 9)
    parted = collate([(sample(3, 1),)], pad_id=0, pad_to=20, num_parts=3)
    assert parted.input_ids.shape == (1, 21) and parted.attend_from[0, 20] == 20
    assert parted.is_token().sum() == 3 and (parted.labels[0, 3:] == -100).all()
    assert batch.lengths == (5, 4) and batch.token_types is None
    assert batch.is_token().tolist() == [[True] * 5 + [False] * 3, [True] * 4 + [False] * 4]
    assert replace(batch, lengths=None).is_token().all()


@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=8))
def test_attention_stays_inside_the_samples(lengths):
    row = tuple(sample(length, tag) for tag, length in enumerate(lengths))
    batch = collate([row], pad_id=0)
    starts, owner = batch.attend_from[0], np.repeat(np.arange(len(lengths)), lengths)
    for column, mine in enumerate(owner):
        seen = owner[starts[column] : column + 1]
        assert set(seen) == {mine} and len(seen) == batch.position_ids[0, column] + 1


def test_labels_are_shifted_once():
    made = make_sample([5, 6, 7, 8], [-100, -100, 7, 8], "x")
    assert made.input_ids.tolist() == [5, 6, 7] and made.labels.tolist() == [-100, 7, 8]
    assert made.num_trained == 2
