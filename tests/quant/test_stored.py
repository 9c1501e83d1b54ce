"""The contract of formats: from numbers to codes to files and back, errors against theory, products."""

import numpy as np
import paddle
import pytest

from erniekit.ops import ccq
from erniekit.ops.fp8 import E4M3
from erniekit.ops.hadamard import hadamard, rotate_rows
from erniekit.ops.number_formats import FORMATS as NUMBERS
from erniekit.ops.number_formats import each_row, encode
from erniekit.ops.quantised import quantised_grouped_linear, quantised_linear
from erniekit.quant.load import to_matrix
from erniekit.quant.rtn import round_to_nearest
from erniekit.quant.schemes import FORMATS
from erniekit.quant.stored import (
    SUFFIXES,
    Quantised,
    matrix_of,
    named_tensors,
    rotation_of,
    settled,
    settled_input,
    specs_of,
    stacked,
    tensors_of,
)

SHAPES = [(192, 20), (130, 7), (9, 3)]


def drawn(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def made(format, shape, *, seed=0, clip=False) -> tuple[Quantised, np.ndarray]:
    """A matrix in a format, with a scale for its inputs where it needs one; and the one that was rounded."""
    rotation = rotation_of(format, shape[0], None)
    weight = drawn(*shape, seed=seed)
    weight = rotate_rows(weight, rotation) if rotation else weight
    found = round_to_nearest(weight, format, clip=clip, rotation=rotation)
    activations = FORMATS[format].activations
    if activations is not None and activations.is_static:
        scale = settled_input(np.array([0.021 + 0.01 * seed], np.float32), format, rotation)
        found = Quantised(**{**vars(found), "input_scale": scale})
    return found, weight


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("format", FORMATS)
def test_files_give_back_the_same_bits(format, shape):
    matrix, _ = made(format, shape)
    tensors = tensors_of(matrix)
    assert [(name, word, array.shape) for name, (word, array) in tensors.items()] != []
    assert {name: (word, array.shape) for name, (word, array) in tensors.items()} == {
        name: (word, of) for name, word, of in specs_of(format, shape)
    }
    assert set(tensors) <= set(SUFFIXES)
    again = matrix_of(format, shape, {name: array for name, (_, array) in tensors.items()}, matrix.rotation)
    for part in ("codes", "scales", "columns", "input_scale"):
        one, other = getattr(matrix, part), getattr(again, part)
        assert (one is None) == (other is None)
        if one is not None:
            assert one.dtype == other.dtype
            np.testing.assert_array_equal(one, other, err_msg=part)
    np.testing.assert_array_equal(matrix.numbers(), again.numbers())


@pytest.mark.parametrize("format", FORMATS)
def test_errors_are_those_of_theory(format):
    matrix, weight = made(format, (192, 20))
    gap = np.abs(matrix.numbers() - weight)
    row = FORMATS[format]
    if row.number in ccq.NUMBERS:
        assert np.square(gap).sum() < 0.12 * np.square(weight).sum()
        return
    number = NUMBERS[row.number]
    scale = each_row(matrix.scales, 192, row.group)
    cut = np.abs(number.cut(weight / scale) - weight / scale) > 0.5
    assert number.has_signed_scales or not cut.any()
    assert np.all(gap <= number.gap / np.where(cut, 1, 2) * np.abs(scale) * (1 + 1e-5))
    if row.number == "e4m3":
        # A mantissa of 3 bits: half of a 2^-3rd of the number, or of the smallest spacing.
        assert np.all(gap <= np.maximum(np.abs(weight) / 16, 2.0**-10 * scale) * (1 + 1e-5))
    largest = np.maximum.reduceat(np.abs(weight), np.arange(0, 192, row.group or 192), axis=0)
    if row.outputs != 1:
        largest = np.broadcast_to(largest.max(1, keepdims=True), largest.shape)
    tolerance = 2.0**-8 if row.scale_type == "bf16" else 3e-7
    np.testing.assert_allclose(np.abs(matrix.scales), largest / abs(number.largest), rtol=tolerance)


@pytest.mark.parametrize("format", FORMATS)
def test_what_is_made_while_training_is_what_is_converted(format):
    """Rounded numbers are their own rounding: with the same scales they have the same codes, bit for bit."""
    matrix, weight = made(format, (192, 20), clip=True)
    row = FORMATS[format]
    np.testing.assert_array_equal(to_matrix(matrix, "float32").numbers().numpy(), matrix.numbers())
    if row.number in ccq.NUMBERS:
        return
    fake = matrix.numbers()
    np.testing.assert_array_equal(encode(fake, matrix.scales, row.number, row.group), matrix.codes)
    np.testing.assert_array_equal(encode(weight, matrix.scales, row.number, row.group), matrix.codes)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("format", FORMATS)
def test_products_are_those_of_the_numbers(format, dtype):
    """By numpy: inputs are rotated and rounded as the format says, then multiplied with the numbers."""
    matrix, _ = made(format, (192, 20))
    x = paddle.to_tensor(drawn(11, 192, seed=5)).astype(dtype)
    found = quantised_linear(x, to_matrix(matrix, dtype)).astype("float32").numpy()
    given = x.astype("float32").numpy()
    if matrix.rotation:
        blocks = given.reshape(11, -1, matrix.rotation)
        given = (blocks @ hadamard(matrix.rotation)).reshape(11, 192)
    activations = FORMATS[format].activations
    if activations is not None and activations.is_static:
        scaled = given / matrix.input_scale[0]
        if activations.number == "int8":
            given = np.clip(np.rint(scaled), -127, 127) * matrix.input_scale[0]
        else:
            given = E4M3.values(E4M3.codes(scaled)) * matrix.input_scale[0]
    elif activations is not None:
        parts = [given[:, :128], given[:, 128:]]
        scales = [np.abs(part).max(1, keepdims=True) / 448 for part in parts]
        given = np.concatenate(
            [E4M3.values(E4M3.codes(p / s)) * s for p, s in zip(parts, scales, strict=True)], 1
        )
    expected = given @ matrix.numbers()
    tolerance = (1e-5 if dtype == "float32" else 2e-2) * np.abs(expected).max()
    # A rounding of an input that falls on the other side of a tie moves a product by one step.
    if activations is not None:
        tolerance += (
            np.abs(given).max() / 127 * np.abs(matrix.numbers()).max() * (3 if dtype == "bfloat16" else 1)
        )
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("format", FORMATS)
def test_experts_are_one_matrix_each(format):
    parts = [made(format, (64, 6), seed=seed)[0] for seed in range(3)]
    whole = stacked(parts)
    assert whole.shape == (3, 64, 6)
    names = [(f"experts.{expert}.down_proj", expert) for expert in range(3)]
    written = {name: array for name, _, array in named_tensors(whole, names)}
    assert len(written) == 3 * len(specs_of(format, (64, 6)))
    for expert, part in enumerate(parts):
        np.testing.assert_array_equal(whole.of_expert(expert).numbers(), part.numbers())
        for suffix, (_, array) in tensors_of(part).items():
            np.testing.assert_array_equal(written[f"experts.{expert}.down_proj.{suffix}"], array)
    x = paddle.to_tensor(drawn(7, 64, seed=9))
    offsets = paddle.to_tensor(np.array([0, 3, 3, 7]))
    found = quantised_grouped_linear(x, to_matrix(whole, "float32"), offsets).numpy()
    for expert, rows in ((0, slice(0, 3)), (2, slice(3, 7))):
        own = quantised_linear(x[rows], to_matrix(parts[expert], "float32")).numpy()
        np.testing.assert_allclose(found[rows], own, rtol=1e-5, atol=1e-5)


def test_bytes_by_hand():
    """int4 lies by outputs in pairs, w4a8 by inputs, in two's complement; w4a8 keeps the largest number."""
    weight = np.array([[7.0, -7.0], [-3.0, 2.0], [1.0, 0.0], [-1.0, 5.0]], np.float32)
    found = tensors_of(round_to_nearest(weight, "int4", clip=False))
    np.testing.assert_array_equal(found["quant_weight"][1].view(np.uint8), [[0x97, 0x2D, 0x01, 0x5F]])
    np.testing.assert_array_equal(found["weight_scale"][1], [1, 1])
    four = round_to_nearest(weight, "w4a8", clip=False)
    four = tensors_of(Quantised(**{**vars(four), "input_scale": np.array([2.0], np.float32)}))
    np.testing.assert_array_equal(four["quant_weight"][1].view(np.uint8), [[0xD7, 0x29], [0xF1, 0x50]])
    np.testing.assert_array_equal(four["weight_scale"][1], [7, 7])
    np.testing.assert_array_equal(four["activation_scale"][1], [254])
    # ...


def test_hadamard_matrices_of_ones_have_other_scales():
    """FastDeploy rotates by +1 and -1: weights are sqrt(32) larger, inputs too, and the product 32 times."""
    matrix, _ = made("fp8_tensor", (64, 6))
    tensors = tensors_of(matrix)
    unnormalised = tensors["weight_scale"][1][0] * 32 / np.sqrt(32)
    np.testing.assert_allclose(unnormalised, matrix.scales[0, 0], rtol=1e-6)
    np.testing.assert_allclose(
        tensors["activation_scale"][1][0], matrix.input_scale[0] * np.sqrt(32), rtol=1e-6
    )


def test_scales_settle():
    scales = np.exp(drawn(100000)).astype(np.float32) * 1e-3
    formats = {"w8a8": 2e-7, "w4a8": 2e-7, "int8": 0, "int4_g32": 2.0**-8}
    for format, rotation in (("fp8_tensor", 32), *((format, 0) for format in ("fp8_tensor", *formats))):
        once = settled(scales, format, rotation)
        np.testing.assert_allclose(once, scales, rtol=formats.get(format, 2e-7))
        np.testing.assert_array_equal(settled(once, format, rotation), once)


def test_rotations_fit_the_matrix():
    assert [rotation_of("fp8_tensor", rows, None) for rows in (64, 48, 9)] == [32, 16, 0]
    assert rotation_of("int8", 64, None) == 0 and rotation_of("int8", 192, 128) == 64
    assert rotation_of("fp8_tensor", 64, 0) == 0
