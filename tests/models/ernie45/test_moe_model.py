"""The model with experts: the contract, layers by the rule, two modalities, multi-token prediction."""

from dataclasses import replace
from typing import Any

import numpy as np
import paddle
import pytest

from erniekit.checkpoint.presets import read_presets
from erniekit.losses.cross_entropy import chunked_cross_entropy
from erniekit.models.ernie45 import plan, weights
from erniekit.models.ernie45.layouts import memory_shapes
from erniekit.models.ernie45.model import Ernie45
from erniekit.models.registry import config_from_json
from erniekit.nn.moe import RouterRecord
from erniekit.ops import gradients
from erniekit.testing.model_contract import check_model_contract
from erniekit.testing.tiny_checkpoint import tiny_moe_config

VARIANTS: dict[str, dict[str, Any]] = {
    "text": {},
    "untied, no shared experts": {"tie_word_embeddings": False, "moe_num_shared_experts": 0},
    "bias": {"use_bias": True},
    "bias, untied": {"use_bias": True, "tie_word_embeddings": False},
    "ahead": {"num_nextn_predict_layers": 2},
    "experts ahead": {"num_nextn_predict_layers": 1, "moe_layer_start_index": (0,), "use_bias": True},
    "every second layer": {"moe_layer_interval": 2, "num_hidden_layers": 4},
    "sigmoid": {"scoring_func": "sigmoid"},
    "grouped": {"moe_group_experts": True},
    "two modalities": {"modalities": 2},
    "two modalities of different count": {"modalities": 2, "moe_num_experts": (4, 3), "use_bias": True},
}


def build(dtype: str = "fp32", **changes: Any) -> Ernie45:
    model = Ernie45(tiny_moe_config(**changes), dtype=dtype)
    random = np.random.default_rng(3)
    for name, parameter in model.named_parameters():
        scale = 0.05 if name.endswith("e_score_correction_bias") else 0.3
        drawn = paddle.to_tensor((scale * random.standard_normal(parameter.shape)).astype(np.float32))
        parameter.set_value(drawn.astype(parameter.dtype))
    model.eval()
    return model


@pytest.mark.parametrize("variant", VARIANTS)
def test_model_contract(tmp_path: Any, variant: str) -> None:
    changes = VARIANTS[variant]
    if len(set(changes.get("moe_num_experts", (0,)))) == 2:
        # The row of the modality with fewer experts is longer than it needs.
        assert build(**changes).model.layers[1].mlp.moe_statics.e_score_correction_bias.shape == [2, 4]
    check_model_contract(lambda: build(**changes), weights, plan, tmp_path)


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ({}, [1, 2, 3, 4, 5]),
        ({"moe_layer_end_index": (3,)}, [1, 2, 3]),
        ({"moe_layer_start_index": (0,), "moe_layer_interval": 2}, [1, 3, 5]),
        ({"moe_layer_start_index": (2,), "moe_layer_interval": 3}, [2, 5]),
        ({"moe_layer_start_index": (3, 2), "moe_layer_end_index": (4, 3)}, [2, 3, 4]),
        ({"moe_layer_start_index": (1, 1), "moe_layer_end_index": (9, -1)}, [1, 2, 3, 4, 5]),
    ],
)
def test_which_layers_hold_experts(numbers: dict[str, Any], expected: list[int]) -> None:
    config = tiny_moe_config(num_hidden_layers=6, **numbers)
    assert [layer for layer in range(6) if config.is_moe_layer(layer)] == expected
    if len(numbers) < 2 or "moe_layer_interval" in numbers:
        built = Ernie45(config).model.layers
        assert [i for i, block in enumerate(built) if hasattr(block.mlp, "gate")] == expected


def test_presets_are_the_models_that_are_built() -> None:
    """Shapes and counts of every released architecture, without memory for the weights."""
    seen = {}
    for preset in read_presets():
        if preset.parameters in seen:
            assert preset.config is seen[preset.parameters]
            continue
        seen[preset.parameters] = preset.config
        config = config_from_json(preset.model_type, preset.config, source=preset.name)
        with paddle.LazyGuard():
            model = Ernie45(config, dtype="bf16")
        shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
        assert shapes == memory_shapes(config), preset.name
        total = sum(int(np.prod(shape)) for shape in shapes.values())
        assert config.num_parameters() == total == preset.parameters - preset.not_built_parameters
        assert config.num_active_parameters() == preset.active_parameters
    assert len(seen) == 6


