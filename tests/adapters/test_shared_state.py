"""Two processes, made by hand, write the tensors of one: each its parts, every number once."""

from typing import Any

import numpy as np
import paddle
import pytest

from erniekit.adapters import state
from erniekit.adapters.layers import LoraLinear
from erniekit.adapters.pissa import PissaLinear
from erniekit.adapters.shared_state import stored_names, stored_parts
from erniekit.models.ernie45 import plan
from erniekit.parallel.comm import Group
from erniekit.parallel.expert import apply_expert_parallel
from erniekit.parallel.placement import whole
from erniekit.parallel.tensor import apply_tensor_parallel
from tests.adapters.models import apply, dense, disturb, moe

# Experts that are trained whole have no factors.
SOME = ("all-linear", "up_gate_proj", "experts.up_gate_proj", "router")
CASES: dict[str, tuple[Any, type[LoraLinear], dict[str, Any]]] = {
    "dense": (dense, LoraLinear, {"lora_modules_to_save": ("embed_tokens", "norm")}),
    "pissa": (dense, PissaLinear, {}),
    "experts": (moe, LoraLinear, {"lora_target": SOME, "lora_modules_to_save": ("experts.down_proj",)}),
}


@pytest.mark.parametrize(
    ("case", "spread"),
    [*((case, apply_tensor_parallel) for case in CASES), ("experts", apply_expert_parallel)],
)
def test_parts_of_two_are_what_one_saves(case: str, spread: Any) -> None:
    make, linear, changes = CASES[case]
    one = apply(make(), linear, **changes)
    disturb(one)
    expected = {name: (word, array) for name, word, array in state.state_items(one)}
    values = {name: parameter.numpy() for name, parameter in one.model.named_parameters()}
    found = {name: np.zeros_like(array) for name, (_, array) in expected.items()}
    covered = {name: np.zeros(array.shape, int) for name, (_, array) in expected.items()}
    for rank in range(2):
        two = apply(make(), linear, **changes)
        shapes = {name: tuple(p.shape) for name, p in two.model.named_parameters()}
        over = spread(two.model, plan, Group((0, 1), rank))
        placements = {
            name: over.get(name) or whole(shape, counted=rank == 0) for name, shape in shapes.items()
        }
        two.spread(placements)
        for name, parameter in two.model.named_parameters():
            parameter.set_value(placements[name].take(values[name]))
        if linear is PissaLinear:
            for module, layer in two.layers.items():
                layer._beginning = tuple(
                    paddle.to_tensor(placements[f"{module}.{name}"].take(tensor.numpy()))
                    for name, tensor in zip(("lora_A", "lora_B"), one.layers[module]._beginning, strict=True)
                )
        for part in stored_parts(two, placements):
            word, array = expected[part.name]
            assert (part.word, part.shape) == (word, array.shape)
            window = tuple(slice(s, s + n) for s, n in zip(part.start, part.array.shape, strict=True))
            found[part.name][window] = part.array
            covered[part.name][window] += 1
    for name, (_, array) in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)
        assert (covered[name] == 1).all(), name
    order = [name for name in stored_names(one) if name in expected]
    assert order == list(expected)
