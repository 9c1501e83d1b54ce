"""What does not go together in `erniekit quantize`, what needs data, what has no effect."""

import pytest

from erniekit.config.load import config_from_dict
from erniekit.config.rules import without_effect
from erniekit.errors import ConfigError

BASE = {"model_name_or_path": "starter", "train_dataset_path": "a.jsonl"}


def loaded(**keys):
    return config_from_dict({**BASE, **keys}, "quantize").config


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"compute_type": "wint4"}, "erniekit quantize rounds them for good"),
        ({"stage": "DPO"}, "calibrate nothing"),
        ({"max_quality_drop": 0.1}, "needs held-out text"),
        ({"smooth_alpha": 0.5, "quant_method": "awq"}, "both choose how inputs are scaled"),
        ({"smooth_alpha": 0.5, "quant_method": "trained"}, "takes from the checkpoint; leave it out"),
        ({"target_bits": 4, "quant_scheme": "w8a8"}, "rounds inputs or keys and values too"),
        ({"quant_layout": "compressed-tensors", "quant_scheme": "wint2"}, "has no form for quant_scheme"),
        ({"quant_layout": "compressed-tensors", "target_bits": 4}, "target_bits: 4 has no form"),
        ({"quant_scheme": "w4a16"}, "write one of wint8, wint4"),
    ],
)
def test_what_does_not_go_together(keys, told):
    with pytest.raises(ConfigError, match=told):
        loaded(**keys)


def test_what_needs_calibration():
    for keys in ({"quant_method": "trained"}, {"quant_method": "rtn", "quant_scheme": "wint8"}):
        assert loaded(**keys, train_dataset_path=None).train_data.train_dataset_path is None
    rounded = {"quant_method": "rtn"}
    for keys in ({}, {"quant_scheme": "w8a8", **rounded}, {"target_bits": 4, **rounded}):
        with pytest.raises(ConfigError, match="train_dataset_path: is missing: texts that calibrate"):
            loaded(train_dataset_path=None, **keys)


def test_what_has_no_effect():
    assert dict(without_effect(loaded(), "quantize")) == {}
    rounded = dict(without_effect(loaded(quant_method="rtn"), "quantize"))
    assert rounded["gptq_damping"] == "of quant_method: gptq, and quant_method is rtn"
    trained = dict(without_effect(loaded(quant_method="trained"), "quantize"))
    assert "takes scheme and scales from the checkpoint" in trained["quant_scheme"]
    assert set(trained) > {"gptq_act_order", "clip_search", "num_calibration_tokens"}
