"""Next-token prediction over the trained tokens: the objective of SFT and of PT.

The two stages differ in their data only: SFT trains on the tokens of the answers, PT on all.
"""

from collections.abc import Sequence
from typing import Any

import paddle

from erniekit.losses.cross_entropy import chunked_cross_entropy
from erniekit.losses.multi_token import labels_ahead


def next_token_loss(
    model: Any,
    batch: Any,
    *,
    scale: float | None = None,
    ahead_scales: Sequence[float] = (),
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

    Returns:
        The sum in nats times the scale, a float32 scalar, and `num_tokens`, `num_correct`, and with
        `ahead_scales` `ahead_losses`, a scalar for each of them.
    """
    inputs = [paddle.to_tensor(part) for part in (batch.input_ids, batch.position_ids, batch.attend_from)]
    types = {}
    if batch.token_types is not None:
        types["token_type_ids_BT"] = paddle.to_tensor(batch.token_types)
    if ahead_scales:
        hidden_BTD, ahead_BTD = model.predict_ahead(*inputs, **types)
    else:
        hidden_BTD, ahead_BTD = model(*inputs, **types), []

    def loss_of(states_BTD: paddle.Tensor, labels_BT: Any, times: float | None) -> Any:
        return chunked_cross_entropy(
            states_BTD.reshape([-1, states_BTD.shape[-1]]),
            model.head(),
            paddle.to_tensor(labels_BT.reshape(-1)),
            chunk_tokens=loss_subbatch_seqlen,
            only_labelled=use_sparse_head_and_loss_fn,
            scale=times,
        )

    loss, metrics = loss_of(hidden_BTD, batch.labels, scale)
    found: dict[str, Any] = dict(metrics)
    for depth, (states_BTD, times) in enumerate(zip(ahead_BTD, ahead_scales, strict=True), start=1):
        labels_BT = labels_ahead(batch.labels, batch.attend_from, depth)
        found.setdefault("ahead_losses", []).append(loss_of(states_BTD, labels_BT, times)[0])
    return loss, found
