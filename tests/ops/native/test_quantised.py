"""Native products with quantised matrices: the bits of products with the numbers, at every level."""

import numpy as np
import paddle
import pytest

from erniekit.ops.kernels.library import find_library
from erniekit.ops.native import grouped_linear, matmul
from erniekit.ops.native import quantised as native
from erniekit.ops.native.quantised import NUMBERS
from erniekit.ops.quantised import QuantisedMatrix, quantised_product_reference

if find_library().library is None:
    pytest.skip("native kernels do not run here", allow_module_level=True)
# A piece of a panel, several panels with odd edges, more than a block of K, and rows enough to be split.
SIZES = [(3, 5, 1), (64, 96, 7), (131, 201, 40), (2100, 33, 4), (34, 70, 1100)]


def drawn(*shape, dtype="float32", seed=0):
    values = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return paddle.to_tensor(values).astype(dtype)


def made(shape, number, group, dtype, *, scale_type="fp32"):
    dtype = getattr(paddle, dtype)
    return QuantisedMatrix.of(drawn(*shape).numpy(), number, group, dtype, scale_type=scale_type)


def same(found, expected):
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found.numpy(), expected.numpy())


def near(found, expected, tolerance):
    found, expected = found.astype("float32").numpy(), expected.astype("float32").numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * np.abs(expected).max())


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 1e-2)])
@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("turned", [False, True])
def test_products(library, sizes, number, dtype, tolerance, turned):
    rows, columns, count = sizes
    groups = {"nf4": 64, "int4_full": 32}
    kept = "bf16" if number == "int4_full" else "fp32"
    matrix = made((rows, columns), number, groups.get(number), dtype, scale_type=kept)
    inner, outer = (columns, rows) if turned else (rows, columns)
    x, bias = drawn(count, inner, dtype=dtype, seed=1), drawn(outer, dtype=dtype, seed=2)
    found = native.quantised_product_native(x, matrix, bias=bias, turned=turned)
    same_kernel = paddle.empty([count, outer], dtype=dtype)
    matmul.matmul_into(same_kernel, x, matrix.numbers(), transpose_b=turned, bias_N=bias)
    same(found, same_kernel)
    near(found, quantised_product_reference(x, matrix, bias=bias, turned=turned), tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 1e-2)])
@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("loads", [(0, 0), (3,), (5, 0, 130, 1)])
@pytest.mark.parametrize("turned", [False, True])
def test_products_of_experts(library, loads, number, dtype, tolerance, turned):
    kept = "bf16" if number == "int4_full" else "fp32"
    matrix = made((len(loads), 35, 110), number, 16, dtype, scale_type=kept)
    x = drawn(sum(loads), 110 if turned else 35, dtype=dtype, seed=1)
    offsets = paddle.to_tensor(np.cumsum([0, *loads]))
    found = native.quantised_product_native(x, matrix, offsets=offsets, turned=turned)
    same(found, grouped_linear.grouped_product(x, matrix.numbers(), offsets, transposed=turned))
    if sum(loads):
        near(found, quantised_product_reference(x, matrix, offsets=offsets, turned=turned), tolerance)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_threads_change_no_bit(library, dtype):
    matrix = made((2100, 97), "nf4", 64, dtype)
    x = drawn(1100, 2100, dtype=dtype, seed=1)
    found = []
    for threads in (1, 2, 3):
        library.set_threads(threads)
        found.append(native.quantised_product_native(x, matrix))
    same(found[0], found[1])
    same(found[0], found[2])


def test_mixed_types_go_to_the_reference():
    matrix = made((6, 4), "int8", None, "bfloat16")
    x = drawn(2, 6)
    same(native.quantised_product_native(x, matrix), quantised_product_reference(x, matrix))