def batch(columns: int = 6, seed: int = 0) -> tuple[paddle.Tensor, ...]:
    ids = np.random.default_rng(seed).integers(3, 200, [2, columns])
    positions = np.tile(np.arange(columns), (2, 1))
    return paddle.to_tensor(ids), paddle.to_tensor(positions), paddle.zeros([2, columns], dtype="int32")


def test_token_types_choose_the_experts() -> None:
    model = build(modalities=2)
    inputs = batch()
    types = paddle.to_tensor([[0, 1, 1, 0, 0, 0], [0, 0, 2, 2, 0, 1]])
    text = model(*inputs)
    np.testing.assert_array_equal(
        text.numpy(), model(*inputs, token_type_ids_BT=paddle.zeros_like(types)).numpy()
    )
    mixed = model(*inputs, token_type_ids_BT=types)
    # Before the first vision token nothing changes, from it on everything does.
    np.testing.assert_allclose(mixed[0, 0].numpy(), text[0, 0].numpy(), rtol=1e-5, atol=1e-6)
    assert np.abs(mixed[0, 1:].numpy() - text[0, 1:].numpy()).max(axis=-1).min() > 1e-3
    np.testing.assert_allclose(mixed[1, :2].numpy(), text[1, :2].numpy(), rtol=1e-5, atol=1e-6)


def test_text_alone_has_no_gradient_in_the_vision_half() -> None:
    model = build(modalities=2)
    model(*batch()).square().sum().backward()
    for name, parameter in model.named_parameters():
        of_vision = "vision_experts" in name or name.endswith("gate.weight_1")
        if not name.endswith("e_score_correction_bias"):
            assert (gradients.of(parameter) is None) == of_vision, name


def test_router_records_of_a_forward_pass() -> None:
    model = build(modalities=2)
    assert model.router_records is None
    records: list[RouterRecord] = []
    model.router_records = records
    model(*batch(), token_type_ids_BT=paddle.to_tensor([[0] * 6, [1] * 6]))
    assert [(record.layer, record.modality) for record in records] == [(1, 0), (1, 1), (2, 0), (2, 1)]
    assert records[1].rows_N is not None and records[1].rows_N.tolist() == list(range(6, 12))
    model.router_records = []
    model(*batch())
    assert [(record.layer, record.modality) for record in model.router_records] == [(1, 0), (2, 0)]
    assert model.router_records[0].logits_NE.shape == [12, 4]


def test_prediction_ahead_sees_the_tokens_that_come() -> None:
    """Its hidden state at t depends on the tokens up to t + depth, and on no other sample."""
    model = build(num_nextn_predict_layers=2)
    ids, positions, starts = batch(columns=8)
    hidden, ahead = model.predict_ahead(ids, positions, starts)
    np.testing.assert_array_equal(hidden.numpy(), model(ids, positions, starts).numpy())
    assert len(ahead) == 2 and ahead[0].shape == hidden.shape
    changed = ids.clone()
    changed[0, 5] = int(ids[0, 5]) % 200 + 3
    _, other = model.predict_ahead(changed, positions, starts)
    for depth in (1, 2):
        difference = np.abs((other[depth - 1] - ahead[depth - 1]).numpy()).max(axis=-1)
        assert difference[0, : 5 - depth].max() == 0.0 and difference[1].max() < 1e-6
        assert difference[0, 5 - depth :].min() > 1e-4


