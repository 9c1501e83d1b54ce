"""Products with quantised matrices on the native kernels, which make numbers of a panel at a time."""

from ctypes import c_int, c_long, c_void_p

import paddle

from erniekit.ops.kernels import library
from erniekit.ops.native.matmul import TYPES, contiguous, takes
from erniekit.ops.native.memory import empty
from erniekit.ops.number_formats import FORMATS
from erniekit.ops.products import product
from erniekit.ops.quantised import QuantisedMatrix, quantised_product_reference

# The formats that the kernels read; of others one matrix at a time is made into numbers.
NUMBERS = ("int8", "int4", "int4_full", "nf4", "int2", "e4m3")


def quantised_product_native(
    x_MK: paddle.Tensor,
    matrix: QuantisedMatrix,
    *,
    bias: paddle.Tensor | None = None,
    offsets: paddle.Tensor | None = None,
    turned: bool = False,
) -> paddle.Tensor:
    """As `quantised_product_reference`, which also serves mixed types."""
    if not takes(x_MK, bias) or x_MK.dtype != matrix.dtype:
        return quantised_product_reference(x_MK, matrix, bias=bias, offsets=offsets, turned=turned)
    if matrix.number not in NUMBERS:
        return _of_numbers(x_MK, matrix, bias, offsets, turned)
    *_, rows, columns = matrix.shape
    inner, outer = (columns, rows) if turned else (rows, columns)
    assert x_MK.shape[1] == inner, (x_MK.shape, matrix.shape, turned)
    x_MK = contiguous(x_MK)
    out = empty([x_MK.shape[0], outer], dtype=x_MK.dtype)
    bits = FORMATS[matrix.number].bits
    size = (rows, columns, matrix.group)
    table = None if matrix.number == "int8" or matrix.table is None else matrix.table.data_ptr()
    data = (matrix.codes.data_ptr(), TYPES[matrix.scales.dtype], matrix.scales.data_ptr(), table)
    if offsets is None:
        library.load().declare(
            "ek_quantised_gemm",
            *(c_int, c_int, c_long, c_long, c_long, c_long, c_void_p),
            *(c_void_p, c_int, c_void_p, c_void_p, c_int, c_void_p, c_void_p),
        )(
            *(TYPES[x_MK.dtype], bits, x_MK.shape[0], *size, x_MK.data_ptr()),
            *(*data, turned, out.data_ptr(), None if bias is None else bias.data_ptr()),
        )
        return out
    assert bias is None, "experts have no bias"
    library.load().declare(
        "ek_quantised_grouped_gemm",
        *(c_int, c_int, c_long, c_void_p, c_long, c_long, c_long, c_void_p),
        *(c_void_p, c_int, c_void_p, c_void_p, c_int, c_void_p),
    )(
        *(TYPES[x_MK.dtype], bits, matrix.shape[0], offsets.data_ptr(), *size, x_MK.data_ptr()),
        *(*data, turned, out.data_ptr()),
    )
    return out


def _of_numbers(
    x_MK: paddle.Tensor,
    matrix: QuantisedMatrix,
    bias: paddle.Tensor | None,
    offsets: paddle.Tensor | None,
    turned: bool,
) -> paddle.Tensor:
    """The product that training emulates (`quant/qat.py`), sum by sum."""
    if offsets is None:
        return product(x_MK, matrix.numbers(), bias=bias, turned=turned)
    bounds = offsets.tolist()
    parts = [
        product(x_MK[start:stop], matrix.numbers(expert), turned=turned)
        for expert, (start, stop) in enumerate(zip(bounds[:-1], bounds[1:], strict=True))
        if stop > start
    ]
    if not parts:
        return empty([0, matrix.shape[-2 if turned else -1]], dtype=x_MK.dtype)
    return paddle.concat(parts)
