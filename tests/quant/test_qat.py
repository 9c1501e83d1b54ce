"""Quantisation-aware training: gradients by hand, numbers as the converted matrices have them, observers."""

from dataclasses import replace

import numpy as np
import paddle
import pytest

from erniekit.adapters import lora
from erniekit.errors import CheckpointError, ConfigError
from erniekit.models.ernie45 import plan
from erniekit.nn.linear import Linear
from erniekit.nn.moe import ExpertMatrices
from erniekit.ops import gradients, remake
from erniekit.ops.backend import use_kernels
from erniekit.ops.hadamard import hadamard, rotate_rows
from erniekit.ops.quantised import prepared
from erniekit.ops.tiles import LARGEST, Grid, rounded
from erniekit.quant.load import to_matrix
from erniekit.quant.qat import Observer, train_for, trainable, why_not
from erniekit.quant.rtn import round_to_nearest
from erniekit.quant.schemes import SCHEMES
from erniekit.quant.stored import matrix_of, settled_input, stacked, tensors_of
from tests.adapters import models
from tests.quant.test_fp8 import Net, loss_of

ROLES = {"mlp": "dense_mlp", "experts": "experts"}


@pytest.fixture(autouse=True, params=["auto", "paddle"])
def kernels(request):
    use_kernels(request.param)
    yield
    use_kernels("auto")


def linear_of(weight):
    layer = Linear(*weight.shape, bias=False, dtype="float32")
    layer.weight.set_value(weight)
    return layer


def experts_of(weight):
    layer = ExpertMatrices(*weight.shape, dtype="float32")
    layer.weight.set_value(weight)
    return layer


def held(**layers):
    return Net(**{"in": Net(**layers)})


def given(array):
    tensor = paddle.to_tensor(np.array(array, np.float32))
    tensor.stop_gradient = False
    return tensor


def test_gradients_pass_rounding_straight():
    layer = linear_of(np.array([[7.0, 0.6], [3.4, -7.0]], np.float32))
    train_for(held(mlp=layer), ROLES, 10, qat_scheme="wint4")
    x = given([[1.0, 2.0]])
    y = layer(x)
    assert y.tolist() == [[7.0 + 6, 1.0 - 14]]  # with [[7, 1], [3, -7]]
    y.backward(given([[1.0, 10.0]]))
    assert x.grad.tolist() == [[7.0 + 10, 3.0 - 70]]
    assert gradients.of(layer.weight).tolist() == [[1.0, 10.0], [2.0, 20.0]]


def test_gradients_past_rounded_inputs_and_of_what_is_cut():
    # int8 of weights by column, of inputs by 127 / 127: a step is 1, and with a scale of half of it 2.
    layer = linear_of(np.array([[127.0, 0.4], [1.6, 127.0]], np.float32))
    made = train_for(held(mlp=layer), ROLES, 10, qat_scheme="w8a8", apply_online_actscale_step=0)
    made.layers["in.mlp"].observer.scales[:] = 0.5
    x = given([[127.0, 1.2]])
    y = layer(x)
    # 127 is cut to 63.5, 1.2 is nearest to 1; the gradient does not know.
    assert y.tolist() == [[63.5 * 127 + 1.0 * 2, 127.0]]
    y.backward(given([[1.0, 1.0]]))
    assert x.grad.tolist() == [[127.0, 2.0 + 127]]
    np.testing.assert_array_equal(gradients.of(layer.weight), np.array([[127, 127], [1.2, 1.2]], np.float32))


def test_rounded_gradients():
    layer = linear_of(np.eye(2, dtype=np.float32) * 127)
    keys = {"quant_input_grad": True, "quant_weight_grad": True}
    train_for(held(mlp=layer), ROLES, 10, qat_scheme="w8a8", **keys)
    x = given([[127.0, 1.4]])
    # The scale of e5m2 is 1 here; 9 lies between 8 and 10, ties go to the even one.
    layer(x).backward(given([[57344.0, 9.0]]))
    assert x.grad.tolist() == [[57344.0 * 127, 8.0 * 127]]
    assert gradients.of(layer.weight).tolist() == [[127 * 57344.0, 127 * 8.0], [57344.0, 8.0]]