def test_blocks_of_prediction_ahead_come_and_go() -> None:
    model = build(num_nextn_predict_layers=1)
    paddle.seed(11)
    held = {name: parameter.numpy().copy() for name, parameter in model.named_parameters()}
    added = model.set_num_ahead(3)
    parameters = dict(model.named_parameters())
    assert set(added) == set(parameters) - set(held) and len(added) == 2 * 9
    assert list(parameters) == list(memory_shapes(model.config))
    assert model.config.num_nextn_predict_layers == 3
    assert all((parameters[name].numpy() == array).all() for name, array in held.items())
    for name in added:
        array = parameters[name].numpy()
        assert (array == 1).all() if array.ndim == 1 else 0.5 < array.std() / model.config.initial_std() < 2
    assert len(model.predict_ahead(*batch())[1]) == 3
    assert model.set_num_ahead(1) == []
    assert {name: parameter.shape for name, parameter in model.named_parameters()} == {
        name: list(array.shape) for name, array in held.items()
    }
    assert model.set_num_ahead(0) == [] and not any("mtp" in name for name, _ in model.named_parameters())
    assert model.predict_ahead(*batch())[1] == []


def test_prediction_ahead_by_hand() -> None:
    """One block, from the parts of the model."""
    model = build(num_nextn_predict_layers=1)
    inputs = batch(columns=5)
    decoder = model.model
    streams = []
    hook = decoder.layers[-1].register_forward_post_hook(lambda *args: streams.append(args[2]))
    _, (found,) = model.predict_ahead(*inputs)
    hook.remove()
    stream = streams[0][0] + streams[0][1]

    def norm(x: paddle.Tensor, weight: paddle.Tensor) -> paddle.Tensor:
        return x * paddle.rsqrt((x * x).mean(-1, keepdim=True) + 1e-5) * weight

    table = decoder.embed_tokens.weight
    tokens = table[paddle.concat([inputs[0][:, 1:], paddle.zeros([2, 1], dtype="int64")], axis=1)]
    joined = [norm(tokens, decoder.mtp_emb_norm[0].weight), norm(stream, decoder.mtp_hidden_norm[0].weight)]
    x = paddle.concat(joined, axis=-1) @ decoder.mtp_linear_proj[0].weight
    # The block as the only layer of a model whose embedding gives x.
    single = Ernie45(replace(model.config, num_nextn_predict_layers=0, num_hidden_layers=2))
    for mine, theirs in ((single.model.layers[0], decoder.mtp_block[0]),):
        mine.set_state_dict(theirs.state_dict())
    single.model.layers = paddle.nn.LayerList([single.model.layers[0]])
    single.model.norm.weight.set_value(decoder.norm.weight)
    single.eval()

    class Given(paddle.nn.Layer):
        def forward(self, ids: paddle.Tensor) -> paddle.Tensor:
            return x

    single.model.embed_tokens = Given()
    np.testing.assert_allclose(found.numpy(), single(*inputs).numpy(), rtol=1e-4, atol=1e-5)


def test_bf16_storage_gives_gradients_near_the_fp32_ones() -> None:
    found = []
    for dtype in ("fp32", "bf16"):
        model = Ernie45(tiny_moe_config(moe_k=4), dtype=dtype)  # all experts: routing cannot differ
        paddle.seed(5)
        model.initialise_weights()
        hidden = model(*batch())
        labels = paddle.to_tensor(np.arange(12) + 3)
        loss, _ = chunked_cross_entropy(
            hidden.reshape([-1, hidden.shape[-1]]), model.head(), labels, chunk_tokens=7
        )
        loss.backward()
        found.append(
            {name: gradients.of(p) for name, p in model.named_parameters() if gradients.of(p) is not None}
        )
        assert model.model.layers[1].mlp.gate.weight.dtype == paddle.float32
    assert set(found[0]) == set(found[1])
    for name, exact in found[0].items():
        difference = np.linalg.norm(found[1][name].numpy() - exact.numpy()) / np.linalg.norm(exact.numpy())
        # The router's are differences of nearly equal experts here.
        assert difference < (0.3 if name.endswith("gate.weight") else 0.05), (name, difference)


def test_fresh_weights() -> None:
    paddle.seed(1)
    model = Ernie45(tiny_moe_config(hidden_size=64, moe_num_experts=(16,)))
    model.initialise_weights()
    layer = model.model.layers[1].mlp
    expected = (0.3333 / 64) ** 0.5
    for parameter in (layer.experts.up_gate_proj.weight, layer.gate.weight):
        assert float(parameter.std()) == pytest.approx(expected, rel=0.05)
    assert not layer.moe_statics.e_score_correction_bias.numpy().any()
