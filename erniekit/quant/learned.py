"""Scales of weights that are learned while training for a scheme (LSQ, Esser et al. 2020).

A weight w of a group with the scale s counts as w' = value(code) s, the code being that of v = w / s cut to
[-L, L]. Of the gradient G = dL/dw' a step takes

    dL/ds = g sum over the group of G d,    d = value(code) - v within [-L, L], and beyond it L or -L
    dL/dw = G within, and 0 beyond,         g = 1 / sqrt(N L) for N weights in the group

Neither w nor s changes within a step, so both follow from the sum of G over its micro-batches: products
leave G in the weight's gradient, as without learned scales, and `make_gradients` makes the two of it.

Scales begin, with rounding, where the largest number is exact. They do not decay, and get 1 / L of the
learning rate: Adam moves a number by the rate however large its gradient is, and L s is about as large as the
weights are.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import paddle

from erniekit.errors import CheckpointError
from erniekit.ops import gradients
from erniekit.ops.number_formats import FORMATS as NUMBERS
from erniekit.ops.number_formats import absmax_scales, each_row, scales_shape
from erniekit.quant.schemes import FORMATS, WeightFormat
from erniekit.quant.trained import usable


@dataclass
class LearnedScales:
    """Those of the weight [..., K, N] of a layer.

    format: a row of FORMATS. parameter: fp32 [..., groups, N]. begun: whether it has a value.
    """

    layer: Any
    format: str
    parameter: Any
    begun: bool = False

    @classmethod
    def of(cls, layer: Any, format: str) -> "LearnedScales":
        """Without a value."""
        shape = scales_shape(tuple(layer.weight.shape), FORMATS[format].group)
        zero = paddle.nn.initializer.Constant(0.0)
        return cls(layer, format, paddle.create_parameter(shape, "float32", default_initializer=zero))

    @property
    def row(self) -> WeightFormat:
        """Of the table of formats."""
        return FORMATS[self.format]

    @property
    def learning_rate_ratio(self) -> float:
        """Share of the learning rate."""
        return 1 / NUMBERS[self.row.number].largest

    @paddle.no_grad()
    def begin(self) -> None:
        """Take the scales by which the largest numbers are exact, if there are none yet."""
        if not self.begun:
            self.parameter.set_value(
                absmax_scales(self.layer.weight.numpy(), self.row.number, self.row.group)
            )
            self.begun = True

    def go_on_from(self, scales: np.ndarray) -> None:
        """Take those of a checkpoint."""
        if list(scales.shape) != self.parameter.shape:
            raise CheckpointError(
                f"the checkpoint has learned scales of {list(scales.shape)}, and the model of "
                f"{self.parameter.shape}"
            )
        self.parameter.set_value(scales)
        self.begun = True

    def scales(self) -> np.ndarray:
        """To round by, [groups, N] of all matrices after each other."""
        return usable(self.parameter.numpy()).reshape(-1, self.parameter.shape[-1])

    @paddle.no_grad()
    def make_gradients(self, numbers: Callable[[paddle.Tensor], paddle.Tensor]) -> None:
        """Make of the gradient with respect to w' those of the scales and of the weight.

        Args:
            numbers: w' of w in fp32, both in the shape of the weight.
        """
        weight = self.layer.weight
        whole = gradients.of(weight)
        if whole is None or not self.begun:
            return
        rows, group, largest = weight.shape[-2], self.row.group, NUMBERS[self.row.number].largest
        each = paddle.to_tensor(each_row(usable(self.parameter.numpy()), rows, group))
        wide = weight.astype("float32")
        made = numbers(wide)
        within = wide.abs() <= largest * each
        moved = whole * paddle.where(within, made - wide, made) / each
        starts = np.arange(0, rows, group or rows)
        sums = np.add.reduceat(moved.numpy(), starts, axis=-2)
        sizes = np.diff([*starts, rows]).astype(np.float32)[:, None]
        self.parameter.main_grad = paddle.to_tensor(sums / np.sqrt(sizes * np.float32(largest)))
        weight.grad = None
        weight.main_grad = whole * within.astype("float32")
