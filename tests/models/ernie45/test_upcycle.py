"""Numbers of an upcycled model, and what becomes of each parameter."""

import numpy as np
import pytest

from erniekit.errors import CheckpointError, ConfigError
from erniekit.export.dtypes import convert
from erniekit.models.ernie45.layouts import memory_shapes
from erniekit.models.ernie45.upcycle import upcycled_config, upcycled_dtypes, upcycled_items
from erniekit.models.ernie45.weights import open_weights
from erniekit.testing.tiny_checkpoint import tiny_config, tiny_moe_config, write_tiny_checkpoint


def test_which_layers_have_experts():
    dense = tiny_config(num_hidden_layers=6)
    found = upcycled_config(dense, experts=4, top_k=2, start=1)
    assert [found.is_moe_layer(layer) for layer in range(6)] == [False] + [True] * 5
    found = upcycled_config(dense, experts=4, top_k=2, start=2, interval=3)
    assert [layer for layer in range(6) if found.is_moe_layer(layer)] == [2, 5]
    assert found.moe_intermediate_size == (dense.intermediate_size,) and found.moe_num_shared_experts == 0
    assert found.head_dim == dense.head_dim and found.moe_capacity is None


@pytest.mark.parametrize(
    "numbers",
    [
        {"experts": 1, "top_k": 1},
        {"experts": 4, "top_k": 5},
        {"experts": 4, "top_k": 0},
        {"experts": 4, "top_k": 2, "start": 2},
        {"experts": 4, "top_k": 2, "start": -1},
        {"experts": 4, "top_k": 2, "interval": 0},
        {"experts": 4, "top_k": 2, "interval": 3},
    ],
)
def test_numbers_that_do_not_fit(numbers):
    with pytest.raises(ConfigError):
        upcycled_config(tiny_config(), **numbers)


def test_models_that_cannot_be_upcycled():
    with pytest.raises(CheckpointError, match="experts already"):
        upcycled_config(tiny_moe_config(), experts=4, top_k=2)
    with pytest.raises(CheckpointError, match="biases"):
        upcycled_config(tiny_config(use_bias=True), experts=4, top_k=2)


def test_every_parameter(tmp_path):
    dense = tiny_config()
    folder = write_tiny_checkpoint(tmp_path / "dense", dense)
    weights = open_weights(folder, dense)
    config = upcycled_config(dense, experts=3, top_k=2, start=1)
    items = list(upcycled_items(weights, config, convert=convert))
    assert [(name, array.shape) for name, _, array in items] == list(memory_shapes(config).items())
    assert {name: dtype for name, dtype, _ in items} == upcycled_dtypes(weights, config)
    found = {name: array for name, _, array in items}
    mlp = weights.parameter("model.layers.1.mlp.up_gate_proj.weight")
    for expert in found["model.layers.1.mlp.experts.up_gate_proj.weight"]:
        assert expert.tobytes() == mlp.tobytes()
    assert "model.layers.0.mlp.up_gate_proj.weight" in found
    assert not found["model.layers.1.mlp.moe_statics.e_score_correction_bias"].any()
    gate = found["model.layers.1.mlp.gate.weight"]
    assert 0.015 < gate.std() < 0.025
    again = dict((n, a) for n, _, a in upcycled_items(weights, config, convert=convert, seed=1))
    assert (again["model.layers.1.mlp.gate.weight"] != gate).any()


def test_noise_is_a_share_of_the_spread_and_differs_between_experts(tmp_path):
    dense = tiny_config()
    weights = open_weights(write_tiny_checkpoint(tmp_path / "dense", dense), dense)
    config = upcycled_config(dense, experts=3, top_k=2, start=1)
    found = {n: a for n, _, a in upcycled_items(weights, config, convert=convert, noise=0.1)}
    mlp = weights.parameter("model.layers.1.mlp.down_proj.weight")
    experts = found["model.layers.1.mlp.experts.down_proj.weight"]
    for expert in experts:
        assert np.std(expert - mlp) / np.std(mlp) == pytest.approx(0.1, rel=0.1)
    assert (experts[0] != experts[1]).any()
