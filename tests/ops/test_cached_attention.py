"""Plain attention over a cache against attention of the whole row at once."""

import numpy as np
import paddle

from erniekit.ops.attention import attention_reference, turned_heads, visibility
from erniekit.ops.cached_attention import cached_attention_reference
from erniekit.ops.rope import rotations


def test_parts_attend_as_the_whole() -> None:
    sizes = {"num_heads": 4, "num_kv_heads": 2, "head_dim": 6}
    qkv = paddle.to_tensor(np.random.default_rng(0).normal(size=(2, 9, 48)).astype("float32"))
    starts = np.where(np.arange(9) < np.array([[0], [3]]), np.arange(9), np.array([[0], [3]])).astype(
        np.int32
    )
    turns = rotations(paddle.arange(9).unsqueeze(0).expand([2, 9]), 6, 100.0, num_heads=6)
    cache = [paddle.full([2, 2, 10, 6], float("nan")) for _ in range(2)]
    with paddle.no_grad():
        parts = []
        for start, stop in ((0, 4), (4, 5), (5, 9)):
            visible = visibility(paddle.to_tensor(starts[:, start:stop]), num_past=start, backend="cpu")
            part = cached_attention_reference(
                qkv[:, start:stop], turns[:, start:stop], visible, *cache, **sizes
            )
            parts.append(part.numpy())
        visible = visibility(paddle.to_tensor(starts), num_past=0, backend="cpu")
        expected = attention_reference(*turned_heads(qkv, turns, **sizes), visible).reshape([2, 9, 24])
    np.testing.assert_allclose(np.concatenate(parts, axis=1), expected.numpy(), atol=1e-5)
    assert np.isnan(cache[0].numpy()[:, :, 9]).all()
