"""The token-balanced loss: every position weighs in, also those that are not trained on.

Next-token losses of samples with long prompts or many image tokens are means over few trained tokens,
and pull as hard as those of samples that are all answer. With U the trained and M the masked positions,

    L = (1 / (|U| + |M|)) sum_{j in U} loss_j

weighs a step by its share of trained tokens. The technical report counts positions of samples, and so
do we; released code divides by the padded size, max_seq_len times rows, and reports the mean over U.
"""

from typing import Any


def token_balanced_loss(loss_sum: Any, num_trained: int, num_masked: int) -> Any:
    """`loss_sum`, summed over the trained tokens, divided by all positions (padding is none)."""
    return loss_sum / max(num_trained + num_masked, 1)
