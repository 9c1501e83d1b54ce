"""The mixture-of-experts layer: against a loop, with two modalities, with a capacity, in bf16."""

from typing import Any

import numpy as np
import paddle
import pytest

from erniekit.nn.moe import TEXT, VISION, LocalDispatcher, MixtureOfExperts, RouterRecord
from erniekit.ops import gradients

HIDDEN = 8


def build(seed: int = 0, **changes: Any) -> MixtureOfExperts:
    settings: dict[str, Any] = {
        "num_experts": (4,),
        "intermediate_sizes": (6,),
        "top_k": 2,
        "shared_intermediate_size": 12,
        "bias": False,
        "dtype": "float32",
    }
    settings |= changes
    layer = MixtureOfExperts(
        HIDDEN, settings.pop("num_experts"), settings.pop("intermediate_sizes"), **settings
    )
    random = np.random.default_rng(seed)
    for name, parameter in layer.named_parameters():
        scale = 0.05 if "bias" in name else 0.5
        drawn = scale * random.standard_normal(parameter.shape)
        parameter.set_value(paddle.to_tensor(drawn.astype(np.float32)).astype(parameter.dtype))
    return layer


def draw(batch: int, columns: int, dtype: str = "float32", seed: int = 1) -> paddle.Tensor:
    values = np.random.default_rng(seed).standard_normal([batch, columns, HIDDEN]).astype(np.float32)
    x = paddle.to_tensor(values).astype(dtype)
    x.stop_gradient = False
    return x


def numbers(tensor: paddle.Tensor) -> np.ndarray:
    return tensor.detach().astype("float32").numpy().astype(np.float64)


def gated(x: np.ndarray, up_gate: np.ndarray, down: np.ndarray) -> np.ndarray:
    gate, up = np.split(x @ up_gate, 2)
    return (gate / (1 + np.exp(-gate)) * up) @ down


def token_by_token(layer: MixtureOfExperts, x: np.ndarray, types: np.ndarray) -> np.ndarray:
    """What the layer is to compute, from its parameters, one token after the other."""
    held = {name: numbers(parameter) for name, parameter in layer.named_parameters()}
    out = np.zeros_like(x)
    for token, value in enumerate(x):
        modality = int(types[token] != 0)
        prefix = ("experts", "vision_experts")[modality]
        logits = value @ held["gate.weight" if modality == 0 else "gate.weight_1"]
        scores = np.exp(logits - logits.max())
        scores /= scores.sum()
        bias = held["moe_statics.e_score_correction_bias"][modality, : len(scores)]
        chosen = np.argsort(-(scores + bias))[: layer.routing["top_k"]]
        for expert in chosen:
            result = gated(
                value,
                held[f"{prefix}.up_gate_proj.weight"][expert],
                held[f"{prefix}.down_proj.weight"][expert],
            )
            out[token] += scores[expert] / scores[chosen].sum() * result
        if "shared_experts.down_proj.weight" in held:
            out[token] += gated(
                value, held["shared_experts.up_gate_proj.weight"], held["shared_experts.down_proj.weight"]
            )
    return out


@pytest.mark.parametrize("shared", [0, 12])
def test_one_modality_is_the_sum_over_experts(shared: int) -> None:
    layer = build(shared_intermediate_size=shared)
    x = draw(2, 7)
    expected = token_by_token(layer, numbers(x).reshape(-1, HIDDEN), np.zeros(14))
    np.testing.assert_allclose(layer(x).numpy().reshape(-1, HIDDEN), expected, atol=1e-5)


def test_two_modalities_have_their_own_experts() -> None:
    """Sets of different number and width; the order of the batch is kept."""
    layer = build(num_experts=(4, 3), intermediate_sizes=(6, 2))
    x = draw(2, 9)
    types = np.random.default_rng(5).integers(0, 3, [2, 9])
    expected = token_by_token(layer, numbers(x).reshape(-1, HIDDEN), types.flatten())
    found = layer(x, paddle.to_tensor(types))
    np.testing.assert_allclose(found.numpy().reshape(-1, HIDDEN), expected, atol=1e-5)


@pytest.mark.parametrize(("types", "touched"), [(None, 0), (0, 0), (1, 1)])
def test_a_batch_of_one_modality_leaves_the_other_half_alone(types: int | None, touched: int) -> None:
    layer = build(num_experts=(4, 4), intermediate_sizes=(6, 2))
    x = draw(1, 6)
    records: list[RouterRecord] = []
    token_types = None if types is None else paddle.full([1, 6], types, dtype="int64")
    layer(x, token_types, records).sum().backward()
    assert [record.modality for record in records] == [touched]
    for name, parameter in layer.named_parameters():
        half = 1 if name.startswith("vision_experts") or name == "gate.weight_1" else 0
        if name.startswith(("shared", "moe_statics")):
            continue
        assert (gradients.of(parameter) is not None) == (half == touched), name


