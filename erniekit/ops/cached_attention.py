"""Attention of new columns over themselves and a cache of earlier ones, for decoding.

Heads lie before columns in a cache, so that the keys of a head are one block of memory: transposing
the keys of 500 columns for every new token took as long as everything else in the model.

    B rows, T new columns, S columns of the cache, N query heads, K key heads, D head dimension,
    X = (N + 2 K) D
"""

import paddle

from erniekit.ops.attention import Visibility, attention, turned_heads
from erniekit.ops.backend import choose
from erniekit.ops.rounding import KVRounding


def cached_attention(
    qkv_BTX: paddle.Tensor,
    turns: paddle.Tensor,
    visible: Visibility,
    keys_BKSD: paddle.Tensor,
    values_BKSD: paddle.Tensor,
    *,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    rounding: KVRounding | None = None,
) -> paddle.Tensor:
    """Store the T new columns behind the first `visible.num_past`, and attend from them, [B, T, N D].

    No gradient passes through a cache.

    Args:
        qkv_BTX: columns q | k | v, the heads of each side by side.
        turns: complex64 [B, T, N + K, D/2] of `rotations`.
        keys_BKSD: turned keys; written to. `values_BKSD` alike.
        rounding: how keys and values are rounded before they are stored.
    """
    if rounding is not None:
        return cached_attention_reference(
            *(qkv_BTX, turns, visible, keys_BKSD, values_BKSD),
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            rounding=rounding,
        )
    return choose("cached_attention")(
        qkv_BTX,
        turns,
        visible,
        keys_BKSD,
        values_BKSD,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
    )


def cached_attention_reference(
    qkv_BTX: paddle.Tensor,
    turns: paddle.Tensor,
    visible: Visibility,
    keys_BKSD: paddle.Tensor,
    values_BKSD: paddle.Tensor,
    *,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    rounding: KVRounding | None = None,
) -> paddle.Tensor:
    """`cached_attention` by the operators for turning and attention."""
    q_BTND, k_BTKD, v_BTKD = turned_heads(
        qkv_BTX, turns, num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=head_dim
    )
    if rounding is not None:
        k_BTKD, v_BTKD = rounding.apply(k_BTKD, v_BTKD)
    start = visible.num_past
    stop = start + qkv_BTX.shape[1]
    keys_BKSD[:, :, start:stop] = k_BTKD.transpose([0, 2, 1, 3])
    values_BKSD[:, :, start:stop] = v_BTKD.transpose([0, 2, 1, 3])
    # Views: nothing is copied here.
    seen = [whole[:, :, :stop].transpose([0, 2, 1, 3]) for whole in (keys_BKSD, values_BKSD)]
    out = attention(q_BTND, seen[0], seen[1], visible)
    return out.reshape([*qkv_BTX.shape[:2], num_heads * head_dim])
