"""Learned scales: gradients by hand and by differences, steps of training, what a checkpoint keeps."""

import numpy as np
import paddle
import pytest

from erniekit.errors import CheckpointError
from erniekit.models.ernie45 import plan
from erniekit.ops import gradients
from erniekit.ops.backend import use_kernels
from erniekit.optim.groups import decays
from erniekit.quant.qat import train_for
from erniekit.quant.trained import read_trained
from tests.adapters import models
from tests.quant.test_fp8 import loss_of
from tests.quant.test_qat import ROLES, compare, experts_of, given, held, linear_of


@pytest.fixture(autouse=True, params=["auto", "paddle"])
def kernels(request):
    use_kernels(request.param)
    yield
    use_kernels("auto")


def disturb(scales, random, *first):
    changed = scales.numpy() * random.uniform(0.4, 1.2, scales.shape).astype(np.float32)
    changed[..., 0, 0] = [*first, changed[..., 0, 0]][0]
    scales.set_value(changed)


def learning(scheme="wint4", **layers):
    return train_for(held(**layers), ROLES, 10, qat_scheme=scheme, qat_learn_scales=True)


def test_gradients_by_hand():
    layer = linear_of(np.array([[7.0, 0.6], [3.4, -7.0], [-9.5, 1.4]], np.float32))
    made = learning(mlp=layer)
    scales = made.layers["in.mlp"].learned.parameter
    np.testing.assert_array_equal(scales.numpy(), np.array([[9.5 / 7, 1]], np.float32))
    scales.set_value(np.array([[1.0, 0.5]], np.float32))
    # Codes 7, 3, -7 (cut) and, in halves, 1, -7 (cut), 3.
    x = given([[1.0, 2.0, 4.0]])
    y = layer(x)
    assert y.tolist() == [[7.0 + 6 - 28, 0.5 - 7 + 6]]
    for _ in range(2):  # two micro-batches
        layer(x).backward(given([[1.0, 10.0]]))
    made.after_backward()
    # G = 2 x^T g; v = 7, 3.4, -9.5 and 1.2, -14, 2.8; d = 0, -0.4, -7 and -0.2, -7, 0.2.
    np.testing.assert_allclose(
        gradients.of(scales).numpy(),
        np.array([[4 * -0.4 + 8 * -7, 20 * -0.2 + 40 * -7 + 80 * 0.2]]) / np.sqrt(3 * 7),
        rtol=1e-6,
    )
    assert gradients.of(layer.weight).tolist() == [[2.0, 20.0], [4.0, 0.0], [0.0, 80.0]]


@pytest.mark.parametrize("scheme", ["wint4_g64", "int2", "nf4"])
def test_gradients_of_groups_and_experts(scheme):
    """The product's derivative with respect to a scale, codes fixed, is G values(codes)."""
    random = np.random.default_rng(1)
    many = experts_of(random.normal(size=(2, 150, 3)).astype(np.float32))
    made = learning(scheme, experts=many)
    arithmetic = made.layers["in.experts"]
    learned = arithmetic.learned
    disturb(learned.parameter, random)
    x, offsets = random.normal(size=(9, 150)).astype(np.float32), np.array([0, 4, 9])
    g = random.normal(size=(9, 3)).astype(np.float32)
    many(given(x), paddle.to_tensor(offsets)).backward(given(g))
    made.after_backward()
    group, largest = arithmetic.row.group, 1 / learned.learning_rate_ratio
    numbers = arithmetic._whole(many.weight).numpy()
    for expert, (start, stop) in enumerate([(0, 4), (4, 9)]):
        whole = x[start:stop].T @ g[start:stop]
        for index, first in enumerate(range(0, 150, group)):
            rows = slice(first, first + group)
            scale = learned.parameter.numpy()[expert, index]
            v = many.weight.numpy()[expert, rows] / scale
            d = numbers[expert, rows] / scale - np.where(abs(v) <= largest, v, 0)
            expected = (whole[rows] * d).sum(0) / np.sqrt(len(v) * largest)
            found = gradients.of(learned.parameter).numpy()[expert, index]
            np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
            cut = gradients.of(many.weight).numpy()[expert, rows]
            np.testing.assert_allclose(cut, whole[rows] * (abs(v) <= largest), rtol=1e-4, atol=1e-5)
            assert (cut == 0).any()


@pytest.mark.parametrize("scheme", ["wint8", "wint4_g64", "w8a8", "w4a8", "int2", "nf4"])
def test_numbers_are_those_of_the_converted_matrix(scheme):
    random = np.random.default_rng(0)
    layer = linear_of(random.normal(size=(200, 150)).astype(np.float32))
    many = experts_of(random.normal(size=(3, 136, 20)).astype(np.float32))
    made = learning(scheme, mlp=layer, experts=many)
    for arithmetic in made.layers.values():
        disturb(arithmetic.learned.parameter, random, -1.0)  # below what can be
        if arithmetic.observer is not None:
            arithmetic.observer.scales[:] = 0.02
    layer.eval()
    many.eval()
    kept = made.trained()
    x = paddle.to_tensor(random.normal(size=(5, 200)).astype(np.float32))
    compare(layer, made.layers["in.mlp"], x, learned=kept.weight_scales("in.mlp"))
    rows, offsets = x[:, :136].contiguous(), paddle.to_tensor(np.array([0, 2, 2, 5]))
    compare(many, made.layers["in.experts"], rows, offsets, learned=kept.weight_scales("in.experts"))


def tiny(**keys):
    model = models.moe(moe_num_shared_experts=1)
    model.train()
    return model, train_for(model, plan.ROLES, 10, qat_scheme="wint4", qat_learn_scales=True, **keys)


def test_they_begin_with_rounding_and_go_on(tmp_path):
    model, made = tiny(qat_delay_steps=1)
    down = model.model.layers[0].mlp.down_proj
    made.begin_step(1)
    loss_of(model).backward()
    made.after_backward()
    assert not any(map(gradients.of, made.parameters().values())) and made.trained().weights == {}
    down.weight.set_value(down.weight * 2)
    made.begin_step(1)
    loss_of(model).backward()
    made.after_backward()
    assert all(gradients.of(each) is not None for each in made.parameters().values())
    largest = np.abs(down.weight.numpy()).max(0) / 7
    name = "model.layers.0.mlp.down_proj"
    np.testing.assert_array_equal(made.learned[name].parameter.numpy()[0], largest.astype(np.float32))
    made.learned[name].parameter.set_value(made.learned[name].parameter * 1.5)
    made.trained().save(tmp_path)
    other, again = tiny(qat_delay_steps=1)
    other.set_state_dict(model.state_dict())
    again.go_on_from(read_trained(tmp_path))
    for each in (made, again):
        each.begin_step(1)
    assert loss_of(model).item() == loss_of(other).item()
    plain = train_for(models.moe(), plan.ROLES, 10, qat_scheme="wint4")
    with pytest.raises(CheckpointError, match="qat_learn_scales differs"):
        plain.go_on_from(read_trained(tmp_path))


def test_how_fast_they_learn():
    _, made = tiny()
    ratios = made.learning_rate_ratios()
    assert set(ratios) == set(made.parameters()) and set(ratios.values()) == {1 / 7}
    assert not any(map(decays, ratios)) and decays("layers.0.mlp.down_proj.weight")
