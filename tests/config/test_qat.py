"""Keys of training for a scheme."""

import pytest

from erniekit.config.load import config_from_dict
from erniekit.config.qat import TRAINED
from erniekit.config.rules import without_effect
from erniekit.errors import ConfigError, UnsupportedError
from erniekit.quant.qat import trainable

BASE = {"model_name_or_path": "starter", "train_dataset_path": "a.jsonl"}


def loaded(**keys):
    return config_from_dict({**BASE, **keys}, "train").config


def test_the_words_are_the_schemes_that_training_emulates():
    assert set(TRAINED) == set(trainable())
    with pytest.raises(UnsupportedError, match="2-bit codes, which take a search"):
        loaded(qat_scheme="wint2")


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"use_fp8": True}, "both say which numbers"),
        ({"compute_type": "wint4", "fine_tuning": "LoRA"}, "has them rounded before"),
        ({"fine_tuning": "DoRA"}, "not built with fine_tuning: DoRA"),
        ({"fine_tuning": "LoRA", "lora_dropout": 0.1}, "hides inputs from the adapter alone"),
        ({"hadamard_block_size": 24}, "write a power of two"),
        ({"qat_learn_scales": True, "fine_tuning": "LoRA"}, "by the gradients of whole weights"),
        ({"qat_learn_scales": True, "qat_scheme": "fp8_block"}, "follow from exponents"),
        ({"qat_learn_scales": True, "qat_scheme": "wint4_g32"}, "have signs"),
    ],
)
def test_what_does_not_go_together(keys, told):
    with pytest.raises(ConfigError, match=told):
        loaded(**{"qat_scheme": "w8a8", **keys})


def test_what_has_no_effect():
    idle = dict(without_effect(loaded(), "train"))
    assert "qat_scheme: w4a8" in idle["qat_rest_share"] and "qat_scheme" not in idle
    assert set(dict(without_effect(loaded(qat_scheme="w8a8"), "train"))) & {"apply_hadamard"}
    assert "apply_hadamard" not in dict(without_effect(loaded(qat_scheme="fp8_tensor"), "train"))


@pytest.mark.parametrize(
    "keys",
    [{"compute_type": "fp8"}, {"weight_quantize_algo": "fp8linear"}, {"compute_type": "fp8", "bf16": True}],
)
def test_fp8_as_upstream_means_it(keys):
    config = loaded(**keys)
    assert config.qat.qat_scheme == "fp8_tensor"
    assert config.model.compute_type == ("bf16" if "bf16" in keys else "auto")
    assert config.optimizer.use_lowprecision_moment and config.optimizer.offload_optim
    own = loaded(**keys, use_lowprecision_moment=False, qat_scheme="fp8_block")
    assert (own.qat.qat_scheme, own.optimizer.use_lowprecision_moment) == ("fp8_block", False)
