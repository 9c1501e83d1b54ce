"""Rows of a table by id."""

import paddle
import paddle.nn.functional as F

from erniekit.ops.backend import choose


def embedding(ids: paddle.Tensor, weight: paddle.Tensor) -> paddle.Tensor:
    """Rows of weight [V, D] at the int64 ids [...], which are all in 0..V-1: [..., D]."""
    return choose("embedding")(ids, weight)


def embedding_reference(ids: paddle.Tensor, weight: paddle.Tensor) -> paddle.Tensor:
    """`embedding` by Paddle's operator, whose gradient is a table of its own."""
    return F.embedding(ids, weight)
