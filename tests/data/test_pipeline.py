"""What the words of a configuration open, and evaluation."""

import pytest

from erniekit.data.pack import BatchShape
from erniekit.data.pipeline import iterate_eval, open_eval_samples
from erniekit.data.reader import SampleReader
from erniekit.errors import ConfigError, DataError
from tests.data.makers import origins, reader, samples


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
