"""Next-token prediction over the trained tokens: the objective of SFT and of PT.

The two stages differ in their data only: SFT trains on the tokens of the answers, PT on all.
"""

from collections.abc import Sequence
from typing import Any

import paddle

from erniekit.losses.cross_entropy import Head, chunked_cross_entropy
from erniekit.losses.multi_token import labels_ahead
from erniekit.parallel.segment import recomputed
from erniekit.train.objectives import inputs_of


def next_token_loss(
    model: Any,
    batch: Any,
    *,
    scale: float | None = None,
    ahead_scales: Sequence[float] = (),
    recompute_head: bool = False,
    loss_subbatch_seqlen: int,
    use_sparse_head_and_loss_fn: bool,
) -> tuple[paddle.Tensor, dict[str, Any]]:
    """Cross-entropy summed over the labels that are not -100.

    Args:
        model: a causal language model of the model contract.
        batch: numpy arrays input_ids, labels, position_ids [B, T] int64 and attend_from [B, T] int32;
            token_types, where not None, for a model that has experts of modalities.
        scale: what the loss is multiplied by.
        ahead_scales: the same for each block of multi-token prediction; none are run without.
        recompute_head: compute the logits again in the backward pass.

    Returns:
        The sum in nats times the scale, a float32 scalar, and `num_tokens`, `num_correct`, and with
        `ahead_scales` `ahead_losses`, a scalar for each of them.
    """
    inputs = inputs_of(batch)
    if ahead_scales:
        hidden_BTD, ahead_BTD = model.predict_ahead(**inputs)
    else:
        hidden_BTD, ahead_BTD = model(**inputs), []

    states = [each_BTD.reshape([-1, each_BTD.shape[-1]]) for each_BTD in (hidden_BTD, *ahead_BTD)]
    labels = [batch.labels]
    labels += [labels_ahead(batch.labels, batch.attend_from, depth + 1) for depth in range(len(ahead_scales))]
    head = model.head()
    # All losses in one, so that a second run computes them in the same order.
    lose = recomputed(_losses) if recompute_head else _losses
    found = lose(
        tuple(states),
        head,
        tuple(paddle.to_tensor(head.columns.own(each_BT).reshape(-1)) for each_BT in labels),
        (scale, *ahead_scales),
        chunk_tokens=loss_subbatch_seqlen,
        only_labelled=use_sparse_head_and_loss_fn,
    )
    loss, metrics = found[0]
    if ahead_scales:
        return loss, {**metrics, "ahead_losses": [ahead for ahead, _ in found[1:]]}
    return loss, dict(metrics)


def _losses(
    states: tuple[paddle.Tensor, ...],
    head: Head,
    labels: tuple[paddle.Tensor, ...],
    scales: tuple[float | None, ...],
    *,
    chunk_tokens: int,
    only_labelled: bool,
) -> tuple[tuple[paddle.Tensor, dict[str, float]], ...]:
    """The loss of each of some hidden states [N, D] against its labels, and its metrics."""
    return tuple(
        chunked_cross_entropy(
            states_ND, head, labels_N, chunk_tokens=chunk_tokens, only_labelled=only_labelled, scale=scale
        )
        for states_ND, labels_N, scale in zip(states, labels, scales, strict=True)
    )
