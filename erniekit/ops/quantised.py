"""Products with a frozen matrix that is kept as codes and scales (see `number_formats.py`).

The numbers are made anew in the forward and in the backward pass, so that beside the codes there is at
most a part of the matrix: a panel with native kernels, one matrix with Paddle's operators. A number is
value(code) * scale in fp32, rounded once to the type of the activations. The matrix gets no gradient.

    M rows, I, O features in and out, E experts
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import paddle
from paddle.autograd import PyLayer

from erniekit.errors import UnsupportedError
from erniekit.ops import ccq, ccq_encode
from erniekit.ops.backend import choose, to_arithmetic, to_storage
from erniekit.ops.number_formats import FORMATS, dequantise, pack, quantise, scales_shape, unpack, widened
from erniekit.ops.rounding import Rounding, rotate


class QuantisedMatrix:
    """A matrix [I, O], or one an expert [E, I, O], in place of a tensor that is multiplied with.

    Args:
        codes: packed: uint8, of ccq2.5 uint16 as int16.
        scales: fp32 or bf16 [..., groups, O], of ccq2 the kept local scales.
        number: a row of FORMATS, or of `ccq.NUMBERS`.
        group: rows that share a scale.
        dtype: Paddle's type of the numbers that are made, or its name.
        columns: of ccq, the numbers of columns, fp32.
        rounding: how inputs are rounded before the product.
        rotation: features that a Hadamard matrix mixes before that; the numbers are those of the rotated
            matrix.
    """

    stop_gradient = True

    def __init__(
        self,
        codes: paddle.Tensor,
        scales: paddle.Tensor,
        *,
        shape: Sequence[int],
        number: str,
        group: int | None,
        dtype: Any,
        columns: paddle.Tensor | None = None,
        rounding: Rounding | None = None,
        rotation: int = 0,
    ) -> None:
        self.codes, self.scales, self.columns = codes, scales, columns
        self.shape, self.number = list(shape), number
        self.dtype = getattr(paddle, dtype) if isinstance(dtype, str) else dtype
        self.group = group or self.shape[-2]
        self.rounding, self.rotation = rounding, rotation
        self.table = paddle.to_tensor(FORMATS[number].table()) if number in FORMATS else None

    @classmethod
    def of(
        cls,
        raw: np.ndarray,
        number: str,
        group: int | None,
        dtype: Any,
        *,
        outputs: int | None = 1,
        scale_type: str = "fp32",
    ) -> "QuantisedMatrix":
        """Quantise a matrix in fp32, or in bf16 as uint16; `outputs` columns share a scale, None for all."""
        settings: dict[str, Any] = {"shape": raw.shape, "number": number, "group": group, "dtype": dtype}
        if number in ccq.NUMBERS:
            codes, scales, columns = ccq_encode.quantise(widened(raw), number)
            return cls.packed(codes, scales, columns, **settings)
        codes, scales = quantise(raw, number, group, outputs, scale_type)
        return cls.packed(codes, scales, None, scale_type=scale_type, **settings)

    @classmethod
    def packed(
        cls,
        codes: np.ndarray,
        scales: np.ndarray,
        columns: np.ndarray | None,
        *,
        scale_type: str = "fp32",
        **settings: Any,
    ) -> "QuantisedMatrix":
        """Of numpy's arrays; scales in fp32 are kept in their type."""
        codes = codes.view(np.int16) if codes.dtype == np.uint16 else codes
        made = None if columns is None else paddle.to_tensor(columns)
        kept = paddle.to_tensor(scales)
        kept = kept.astype("bfloat16") if scale_type == "bf16" else kept
        return cls(paddle.to_tensor(codes), kept, columns=made, **settings)

    def part(self, placement: Any) -> "QuantisedMatrix":
        """The blocks that a process holds of the matrix (`parallel/placement.py`), with the same numbers.

        Raises:
            UnsupportedError: rows that share a scale would be parted.
        """
        bits, rows = FORMATS[self.number].bits, self.shape[-2]
        per_channel = self.group == rows
        packed, scales, _ = self.arrays()
        codes = unpack(packed, bits, rows)
        shape = placement.part_shape
        group = shape[-2] if per_channel else self.group
        own = np.empty(scales_shape(shape, group), np.float32)
        for block in placement.blocks:
            to, source = (
                [slice(s, s + n) for s, n in zip(starts, block.shape, strict=True)]
                for starts in (block.here, block.start)
            )
            first, last = source[-2].start, source[-2].stop
            if not per_channel and (first % group or (last % group and last != rows)):
                raise UnsupportedError(
                    f"compute_type: {self.number} has a scale for every {group} rows, and "
                    f"tensor_parallel_degree parts a matrix of {rows} rows into {last - first}; write wint8 "
                    "or wint4, which have a scale for every column, or a smaller degree"
                )
            for window in (to, source):
                low, high = window[-2].start // group, -(-window[-2].stop // group)
                window[-2] = slice(0, 1) if per_channel else slice(low, high)
            own[tuple(to)] = scales[tuple(source)]
        taken = pack(placement.take(codes), bits)
        return QuantisedMatrix(
            *(paddle.to_tensor(taken), paddle.to_tensor(own).astype(self.scales.dtype)),
            shape=shape,
            number=self.number,
            group=None if per_channel else group,
            dtype=self.dtype,
        )

    @property
    def size(self) -> int:
        """Numbers in the matrix."""
        return int(np.prod(self.shape))

    @property
    def num_bytes(self) -> int:
        """Bytes of codes and scales."""
        kept = (self.codes, self.scales, *([] if self.columns is None else [self.columns]))
        return int(sum(tensor.size * tensor.element_size() for tensor in kept))

    def arrays(self, expert: int | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Codes, scales and numbers of columns (of an expert)."""
        kept = (self.codes, self.scales, self.columns)
        codes, scales, columns = (
            None if tensor is None else (tensor if expert is None else tensor[expert]).numpy()
            for tensor in kept
        )
        assert codes is not None and scales is not None
        # Paddle gives bf16 as uint16.
        scales = widened(scales) if scales.dtype == np.uint16 else scales
        return codes.view(np.uint16) if codes.dtype == np.int16 else codes, scales, columns

    def numbers(self, expert: int | None = None) -> paddle.Tensor:
        """The matrix (of an expert) as a tensor of its type."""
        codes, scales, columns = self.arrays(expert)
        rows = self.shape[-2]
        if columns is None:
            made = dequantise(codes, scales, self.number, self.group, rows)
        else:
            made = ccq.dequantise(codes, scales, columns, self.number, rows)
        return paddle.to_tensor(made).astype(self.dtype)


def quantised_product(
    x_MK: paddle.Tensor,
    matrix: QuantisedMatrix,
    *,
    bias: paddle.Tensor | None = None,
    offsets: paddle.Tensor | None = None,
    turned: bool = False,
) -> paddle.Tensor:
    """x times the matrix, or times its transpose when `turned`; no graph is made.

    Inputs are rotated and rounded first, if the matrix says so. A gradient (`turned`) passes the rounding as
    if it were not there, and is rotated after the product.

    Args:
        offsets: int64 [E + 1] where the matrix is one an expert, as of `ops/moe.py: grouped_linear`.
    """
    if not turned:
        x_MK = prepared(x_MK, matrix, offsets)
    y = choose("quantised_product")(x_MK, matrix, bias=bias, offsets=offsets, turned=turned)
    return rotate(y, matrix.rotation) if turned and matrix.rotation else y


def prepared(
    x_MK: paddle.Tensor, matrix: QuantisedMatrix, offsets: paddle.Tensor | None = None
) -> paddle.Tensor:
    """The rows that a matrix is multiplied with: rotated and rounded, in the type of x."""
    if matrix.rotation:
        x_MK = rotate(x_MK, matrix.rotation)
    return x_MK if matrix.rounding is None else matrix.rounding.apply(x_MK, offsets)


@paddle.no_grad()
def quantised_product_reference(
    x_MK: paddle.Tensor,
    matrix: QuantisedMatrix,
    *,
    bias: paddle.Tensor | None = None,
    offsets: paddle.Tensor | None = None,
    turned: bool = False,
) -> paddle.Tensor:
    """`quantised_product` by Paddle's operators, one whole matrix at a time."""
    dtype = x_MK.dtype
    if offsets is None:
        y = _product(x_MK, matrix.numbers(), turned)
        return to_storage(y if bias is None else y + to_arithmetic(bias)[0], dtype)
    bounds = offsets.tolist()
    parts = []
    for expert, (start, stop) in enumerate(zip(bounds[:-1], bounds[1:], strict=True)):
        if stop > start:
            parts.append(_product(x_MK[start:stop], matrix.numbers(expert), turned))
    if not parts:
        return paddle.zeros([0, matrix.shape[-2 if turned else -1]], dtype=dtype)
    return to_storage(paddle.concat(parts), dtype)


def _product(x_MK: paddle.Tensor, numbers: paddle.Tensor, turned: bool) -> paddle.Tensor:
    return paddle.matmul(to_arithmetic(x_MK)[0], to_arithmetic(numbers)[0], transpose_y=turned)


def quantised_linear(
    x: paddle.Tensor, matrix: QuantisedMatrix, bias: paddle.Tensor | None = None
) -> paddle.Tensor:
    """x [..., I] times the matrix [I, O] plus bias, with a gradient to x alone."""
    if not paddle.is_grad_enabled():
        return _rowwise(x, matrix, bias=bias)
    return _Product.apply(x, matrix, bias, None)


def quantised_grouped_linear(
    x_MI: paddle.Tensor, matrix: QuantisedMatrix, offsets: paddle.Tensor
) -> paddle.Tensor:
    """Rows of every expert times its matrix of [E, I, O], with a gradient to x alone."""
    bounds = offsets.astype("int64").contiguous()
    if not paddle.is_grad_enabled():
        return quantised_product(x_MI, matrix, offsets=bounds)
    return _Product.apply(x_MI, matrix, None, _Bounds(bounds))


def _rowwise(x: paddle.Tensor, matrix: QuantisedMatrix, **settings: Any) -> paddle.Tensor:
    y = quantised_product(x.reshape([-1, x.shape[-1]]), matrix, **settings)
    return y.reshape([*x.shape[:-1], y.shape[-1]])


class _Bounds:
    """Offsets that Paddle does not take for an input of the graph."""

    def __init__(self, offsets: paddle.Tensor) -> None:
        self.offsets = offsets


class _Product(PyLayer):
    @staticmethod
    def forward(
        ctx: Any,
        x: paddle.Tensor,
        matrix: QuantisedMatrix,
        bias: paddle.Tensor | None,
        bounds: _Bounds | None,
    ) -> paddle.Tensor:
        assert bias is None or bias.stop_gradient, "the bias of a quantised matrix is not trained"
        ctx.matrix, ctx.offsets, ctx.has_bias = matrix, bounds and bounds.offsets, bias is not None
        return _rowwise(x, matrix, bias=bias, offsets=ctx.offsets)

    @staticmethod
    def backward(ctx: Any, grad: paddle.Tensor) -> Any:
        grad_x = _rowwise(grad, ctx.matrix, offsets=ctx.offsets, turned=True)
        return (grad_x, None) if ctx.has_bias else grad_x
