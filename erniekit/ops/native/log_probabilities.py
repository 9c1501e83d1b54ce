"""Log-probabilities of given tokens over the native matrix product, see `ops/log_probabilities.py`.

The gradient of the weight is added to its main gradient, chunk by chunk. Beside the hidden states
only the logarithm of the sum over the vocabulary is kept of each position.

    N positions, D hidden size, V vocabulary, C positions of a chunk
"""

from ctypes import c_int, c_long, c_void_p
from typing import Any

import paddle
from paddle.autograd import PyLayer

from erniekit.ops import gradients
from erniekit.ops.kernels import library
from erniekit.ops.log_probabilities import linear_log_probabilities_reference
from erniekit.ops.native.linear import add_rows
from erniekit.ops.native.matmul import TYPES, contiguous, matmul_into, takes
from erniekit.ops.native.memory import empty

_P, _L, _I = c_void_p, c_long, c_int


def linear_log_probabilities_native(
    hidden_ND: paddle.Tensor,
    weight: paddle.Tensor,
    bias_V: paddle.Tensor | None,
    labels_N: paddle.Tensor,
    *,
    transposed: bool,
    chunk_tokens: int,
) -> paddle.Tensor:
    """As `linear_log_probabilities_reference`, which also serves mixed types."""
    if not takes(hidden_ND, weight, bias_V):
        return linear_log_probabilities_reference(
            hidden_ND, weight, bias_V, labels_N, transposed=transposed, chunk_tokens=chunk_tokens
        )
    return _Chunks.apply(hidden_ND, weight, bias_V, labels_N, transposed, chunk_tokens)


class _Chunks(PyLayer):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: paddle.Tensor,
        weight: paddle.Tensor,
        bias_V: paddle.Tensor | None,
        labels_N: paddle.Tensor,
        transposed: bool,
        chunk_tokens: int,
    ) -> paddle.Tensor:
        hidden_ND, labels_N = contiguous(hidden_ND), contiguous(labels_N)
        num_positions = hidden_ND.shape[0]
        out_N, log_sums_N = empty([num_positions]), empty([num_positions], "float64")
        call = library.load().declare("ek_log_probabilities", _L, _L, _P, _P, _P, _P)
        for rows in _chunks(num_positions, chunk_tokens):
            logits_CV = _logits(hidden_ND[rows], weight, bias_V, transposed)
            labels_C, out_C, log_sums_C = labels_N[rows], out_N[rows], log_sums_N[rows]
            call(
                *logits_CV.shape,
                *(logits_CV.data_ptr(), labels_C.data_ptr(), out_C.data_ptr(), log_sums_C.data_ptr()),
            )
            out_N[rows], log_sums_N[rows] = out_C, log_sums_C
        ctx.wanted = [t is not None and not t.stop_gradient for t in (hidden_ND, weight, bias_V)]
        ctx.tensors = (hidden_ND, weight, bias_V, labels_N, log_sums_N)
        ctx.how = (transposed, chunk_tokens)
        return out_N

    @staticmethod
    def backward(ctx: Any, grad_N: paddle.Tensor) -> tuple[paddle.Tensor | None, ...]:
        hidden_ND, weight, bias_V, labels_N, log_sums_N = ctx.tensors
        transposed, chunk_tokens = ctx.how
        to_hidden, to_weight, to_bias = ctx.wanted
        grad_N = contiguous(grad_N.astype("float32"))
        grad_hidden = empty(hidden_ND.shape, hidden_ND.dtype) if to_hidden else None
        weight_target = _Target(weight) if to_weight else None
        bias_target = _Target(bias_V) if to_bias else None
        for rows in _chunks(hidden_ND.shape[0], chunk_tokens):
            hidden_CD = hidden_ND[rows]
            logits_CV = _logits(hidden_CD, weight, bias_V, transposed)
            gradient_CV = _gradient(
                logits_CV, labels_N[rows], grad_N[rows], log_sums_N[rows], hidden_ND.dtype
            )
            del logits_CV
            if grad_hidden is not None:
                part_CD = empty(hidden_CD.shape, hidden_CD.dtype)
                matmul_into(part_CD, gradient_CV, contiguous(weight), transpose_b=not transposed)
                grad_hidden[rows] = part_CD
            if weight_target is not None:
                left, right = (gradient_CV, hidden_CD) if transposed else (hidden_CD, gradient_CV)
                written, add = weight_target.next()
                matmul_into(written, left, right, transpose_a=True, add=add)
            if bias_target is not None:
                written, add = bias_target.next()
                add_rows(written, gradient_CV, float(add))
        results = [grad_hidden, None if weight_target is None else weight_target.hand_over()]
        if bias_V is not None:
            results.append(None if bias_target is None else bias_target.hand_over())
        return (*results, None)


class _Target:
    """Where the gradient of a parameter is written, over several chunks."""

    def __init__(self, parameter: paddle.Tensor) -> None:
        self._parameter = parameter
        self._written, factor = gradients.target(parameter)
        self._add = factor != 0.0

    def next(self) -> tuple[paddle.Tensor, bool]:
        """The tensor, and whether to add to what it holds."""
        add, self._add = self._add, True
        return self._written, add

    def hand_over(self) -> paddle.Tensor | None:
        """What the backward pass returns."""
        if not self._add:  # no position at all
            self._written.zero_()
        return gradients.hand_over(self._parameter, self._written)


def _chunks(num_positions: int, chunk_tokens: int) -> list[slice]:
    return [
        slice(start, min(start + chunk_tokens, num_positions))
        for start in range(0, num_positions, chunk_tokens)
    ]


def _logits(
    hidden_CD: paddle.Tensor, weight: paddle.Tensor, bias_V: paddle.Tensor | None, transposed: bool
) -> paddle.Tensor:
    vocabulary = weight.shape[0 if transposed else 1]
    logits_CV = empty([hidden_CD.shape[0], vocabulary])
    matmul_into(logits_CV, contiguous(hidden_CD), contiguous(weight), transpose_b=transposed, bias_N=bias_V)
    return logits_CV


def _gradient(
    logits_CV: paddle.Tensor,
    labels_C: paddle.Tensor,
    grad_C: paddle.Tensor,
    log_sums_C: paddle.Tensor,
    dtype: paddle.dtype,
) -> paddle.Tensor:
    """The gradient of the logits in `dtype`; in fp32 it takes their place."""
    out_CV = logits_CV if dtype == paddle.float32 else empty(logits_CV.shape, dtype)
    call = library.load().declare("ek_log_probabilities_backward", _I, _L, _L, *[_P] * 5)
    call(
        *(TYPES[dtype], *logits_CV.shape, logits_CV.data_ptr(), labels_C.data_ptr()),
        *(grad_C.data_ptr(), log_sums_C.data_ptr(), out_CV.data_ptr()),
    )
    return out_CV
