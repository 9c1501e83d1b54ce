"""Embedding and output layer whose vocabulary is split over the processes of a group.

The logits are never gathered. Of every position the processes exchange three numbers: the largest
logit m, the sum of exp(x - m), and the logit of the label, which one of them has. Then

    log p = x_label - m - log sum,        d log p / dx = onehot(label) - softmax(x),

each process for its part of the vocabulary. Logits are computed in chunks and once more backward.

    N positions, D hidden size, V part of the vocabulary, C positions of a chunk
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import paddle
from paddle.autograd import PyLayer

from erniekit.losses.cross_entropy import Head
from erniekit.ops.log_probabilities import NO_LABEL
from erniekit.parallel import comm
from erniekit.parallel.differentiable import copy_to, gathered


@dataclass(frozen=True)
class SharedHead(Head):
    """An output layer of which this process has the tokens from `group.rank * vocab_size` on."""

    group: Any = None

    def logits(self, hidden_ND: paddle.Tensor) -> paddle.Tensor:
        """Logits [N, V] of the whole vocabulary, gathered: for decoding, without gradients."""
        return gathered(super().logits(hidden_ND), self.group, 1)

    def cross_entropy(
        self, hidden_ND: paddle.Tensor, labels_N: paddle.Tensor, *, chunk_tokens: int, scale: float | None
    ) -> tuple[paddle.Tensor, paddle.Tensor]:
        """Summed negative log-likelihood times `scale`, and the number of labels with the largest logit."""
        log_p_N, is_largest_N = self._parts(hidden_ND, labels_N, chunk_tokens)
        return -log_p_N.sum() * (1.0 if scale is None else scale), is_largest_N.sum()

    def log_probabilities(
        self, hidden_ND: paddle.Tensor, labels_N: paddle.Tensor, *, chunk_tokens: int
    ) -> paddle.Tensor:
        """Log-probability of each label in the whole vocabulary, fp32 [N]; 0 where it is -100."""
        return self._parts(hidden_ND, labels_N, chunk_tokens)[0]

    def _parts(
        self, hidden_ND: paddle.Tensor, labels_N: paddle.Tensor, chunk_tokens: int
    ) -> tuple[paddle.Tensor, paddle.Tensor]:
        hidden_ND = copy_to(hidden_ND, self.group)
        if not hidden_ND.shape[0]:
            # Still a function of the hidden states, so that all processes meet in the backward pass.
            return hidden_ND.astype("float32").sum(-1), paddle.zeros([0])
        return _LogProbabilities.apply(
            hidden_ND, self.weight, self.bias, labels_N, self.transposed, chunk_tokens, self.group
        )


class _LogProbabilities(PyLayer):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: paddle.Tensor,
        weight: paddle.Tensor,
        bias_V: paddle.Tensor | None,
        labels_N: paddle.Tensor,
        transposed: bool,
        chunk_tokens: int,
        group: comm.Group,
    ) -> tuple[paddle.Tensor, paddle.Tensor]:
        head = Head(weight, transposed, bias_V)
        log_p, largest, normalisers = [], [], []
        for start in range(0, hidden_ND.shape[0], chunk_tokens):
            labels_C = labels_N[start : start + chunk_tokens]
            logits_CV = head.logits(hidden_ND[start : start + chunk_tokens])
            max_C = comm.all_reduce(logits_CV.max(-1), group, "max")
            place_C, is_here_C = _own_places(labels_C, logits_CV.shape[1], group.rank)
            label_C = paddle.gather(logits_CV.reshape([-1]), place_C) * is_here_C
            sums_2C = paddle.stack([row_sums(paddle.exp(logits_CV - max_C.unsqueeze(-1))), label_C])
            sum_C, label_C = comm.all_reduce(sums_2C, group)
            normaliser_C = max_C + paddle.log(sum_C)
            has_label_C = (labels_C != NO_LABEL).astype("float32")
            log_p.append((label_C - normaliser_C) * has_label_C)
            largest.append((label_C >= max_C).astype("float32") * has_label_C)
            normalisers.append(normaliser_C)
        ctx.tensors = (hidden_ND, weight, bias_V, labels_N, paddle.concat(normalisers))
        ctx.how = (transposed, chunk_tokens, group.rank)
        ctx.wanted = [t is not None and not t.stop_gradient for t in (hidden_ND, weight, bias_V)]
        largest_N = paddle.concat(largest)
        largest_N.stop_gradient = True
        return paddle.concat(log_p), largest_N

    @staticmethod
    def backward(ctx: Any, grad_N: paddle.Tensor, _: paddle.Tensor) -> tuple[paddle.Tensor | None, ...]:
        hidden_ND, weight, bias_V, labels_N, normaliser_N = ctx.tensors
        transposed, chunk_tokens, rank = ctx.how
        to_hidden, to_weight, to_bias = ctx.wanted
        head, weight32 = Head(weight, transposed, bias_V), weight.astype("float32")
        grad_hidden: list[paddle.Tensor] = []
        grad_weight = paddle.zeros(weight.shape) if to_weight else None
        grad_bias = paddle.zeros(bias_V.shape) if to_bias else None
        for start in range(0, hidden_ND.shape[0], chunk_tokens):
            stop = start + chunk_tokens
            hidden_CD, labels_C = hidden_ND[start:stop], labels_N[start:stop]
            gradient_CV = paddle.exp(head.logits(hidden_CD) - normaliser_N[start:stop].unsqueeze(-1))
            place_C, is_here_C = _own_places(labels_C, gradient_CV.shape[1], rank)
            gradient_CV.reshape([-1]).index_add_(place_C, 0, -is_here_C)
            factor_C = -grad_N[start:stop] * (labels_C != NO_LABEL).astype("float32")
            gradient_CV = gradient_CV * factor_C.unsqueeze(-1)
            if to_hidden:
                grad_hidden.append(paddle.matmul(gradient_CV, weight32, transpose_y=not transposed))
            if grad_weight is not None:
                hidden32 = hidden_CD.astype("float32")
                left, right = (gradient_CV, hidden32) if transposed else (hidden32, gradient_CV)
                grad_weight = grad_weight.add_(paddle.matmul(left, right, transpose_x=True))
            if grad_bias is not None:
                grad_bias = grad_bias.add_(gradient_CV.sum(0))
        results: list[paddle.Tensor | None] = [
            paddle.concat(grad_hidden).astype(hidden_ND.dtype) if to_hidden else None,
            None if grad_weight is None else grad_weight.astype(weight.dtype),
        ]
        if bias_V is not None:
            results.append(None if grad_bias is None else grad_bias.astype(bias_V.dtype))
        return (*results, None)


def shared_embedding(embed: Any, leave: Callable[[paddle.Tensor], paddle.Tensor], group: comm.Group) -> Any:
    """The forward of an embedding that looks up its own rows, 0 for others; `leave` sums over the group."""

    def forward(ids: paddle.Tensor) -> paddle.Tensor:
        rows = embed.weight.shape[0]
        own = ids - group.rank * rows
        is_here = (own >= 0) & (own < rows)
        found = original(paddle.clip(own, 0, rows - 1))
        return leave(found * is_here.astype(found.dtype).unsqueeze(-1))

    original = embed.forward
    return forward


def row_sums(x_CV: paddle.Tensor) -> paddle.Tensor:
    """Sums of long rows of numbers of one sign.

    Paddle's CPU build adds one after the other, and what is small beside the sum so far is lost: 16,384
    terms come out 2e-5 too small, which would be seen in the loss.
    """
    rows, columns = x_CV.shape
    width = next((width for width in range(512, 15, -1) if columns % width == 0), 0)
    if not width:
        return x_CV.sum(-1, dtype="float64").astype("float32")
    return x_CV.reshape([rows, columns // width, width]).sum(-1).sum(-1)


def _own_places(labels_C: paddle.Tensor, vocabulary: int, rank: int) -> tuple[paddle.Tensor, paddle.Tensor]:
    """Where each label is in this process's flat logits [C V], and 1.0 where it is there at all."""
    own_C = labels_C - rank * vocabulary
    is_here_C = (own_C >= 0) & (own_C < vocabulary)
    rows_C = paddle.arange(len(labels_C), dtype="int64") * vocabulary
    return rows_C + paddle.clip(own_C, 0, vocabulary - 1), is_here_C.astype("float32")
