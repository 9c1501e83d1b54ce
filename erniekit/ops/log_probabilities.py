"""Log-probability of one given token at each position, from hidden states, without all the logits.

Preference training needs a number for every token of an answer (not only their sum), and a gradient
that differs from token to token, known only after the whole answer was seen. So positions go through
the head in chunks, forward and once more backward, and no more than one chunk of logits exists at a
time:

    y_n = x_n[label_n] - log sum exp x_n,    dx_n = g_n (onehot(label_n) - softmax(x_n)).

    N positions, D hidden size, V vocabulary, C positions of a chunk
"""

from typing import Any

import paddle
import paddle.nn.functional as F
from paddle.autograd import PyLayer

from erniekit.ops.backend import choose

NO_LABEL = -100
# Logits held at once, at most: 128 MB in fp32.
MAX_LOGITS = 1 << 25


def linear_log_probabilities(
    hidden_ND: paddle.Tensor,
    weight: paddle.Tensor,
    bias_V: paddle.Tensor | None,
    labels_N: paddle.Tensor,
    *,
    transposed: bool,
    chunk_tokens: int,
) -> paddle.Tensor:
    """log softmax(hidden W + bias)[label] of every position, fp32 [N]; 0 where the label is -100.

    Args:
        weight: [V, D] when `transposed` (an embedding table), else [D, V].
        labels_N: int64.
        chunk_tokens: positions whose logits are held at once, at most; fewer where these were more than
            `MAX_LOGITS` numbers. The result does not depend on it beyond rounding.
    """
    vocabulary = weight.shape[0 if transposed else 1]
    chunk_tokens = max(1, min(chunk_tokens, MAX_LOGITS // vocabulary))
    function = choose("linear_log_probabilities")
    return function(hidden_ND, weight, bias_V, labels_N, transposed=transposed, chunk_tokens=chunk_tokens)


def linear_log_probabilities_reference(
    hidden_ND: paddle.Tensor,
    weight: paddle.Tensor,
    bias_V: paddle.Tensor | None,
    labels_N: paddle.Tensor,
    *,
    transposed: bool,
    chunk_tokens: int,
) -> paddle.Tensor:
    """`linear_log_probabilities` by plain operators on chunks of `chunk_tokens`."""
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
        ctx.wanted = [t is not None and not t.stop_gradient for t in (hidden_ND, weight, bias_V)]
        ctx.tensors, ctx.how = (hidden_ND, weight, bias_V, labels_N), (transposed, chunk_tokens)
        weight32 = weight.astype("float32")
        found = []
        for start in range(0, hidden_ND.shape[0], chunk_tokens):
            labels_C = labels_N[start : start + chunk_tokens]
            logits_CV = _logits(hidden_ND[start : start + chunk_tokens], weight32, bias_V, transposed)
            positions = _positions(labels_C, logits_CV.shape[1])
            at_label_C = paddle.gather(logits_CV.reshape([-1]), positions)
            value_C = at_label_C - paddle.logsumexp(logits_CV, axis=-1)
            found.append(paddle.where(labels_C == NO_LABEL, paddle.zeros_like(value_C), value_C))
        return paddle.concat(found) if found else paddle.zeros([0])

    @staticmethod
    def backward(ctx: Any, grad_N: paddle.Tensor) -> tuple[paddle.Tensor | None, ...]:
        hidden_ND, weight, bias_V, labels_N = ctx.tensors
        transposed, chunk_tokens = ctx.how
        to_hidden, to_weight, to_bias = ctx.wanted
        weight32 = weight.astype("float32")
        grad_hidden: list[paddle.Tensor] = []
        grad_weight = paddle.zeros(weight.shape) if to_weight else None
        grad_bias = paddle.zeros(bias_V.shape) if to_bias else None
        for start in range(0, hidden_ND.shape[0], chunk_tokens):
            hidden_CD, labels_C = (x[start : start + chunk_tokens] for x in (hidden_ND, labels_N))
            gradient_CV = F.softmax(_logits(hidden_CD, weight32, bias_V, transposed), axis=-1)
            positions = _positions(labels_C, gradient_CV.shape[1])
            gradient_CV.reshape([-1]).index_add_(positions, 0, paddle.full([len(labels_C)], -1.0))
            factor_C = -grad_N[start : start + chunk_tokens] * (labels_C != NO_LABEL).astype("float32")
            gradient_CV = gradient_CV * factor_C.unsqueeze(-1)
            if to_hidden:
                grad_hidden.append(paddle.matmul(gradient_CV, weight32, transpose_y=not transposed))
            if grad_weight is not None:
                hidden32 = hidden_CD.astype("float32")
                left, right = (gradient_CV, hidden32) if transposed else (hidden32, gradient_CV)
                grad_weight = grad_weight.add_(paddle.matmul(left, right, transpose_x=True))
            if grad_bias is not None:
                grad_bias = grad_bias.add_(gradient_CV.sum(0))
        results: list[paddle.Tensor | None] = [None]
        if to_hidden:
            joined = paddle.concat(grad_hidden) if grad_hidden else paddle.zeros(hidden_ND.shape)
            results[0] = joined.astype(hidden_ND.dtype)
        results.append(None if grad_weight is None else grad_weight.astype(weight.dtype))
        if bias_V is not None:
            results.append(None if grad_bias is None else grad_bias.astype(bias_V.dtype))
        return (*results, None)


def _logits(
    hidden_CD: paddle.Tensor, weight32: paddle.Tensor, bias_V: paddle.Tensor | None, transposed: bool
) -> paddle.Tensor:
    logits_CV = paddle.matmul(hidden_CD.astype("float32"), weight32, transpose_y=transposed)
    return logits_CV if bias_V is None else logits_CV + bias_V.astype("float32")


def _positions(labels_C: paddle.Tensor, vocabulary: int) -> paddle.Tensor:
    """Where the label of each row is in the flat logits: take_along_axis is hundreds of times slower."""
    rows_C = paddle.arange(len(labels_C), dtype="int64") * vocabulary
    return rows_C + paddle.where(labels_C == NO_LABEL, paddle.zeros_like(labels_C), labels_C)
