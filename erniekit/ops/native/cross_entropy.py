"""Linear layer with cross-entropy by the native kernels.

All gradients are computed in the forward pass, chunk by chunk, while the logits are there; only in the
backward pass is it known what they are to be multiplied by. That of the weight therefore waits in a
buffer of its own, which then becomes the main gradient (in an embedding that is also the head, whose
gradient starts here, it costs nothing). Where the weight has a gradient already and `scale` says what
the loss is multiplied by, it is added at once, and if the factor of the backward pass is not 1 after
all, the gradient is computed once more for the difference.
"""

from ctypes import c_float, c_int, c_long, c_void_p
from dataclasses import dataclass
from typing import Any

import numpy as np
import paddle
from paddle.autograd import PyLayer

from erniekit.errors import DataError
from erniekit.ops import gradients
from erniekit.ops.cross_entropy import IGNORED, linear_cross_entropy_reference
from erniekit.ops.kernels import library
from erniekit.ops.native.matmul import TYPES, contiguous, takes
from erniekit.ops.native.memory import empty

# Logits of a chunk, at most: 104 MB. A chunk reads and writes the whole gradient of the weight once,
# which at 512 positions takes a tenth of the time of its products.
LOGITS = 26 << 20


@dataclass(frozen=True)
class _Layer:
    """What a call reads: rows lie behind each other; labels are checked."""

    hidden_ND: paddle.Tensor
    weight: paddle.Tensor
    bias: paddle.Tensor | None
    labels_N: np.ndarray
    transposed: bool
    chunk: int

    @property
    def vocab_size(self) -> int:
        return int(self.weight.shape[0 if self.transposed else 1])


