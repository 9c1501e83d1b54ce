"""Training in FP8: products against NumPy's own rounding, what is kept, and what is told."""

import numpy as np
import paddle
import pytest

from erniekit.models.ernie45 import plan
from erniekit.nn.linear import Linear
from erniekit.nn.moe import ExpertMatrices
from erniekit.ops import gradients
from erniekit.ops.backend import choose, use_kernels
from erniekit.ops.tiles import Grid, rounded
from erniekit.quant import fp8
from erniekit.quant.fp8 import Error, PackedRows, train_in_fp8
from erniekit.testing.tiny_checkpoint import tiny_config, tiny_moe_config
from tests.adapters import models

ROLES = {"mlp": "dense_mlp", "experts": "experts", "up_gate_proj": "dense_mlp"}


@pytest.fixture(autouse=True, params=["auto", "paddle"])
def kernels(request):
    use_kernels(request.param)
    yield
    use_kernels("auto")


def e4m3(numbers, mantissa=3, least=-6, largest=448.0):
    """Rounded to FP8 by arithmetic: a step is 2^(exponent - mantissa), and no smaller than at the least."""
    size = np.abs(numbers.astype(np.float64))
    exponent = np.floor(np.log2(np.maximum(size, 2.0**-60)))
    step = 2.0 ** (np.maximum(exponent, least) - mantissa)
    return np.sign(numbers) * np.minimum(np.rint(size / step) * step, largest)


def tiles(x, rows, columns, **format):
    """Rounded tile by tile with scales that are powers of two."""
    out = np.zeros(x.shape)
    for i in range(0, x.shape[0], rows):
        for j in range(0, x.shape[1], columns):
            part = x[i : i + rows, j : j + columns]
            amax = np.abs(part).max()
            scale = 2.0 ** np.ceil(np.log2(amax / format.get("largest", 448.0))) if amax else 1.0
            out[i : i + rows, j : j + columns] = e4m3(part / scale, **format) * scale
    return out


class Net(paddle.nn.Layer):
    def __init__(self, **layers):
        super().__init__()
        for name, layer in layers.items():
            self.add_sublayer(name, layer)


def near(found, expected):
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6 * np.abs(expected).max())


@pytest.mark.parametrize("format", ["e4m3", "hybrid"])
@pytest.mark.parametrize("kept", [False, True])
def test_products_of_a_matrix(format, kept):
    random = np.random.default_rng(0)
    # Octaves apart, so that tiles matter; sizes that tiles do not divide.
    x = (random.normal(size=(150, 200)) * 2.0 ** random.integers(-12, 6, (150, 1))).astype(np.float32)
    w, g = (random.normal(size=shape).astype(np.float32) for shape in ((200, 140), (150, 140)))
    layer = Linear(200, 140, bias=False, dtype="float32")
    layer.weight.set_value(w)
    made = train_in_fp8(
        Net(mlp=layer), ROLES, fp8_format_type=format, fp8_dequant_input=kept, fp8_offline_quant_weight=kept
    )
    inputs = paddle.to_tensor(x)
    inputs.stop_gradient = False
    y = layer(inputs)
    x8, w8 = tiles(x, 1, 128), tiles(w, 128, 128)
    near(y.numpy(), x8 @ w8)
    y.backward(paddle.to_tensor(g))
    wide = {"mantissa": 2, "least": -14, "largest": 57344.0} if format == "hybrid" else {}
    near(inputs.grad.numpy(), tiles(g, 1, 128, **wide) @ w8.T)
    again = tiles(x8 if kept else x, 128, 1)
    near(gradients.of(layer.weight).numpy(), again.T @ tiles(g, 128, 1, **wide))
    assert (made.layers["mlp"].kept is not None) == kept
    made.after_update()
    assert made.layers["mlp"].kept is None


