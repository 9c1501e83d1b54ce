"""Blocks that draw the same numbers whatever was computed before."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import paddle
import pytest
from paddle import nn

from erniekit.ops.dropout import dropout
from erniekit.parallel.layout import Layout
from erniekit.parallel.seeds import apply_seeds, begin_micro_batch
from erniekit.parallel.segment import recomputed
from erniekit.testing.distributed import run_distributed
from erniekit.testing.tiny_checkpoint import tiny_config
from tests.parallel.plans import adapt, fill

pytestmark = pytest.mark.slow

HERE = "tests.parallel.test_seeds"
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


def streams() -> list[Any]:
    """What two processes compute with dropout everywhere; what adapters by rows and columns see of ones."""
    from erniekit.models.ernie45 import plan
    from erniekit.parallel import comm
    from erniekit.parallel.distribute import distribute
    from erniekit.parallel.mesh import open_mesh
    from tests.parallel.test_distribute import build

    world, found = comm.open_world(), []
    for layout in (Layout(tensor=2), Layout(tensor=2, expert=2, moe_group="mp")):
        model = build("experts")
        adapt(model, "lora", lora_dropout=0.5, lora_target=("all-linear", "experts"))
        spread = distribute(model, plan, open_mesh(layout, world))
        fill(model)
        model.set_dropout(0.3, 0.3)
        model.train()
        begin_micro_batch(spread.seed_here(3))
        columns = paddle.arange(8).expand([2, 8])
        out = model(paddle.arange(16).reshape([2, 8]), columns, paddle.zeros([2, 8], "int32"))
        attention = model.model.layers[0].self_attn
        seen = [layer.drop(paddle.ones([4, 8])).numpy() for layer in (attention.o_proj, attention.qkv_proj)]
        found.append([out.numpy(), *seen])
    return found


def test_adapters_draw_their_own_and_leave_the_stream_alike() -> None:
    for one, other in zip(*run_distributed(f"{HERE}:streams", 2, timeout=300), strict=True):
        alike = [np.array_equal(ours, theirs) for ours, theirs in zip(one, other, strict=True)]
        assert alike == [True, False, True]


# Layouts, sequence parallelism, and what two processes draw alike: hidden states, attention.
DRAWING = {
    "tp2": (Layout(tensor=2), False, True, False),
    "tp2 sp": (Layout(tensor=2), True, False, False),
    "cp2": (Layout(context=2), False, False, False),
    "dp2": (Layout(data=2), False, True, True),
}


def masks(layout: Layout | None, sequence: bool, seed: int, *, recompute: bool = False) -> Any:
    """What dropout of a training pass keeps, in attention and elsewhere, drawn again in the backward pass."""
    from erniekit.models.ernie45 import plan
    from erniekit.models.ernie45.model import Ernie45
    from erniekit.parallel import comm
    from erniekit.parallel.distribute import distribute
    from erniekit.parallel.mesh import open_mesh

    paddle.set_device("cpu")
    made = Ernie45(tiny_config(vocab_size=64))
    if layout is not None:
        world = comm.open_world() if comm._world is None else comm.open_group((0, 1), "world")
        spread = distribute(made, plan, open_mesh(layout, world), sequence_parallel=sequence)
        seed = spread.seed_here(seed)
    fill(made)
    if recompute:
        for block in made.model.layers:
            block.forward = recomputed(block.forward)
    made.set_dropout(0.5, 0.5)
    made.train()
    drawn: list[tuple[int, bytes]] = []
    original = paddle.nn.functional.dropout

    def recording(x: paddle.Tensor, probability: float) -> paddle.Tensor:
        kept = original(paddle.ones(x.shape), probability)
        drawn.append((len(x.shape), kept.numpy().tobytes()))
        return x * kept

    paddle.nn.functional.dropout = recording
    try:
        begin_micro_batch(seed)
        ids = paddle.arange(16).reshape([2, 8])
        columns = paddle.arange(8).expand([2, 8])
        made(ids, columns, paddle.zeros([2, 8], "int32")).sum().backward()
    finally:
        paddle.nn.functional.dropout = original
    return [[mask for axes, mask in drawn if axes == wanted] for wanted in (3, 4)]


def draw_all() -> dict[str, Any]:
    found = {name: masks(*plan[:2], 5) for name, plan in DRAWING.items()}
    return found | {f"{name} again": masks(*plan[:2], 5, recompute=True) for name, plan in DRAWING.items()}


def test_processes_draw_alike_what_they_hold_alike() -> None:
    one, other = run_distributed(f"{HERE}:draw_all", 2, timeout=300)
    alone = masks(None, False, 5)
    assert [len(kind) for kind in alone] == [4, 2]
    assert alone != masks(None, False, 6)
    for name, (_, _, *alike) in DRAWING.items():
        for kind, same in enumerate(alike):
            ours, theirs = one[name][kind], other[name][kind]
            assert len(ours) == len(theirs) == len(alone[kind])
            assert all((a == b) is same for a, b in zip(ours, theirs, strict=True)), (name, kind)
            assert len({*ours, *theirs}) == len(ours) * (1 if same else 2), "each is drawn for itself"
            for rank in (one, other):
                # Every mask twice: what is computed again draws the same.
                assert sorted(rank[f"{name} again"][kind]) == sorted(2 * rank[name][kind])
    assert one["dp2"] == other["dp2"] == alone