def linear_cross_entropy_native(
    hidden_ND: paddle.Tensor,
    weight: paddle.Tensor,
    bias: paddle.Tensor | None,
    labels_N: paddle.Tensor,
    *,
    transposed: bool,
    chunk_tokens: int,
    wanted: bool,
    scale: float | None = None,
) -> tuple[paddle.Tensor, paddle.Tensor]:
    """As `linear_cross_entropy_reference`, which also serves mixed types.

    Raises:
        DataError: a label is outside the vocabulary.
    """
    if not takes(hidden_ND, weight, bias):
        return linear_cross_entropy_reference(
            hidden_ND,
            weight,
            bias,
            labels_N,
            transposed=transposed,
            chunk_tokens=chunk_tokens,
            wanted=wanted,
            scale=scale,
        )
    vocab_size = weight.shape[0 if transposed else 1]
    labels = _checked(labels_N, vocab_size)
    chunk = _chunk(len(labels), min(chunk_tokens, LOGITS // max(1, vocab_size)))
    layer = _Layer(contiguous(hidden_ND), contiguous(weight), bias, labels, transposed, chunk)
    if wanted:
        return _LinearCrossEntropy.apply(hidden_ND, weight, bias, layer, scale)
    loss, num_correct = _run(layer, 1.0)
    return paddle.to_tensor(np.float32(loss * _factor(scale))), paddle.to_tensor(np.float32(num_correct))


def _factor(scale: float | None) -> float:
    return 1.0 if scale is None else scale


def _checked(labels_N: paddle.Tensor, vocab_size: int) -> np.ndarray:
    labels = np.ascontiguousarray(labels_N.numpy(), dtype=np.int64)
    wrong = labels[(labels != IGNORED) & ((labels < 0) | (labels >= vocab_size))]
    if wrong.size:
        raise DataError(
            f"label {wrong[0]} is outside the model's vocabulary of {vocab_size} (and not {IGNORED}, which "
            "is for what is not to be predicted); the tokenizer belongs to another model"
        )
    return labels


def _chunk(num_rows: int, most: int) -> int:
    """Rows of a chunk: chunks as equal as they can be, of whole blocks of 16 rows."""
    most = max(1, most)
    num_chunks = max(1, -(-num_rows // most))
    rows = -(-num_rows // num_chunks)
    return max(1, min(-(-rows // 16) * 16, most, num_rows))


def _run(
    layer: _Layer,
    scale: float,
    grad_hidden: paddle.Tensor | None = None,
    grad_weight: "_Place | None" = None,
    grad_bias: "_Place | None" = None,
) -> tuple[float, int]:
    """Loss and number of correct predictions; the gradients, times `scale`, are written or added."""
    num_rows, width = layer.hidden_ND.shape
    logits = empty([min(layer.chunk, num_rows), layer.vocab_size], dtype="float32")
    losses, corrects = np.empty(num_rows, np.float64), np.empty(num_rows, np.int32)
    library.load().declare(
        "ek_linear_cross_entropy",
        *(c_int, c_long, c_long, c_long, c_int, c_void_p, c_void_p, c_void_p, c_void_p, c_long, c_float),
        *(c_void_p, c_void_p, c_void_p, c_int, c_void_p, c_int, c_void_p, c_void_p),
    )(
        *(TYPES[layer.hidden_ND.dtype], num_rows, width, layer.vocab_size, layer.transposed),
        *(layer.hidden_ND.data_ptr(), layer.weight.data_ptr(), _pointer(layer.bias)),
        *(layer.labels_N.ctypes.data, layer.chunk, scale, logits.data_ptr(), _pointer(grad_hidden)),
        *((None, 0) if grad_weight is None else (grad_weight.written.data_ptr(), grad_weight.at_once)),
        *((None, 0) if grad_bias is None else (grad_bias.written.data_ptr(), grad_bias.at_once)),
        *(losses.ctypes.data, corrects.ctypes.data),
    )
    return float(losses.sum()), int(corrects.sum())


def _pointer(tensor: paddle.Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


@dataclass(frozen=True)
class _Place:
    """Where the gradient of a parameter goes: added to its main gradient `at_once`, or apart at first."""

    parameter: paddle.Tensor
    written: paddle.Tensor
    at_once: bool

    def give(self, factor: float) -> paddle.Tensor | None:
        """Bring `factor` times the gradient to the parameter; returns what the backward pass gives Paddle."""
        found = getattr(self.parameter, "main_grad", None) if self.parameter.is_leaf else None
        if found is not None or factor != 1.0:
            out = self.written if found is None else found
            library.load().declare("ek_scale", c_long, c_float, c_void_p, c_void_p, c_int)(
                out.size, factor, self.written.data_ptr(), out.data_ptr(), found is not None
            )
        if self.parameter.is_leaf and found is None:
            self.parameter.main_grad = self.written
        return gradients.hand_over(self.parameter, self.written)


def _place(parameter: paddle.Tensor | None, scale: float | None) -> _Place | None:
    if parameter is None or parameter.stop_gradient:
        return None
    found = getattr(parameter, "main_grad", None) if parameter.is_leaf else None
    if scale is not None and found is not None:
        return _Place(parameter, found, at_once=True)
    return _Place(parameter, empty(parameter.shape, dtype="float32"), at_once=False)


class _LinearCrossEntropy(PyLayer):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: paddle.Tensor,
        weight: paddle.Tensor,
        bias: paddle.Tensor | None,
        layer: _Layer,
        scale: float | None,
    ) -> tuple[paddle.Tensor, paddle.Tensor]:
        ctx.grad_hidden = None
        if not hidden_ND.stop_gradient:
            ctx.grad_hidden = empty(hidden_ND.shape, dtype=hidden_ND.dtype)
        ctx.places = [_place(weight, scale), _place(bias, scale)]
        ctx.with_bias, ctx.scale, ctx.layer = bias is not None, _factor(scale), None
        if any(place is not None and place.at_once for place in ctx.places):
            ctx.layer = layer
        loss, num_correct = _run(layer, ctx.scale, ctx.grad_hidden, *ctx.places)
        correct = paddle.to_tensor(np.float32(num_correct))
        ctx.mark_non_differentiable(correct)
        return paddle.to_tensor(np.float32(loss * ctx.scale)), correct

    @staticmethod
    def backward(ctx: Any, grad_loss: paddle.Tensor, grad_correct: paddle.Tensor) -> tuple[Any, ...]:
        factor = float(grad_loss)
        if ctx.layer is not None and factor != 1.0:
            once_more = [place if place is not None and place.at_once else None for place in ctx.places]
            _run(ctx.layer, (factor - 1.0) * ctx.scale, None, *once_more)
        given = [None if place is None or place.at_once else place.give(factor) for place in ctx.places]
        grad_hidden = ctx.grad_hidden
        if grad_hidden is not None and factor != 1.0:
            grad_hidden = paddle.scale(grad_hidden, factor)
        ctx.places, ctx.grad_hidden, ctx.layer = [], None, None
        return grad_hidden, *given[: 1 + ctx.with_bias]
