"""Matrix products and element sums in the storage type of their inputs (fp32 inside on a CPU)."""

import paddle

from erniekit.ops.backend import choose, to_arithmetic, to_storage


def linear(x: paddle.Tensor, weight: paddle.Tensor, bias: paddle.Tensor | None = None) -> paddle.Tensor:
    """x [..., I] times weight [I, O] plus bias [O]; sums in fp32, result in the type of x."""
    return choose("linear")(x, weight, bias)


def linear_reference(
    x: paddle.Tensor, weight: paddle.Tensor, bias: paddle.Tensor | None = None
) -> paddle.Tensor:
    """`linear` by plain operators."""
    dtype = x.dtype
    x, weight = to_arithmetic(x, weight)
    y = paddle.matmul(x, weight)
    if bias is not None:
        y = y + to_arithmetic(bias)[0]
    return to_storage(y, dtype)


def add(x: paddle.Tensor, y: paddle.Tensor) -> paddle.Tensor:
    """The residual sum x + y, same shape."""
    return choose("add")(x, y)


def add_reference(x: paddle.Tensor, y: paddle.Tensor) -> paddle.Tensor:
    """`add` by Paddle's operators."""
    dtype = x.dtype
    x, y = to_arithmetic(x, y)
    return to_storage(x + y, dtype)
