import math

import numpy as np
import paddle
import pytest

from erniekit.models.ernie45 import plan, weights
from erniekit.models.ernie45.config import Ernie45Config
from erniekit.models.ernie45.model import Ernie45
from erniekit.testing.model_contract import check_model_contract
from erniekit.testing.tiny_checkpoint import tiny_config

VARIANTS = {
    "tied": {},
    "untied": {"tie_word_embeddings": False},
    "bias": {"use_bias": True},
    "one key head": {"num_key_value_heads": 1, "num_hidden_layers": 3},
    "square": {"num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 32},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_model_contract(tmp_path, variant):
    def build():
        model = Ernie45(tiny_config(**VARIANTS[variant]))
        paddle.seed(3)
        for _, parameter in model.named_parameters():
            parameter.set_value(paddle.randn(parameter.shape) * 0.3)
        model.eval()
        return model

    check_model_contract(build, weights, plan, tmp_path)


def test_sizes_of_the_released_model():
    config = Ernie45Config()
    assert config.num_parameters() == 360_748_032
    assert round(config.num_parameters() / 1e6, 2) == 360.75


def test_flops_by_hand():
    config = tiny_config(vocab_size=10, num_hidden_layers=1)
    # products: qkv 32x128, o 64x32, up/gate 32x96, down 48x32, head 10x32; scores and values 2*64 a key.
    products = 32 * 128 + 64 * 32 + 32 * 96 + 48 * 32 + 320
    assert config.flops_per_token(1) == 2 * (products + 2 * 64)
    assert config.flops_per_token(9) == 2 * (products + 2 * 64 * 5)


def test_fresh_weights_repeat_with_the_seed_and_have_the_spread():
    models = []
    for _ in range(2):
        paddle.seed(11)
        model = Ernie45(tiny_config(hidden_size=64, vocab_size=2000))
        model.initialise_weights()
        models.append(dict(model.named_parameters()))
    table = models[0]["model.embed_tokens.weight"].numpy()
    assert table.tobytes() == models[1]["model.embed_tokens.weight"].numpy().tobytes()
    assert table.std() == pytest.approx(math.sqrt(0.3333 / 64), rel=0.02)
    assert np.all(models[0]["model.norm.weight"].numpy() == 1.0)


def test_dropout_acts_in_training_only():
    model = Ernie45(tiny_config())
    model.initialise_weights()
    model.set_dropout(0.5, 0.5)
    ids, positions = paddle.to_tensor([[5, 6, 7, 8]]), paddle.arange(4).unsqueeze(0)
    starts = paddle.zeros([1, 4], dtype="int32")

    def run():
        return model(ids, positions, starts).numpy()

    model.eval()
    assert np.array_equal(run(), run())
    model.train()
    assert not np.array_equal(run(), run())
