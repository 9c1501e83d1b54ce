"""Columns and heads that processes share; whole models are in test_distribute.py."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import paddle
import pytest

from erniekit.errors import ConfigError
from erniekit.losses.cross_entropy import Columns
from erniekit.parallel.comm import Group
from erniekit.parallel.context import OwnColumns, apply_context_parallel
from erniekit.testing.distributed import run_distributed

pytestmark = pytest.mark.slow

HERE = "tests.parallel.test_context"
HEADS = {"as many": (4, 4), "some": (4, 2), "one": (2, 1)}


def test_own_columns_are_in_their_order() -> None:
    array = np.arange(24).reshape(2, 12)
    parts = [OwnColumns(Group((0, 1, 2), rank)) for rank in range(3)]
    np.testing.assert_array_equal(np.concatenate([part.own(array) for part in parts], axis=1), array)
    assert sum(part.share for part in parts) == pytest.approx(1.0)
    assert Columns().own(array) is array and Columns().share == 1.0


def exchange(columns: int) -> list[Any]:
    """What the attention of each process is given, and what it gives back, with what is sent."""
    from erniekit.parallel import comm, context

    group = comm.open_world()
    found = []
    for heads, keys in HEADS.values():
        given: list[Any] = []

        def core(qkv, turns, visible, given=given, heads=heads, keys=keys):
            given.append(qkv.numpy())
            own = qkv.shape[-1] // 2 - 2 * max(1, keys // group.size)
            return qkv[:, :, : 2 * own]

        attention = SimpleNamespace(num_heads=heads, num_kv_heads=keys, head_dim=2, core_attention=core)
        context._share_heads(attention, group)
        whole = paddle.to_tensor(whole_projection(columns, heads, keys))
        own = OwnColumns(group).own(whole).contiguous()
        own.stop_gradient = False
        comm.take_traffic()
        out = attention.core_attention(own, None, None)
        sent = comm.take_traffic()
        (out * OwnColumns(group).own(weights(columns, heads))).sum().backward()
        numbers = (attention.num_heads, attention.num_kv_heads)
        found.append((numbers, given[0], out.numpy(), own.grad.numpy(), sent))
    return found


def whole_projection(columns: int, heads: int, keys: int) -> np.ndarray:
    shape = (2, columns, (heads + 2 * keys) * 2)
    return np.random.default_rng(heads).normal(size=shape).astype(np.float32)


def weights(columns: int, heads: int) -> paddle.Tensor:
    random = np.random.default_rng(7)
    return paddle.to_tensor(random.normal(size=(2, columns, heads * 2)).astype(np.float32))


def test_a_process_gets_the_columns_of_its_heads_and_gives_back_what_came_out() -> None:
    ranks = run_distributed(f"{HERE}:exchange", 2, 6, timeout=240)
    for case, (heads, keys) in enumerate(HEADS.values()):
        whole = whole_projection(6, heads, keys)
        parts = whole.reshape(2, 6, -1, 2)
        for rank in range(2):
            numbers, given, out, gradient, sent = ranks[rank][case]
            own_keys = max(1, keys // 2)
            assert numbers == (heads // 2, own_keys)
            first = rank * keys // 2
            chosen = [
                *range(rank * heads // 2, (rank + 1) * heads // 2),
                *(heads + first + key for key in range(own_keys)),
                *(heads + keys + first + key for key in range(own_keys)),
            ]
            np.testing.assert_array_equal(given, parts[:, :, chosen].reshape(2, 6, -1))
            here = slice(3 * rank, 3 * rank + 3)
            np.testing.assert_array_equal(out, whole[:, here, : 2 * heads])
            np.testing.assert_array_equal(gradient[:, :, : 2 * heads], weights(6, heads).numpy()[:, here])
            assert not gradient[:, :, 2 * heads :].any()
            # 2 rows x 3 columns x 2 channels x 4 bytes of each head of the other one, there and back.
            assert sent == {("world", "all_to_all"): 48 * (heads // 2 + 2 * own_keys + heads // 2)}


def test_heads_that_cannot_be_shared_are_refused() -> None:
    from erniekit.models.ernie45 import plan
    from erniekit.models.ernie45.model import Ernie45
    from erniekit.testing.tiny_checkpoint import tiny_config

    with pytest.raises(ConfigError, match="context_parallel_degree: 3 .* heads of a process, 4"):
        apply_context_parallel(Ernie45(tiny_config()), plan, Group((0, 1, 2), 0))
    numbers = tiny_config(num_attention_heads=12, num_key_value_heads=3)
    with pytest.raises(ConfigError, match="divide or be a multiple of its key heads, 3"):
        apply_context_parallel(Ernie45(numbers), plan, Group((0, 1), 0))
