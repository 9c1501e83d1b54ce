import math
import re

import numpy as np
import paddle
import pytest

from erniekit.losses.cross_entropy import chunked_cross_entropy
from erniekit.models.ernie45 import plan, weights
from erniekit.models.ernie45.config import Ernie45Config
from erniekit.models.ernie45.layouts import memory_shapes
from erniekit.models.ernie45.model import Ernie45
from erniekit.ops import gradients
from erniekit.parallel.comm import Group
from erniekit.parallel.expert import apply_expert_parallel
from erniekit.parallel.placement import whole
from erniekit.testing.model_contract import check_model_contract
from erniekit.testing.tiny_checkpoint import tiny_config, tiny_moe_config

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


def found_gradients(model, rows=((3, 6), (9,))):
    """Gradients by parameter name of a packed batch's loss, fp32."""
    width = sum(rows[0])
    starts = np.stack([np.repeat(np.cumsum([0, *r[:-1]]), r) for r in rows]).astype(np.int32)
    positions = np.tile(np.arange(width), (len(rows), 1)) - starts
    ids = np.random.default_rng(0).integers(0, model.config.vocab_size, (len(rows), width + 1))
    hidden = model(
        paddle.to_tensor(ids[:, :-1].copy()), paddle.to_tensor(positions), paddle.to_tensor(starts)
    )
    labels = paddle.to_tensor(ids[:, 1:].reshape(-1))
    flat = hidden.reshape([-1, hidden.shape[-1]])
    loss, _ = chunked_cross_entropy(flat, model.head(), labels, chunk_tokens=7)
    loss.backward()
    return {
        name: found.numpy()
        for name, parameter in model.named_parameters()
        if (found := gradients.of(parameter)) is not None
    }


def fresh(dtype="fp32", **changes):
    paddle.seed(5)
    model = Ernie45(tiny_config(**changes), dtype=dtype)
    model.initialise_weights()
    model.train()
    return model


@pytest.mark.parametrize(
    "pattern",
    ["norm", "embed_tokens|lm_head", "proj", r"embed_tokens|layers\.0\.", "^(?!.*model.norm)", "qkv_proj"],
)
def test_frozen_parameters_leave_the_other_gradients_alone(pattern):
    changes = {"tie_word_embeddings": False, "use_bias": True}
    everything = found_gradients(fresh(**changes))
    model = fresh(**changes)
    trained = set()
    for name, parameter in model.named_parameters():
        parameter.stop_gradient = bool(re.search(pattern, name))
        if not parameter.stop_gradient:
            trained.add(name)
    found = found_gradients(model)
    assert set(found) == trained and 0 < len(trained) < len(everything)
    for name, gradient in found.items():
        np.testing.assert_allclose(
            gradient, everything[name], rtol=0, atol=1e-5 * np.abs(everything[name]).max()
        )


def test_bf16_storage_gives_gradients_near_the_fp32_ones():
    exact, stored = found_gradients(fresh()), found_gradients(fresh("bf16"))
    assert set(exact) == set(stored)
    for name, gradient in exact.items():
        difference = np.linalg.norm(stored[name] - gradient) / np.linalg.norm(gradient)
        assert difference < 0.05, (name, difference)


def test_fresh_weights_of_a_process_are_its_part_of_all():
    config = tiny_moe_config(num_nextn_predict_layers=1)
    shapes = memory_shapes(config)
    paddle.seed(3)
    full = Ernie45(config)
    full.initialise_weights()
    values = {name: parameter.numpy() for name, parameter in full.named_parameters()}
    paddle.seed(3)
    model = Ernie45(config)
    placements = apply_expert_parallel(model, plan, Group((0, 1), 1))
    # The first block is elsewhere: what follows is drawn as if it were here.
    model.model.layers[0] = paddle.nn.Identity()
    whole_ones = {name: whole(shape) for name, shape in shapes.items()}
    for _, parameter in model.named_parameters():
        if not parameter._is_initialized():
            parameter.initialize()
    model.initialise_weights(shapes=shapes, placements={**whole_ones, **placements})
    found = dict(model.named_parameters())
    assert placements.keys() <= found.keys() and found.keys() < values.keys()
    for name, parameter in found.items():
        own = placements.get(name, whole_ones[name]).take(values[name])
        np.testing.assert_array_equal(parameter.numpy(), own, err_msg=name)
