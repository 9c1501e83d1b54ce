"""Next-token prediction over the trained tokens: the objective of SFT and of PT.

The two stages differ in their data only: SFT trains on the tokens of the answers, PT on all.
"""

from typing import Any

import paddle

from erniekit.losses.cross_entropy import chunked_cross_entropy


def next_token_loss(
    model: Any, batch: Any, *, loss_subbatch_seqlen: int, use_sparse_head_and_loss_fn: bool
) -> tuple[paddle.Tensor, dict[str, float]]:
    """Cross-entropy summed over the labels that are not -100.

    Args:
        model: a causal language model of the model contract.
        batch: numpy arrays input_ids, labels, position_ids [B, T] int64 and attend_from [B, T] int32.

    Returns:
        The sum in nats, a float32 scalar, and `num_tokens`, `num_correct`.
    """
    hidden_BTD = model(
        paddle.to_tensor(batch.input_ids),
        paddle.to_tensor(batch.position_ids),
        paddle.to_tensor(batch.attend_from),
    )
    return chunked_cross_entropy(
        hidden_BTD.reshape([-1, hidden_BTD.shape[-1]]),
        model.head(),
        paddle.to_tensor(batch.labels.reshape(-1)),
        chunk_tokens=loss_subbatch_seqlen,
        only_labelled=use_sparse_head_and_loss_fn,
    )
