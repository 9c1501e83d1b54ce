"""The loader: every sample once an epoch, the same whatever the split, restored without replay."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from erniekit.data.pack import BatchShape
from erniekit.data.pipeline import build_loader, iterate_eval, open_eval_samples, open_train_samples
from erniekit.data.reader import SampleReader
from erniekit.errors import ConfigError, DataError
from tests.data.makers import CHATML, json_tokenizer, template

FIELDS = dict(
    train_dataset_type=None,
    train_dataset_prob=None,
    mix_strategy="random",
    num_samples_each_epoch=None,
    random_shuffle=True,
    max_estimate_samples=100000,
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return json_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("data") / "train set.jsonl"
    rows = [
        {"src": "q" * int(rng.integers(1, 30)), "tgt": "answer " * int(rng.integers(1, 6))} for _ in range(53)
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def reader(tokenizer, stage="SFT", **changes):
    fields = dict(max_seq_len=128, overlong="truncate", skip_bad_rows=False, use_template=True)
    return SampleReader(tokenizer, template(CHATML), stage, **{**fields, **changes})


def samples(tokenizer, path, seed=3, **changes):
    names = {"max_seq_len", "overlong", "skip_bad_rows", "use_template", "stage"} & set(changes)
    made = reader(tokenizer, **{name: changes.pop(name) for name in names})
    return open_train_samples(made, seed, train_dataset_path=str(path), **{**FIELDS, **changes})


def loader(found, batch=2, accumulation=2, seed=3, **changes):
    shape = BatchShape(
        per_device_train_batch_size=batch,
        per_device_eval_batch_size=2,
        gradient_accumulation_steps=accumulation,
    )
    fields = dict(
        max_seq_len=128, packing=True, buffer_size=16, pad_to_max_seqlen=False, dataloader_num_workers=0
    )
    return build_loader(found, shape, seed, **{**fields, **changes})


def origins(batches):
    return [origin for batch in batches for row in batch.origins for origin in row]


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


def test_overlong_samples_are_cut_dropped_or_refused_and_counted(tokenizer, data):
    cut = samples(tokenizer, data, max_seq_len=40).report
    assert cut.truncated > 0 and max(cut.lengths) == 40
    dropped = samples(tokenizer, data, max_seq_len=40, overlong="drop").report
    assert dropped.too_long > 0 and dropped.samples + dropped.too_long == 53
    with pytest.raises(DataError, match=r"train set.jsonl:\d+: \d+ tokens, more than max_seq_len: 40"):
        _ = samples(tokenizer, data, max_seq_len=40, overlong="error").report


def test_bad_rows_stop_or_are_listed(tokenizer, tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_text('{"src": "a", "tgt": "b"}\n{"src": "a"}\nnonsense\n{"src": "c", "tgt": "d"}\n')
    with pytest.raises(DataError, match=r"bad.jsonl:\d: .*skip_bad_rows"):
        _ = samples(tokenizer, path).report
    report = samples(tokenizer, path, skip_bad_rows=True).report
    assert (report.rows, report.samples, report.bad) == (4, 2, 2)
    assert any("bad.jsonl:2: tgt is missing" in row for row in report.bad_rows)
    assert any("bad.jsonl:3: not valid JSON" in row for row in report.bad_rows)


def test_data_without_a_trained_token_is_an_error(tokenizer, tmp_path):
    path = tmp_path / "none.jsonl"
    path.write_text('{"src": "a", "tgt": "b", "label": [0]}\n')
    with pytest.raises(DataError, match="no token of the training data is trained on"):
        _ = samples(tokenizer, path).report


def test_pretraining_cuts_long_texts_and_ends_each(tokenizer, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"text": "abcdefgh" * 40}) + "\n" + json.dumps({"text": "xy"}) + "\n")
    found = samples(tokenizer, path, stage="PT", max_seq_len=64, random_shuffle=False)
    pieces = found.samples(0, 0)
    whole = tokenizer.encode("abcdefgh" * 40) + [tokenizer.eos_id]
    assert np.concatenate([piece.input_ids for piece in pieces]).tolist() == whole[:-1]
    assert np.concatenate([piece.labels for piece in pieces]).tolist() == whole[1:]
    assert found.samples(0, 1)[0].labels[-1] == tokenizer.eos_id


def test_evaluation_takes_every_sample_once(tokenizer, data):
    held_out = open_eval_samples(
        reader(tokenizer), eval_dataset_path=str(data), eval_dataset_type=None, eval_dataset_prob=None
    )
    shape = BatchShape(
        per_device_train_batch_size=1, per_device_eval_batch_size=3, gradient_accumulation_steps=1
    )
    for packing in (True, False):
        seen = origins(iterate_eval(held_out, shape, max_seq_len=128, packing=packing))
        assert len(seen) == 53 and len(set(seen)) == 53


@pytest.mark.parametrize(("shares", "told"), [("0.5,0.5", 0), ("0.9,0.1", 1)])
def test_shares_of_held_out_sets_are_told_to_change_nothing(tokenizer, data, caplog, shares, told):
    with caplog.at_level("WARNING", logger="erniekit"):
        found = open_eval_samples(
            reader(tokenizer),
            eval_dataset_path=f"{data},{data}",
            eval_dataset_type=None,
            eval_dataset_prob=shares,
        )
    assert sum("eval_dataset_prob" in record.getMessage() for record in caplog.records) == told
    assert len(list(found.all())) == 106


def test_lists_must_fit_each_other(tokenizer, data):
    with pytest.raises(ConfigError, match="train_dataset_type has 2 entries and train_dataset_path 1"):
        samples(tokenizer, data, train_dataset_type="erniekit,alpaca")
    with pytest.raises(ConfigError, match="2 shares for 1 data sets"):
        samples(tokenizer, data, train_dataset_prob="1,2")
    with pytest.raises(ConfigError, match="train_dataset_path: ' , ' names nothing"):
        samples(tokenizer, " , ")
    both = samples(tokenizer, f"{data},{data}", train_dataset_type="erniekit", train_dataset_prob="0.5,0.5")
    assert both.sizes == [53, 53]


def test_conversations_without_a_template_are_refused(tokenizer):
    with pytest.raises(DataError, match="has no chat template"):
        SampleReader(
            tokenizer, None, "SFT", max_seq_len=8, overlong="truncate", skip_bad_rows=False, use_template=True
        )


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


def test_files_of_a_folder_may_have_different_formats(tokenizer, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"src": "q", "tgt": "a"}\n')
    (tmp_path / "b.json").write_text('[{"instruction": "q", "output": "a"}]')
    found = samples(tokenizer, tmp_path)
    assert found.sets[0].kinds == ["erniekit", "alpaca"] and found.report.samples == 2


def test_the_format_is_guessed_from_the_first_row_that_is_one(tokenizer, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('nonsense\n{"instruction": "q", "output": "a"}\n')
    found = samples(tokenizer, path, skip_bad_rows=True)
    assert found.sets[0].kinds == ["alpaca"] and found.report.bad == 1
    path.write_text('["a", "b"]\n{"instruction": "q", "output": "a"}\n')
    assert samples(tokenizer, path, skip_bad_rows=True).report.bad_rows[0].endswith("must be a JSON object")
    path.write_text("nonsense\nmore\n")
    with pytest.raises(DataError, match="a.jsonl:1: not valid JSON"):
        samples(tokenizer, path, skip_bad_rows=True)


def test_half_of_a_pair_is_a_bad_row(tokenizer, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"src": "a", "tgt": "b \\ud83d"}\n{"src": "a", "tgt": "b \\ud83d\\ude00"}\n')
    with pytest.raises(DataError, match=r"a.jsonl:1: holds U\+D83D, half of a pair"):
        _ = samples(tokenizer, path).report
    report = samples(tokenizer, path, skip_bad_rows=True).report
    assert (report.bad, report.samples) == (1, 1)


def test_an_answer_with_the_end_in_it_is_told(tokenizer, tmp_path, caplog):
    path = tmp_path / "a.jsonl"
    path.write_text('{"src": "a", "tgt": "b<|im_end|>c"}\n' * 2)
    with caplog.at_level("WARNING", logger="erniekit"):
        assert samples(tokenizer, path).report.samples == 2
    told = [record for record in caplog.records if "the token that ends an answer" in record.getMessage()]
    assert len(told) == 1


def test_a_text_too_short_to_predict_in_is_counted(tokenizer, tmp_path, monkeypatch):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "q"}\n{"text": "long enough"}\n')
    monkeypatch.setattr(tokenizer, "eos_id", None)
    report = samples(tokenizer, path, stage="PT").report
    assert (report.rows, report.empty, report.samples) == (2, 1, 1)
    assert any("1 rows are too short" in line for line in report.lines())