def test_products_of_experts():
    random = np.random.default_rng(1)
    x, w, g = (random.normal(size=s).astype(np.float32) for s in ((300, 130), (3, 130, 20), (300, 20)))
    layer = ExpertMatrices(3, 130, 20, dtype="float32")
    layer.weight.set_value(w)
    train_in_fp8(Net(experts=layer), ROLES)
    bounds = [0, 170, 170, 300]
    inputs = paddle.to_tensor(x)
    inputs.stop_gradient = False
    y = layer(inputs, paddle.to_tensor(np.array(bounds)))
    y.backward(paddle.to_tensor(g))
    for expert, (start, stop) in enumerate(zip(bounds[:-1], bounds[1:], strict=True)):
        own = slice(start, stop)
        w8 = tiles(w[expert], 128, 128)
        if stop == start:
            assert not gradients.of(layer.weight)[expert].any()
            continue
        near(y.numpy()[own], tiles(x[own], 1, 128) @ w8)
        near(inputs.grad.numpy()[own], tiles(g[own], 1, 128) @ w8.T)
        near(
            gradients.of(layer.weight).numpy()[expert],
            tiles(x[own], 128, 1).T @ tiles(g[own], 128, 1),
        )


@pytest.mark.parametrize("kept", [False, True])
def test_where_bytes_are_multiplied_they_are_the_same_numbers(kept, monkeypatch):
    random = np.random.default_rng(2)
    x, w, g = (random.normal(size=s).astype(np.float32) for s in ((300, 130), (3, 130, 20), (300, 20)))
    offsets, found = paddle.to_tensor(np.array([0, 170, 170, 300])), []
    for bytes_too in (False, True):
        monkeypatch.setattr(fp8, "multiplies_fp8", lambda told=bytes_too: told)
        layer = ExpertMatrices(3, 130, 20, dtype="float32")
        layer.weight.set_value(w)
        made = train_in_fp8(
            Net(experts=layer),
            ROLES,
            fp8_dequant_input=kept,
            fp8_offline_quant_weight=kept,
            enable_fp8_quantize_analysis=True,
        )
        inputs = paddle.to_tensor(x)
        inputs.stop_gradient = False
        y = layer(inputs, offsets)
        y.backward(paddle.to_tensor(g))
        told = made.row()["fp8_errors"]["experts"]
        found.append([y.numpy(), inputs.grad.numpy(), gradients.of(layer.weight).numpy(), *told.values()])
    for plain, of_bytes in zip(*found, strict=True):
        near(of_bytes, plain)


def loss_of(model):
    ids = paddle.to_tensor(np.random.default_rng(0).integers(3, 64, (2, 24)))
    places = paddle.tile(paddle.arange(24).unsqueeze(0), [2, 1])
    out = model(ids, places, paddle.zeros([2, 24], dtype="int32"))
    return (
        out.astype("float32") * paddle.sin(paddle.arange(out.size).astype("float32")).reshape(out.shape)
    ).sum()


@pytest.mark.parametrize("make", [tiny_config, lambda: tiny_moe_config(moe_num_shared_experts=1)])
def test_which_matrices_of_a_model(make):
    model = models.build(make())
    plain = float(loss_of(model))
    made = train_in_fp8(model, plan.ROLES)
    assert made.layers and all("self_attn" not in name and "shared" not in name for name in made.layers)
    names = [name for name, _ in model.named_parameters()]
    assert any("mlp.experts" in name for name in made.layers) == any("mlp.experts" in name for name in names)
    shared = train_in_fp8(models.build(make()), plan.ROLES, fp8_shared_expert=True)
    has_shared = any("shared_experts" in name for name in names)
    assert (len(shared.layers) > len(made.layers)) == has_shared
    low = float(loss_of(model))
    assert low != plain and abs(low - plain) < 0.3 * abs(plain)


def test_the_input_of_swiglu_as_bytes_changes_gradients_alone():
    results = {}
    for name, switches in (("plain", {}), ("bytes", {"fp8_swiglu_input": True})):
        model = models.build(tiny_config())
        train_in_fp8(model, plan.ROLES, **switches)
        loss = loss_of(model)
        loss.backward()
        results[name] = (
            float(loss),
            {
                key: gradients.of(p).numpy()
                for key, p in model.named_parameters()
                if gradients.of(p) is not None
            },
        )
    assert results["plain"][0] == results["bytes"][0]
    plain, rounded = results["plain"][1], results["bytes"][1]
    error = [np.abs(plain[key] - rounded[key]).max() / np.abs(plain[key]).max() for key in plain]
    remade = "native" in choose("swiglu").__module__  # the only one that makes its input again
    assert (max(error) > 0) == remade and max(error) < 0.2