def total(parameter: paddle.Tensor) -> np.ndarray:
    gradient = gradients.of(parameter)
    assert gradient is not None, parameter.name
    return gradient.numpy().copy()


def test_gradients_of_one_modality_do_not_depend_on_the_other() -> None:
    layer = build(num_experts=(4, 4), intermediate_sizes=(6, 2), shared_intermediate_size=0)
    types = paddle.to_tensor([[0, 1, 1, 0, 1, 0]])
    found = []
    for value in (1.0, 3.0):
        x = draw(1, 6).detach()
        x = paddle.where((types != 0).unsqueeze(-1), value * x, x)
        x.stop_gradient = False
        for parameter in layer.parameters():
            gradients.clear(parameter)
        layer(x, types).square().sum().backward()
        found.append({name: total(p) for name, p in layer.named_parameters() if not p.stop_gradient})
    for name, gradient in found[0].items():
        of_vision = name.startswith("vision_experts") or name == "gate.weight_1"
        difference = np.abs(gradient - found[1][name]).max()
        assert (difference > 1e-3) if of_vision else (difference < 1e-6), name


def test_records() -> None:
    layer = build(num_experts=(4, 3), intermediate_sizes=(6, 2))
    types = paddle.to_tensor([[0, 1, 0], [0, 2, 1]])
    records: list[RouterRecord] = []
    layer(draw(2, 3), types, records, layer=7)
    text, vision = records
    assert (text.layer, text.modality, vision.modality) == (7, TEXT, VISION)
    assert text.rows_N.tolist() == [0, 2, 3] and vision.rows_N.tolist() == [1, 4, 5]
    assert text.token_types_N.tolist() == [0, 0, 0] and vision.token_types_N.tolist() == [1, 2, 1]
    assert text.logits_NE.shape == [3, 4] and vision.logits_NE.shape == [3, 3]
    assert vision.selected_Nk.shape == vision.combine_weights_Nk.shape == [3, 2]
    np.testing.assert_allclose(vision.probabilities_NE.sum(-1).numpy(), np.ones(3), rtol=1e-6)
    assert vision.gate_weight_HE is layer.gate.weight_1
    bias = layer.moe_statics.e_score_correction_bias
    assert bias.shape == [2, 4] and bias.stop_gradient
    np.testing.assert_array_equal(vision.correction_bias_E.numpy(), bias.numpy()[1, :3])
    assert not text.logits_NE.stop_gradient and not text.combine_weights_Nk.stop_gradient
    assert text.dropped_Nk is None


def test_capacity_holds_in_training_by_its_first_factor_and_in_evaluation_by_its_second() -> None:
    layer = build(capacity=(1.0, 4.0, 4.0))
    x = draw(2, 8)
    records: list[RouterRecord] = []
    layer.train()
    dropping = layer(x, None, records)
    layer.eval()
    whole = layer(x, None, records)
    first, second = records
    assert first.dropped_Nk is not None and int(first.dropped_Nk.sum()) > 0
    kept = first.selected_Nk.numpy()[~first.dropped_Nk.numpy()]
    assert np.bincount(kept).max() <= 4
    assert second.dropped_Nk is None
    untouched = ~first.dropped_Nk.numpy().any(axis=1)
    assert 0 < untouched.sum() < 16
    np.testing.assert_allclose(
        dropping.numpy().reshape(-1, HIDDEN)[untouched],
        whole.numpy().reshape(-1, HIDDEN)[untouched],
        rtol=1e-5,
        atol=1e-6,
    )


def test_the_router_is_fp32_in_a_bf16_layer() -> None:
    """The same rows rounded to bf16 give the same routing as a layer in fp32."""
    narrow, wide = build(dtype="bfloat16"), build()
    x = draw(2, 7, "bfloat16")
    records: list[RouterRecord] = []
    out = narrow(x, None, records)
    wide(x.detach().astype("float32"), None, records)
    assert out.dtype == paddle.bfloat16
    assert narrow.gate.weight.dtype == paddle.float32
    np.testing.assert_allclose(
        records[0].logits_NE.numpy(), records[1].logits_NE.numpy(), rtol=1e-5, atol=1e-6
    )
    out.astype("float32").sum().backward()
    grad = gradients.of(narrow.gate.weight)
    assert grad is not None and grad.dtype == paddle.float32
    assert x.grad.dtype == paddle.bfloat16


def test_the_dispatcher_is_a_seam() -> None:
    """Experts split between two pretended ranks, each with half of them."""

    class Halves(LocalDispatcher):
        seen: list[list[int]] = []

        def dispatch(self, x_NH: Any, routing: Any, num_experts: int) -> Any:
            rows, offsets, state = super().dispatch(x_NH, routing, num_experts)
            self.seen.append(offsets.tolist())
            return rows, offsets, state

    layer = build()
    x = draw(1, 5)
    before = layer(x).numpy()
    layer.dispatcher = Halves()
    np.testing.assert_array_equal(layer(x).numpy(), before)
    assert len(Halves.seen) == 1 and Halves.seen[0][-1] == 10
