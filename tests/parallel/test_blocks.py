"""What is told of the passes of blocks, in their order."""

import paddle
import pytest

from erniekit.models.ernie45 import plan
from erniekit.models.ernie45.model import Ernie45
from erniekit.ops import gradients
from erniekit.parallel.blocks import paths_of_blocks, watch_blocks
from erniekit.testing.tiny_checkpoint import tiny_config, tiny_moe_config
from tests.parallel.plans import batches_of, fill, step_loss_of
from tests.parallel.test_sharding import recompute


class Told:
    def __init__(self, model):
        self.model, self.events, self.begun, self.ended = model, [], {}, {}

    def before_forward(self, block):
        self.events.append(("forward", block))

    def after_forward(self, block):
        self.events.append(("left", block))

    def before_backward(self, block):
        self.events.append(("backward", block))
        self.begun[block] = self.num_gradients(block)

    def after_backward(self, block):
        self.events.append(("done", block))
        self.ended[block] = self.num_gradients(block)

    def num_gradients(self, block):
        """How many parameters of a block have one."""
        start = f"{paths_of_blocks(self.model, plan)[block]}."
        own = [p for name, p in self.model.named_parameters() if name.startswith(start)]
        return sum(gradients.of(parameter) is not None for parameter in own), len(own)


@pytest.mark.parametrize("again", [False, True])
def test_passes_of_all_blocks_are_told_and_gradients_are_there_when_one_is_done(again):
    model = Ernie45(tiny_config(vocab_size=64))
    fill(model)
    if again:
        recompute(model)
    told = Told(model)
    watch_blocks(model, plan, told)
    step_loss = step_loss_of(model, "dense")
    (batch,) = batches_of(0, 1)
    step_loss.begin([batch])
    step_loss(model, batch).backward()
    for block in range(len(model.model.layers)):
        assert told.begun[block][0] == 0 and told.ended[block][0] == told.ended[block][1] > 0
    last = len(model.model.layers) - 1
    order = [event for block in range(last + 1) for event in (("forward", block), ("left", block))]
    order += [("backward", last)]
    for block in range(last - 1, -1, -1):
        assert told.events.index(("backward", block)) < told.events.index(("done", block))
        assert told.events.index(("backward", block + 1)) < told.events.index(("backward", block))
    assert told.events[: len(order)] == order
    both = [(word, block) for block in range(last + 1) for word in ("backward", "done")]
    assert sorted(told.events) == sorted([*order[:-1], *both])


def test_blocks_of_multi_token_prediction_come_after_the_others():
    model = Ernie45(tiny_moe_config(vocab_size=64, num_nextn_predict_layers=2))
    paths = paths_of_blocks(model, plan)
    assert paths[-3:] == [
        f"model.layers.{len(model.model.layers) - 1}",
        "model.mtp_block.0",
        "model.mtp_block.1",
    ]


def test_nothing_is_told_of_a_backward_pass_that_there_is_not():
    model = Ernie45(tiny_config(vocab_size=64))
    told = Told(model)
    watch_blocks(model, plan, told)
    step_loss = step_loss_of(model, "dense")
    (batch,) = batches_of(0, 1)
    step_loss.begin([batch])
    with paddle.no_grad():
        step_loss(model, batch)
    assert {word for word, _ in told.events} == {"forward", "left"}
