"""Products with quantised matrices by Paddle's operators: values and gradients against plain matrices."""

import numpy as np
import paddle
import pytest

from erniekit.errors import UnsupportedError
from erniekit.ops import backend
from erniekit.ops.linear import linear
from erniekit.ops.moe import grouped_linear
from erniekit.ops.number_formats import FORMATS
from erniekit.ops.quantised import QuantisedMatrix
from erniekit.parallel.placement import split, whole


@pytest.fixture(autouse=True, params=["paddle", "native"])
def kernels(request, monkeypatch):
    monkeypatch.delenv(backend.VARIABLE, raising=False)
    before = backend.current_backend()
    if backend.use_kernels("auto") != "native" and request.param == "native":
        pytest.skip("native kernels do not run here")
    yield backend.use_kernels(request.param)
    backend.use_kernels("native" if before == "native" else "paddle")


def drawn(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def tensor(array, dtype, *, trained=False):
    made = paddle.to_tensor(array).astype(dtype)
    made.stop_gradient = not trained
    return made


def both(x, function, *weights):
    """Results and input gradients of `function(x, weight)` for each weight."""
    found = []
    for weight in weights:
        x.clear_grad()
        y = function(x, weight)
        grad = tensor(drawn(*y.shape, seed=9), x.dtype)
        y.backward(grad)
        found.append((y.astype("float32").numpy(), x.grad.astype("float32").numpy()))
    return found


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 1e-2)])
@pytest.mark.parametrize("number", FORMATS)
def test_a_linear_layer_is_that_of_the_numbers_made(number, dtype, tolerance):
    matrix = QuantisedMatrix.of(drawn(70, 33), number, 64, getattr(paddle, dtype))
    assert matrix.shape == [70, 33] and matrix.size == 70 * 33 and matrix.stop_gradient
    x, bias = tensor(drawn(2, 5, 70), dtype, trained=True), tensor(drawn(33), dtype)
    found, expected = both(x, lambda x, w: linear(x, w, bias), matrix, matrix.numbers())
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance * np.abs(other).max())


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 1e-2)])
@pytest.mark.parametrize("number", FORMATS)
@pytest.mark.parametrize("loads", [(4, 0, 7), (0, 0, 0)])
def test_experts_are_those_of_the_numbers_made(number, dtype, tolerance, loads):
    matrix = QuantisedMatrix.of(drawn(3, 20, 11), number, None, getattr(paddle, dtype))
    x = tensor(drawn(sum(loads), 20), dtype, trained=True)
    offsets = paddle.to_tensor(np.cumsum([0, *loads]))
    if not sum(loads):
        assert grouped_linear(x, matrix, offsets).shape == [0, 11]
        return
    found, expected = both(x, lambda x, w: grouped_linear(x, w, offsets), matrix, matrix.numbers())
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance * np.abs(other).max())


def test_no_graph_where_none_is_wanted():
    matrix = QuantisedMatrix.of(drawn(6, 4), "int8", None, paddle.float32)
    x = tensor(drawn(3, 6), "float32", trained=True)
    with paddle.no_grad():
        assert linear(x, matrix).stop_gradient
    assert not linear(x, matrix).stop_gradient


def test_the_bytes_of_a_weight():
    """int8 is a byte and a scale a column; nf4 half a byte and 4 bytes for 64."""
    of = {name: QuantisedMatrix.of(drawn(128, 10), name, 64, paddle.float32) for name in FORMATS}
    assert of["int8"].num_bytes == 128 * 10 + 2 * 10 * 4
    assert of["int4"].num_bytes == of["nf4"].num_bytes == 64 * 10 + 2 * 10 * 4


# Axis that is parted, over how many, and what is fused along it.
PARTS = [(1, 2, None), (1, 2, [16, 8]), (0, 2, None), (0, 4, None)]


@pytest.mark.parametrize("number", ["int8", "int4", "int4_full", "nf4"])
@pytest.mark.parametrize(("axis", "count", "pieces"), PARTS)
def test_a_part_has_the_numbers_of_the_whole(number, axis, count, pieces):
    random = np.random.default_rng(4)
    weight = random.normal(size=[3, 256, 24]).astype(np.float32)
    groups, kept = {"nf4": 64, "int4_full": 32}, "bf16" if number == "int4_full" else "fp32"
    matrix = QuantisedMatrix.of(weight, number, groups.get(number), "float32", scale_type=kept)
    for rank in range(count):
        placement = split(split(whole(weight.shape), 0, 1, 3), axis + 1, rank, count, pieces=pieces)
        part = matrix.part(placement)
        assert part.shape == list(placement.part_shape) and part.num_bytes < matrix.num_bytes
        full = np.stack([matrix.numbers(expert).numpy() for expert in range(3)])
        np.testing.assert_array_equal(part.numbers(0).numpy(), placement.take(full)[0])


def test_rows_that_share_a_scale_are_not_parted():
    matrix = QuantisedMatrix.of(np.ones([96, 4], np.float32), "nf4", 64, "float32")
    with pytest.raises(UnsupportedError, match="nf4 has a scale for every 64 rows.*96 rows into 48.*wint8"):
        matrix.part(split(whole([96, 4]), 0, 0, 2))
