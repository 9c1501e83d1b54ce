"""Products of bytes as Paddle's block-wise GEMM is asked for them; the GEMM itself needs a GPU.

Its documented contract stands in: out = a b^T by 128 numbers of K at a time, times both scales of each.
Scales of tiles lie as [K / 128, rows], those of blocks as [rows / 128, K / 128].
"""

import numpy as np
import paddle
import pytest

from erniekit.ops import backend, fp8_gemm, gradients
from erniekit.ops.fp8 import E4M3, E5M2
from erniekit.ops.fp8_gemm import (
    gradient_of_codes_gpu,
    gradient_of_codes_reference,
    product_of_codes_gpu,
    product_of_codes_reference,
)
from erniekit.ops.tiles import Grid, encode

BOUNDS = np.array([0, 130, 130, 300], np.int64)
FORMATS = {paddle.float8_e4m3fn: E4M3, paddle.float8_e5m2: E5M2}


def numbers_of(x):
    return FORMATS[x.dtype].values(x.view("uint8").numpy())


@pytest.fixture
def asked(monkeypatch):
    """What the product was asked for: (shape of a, of b, both kinds of scales, type of out)."""
    calls = []

    def gemm(a, a_scale, b, b_scale, out_dtype, *, is_a_1d_scaled, is_b_1d_scaled):
        assert a.is_contiguous() and a_scale.is_contiguous() and a_scale.dtype == paddle.float32
        assert b.is_contiguous() and b_scale.is_contiguous() and b_scale.dtype == paddle.float32
        (rows, inner), (columns, same) = a.shape, b.shape
        assert inner == same and not any(size % 128 for size in (rows, inner, columns))
        scales = []
        for scale, size, tiled in ((a_scale, rows, is_a_1d_scaled), (b_scale, columns, is_b_1d_scaled)):
            assert scale.shape == ([inner // 128, size] if tiled else [size // 128, inner // 128])
            scales.append(scale.numpy() if tiled else scale.numpy().T.repeat(128, 1))
        out = np.zeros((rows, columns), np.float32)
        for k in range(inner // 128):
            part = slice(128 * k, 128 * k + 128)
            sums = numbers_of(a)[:, part] @ numbers_of(b)[:, part].T
            out += sums * scales[0][k][:, None] * scales[1][k]
        calls.append((a.shape, b.shape, is_a_1d_scaled, is_b_1d_scaled, out_dtype))
        return paddle.to_tensor(out).astype(out_dtype)

    monkeypatch.setattr(fp8_gemm.F, "fp8_gemm_blockwise", gemm)
    return calls


def drawn(*shape):
    """Octaves apart, so that a scale at the wrong place is seen."""
    random = np.random.default_rng(len(shape))
    size = 2.0 ** random.integers(-6, 6, (*shape[:-1], 1))
    return paddle.to_tensor((random.normal(size=shape) * size).astype(np.float32))


def tiles(x, rows, columns, bounds=None, format="e4m3"):
    return encode(x, Grid(format, rows, columns, power_of_two=True), bounds=bounds)


def near(found, expected):
    expected = expected.astype("float32").numpy()
    assert found.shape == list(expected.shape)
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=2e-6 * np.abs(expected).max())


@pytest.mark.parametrize("shape", [(256, 384, 128), (37, 200, 140)])
def test_products_of_a_matrix(shape, asked):
    rows, inner, columns = shape
    filled = [-(-size // 128) * 128 for size in shape]
    x, weight, bias = drawn(rows, inner), tiles(drawn(inner, columns), 128, 128), drawn(columns)
    x8, g8 = tiles(x, 1, 128), tiles(drawn(rows, columns), 1, 128, format="e5m2")
    near(product_of_codes_gpu(x8, weight, bias=bias), product_of_codes_reference(x8, weight, bias=bias))
    near(product_of_codes_gpu(g8, weight, turned=True), product_of_codes_reference(g8, weight, turned=True))
    found, expected = (paddle.create_parameter([inner, columns], "float32") for _ in range(2))
    factors = tiles(x, 128, 1), tiles(drawn(rows, columns), 128, 1, format="e5m2")
    for _ in range(2):  # the second is added
        assert gradient_of_codes_gpu(found, *factors) is None
        gradient_of_codes_reference(expected, *factors)
    near(gradients.of(found), gradients.of(expected))
    m, k, n = filled
    assert asked[:3] == [
        ([m, k], [n, k], True, False, paddle.float32),
        ([m, n], [k, n], True, False, paddle.float32),
        ([k, m], [n, m], True, True, paddle.float32),
    ]


def test_products_of_experts(asked):
    weight = tiles(drawn(3 * 200, 140), 128, 128, np.arange(4) * 200)
    offsets, x, grad = paddle.to_tensor(BOUNDS), drawn(300, 200), drawn(300, 140)
    x8, g8 = tiles(x, 1, 128, BOUNDS), tiles(grad, 1, 128, BOUNDS)
    near(product_of_codes_gpu(x8, weight), product_of_codes_reference(x8, weight, offsets=offsets))
    near(
        product_of_codes_gpu(g8, weight, turned=True),
        product_of_codes_reference(g8, weight, offsets=offsets, turned=True),
    )
    found, expected = (paddle.create_parameter([3, 200, 140], "float32") for _ in range(2))
    factors = tiles(x, 128, 1, BOUNDS), tiles(grad, 128, 1, BOUNDS)
    for _ in range(2):
        gradient_of_codes_gpu(found, *factors, offsets=offsets)
        gradient_of_codes_reference(expected, *factors, offsets=offsets)
    near(gradients.of(found), gradients.of(expected))
    assert len(asked) == 2 * (1 + 1 + 2), "an expert without tokens is left out"


def test_no_rows_at_all(asked):
    bounds = np.zeros(4, np.int64)
    weight = tiles(drawn(3 * 200, 140), 128, 128, np.arange(4) * 200)
    x = tiles(paddle.zeros([0, 200]), 1, 128, bounds)
    assert product_of_codes_gpu(x, weight).shape == [0, 140] and not asked


@pytest.mark.parametrize(
    ("device", "capability", "expected"),
    [("gpu", (9, 0), True), ("gpu", (8, 0), False), ("gpu", (10, 0), False), ("native", (9, 0), False)],
)
def test_where_bytes_are_multiplied(device, capability, expected, monkeypatch):
    monkeypatch.setattr(backend, "_backend", device)
    monkeypatch.setattr(paddle.device.cuda, "get_device_capability", lambda: capability)
    assert backend.multiplies_fp8() is expected
    assert backend.choose("product_of_codes") is (
        product_of_codes_gpu if device == "gpu" else product_of_codes_reference
    )
