"""Dropout that costs nothing, and draws nothing, when it is off."""

import paddle
import paddle.nn.functional as F


def dropout(x: paddle.Tensor, probability: float, *, training: bool) -> paddle.Tensor:
    """Zero each element with `probability` and scale the rest by 1 / (1 - probability), in training only."""
    return F.dropout(x, probability) if probability and training else x