@pytest.mark.parametrize("rounds", [False, True])
def test_gradients_past_rotation(rounds):
    random = np.random.default_rng(2)
    x, w, g = (random.normal(size=shape).astype(np.float32) for shape in ((6, 8), (8, 5), (6, 5)))
    layer = linear_of(w)
    keys = {"hadamard_block_size": 4, "quant_weight_grad": rounds}
    made = train_for(held(mlp=layer), ROLES, 10, qat_scheme="fp8_tensor", **keys)
    inputs = given(x)
    y = layer(inputs)
    y.backward(given(g))
    turn = np.kron(np.eye(2), hadamard(4)).astype(np.float32)
    arithmetic = made.layers["in.mlp"]
    codes = arithmetic.weight(layer.weight, None).numpy()
    seen = rounded(paddle.to_tensor(x @ turn), Grid("e4m3", None, None)).numpy()
    near(codes, turn @ w, 0.04)
    near(y.numpy(), seen @ codes, 1e-6)
    near(inputs.grad.numpy(), g @ codes.T @ turn, 1e-6)
    g8 = rounded(paddle.to_tensor(g), Grid("e5m2", None, None)).numpy()
    expected = (seen @ turn).T @ g8 if rounds else x.T @ g
    near(gradients.of(layer.weight).numpy(), expected, 1e-6)


def near(found, expected, share):
    np.testing.assert_allclose(found, expected, rtol=0, atol=share * np.abs(expected).max())


def converted(layer, arithmetic, learned=None):
    """What files keep of a matrix by rounding to nearest, read back."""
    weight, format, rotation = layer.weight.numpy(), arithmetic.format, arithmetic.rotation
    parts = []
    for one in weight if weight.ndim == 3 else [weight]:
        whole = rotate_rows(one, rotation) if rotation else one
        scales = learned if learned is None or weight.ndim == 2 else learned[len(parts)]
        made = round_to_nearest(whole, format, clip=False, rotation=rotation, scales=scales)
        if arithmetic.observer is not None:
            scale = arithmetic.observer.scales[len(parts) : len(parts) + 1]
            made = replace(made, input_scale=settled_input(scale, format, rotation))
        files = {name: array for name, (_, array) in tensors_of(made).items()}
        parts.append(matrix_of(format, one.shape, files, rotation))
    return to_matrix(stacked(parts) if weight.ndim == 3 else parts[0], "float32")


def compare(layer, arithmetic, x, offsets=None, learned=None):
    """Weights and inputs bit by bit, products up to the order of a sum."""
    matrix = converted(layer, arithmetic, learned)
    weight = layer.weight
    experts = None if offsets is None else np.arange(len(weight) + 1) * weight.shape[-2]
    mine = arithmetic.weight(weight.reshape([-1, weight.shape[-1]]), experts).reshape(weight.shape).numpy()
    assert not np.array_equal(mine, weight.numpy())
    if weight.ndim == 2:
        np.testing.assert_array_equal(mine, matrix.numbers().numpy())
    else:
        for expert in range(len(weight)):
            np.testing.assert_array_equal(mine[expert], matrix.numbers(expert).numpy())
    bounds = None if offsets is None else offsets.numpy()
    found, _ = arithmetic.input(x, remake.keep(x), bounds)
    np.testing.assert_array_equal(found.numpy(), prepared(x, matrix, offsets).numpy())


