"""Cross-entropy of a linear layer over a vocabulary, without ever holding the logits of all positions.

For a vocabulary of V = 103,424 the logits of 8,192 positions are 3.4 GB in fp32, and their
gradient as much again. Here positions go through the layer in chunks: for each, the logits, the
loss and at once the gradient (softmax minus one-hot) to the hidden states and to the weight are
computed in the forward pass, and the logits are dropped. The backward pass only scales them.

    N positions, D hidden size, V vocabulary, C positions of a chunk
"""

from typing import Any

import paddle
import paddle.nn.functional as F
from paddle.autograd import PyLayer

from erniekit.ops.backend import choose

IGNORED = -100


def linear_cross_entropy(
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
    """Summed negative log-likelihood of the labels, and the number of positions predicted right.

    Args:
        weight: [V, D] when `transposed` (an embedding table), else [D, V]; bias [V].
        labels_N: int64, in 0..V-1, or -100 where nothing is to be predicted.
        chunk_tokens: positions whose logits are held at once, at most.
        wanted: whether gradients are.
        scale: the loss and its gradients are multiplied by it. When it is given, the gradient of a
            weight that has one already may be added to it at once: follow with `backward`.

    Returns:
        Two fp32 scalars.
    """
    return choose("linear_cross_entropy")(
        hidden_ND,
        weight,
        bias,
        labels_N,
        transposed=transposed,
        chunk_tokens=chunk_tokens,
        wanted=wanted,
        scale=scale,
    )


def linear_cross_entropy_reference(
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
    """`linear_cross_entropy` by plain operators."""
    factor = 1.0 if scale is None else scale
    return _ChunkedLoss.apply(hidden_ND, weight, bias, labels_N, transposed, chunk_tokens, wanted, factor)


class _ChunkedLoss(PyLayer):
    """Gradients are computed forward, chunk by chunk, and scaled backward."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: paddle.Tensor,
        weight: paddle.Tensor,
        bias: paddle.Tensor | None,
        labels_N: paddle.Tensor,
        transposed: bool,
        chunk_tokens: int,
        wanted: bool,
        scale: float,
    ) -> tuple[paddle.Tensor, paddle.Tensor]:
        # What gets a gradient; bf16 heads are summed over the chunks in fp32 all the same.
        to_hidden, to_weight, to_bias = (
            wanted and tensor is not None and not tensor.stop_gradient for tensor in (hidden_ND, weight, bias)
        )
        loss, num_correct = paddle.zeros([]), paddle.zeros([])
        weight32 = weight.astype("float32")
        grad_hidden: list[paddle.Tensor] = []
        grad_weight = grad_bias = None
        for start in range(0, hidden_ND.shape[0], chunk_tokens):
            hidden_CD = hidden_ND[start : start + chunk_tokens].astype("float32")
            labels_C = labels_N[start : start + chunk_tokens]
            logits_CV = paddle.matmul(hidden_CD, weight32, transpose_y=transposed)
            if bias is not None:
                logits_CV = logits_CV.add_(bias.astype("float32"))
            chunk_loss, chunk_correct, gradient_CV = _loss_and_gradient(
                logits_CV, labels_C, gradient=to_hidden or to_weight or to_bias
            )
            loss, num_correct = loss + chunk_loss, num_correct + chunk_correct
            if to_hidden:
                grad = paddle.matmul(gradient_CV, weight32, transpose_y=not transposed)
                grad_hidden.append(grad.astype(hidden_ND.dtype))
            if to_weight:
                left, right = (gradient_CV, hidden_CD) if transposed else (hidden_CD, gradient_CV)
                grad_weight = _plus(grad_weight, paddle.matmul(left, right, transpose_x=True))
            if to_bias:
                grad_bias = _plus(grad_bias, gradient_CV.sum(0))
        total_hidden = paddle.concat(grad_hidden, axis=0) if grad_hidden else None
        gradients = (
            (hidden_ND, to_hidden, total_hidden),
            (weight, to_weight, grad_weight),
            (bias, to_bias, grad_bias),
        )
        # No rows, no gradient so far, although one is expected: zeros. None where none is expected.
        ctx.gradients = [
            (paddle.zeros_like(tensor) if total is None else total.astype(tensor.dtype)) if needed else None
            for tensor, needed, total in gradients
            if tensor is not None
        ]
        ctx.scale = scale
        ctx.mark_non_differentiable(num_correct)
        return loss * scale, num_correct

    @staticmethod
    def backward(ctx: Any, grad_loss: paddle.Tensor, grad_correct: paddle.Tensor) -> tuple[Any, ...]:
        scale = float(grad_loss) * ctx.scale
        # Paddle wants one gradient for each tensor argument; the last one, labels, takes none.
        scaled = (None if gradient is None else paddle.scale(gradient, scale) for gradient in ctx.gradients)
        return (*scaled, None)


def _plus(total: paddle.Tensor | None, term: paddle.Tensor) -> paddle.Tensor:
    return term if total is None else total.add_(term)


def _loss_and_gradient(
    logits_CV: paddle.Tensor, labels_C: paddle.Tensor, *, gradient: bool
) -> tuple[paddle.Tensor, paddle.Tensor, paddle.Tensor]:
    """Summed loss, number of correct predictions, and softmax - onehot (zero where ignored).

    Takes three passes over the logits and overwrites them. The largest probability is
    1 / sum(exp(logit - largest)), so it gives the log-sum-exp without a pass of its own, and
    exactly, however small the label's own probability is.
    """
    num_rows, num_columns = logits_CV.shape
    ignored_C = labels_C == IGNORED
    counted_C = (~ignored_C).astype("float32")
    targets_C = paddle.where(ignored_C, paddle.zeros_like(labels_C), labels_C)
    best_C = logits_CV.argmax(axis=-1)
    # Single elements are found in the flat tensor: take_along_axis is hundreds of times slower.
    flat, first_C = logits_CV.reshape([-1]), paddle.arange(num_rows, dtype="int64") * num_columns
    largest_C, target_C = paddle.gather(flat, first_C + best_C), paddle.gather(flat, first_C + targets_C)
    probabilities_CV = F.softmax_(logits_CV, axis=-1)
    probabilities = probabilities_CV.reshape([-1])
    loss_C = largest_C - paddle.log(paddle.gather(probabilities, first_C + best_C)) - target_C
    num_correct = ((best_C == targets_C).astype("float32") * counted_C).sum()
    if gradient:
        probabilities.index_add_(first_C + targets_C, 0, paddle.full([num_rows], -1.0))
        if bool(ignored_C.any()):
            probabilities_CV = probabilities_CV.multiply_(counted_C.unsqueeze(-1))
    return (loss_C * counted_C).sum(), num_correct, probabilities_CV
