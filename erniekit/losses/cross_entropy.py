"""Cross-entropy from hidden states, without ever holding the logits of all positions.

For a vocabulary of V = 103,424 the logits of 8,192 positions are 3.4 GB in fp32, and their
gradient as much again. Here positions go through the head in chunks: for each, the logits, the
loss and at once the gradient (softmax minus one-hot) to the hidden states and to the head are
computed in the forward pass, and the logits are dropped. The backward pass only scales them.

    N positions, D hidden size, V vocabulary, C positions of a chunk
"""

from dataclasses import dataclass
from typing import Any

import paddle
import paddle.nn.functional as F
from paddle.autograd import PyLayer

IGNORED = -100
# Logits held at once, at most: 256 MB in fp32. Larger chunks are no faster, only larger.
MAX_LOGITS = 1 << 26


@dataclass(frozen=True)
class Head:
    """The output layer: `weight` is [V, D] when `transposed` (an embedding table), else [D, V]; bias [V]."""

    weight: paddle.Tensor
    transposed: bool
    bias: paddle.Tensor | None = None

    def logits(self, hidden_ND: paddle.Tensor) -> paddle.Tensor:
        """Logits [N, V] in fp32."""
        weight = self.weight.astype("float32")
        logits = paddle.matmul(hidden_ND.astype("float32"), weight, transpose_y=self.transposed)
        return logits if self.bias is None else logits + self.bias.astype("float32")


def chunked_cross_entropy(
    hidden_ND: paddle.Tensor,
    head: Head,
    labels_N: paddle.Tensor,
    *,
    chunk_tokens: int,
    only_labelled: bool = True,
) -> tuple[paddle.Tensor, dict[str, float]]:
    """Negative log-likelihood summed over the positions whose label is not -100.

    Without any such position the loss is 0 and so is every gradient.

    Args:
        labels_N: int64 token ids, or -100 where nothing is to be predicted.
        chunk_tokens: positions whose logits are held at once (fewer where these were more than
            `MAX_LOGITS` numbers); the result does not depend on it beyond rounding.
        only_labelled: gather the labelled positions before the head; the result is the same, what
            is computed at the others is wasted.

    Returns:
        The sum in nats, an fp32 scalar, and `num_tokens` and `num_correct` (greedy prediction right).
    """
    if only_labelled:
        positions = paddle.nonzero(labels_N != IGNORED).flatten()
        hidden_ND, labels_N = paddle.gather(hidden_ND, positions), paddle.gather(labels_N, positions)
    vocab_size = head.weight.shape[0 if head.transposed else 1]
    chunk_tokens = max(1, min(chunk_tokens, MAX_LOGITS // vocab_size))
    # Inside a PyLayer gradients are always off, so what is wanted is asked here.
    wanted = paddle.is_grad_enabled()
    loss, num_correct = _ChunkedLoss.apply(
        hidden_ND, head.weight, head.bias, labels_N, head.transposed, chunk_tokens, wanted
    )
    num_tokens = labels_N.shape[0] if only_labelled else float((labels_N != IGNORED).sum())
    return loss, {"num_tokens": float(num_tokens), "num_correct": float(num_correct)}


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
        ctx.mark_non_differentiable(num_correct)
        return loss, num_correct

    @staticmethod
    def backward(ctx: Any, grad_loss: paddle.Tensor, grad_correct: paddle.Tensor) -> tuple[Any, ...]:
        scale = float(grad_loss)
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
