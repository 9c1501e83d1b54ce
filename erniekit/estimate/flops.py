"""Arithmetic of a run: FLOPs of a token, model FLOPs utilisation, and the time that follows.

A product of [m, k] and [k, n] counts 2 m k n; norms, rotations, softmax and the update are left
out, as is usual. Attention counts what a causal mask leaves: a token of a sample of S tokens sees
(S + 1) / 2 on average. The backward pass computes the gradient of each product's input, which
costs the forward pass again, and that of each trained weight, which does too. In a mixture of experts
the weights are those that a text token is multiplied with: its chosen experts, not all.
"""

from typing import Any


def forward_flops(config: Any, *, attended: float, labelled_share: float = 1.0) -> float:
    """FLOPs of a token in the forward pass.

    Args:
        config: numbers of the model, with `product_weights()`.
        attended: tokens of the sample that a token belongs to, on average over tokens.
        labelled_share: share of the positions whose logits are computed.
    """
    head = config.vocab_size * config.hidden_size * labelled_share
    return 2.0 * (config.product_weights() + head + _scores(config, attended))


def training_flops(
    config: Any,
    *,
    attended: float,
    labelled_share: float = 1.0,
    trained_share: float = 1.0,
    ahead: bool = False,
) -> float:
    """FLOPs of a token in the forward and the backward pass.

    Args:
        attended, labelled_share: as for `forward_flops`.
        trained_share: share of the weights in products that are trained; the others get no gradient.
        ahead: blocks of multi-token prediction are trained too (all labels counted, as an upper bound).
    """
    forward = forward_flops(config, attended=attended, labelled_share=labelled_share)
    scores = 2.0 * _scores(config, attended)
    if ahead:
        of_a_layer = scores / config.num_hidden_layers * config.num_nextn_predict_layers
        forward += 2.0 * config.ahead_weights() + of_a_layer
        scores += of_a_layer
    return 2.0 * forward + trained_share * (forward - scores) + scores


def utilisation(flops_per_token: float, tokens_per_second: float, peak_flops: float) -> float:
    """Model FLOPs utilisation: the share of a machine's peak FLOP/s that the model's arithmetic takes."""
    return flops_per_token * tokens_per_second / peak_flops


def seconds(flops: float, peak_flops: float, *, expected_utilisation: float) -> float:
    """Time for so many FLOPs at a utilisation that was measured before on a machine of this kind."""
    return flops / (peak_flops * expected_utilisation)


def _scores(config: Any, attended: float) -> float:
    """Multiplications of Q K^T and of the weighted sum of V, a token."""
    width = config.num_attention_heads * config.head_dim
    return 2.0 * config.num_hidden_layers * width * (attended + 1) / 2
