"""What a plan says to people."""

from erniekit.estimate.machines import MACHINES
from erniekit.estimate.plan_words import axes_in_words, lines
from erniekit.estimate.shares import Spread
from tests.estimate.test_asked import EXPERTS, plan


def test_axes():
    assert axes_in_words(Spread()) == "one device"
    both = Spread(sharding=2, tensor=4, expert=4, moe_group="mp", sharding_stage=3)
    assert axes_in_words(both) == "sharding 2 (stage 3), tensor 4, expert 4 (mp)"


def test_lines():
    found = list(lines(plan(EXPERTS, devices=4, tensor_parallel_degree=2)))
    assert found[0] == f"4 x {MACHINES['cpu'].name}: data 2, tensor 2"
    assert any("worst: pipeline rank 0" in line and line.endswith("fits") for line in found)
    sent = next(line for line in found if line.startswith("a device sends in a step"))
    assert "tensor" in sent and "data" in sent and "context" not in sent
    assert found[-1].startswith("assumed:")