def test_what_the_log_is_told():
    layer = Linear(4, 2, bias=False, dtype="float32")
    layer.weight.set_value(np.ones((4, 2), np.float32))
    made = train_in_fp8(Net(mlp=layer), ROLES, enable_fp8_quantize_analysis=True)
    inputs = paddle.to_tensor(np.array([[448.0, 1e-6, 2.5, 0.0], [1.0, 17.0, 0.0, 0.0]], np.float32))
    inputs.stop_gradient = False
    layer(inputs).backward(paddle.to_tensor(np.array([[1.0, 1e-9], [0.0, 0.0]], np.float32)))
    row = made.row()
    assert row["fp8_inputs_underflow"] == 1 / 8 and row["fp8_gradients_underflow"] == 1 / 4
    assert row["fp8_inputs_saturated"] == row["fp8_gradients_saturated"] == 0
    # 17 becomes 16 (a tie, to even); of 448, 2.5, 1 and 17.
    expected = (1 / (448.0**2 + 2.5**2 + 1 + 17.0**2)) ** 0.5
    assert row["fp8_errors"]["mlp"]["input"] == pytest.approx(expected, rel=1e-3)
    assert row["fp8_errors"]["mlp"]["weight"] == 0
    assert made.lines() == ["fp8: 12.50% of inputs and 25.00% of gradients rounded to zero"]
    assert made.row()["fp8_errors"] == {"mlp": {}} and made.lines() == []


def test_what_processes_share_is_told_of_all():
    layer = Linear(2, 2, bias=False, dtype="float32")
    layer.weight.set_value(np.ones((2, 2), np.float32))
    made = train_in_fp8(Net(mlp=layer), ROLES, enable_fp8_quantize_analysis=True)
    layer(paddle.to_tensor(np.array([[448.0, 1e-6]], np.float32)))
    others = [((6, 2, 0), (0, 0, 0)), {"mlp": {"input": Error(448.0**2, 0)}, "other": {"input": Error(1, 4)}}]
    made.gather = lambda own: [own, others.pop(0)]
    row = made.row()
    assert row["fp8_inputs_underflow"] == 3 / 8 and "fp8_gradients_underflow" not in row
    assert (
        row["fp8_errors"]["mlp"]["input"] == pytest.approx(1) and row["fp8_errors"]["other"]["input"] == 0.5
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("rows", [0, 5])
def test_rows_that_travel_as_bytes(rows, dtype):
    random = np.random.default_rng(3)
    x = random.normal(size=(rows, 200)) * 2.0 ** random.integers(-9, 9, (rows, 1))
    numbers = paddle.to_tensor(x.astype(np.float32)).astype(dtype)
    packed = PackedRows().pack(numbers)
    assert packed.shape == [rows, 200 + 2 * 4] and packed.dtype == paddle.uint8
    found = PackedRows().unpack(packed, 200, numbers.dtype)
    assert found.dtype == numbers.dtype
    expected = tiles(numbers.astype("float32").numpy(), 1, 128)
    assert (found.astype("float32").numpy() == expected).all()
    # The experts find the same numbers again.
    again = rounded(found, Grid("e4m3", 1, 128, power_of_two=True))
    assert (again.astype("float32").numpy() == expected).all()


def test_what_is_around_a_product_stays():
    layer = Linear(4, 2, bias=True, dtype="float32")
    layer.weight.set_value(np.ones((4, 2), np.float32))
    layer.bias.set_value(np.ones(2, np.float32))
    plain = layer.forward
    layer.forward = lambda x: 10 * plain(x)
    train_in_fp8(Net(mlp=layer), ROLES)
    assert layer(paddle.full([1, 4], 17.0)).tolist() == [[10 * (4 * 16.0 + 1)] * 2]


def test_error_of_nothing_is_none():
    assert Error().relative == 0
