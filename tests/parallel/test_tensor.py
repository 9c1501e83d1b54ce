"""What each process of tensor parallelism holds; what it computes is in `test_distribute.py`."""

import numpy as np
import pytest

from erniekit.errors import UnsupportedError
from erniekit.models.ernie45 import plan
from erniekit.models.ernie45.model import Ernie45
from erniekit.parallel.comm import Group
from erniekit.parallel.tensor import apply_tensor_parallel
from erniekit.testing.tiny_checkpoint import tiny_config, tiny_moe_config

CONFIGS = {
    "dense": lambda: tiny_config(use_bias=True, tie_word_embeddings=False),
    "experts": lambda: tiny_moe_config(num_nextn_predict_layers=1),
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_the_parts_of_two_are_the_whole(kind: str) -> None:
    shapes = {name: tuple(p.shape) for name, p in Ernie45(CONFIGS[kind]()).named_parameters()}
    seen = {}
    for rank in (0, 1):
        model = Ernie45(CONFIGS[kind]())
        placements = apply_tensor_parallel(model, plan, Group((0, 1), rank))
        parameters = dict(model.named_parameters())
        for name, placement in placements.items():
            assert placement.shape == shapes[name]
            assert placement.part_shape == tuple(parameters[name].shape)
            covered = seen.setdefault(name, np.zeros(shapes[name], int))
            for block in placement.blocks:
                covered[tuple(slice(s, s + n) for s, n in zip(block.start, block.shape, strict=True))] += 1
    assert all((covered == 1).all() for covered in seen.values())
    # Whole in every process are norms, routers, and biases that are added to sums.
    rest = shapes.keys() - seen.keys()
    parts = ("gate.weight", "e_score_correction_bias", "mtp_linear_proj")
    assert rest and all(len(shapes[name]) == 1 or any(p in name for p in parts) for name in rest), rest


def test_one_process_changes_nothing() -> None:
    model = Ernie45(CONFIGS["dense"]())
    before = dict(model.named_parameters())
    assert apply_tensor_parallel(model, plan, Group()) == {}
    assert all(before[name] is parameter for name, parameter in model.named_parameters())


def test_routers_that_see_a_part_of_the_sequence_need_their_experts_spread() -> None:
    with pytest.raises(UnsupportedError, match="write moe_group: mp"):
        apply_tensor_parallel(Ernie45(CONFIGS["experts"]()), plan, Group((0, 1), 0), sequence_parallel=True)