@pytest.mark.parametrize("scheme", trainable())
def test_numbers_are_those_of_the_converted_matrix(scheme):
    random = np.random.default_rng(0)
    keys = {"qat_scheme": scheme, "apply_online_actscale_step": 0, "hadamard_block_size": 16}
    # Sizes that groups and tiles do not divide; 8 is the largest block that divides 200.
    weight = random.normal(size=(200, 150)) * np.exp(random.normal(size=(200, 1)))
    layer = linear_of(weight.astype(np.float32))
    many = experts_of(random.normal(size=(3, 136, 20)).astype(np.float32))
    made = train_for(held(mlp=layer, experts=many), ROLES, 10, **keys)
    assert set(made.layers) == {"in.mlp", "in.experts"}
    if scheme == "fp8_tensor":
        assert [made.layers[name].rotation for name in ("in.mlp", "in.experts")] == [8, 8]
    x = paddle.to_tensor((random.normal(size=(50, 200)) * 3).astype(np.float32))
    rows = paddle.to_tensor(random.normal(size=(60, 136)).astype(np.float32))
    offsets = paddle.to_tensor(np.array([0, 25, 25, 60]))
    for arithmetic in made.layers.values():
        if arithmetic.observer is not None:
            # Scales that files do not give back as they are.
            some = random.uniform(0.01, 0.03, 1000).astype(np.float32)
            moved = some[settled_input(some, arithmetic.format, arithmetic.rotation) != some]
            arithmetic.observer.scales[:] = moved[: len(arithmetic.observer.scales)]
    layer.eval()
    many.eval()
    compare(layer, made.layers["in.mlp"], x)
    compare(many, made.layers["in.experts"], rows, offsets)


def test_which_schemes():
    assert set(trainable()) == set(SCHEMES) - {"bf16", "wint2", "wint2.5", "w4a8c8"}
    assert "search" in why_not("wint2") and "keys and values" in why_not("w4a8c8")
    with pytest.raises(ConfigError, match=r"qat_scheme: wint2 keeps weights in codes that take a search"):
        train_for(held(mlp=linear_of(np.eye(4, dtype=np.float32))), ROLES, 10, qat_scheme="wint2")


def test_scales_of_inputs_are_found_and_rest():
    observer = Observer("int8", 2, 0.25, np.zeros(3, np.float32))
    everybody = np.arange(3)

    def step(*seen):
        for found, filled in seen:
            observer.look(np.array(found, np.float32), np.array(filled))
        observer.move(observer.take())

    # Online: what a product sees is what it takes.
    assert observer.of(np.array([5.0]), np.array([1]), training=True).tolist() == [5.0]
    step(([4.0, 8.0], [0, 1]), ([6.0], [0]))
    assert observer.scales.tolist() == [6.0, 8.0, 0.0]
    step(([2.0], [0]))  # the mean of both
    assert observer.scales.tolist() == [4.0, 8.0, 0.0]
    # From here on the kept ones; who has seen nothing takes the largest.
    assert observer.of(np.full(3, 9.0), everybody, training=True).tolist() == [4.0, 8.0, 8.0]
    step(([8.0, 8.0], [0, 2]))
    assert observer.scales.tolist() == [5.0, 8.0, 8.0]
    observer.frozen = True
    step(([100.0], [0]))
    assert observer.scales.tolist() == [5.0, 8.0, 8.0]
    assert observer.steps == 3


def tiny(scheme="w8a8", total=10, **keys):
    model = models.moe(moe_num_shared_experts=1)
    model.train()
    return model, train_for(model, plan.ROLES, total, qat_scheme=scheme, **keys)


def test_steps_of_a_model():
    model, made = tiny(qat_delay_steps=2, qat_rest_share=0.3, apply_online_actscale_step=2)
    plain = models.moe(moe_num_shared_experts=1)
    told = []
    for step in range(1, 11):
        made.begin_step(1)
        loss = loss_of(model)
        assert (loss.item() == loss_of(plain).item()) == (step <= 2)
        made.after_update()
        told += [(step, line.split(" ")[1]) for line in made.lines()]
        if step == 7:
            before = {name: each.scales.copy() for name, each in made.observers.items()}
    assert told == [(3, "products"), (8, "scales")]
    for name, each in made.observers.items():
        np.testing.assert_array_equal(each.scales, before[name])
        assert each.steps == 5 and each.scales.any()
    assert made.row()["qat"] == 1 and made.row()["qat_scale_min"] > 0
    with made.off():
        assert loss_of(model).item() == loss_of(plain).item()


