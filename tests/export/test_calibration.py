"""Data of a quantisation: as many tokens as asked for, held-out text apart."""

from erniekit.config.load import config_from_dict
from erniekit.export import calibration
from erniekit.export.calibration import arrays_of, calibration_batches, held_out_batches
from erniekit.testing.tiny_checkpoint import write_tiny_checkpoint
from tests.quant.folders import write_texts


def config_of(folder, texts, **keys):
    values = {"model_name_or_path": str(folder), "stage": "PT", "train_dataset_path": texts and str(texts)}
    return config_from_dict({**values, "max_seq_len": 64, **keys}, "quantize").config


def test_tokens_that_calibrate(tmp_path, monkeypatch):
    folder, texts = write_tiny_checkpoint(tmp_path / "model"), write_texts(tmp_path)
    some = calibration_batches(config_of(folder, texts, num_calibration_tokens=200), folder)
    assert 200 <= sum(batch.num_tokens for batch in some) < 200 + 64
    told = []
    monkeypatch.setattr(calibration.logger, "warning", told.append)
    every = calibration_batches(config_of(folder, texts, num_calibration_tokens=10**9), folder)
    assert sum(batch.num_tokens for batch in every) == sum(
        batch.num_tokens
        for batch in held_out_batches(config_of(folder, texts, eval_dataset_path=str(texts)), folder)
    )
    assert "which all calibrate; num_calibration_tokens asks for 1,000,000,000" in told[0]
    assert set(arrays_of(some[0])) == {"input_ids_BT", "position_ids_BT", "attend_from_BT"}
    assert calibration_batches(config_of(folder, None, quant_method="rtn"), folder) == []
    again = calibration_batches(config_of(folder, texts, num_calibration_tokens=200), folder)
    assert all((one.input_ids == other.input_ids).all() for one, other in zip(some, again, strict=True))


def test_held_out_text(tmp_path):
    folder, texts = write_tiny_checkpoint(tmp_path / "model"), write_texts(tmp_path)
    assert held_out_batches(config_of(folder, texts), folder) == []
    few = held_out_batches(
        config_of(folder, texts, eval_dataset_path=str(texts), max_evaluate_steps=2), folder
    )
    assert len(few) == 2
