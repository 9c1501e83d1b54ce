"""The loader: every sample once an epoch, the same whatever the split, restored without replay."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from erniekit.errors import DataError
from tests.data.makers import loader, origins, samples


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("workers", [0, 1])
def test_an_epoch_is_every_sample_once(tokenizer, data, packing, workers):
    feed = loader(samples(tokenizer, data), packing=packing, dataloader_num_workers=workers)
    for epoch in range(2):
        seen, steps = [], 0
        while feed.epoch < epoch + 1:
            seen += origins(feed.next_step())
            steps += 1
        assert len(seen) == 53 and len(set(seen)) == 53
        assert feed.epoch == epoch + 1  # an epoch ends with a step of its own, never inside one
        assert epoch or steps == feed.steps_per_epoch
    feed.close()


@pytest.mark.parametrize("packing", [True, False])
def test_the_split_into_micro_batches_changes_no_step(tokenizer, data, packing):
    found = samples(tokenizer, data)
    feeds = [loader(found, batch, 8 // batch, packing=packing) for batch in (1, 2, 4, 8)]
    for _ in range(feeds[0].steps_per_epoch + 3):
        steps = [origins(feed.next_step()) for feed in feeds]
        assert all(step == steps[0] for step in steps)


@settings(max_examples=25, deadline=None)
@given(stop=st.integers(0, 40), packing=st.booleans(), workers=st.integers(0, 1))
def test_restored_anywhere_it_goes_on_exactly(tokenizer, data, stop, packing, workers):
    first = loader(samples(tokenizer, data), packing=packing)
    for _ in range(stop):
        first.next_step()
    state = json.loads(json.dumps(first.state_dict()))
    fresh = samples(tokenizer, data)
    second = loader(fresh, packing=packing, dataloader_num_workers=workers)
    second.load_state_dict(state)
    for _ in range(20):
        ours, theirs = second.next_step(), first.next_step()
        assert origins(ours) == origins(theirs)
        assert all(np.array_equal(a.input_ids, b.input_ids) for a, b in zip(ours, theirs, strict=True))
        assert second.epoch == first.epoch
    second.close()


def test_restoring_reads_one_window_and_replays_nothing(tokenizer, data):
    first = loader(samples(tokenizer, data))
    for _ in range(3):
        first.next_step()
    fresh = samples(tokenizer, data)
    calls = []
    original = fresh.sets[0].row
    fresh.sets[0].row = lambda index: (calls.append(index), original(index))[1]
    second = loader(fresh)
    second.load_state_dict(first.state_dict())
    second.next_step()
    assert 0 < len(calls) <= 2 * 16


def test_steps_are_extrapolated_beyond_the_estimate(tokenizer, data):
    exact = loader(samples(tokenizer, data), packing=False, buffer_size=8)
    rough = loader(samples(tokenizer, data, max_estimate_samples=16), packing=False, buffer_size=8)
    assert exact.steps_per_epoch == 14  # 53 rows, 4 a step
    assert rough.steps_per_epoch in (13, 14)


def test_a_run_does_not_go_on_with_other_data(tokenizer, data, tmp_path):
    state = loader(samples(tokenizer, data)).state_dict()
    fewer = tmp_path / "fewer.jsonl"
    fewer.write_text("\n".join(data.read_text().splitlines()[:-1]))
    with pytest.raises(DataError, match=r"had rows \[53\], now it has \[52\]"):
        loader(samples(tokenizer, fewer)).load_state_dict(state)
    with pytest.raises(DataError, match="had seed 3, now it has 4"):
        loader(samples(tokenizer, data), seed=4).load_state_dict(state)


def test_an_epoch_without_a_trained_token_ends(tokenizer, tmp_path):
    path = tmp_path / "none.jsonl"
    path.write_text('{"src": "a", "tgt": "b", "label": [0]}\n' * 40)
    with pytest.raises(DataError, match="a whole epoch has no sample with a trained token"):
        loader(samples(tokenizer, path)).next_step()


def test_rows_without_a_sample_in_between_lose_nothing(tokenizer, tmp_path):
    """Windows that give no row at all are stepped over."""
    path = tmp_path / "holes.jsonl"
    rows = [{"src": "a", "tgt": "b", "label": [int(number >= 40)]} for number in range(45)]
    path.write_text("\n".join(map(json.dumps, rows)))
    feed = loader(samples(tokenizer, path, random_shuffle=False), buffer_size=8, packing=False)
    seen = []
    while feed.epoch < 1:
        seen += origins(feed.next_step())
    assert len(seen) == 5


def test_working_ahead_reaches_into_the_next_epoch(tokenizer, data):
    feed = loader(samples(tokenizer, data), batch=1, accumulation=1, dataloader_num_workers=1)
    while (feed._epoch, feed._window) < (0, 3):
        feed.next_step()
    feed.next_step()
    assert feed._ahead is not None and feed._ahead[0] == (1, 0)
    feed.close()
    with pytest.raises(RuntimeError):
        feed._pool.submit(int)


def test_an_error_of_the_thread_comes_where_its_rows_are_needed(tokenizer, tmp_path):
    path = tmp_path / "late.jsonl"
    path.write_text('{"src": "a", "tgt": "b"}\n' * 16 + "nonsense\n")
    found = samples(tokenizer, path, random_shuffle=False)
    feed = loader(found, packing=False, dataloader_num_workers=1)
    for _ in range(4):
        feed.next_step()
    with pytest.raises(DataError, match=r"late.jsonl:17: not valid JSON"):
        feed.next_step()
    feed.close()