def test_a_skipped_step_leaves_nothing():
    model, made = tiny()
    made.begin_step(1)
    loss_of(model)
    made.begin_step(1)  # no update in between
    made.after_update()
    assert not any(each.scales.any() for each in made.observers.values())


def test_goes_on_bit_by_bit():
    model, made = tiny("fp8_tensor", qat_rest_share=0.2, apply_online_actscale_step=1)
    for _ in range(3):
        made.begin_step(1)
        loss_of(model)
        made.after_update()
    other, again = tiny("fp8_tensor", qat_rest_share=0.2, apply_online_actscale_step=1)
    again.go_on_from(made.trained())
    assert again.trained() == made.trained() and again.step == 3
    for each in (made, again):
        each.begin_step(1)
    assert loss_of(model).item() == loss_of(other).item()
    with pytest.raises(CheckpointError, match="trained for fp8_tensor, not for w8a8"):
        tiny("w8a8")[1].go_on_from(made.trained())


def test_scales_of_several_processes_are_the_largest():
    model, made = tiny()
    made.largest_of_all = lambda found: found * 2
    made.begin_step(1)
    loss_of(model)
    seen = {name: each._largest.copy() for name, each in made.observers.items()}
    made.after_update()
    for name, each in made.observers.items():
        np.testing.assert_array_equal(each.scales, 2 * seen[name])


def test_no_step_is_left():
    with pytest.raises(ConfigError, match="qat_delay_steps: 9 leaves no step"):
        tiny(qat_delay_steps=9)


@pytest.mark.parametrize("build", [models.dense, models.moe])
def test_adapters_are_rounded_with_the_weight(build):
    model = build()
    applied = models.apply(model)
    models.disturb(applied)
    model.train()
    made = train_for(model, plan.ROLES, 10, qat_scheme="wint4")
    loss = loss_of(model)
    loss.backward()
    merged = build()
    other = models.apply(merged)
    models.disturb(other)
    lora.merge(other)
    merged.train()
    for parameter in merged.parameters():
        parameter.stop_gradient = False
    train_for(merged, plan.ROLES, 10, qat_scheme="wint4")
    expected = loss_of(merged)
    assert loss.item() == expected.item()
    expected.backward()
    weights = dict(merged.named_parameters())
    for name, layer in applied.layers.items():
        if name not in made.layers:
            continue
        whole = gradients.of(weights[f"{name}.weight"]).numpy()
        a, b = layer.lora_A.numpy(), layer.lora_B.numpy()
        first, rank = 0, layer.rank
        for index, (start, stop) in enumerate(layer.columns):
            ranks, columns = slice(index * rank, (index + 1) * rank), slice(first, first + stop - start)
            first = columns.stop
            part = layer.scale * whole[..., start:stop]
            turn = lambda t: np.swapaxes(t, -1, -2)  # noqa: E731
            found_a, found_b = (gradients.of(each).numpy() for each in (layer.lora_A, layer.lora_B))
            np.testing.assert_allclose(
                found_a[..., ranks], part @ turn(b[..., columns]), rtol=1e-4, atol=1e-4
            )
            np.testing.assert_allclose(
                found_b[..., columns], turn(a[..., ranks]) @ part, rtol=1e-4, atol=1e-4
            )
    plain = build()
    other = models.apply(plain)
    models.disturb(other)
    with (
        made.off(),
        lora.adapters_off(model),
        lora.adapters_off(plain),
    ):  # the reference of preference training
        assert loss_of(model).item() == loss_of(plain).item() != loss.item()


def test_formats_without_a_kernel_are_rounded_all_the_same():
    assert {"nf4", "int2"} <= set(trainable()) and not {"nf4", "int2"} & set(LARGEST)
