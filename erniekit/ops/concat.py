"""Joining tensors. Paddle's CPU build joins bf16 forward only: its gradient is not there."""

from collections.abc import Sequence

import paddle

from erniekit.ops.backend import to_arithmetic, to_storage


def concat(parts: Sequence[paddle.Tensor], axis: int = 0) -> paddle.Tensor:
    """`paddle.concat` of tensors of one type; bf16 has gradients on a CPU too (through fp32, exactly)."""
    return to_storage(paddle.concat(list(to_arithmetic(*parts)), axis=axis), parts[0].dtype)
