"""Blocks that draw the same numbers whatever was computed before."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import paddle
from paddle import nn

from erniekit.ops.dropout import dropout
from erniekit.parallel.seeds import apply_seeds, begin_micro_batch
from erniekit.parallel.segment import recomputed

PLAN = SimpleNamespace(BLOCKS="body.blocks", AHEAD_BLOCKS="body.ahead")


class Noise(nn.Layer):
    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        return dropout(x, 0.5, training=self.training)


def model() -> Any:
    made = nn.Layer()
    made.body = nn.Layer()
    made.body.blocks = nn.LayerList([Noise(), Noise()])
    made.body.ahead = nn.LayerList([Noise()])
    assert apply_seeds(made, PLAN) == [
        *("body.blocks.0.forward", "body.blocks.1.forward", "body.ahead.0.forward")
    ]
    return made


def draw(block: Any, seed: int) -> np.ndarray:
    begin_micro_batch(seed)
    return block(paddle.ones([200])).numpy()


def test_each_block_of_each_micro_batch_draws_its_own() -> None:
    body = model().body
    blocks = [*body.blocks, *body.ahead]
    drawn = [draw(block, seed).tobytes() for seed in (1, 2, 2**60) for block in blocks]
    assert len(set(drawn)) == 9
    again = [draw(block, seed).tobytes() for seed in (1, 2, 2**60) for block in reversed(blocks)]
    assert set(again) == set(drawn)


def test_in_evaluation_the_generator_is_left_alone() -> None:
    made = model()
    made.eval()
    begin_micro_batch(3)
    expected = paddle.rand([3]).numpy()
    begin_micro_batch(3)
    made.body.blocks[0](paddle.ones([2]))
    np.testing.assert_array_equal(paddle.rand([3]).numpy(), expected)


def test_what_is_recomputed_draws_the_same() -> None:
    block = model().body.blocks[1]
    found = []
    for call in (block, recomputed(block.forward)):
        x = paddle.ones([50])
        x.stop_gradient = False
        begin_micro_batch(5)
        out = call(x)
        paddle.rand([3])
        out.sum().backward()
        found.append((out.numpy(), x.grad.numpy()))
    np.testing.assert_array_equal(found[0][0], found[1][0])
    np.testing.assert_array_equal(found[0][1], found[1][1])
