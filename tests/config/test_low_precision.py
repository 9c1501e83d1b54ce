"""Rules of training in FP8."""

import pytest

from erniekit.config.load import config_from_dict
from erniekit.config.rules import broken_rules, without_effect

BASE = {"model_name_or_path": "starter", "train_dataset_path": "a.jsonl"}


def loaded(**keys):
    return config_from_dict({**BASE, **keys}).config


def test_adapters_train_no_weight_that_is_rounded():
    config = loaded(use_fp8=True)
    assert not [key for key, _ in broken_rules(config, "train", {}) if key == "use_fp8"]
    with pytest.raises(Exception, match="use_fp8: true rounds the weights that are trained"):
        loaded(use_fp8=True, fine_tuning="LoRA")


def test_switches_without_it_have_no_effect():
    idle = dict(without_effect(loaded(), "train"))
    assert "use_fp8: true" in idle["fp8_swiglu_input"] and "use_fp8" not in idle
    assert "fp8_swiglu_input" not in dict(without_effect(loaded(use_fp8=True), "train"))
