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
from paddle.autograd import PyLayer

IGNORED = -100


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

    Args:
        labels_N: int64 token ids, or -100 where nothing is to be predicted.
        chunk_tokens: positions whose logits are held at once.
        only_labelled: gather the labelled positions before the head; the result is the same, what
            is computed at the others is wasted.

    Returns:
        The sum in nats, an fp32 scalar, and `num_tokens` and `num_correct` (greedy prediction right).
    """
    if only_labelled:
        positions = paddle.nonzero(labels_N != IGNORED).flatten()
        hidden_ND, labels_N = paddle.gather(hidden_ND, positions), paddle.gather(labels_N, positions)
    metrics = {"num_tokens": float((labels_N != IGNORED).sum()), "num_correct": 0.0}
    if hidden_ND.shape[0] == 0:
        return hidden_ND.astype("float32").sum(), metrics
    # Inside a PyLayer gradients are always off, so what is wanted is asked here.
    wanted = paddle.is_grad_enabled()
    loss, num_correct = _ChunkedLoss.apply(
        hidden_ND, head.weight, head.bias, labels_N, head.transposed, chunk_tokens, wanted
    )
    metrics["num_correct"] = float(num_correct)
    return loss, metrics


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
        needed = wanted and not hidden_ND.stop_gradient
        trained = wanted and not weight.stop_gradient
        biased = bias is not None and wanted and not bias.stop_gradient
        loss, num_correct = paddle.zeros([]), paddle.zeros([])
        weight32 = weight.astype("float32")
        grad_weight = paddle.zeros(weight.shape, dtype="float32") if trained else None
        grad_bias = paddle.zeros(bias.shape, dtype="float32") if biased else None
        grad_hidden = []
        for start in range(0, hidden_ND.shape[0], chunk_tokens):
            hidden_CD = hidden_ND[start : start + chunk_tokens].astype("float32")
            labels_C = labels_N[start : start + chunk_tokens]
            logits_CV = paddle.matmul(hidden_CD, weight32, transpose_y=transposed)
            if bias is not None:
                logits_CV = logits_CV + bias.astype("float32")
            chunk_loss, chunk_correct, gradient_CV = _loss_and_gradient(logits_CV, labels_C)
            loss, num_correct = loss + chunk_loss, num_correct + chunk_correct
            if needed:
                grad = paddle.matmul(gradient_CV, weight32, transpose_y=not transposed)
                grad_hidden.append(grad.astype(hidden_ND.dtype))
            if trained:
                left, right = (gradient_CV, hidden_CD) if transposed else (hidden_CD, gradient_CV)
                grad_weight = grad_weight.add_(paddle.matmul(left, right, transpose_x=True))
            if biased:
                grad_bias = grad_bias.add_(gradient_CV.sum(0))
        ctx.gradients = (
            paddle.concat(grad_hidden, axis=0) if needed else None,
            grad_weight.astype(weight.dtype) if trained else None,
            grad_bias.astype(bias.dtype) if biased else None,
        )
        ctx.has_bias = bias is not None
        ctx.mark_non_differentiable(num_correct)
        return loss, num_correct

    @staticmethod
    def backward(
        ctx: Any, grad_loss: paddle.Tensor, grad_correct: paddle.Tensor
    ) -> tuple[paddle.Tensor | None, ...]:
        hidden, weight, bias = (
            None if grad is None else grad * grad_loss.astype(grad.dtype) for grad in ctx.gradients
        )
        # Paddle wants one gradient for each tensor argument: labels take none.
        return (hidden, weight, bias, None) if ctx.has_bias else (hidden, weight, None)


def _loss_and_gradient(
    logits_CV: paddle.Tensor, labels_C: paddle.Tensor
) -> tuple[paddle.Tensor, paddle.Tensor, paddle.Tensor]:
    """Summed loss, number of correct predictions, and softmax - onehot (zero where ignored)."""
    counted = (labels_C != IGNORED).astype("float32")
    targets_C1 = paddle.where(labels_C == IGNORED, paddle.zeros_like(labels_C), labels_C).unsqueeze(-1)
    largest = logits_CV.max(axis=-1, keepdim=True)
    predicted_C = logits_CV.argmax(axis=-1)
    shifted = logits_CV.subtract_(largest)
    target_logit = paddle.take_along_axis(shifted, targets_C1, axis=-1).squeeze(-1)
    exponentials = shifted.exp_()
    total = exponentials.sum(axis=-1, keepdim=True)
    loss_C = paddle.log(total.squeeze(-1)) - target_logit
    gradient_CV = exponentials.multiply_(counted.unsqueeze(-1) / total)
    gradient_CV = paddle.put_along_axis(gradient_CV, targets_C1, -counted.unsqueeze(-1), axis=-1, reduce="add")
    num_correct = ((predicted_C == targets_C1.squeeze(-1)).astype("float32") * counted).sum()
    return (loss_C * counted).sum(), num_correct, gradient_CV
