"""The matrix product of the kernels on Paddle tensors, in place and without copies of whole operands."""

from ctypes import c_float, c_int, c_long, c_void_p

import paddle

from erniekit.ops.kernels import library

TYPES = {paddle.float32: library.FP32, paddle.bfloat16: library.BF16}
_SIGNATURE = (
    *(c_int, c_long, c_long, c_long, c_void_p, c_long, c_int, c_void_p, c_long, c_int),
    *(c_void_p, c_long, c_int, c_float, c_void_p),
)


def takes(*tensors: paddle.Tensor | None) -> bool:
    """Whether the kernels know the types: all present ones fp32, or all bf16."""
    types = {tensor.dtype for tensor in tensors if tensor is not None}
    return len(types) == 1 and types <= TYPES.keys()


def contiguous(tensor: paddle.Tensor) -> paddle.Tensor:
    """`tensor` laid out row by row."""
    return tensor if tensor.is_contiguous() else tensor.contiguous()


def matmul_into(
    out_MN: paddle.Tensor,
    a: paddle.Tensor,
    b: paddle.Tensor,
    *,
    transpose_a: bool = False,
    transpose_b: bool = False,
    add: bool = False,
    bias_N: paddle.Tensor | None = None,
) -> None:
    """out [M, N] = a [M, K] b [K, N] + bias, or added to what `out` holds; sums in fp32.

    All tensors are contiguous matrices; a is stored [K, M] when `transpose_a`, b [N, K] when
    `transpose_b`. a, b and the bias have one type, fp32 or bf16; `out` may be either, and is fp32
    when `add`.
    """
    m, n = out_MN.shape
    k = a.shape[0 if transpose_a else 1]
    assert a.shape == ([k, m] if transpose_a else [m, k]), (a.shape, out_MN.shape)
    assert b.shape == ([n, k] if transpose_b else [k, n]), (b.shape, a.shape, out_MN.shape)
    assert not add or out_MN.dtype == paddle.float32
    library.load().declare("ek_gemm", *_SIGNATURE)(
        *(TYPES[a.dtype], m, n, k),
        *(a.data_ptr(), a.shape[1], transpose_a, b.data_ptr(), b.shape[1], transpose_b),
        *(out_MN.data_ptr(), n, TYPES[out_MN.dtype], 1.0 if add else 0.0),
        None if bias_N is None else bias_N.data_ptr(),
    )
