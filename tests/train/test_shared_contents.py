"""Checkpoints of two processes, made by hand: the files of one process, byte for byte, and read back."""

from types import SimpleNamespace

import numpy as np
import paddle
import pytest

from erniekit.checkpoint.raw import to_raw
from erniekit.checkpoint.store import CheckpointStore
from erniekit.models.ernie45 import plan
from erniekit.models.ernie45.model import Ernie45
from erniekit.models.registry import load_family
from erniekit.parallel.comm import Group
from erniekit.parallel.distribute import distribute
from erniekit.parallel.layout import Layout
from erniekit.parallel.mesh import AXES, Mesh
from erniekit.parallel.placement import placed_items
from erniekit.testing.tiny_checkpoint import tiny_config, tiny_moe_config
from erniekit.train.contents import memory_items
from erniekit.train.shared_contents import PlacedTensors, model_tensors, optimizer_tensors
from erniekit.train.team import Team
from tests.checkpoint.crews import run_all
from tests.parallel.plans import fill

PLANS = {
    "tensor": (lambda: tiny_config(use_bias=True), Layout(tensor=2), {"tensor"}),
    "experts": (
        lambda: tiny_moe_config(num_nextn_predict_layers=1),
        Layout(data=2, expert=2, moe_group="dp"),
        {"data", "batch", "replicas", "expert"},
    ),
}


def state_of(weights):
    """A state with numbers that differ from tensor to tensor."""
    yield "num_updates", "I64", np.array([3])
    for kind, factor in (("exp_avg", 0.5), ("exp_avg_sq", 0.25)):
        for name, weight in weights.items():
            yield f"{kind}.{name}", "F32", weight * np.float32(factor)


def share(rank, config, layout, axes, weights):
    """What process `rank` of two holds: its model, its team."""
    both = Group((0, 1), rank)
    groups = {axis: both if axis in axes else Group() for axis in AXES}
    with paddle.LazyGuard():
        model = Ernie45(config)
    spread = distribute(model, plan, Mesh(layout=layout, world=both, **groups))
    for name, parameter in model.named_parameters():
        parameter.set_value(spread.placements[name].take(weights[name]))
    return model, Team(spread)


@pytest.mark.parametrize("kind", PLANS)
def test_two_write_the_files_of_one(kind, tmp_path):
    make, layout, axes = PLANS[kind]
    config, full = make(), Ernie45(make())
    fill(full)
    weights = {name: to_raw(parameter)[1] for name, parameter in full.named_parameters()}
    rest = {"state": {"step": 1}, "write_files": lambda made: (made / "config.json").write_text("{}")}
    CheckpointStore(tmp_path / "one").save(
        1,
        model_items=load_family(config).save_layout(memory_items(full), config, "hf"),
        optimizer_items=state_of(weights),
        **rest,
    )
    shares = [share(rank, config, layout, axes, weights) for rank in range(2)]

    def save(member):
        model, team = shares[member.index]
        own = {name: to_raw(parameter)[1] for name, parameter in model.named_parameters()}
        optimizer = SimpleNamespace(state_items=lambda: state_of(own))
        tensors = [model_tensors(model, config, team), optimizer_tensors(optimizer, weights, team)]
        assert 0 < len(tensors[0].specs) and 0 < len(tensors[1].specs)
        CheckpointStore(tmp_path / "two", crew=member).save_shared(1, tensors=tensors, **rest)

    assert run_all(2, save) == [None, None]
    one, two = (CheckpointStore(tmp_path / name).newest_good() for name in ("one", "two"))
    assert {path.name for path in one.path.iterdir()} == {path.name for path in two.path.iterdir()}
    for name in ("model.safetensors", "optimizer.safetensors"):
        assert (one.path / name).read_bytes() == (two.path / name).read_bytes(), name
    for model, team in shares:
        check_reading(two, model, team)


def check_reading(checkpoint, model, team):
    """What a process reads is what it holds."""
    placements = team.spread.placements
    own = {name: to_raw(parameter)[1] for name, parameter in model.named_parameters()}
    held = frozenset(sorted(own)[::2])
    tensors = PlacedTensors(checkpoint.tensors("optimizer"), placements, held)
    expected = {
        name: array
        for name, _, array in state_of(own)
        if name == "num_updates" or name.partition(".")[2] in held
    }
    assert sorted(tensors.names()) == sorted(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(tensors.read(name), array)
        assert tensors.info(name).shape == array.shape
    assert any(array.shape != placements[name].shape for name, array in own.items())


def test_items_of_whole_parameters_become_parts():
    config = tiny_config()
    full = Ernie45(config)
    fill(full)
    weights = {name: to_raw(parameter)[1] for name, parameter in full.named_parameters()}
    model, team = share(1, config, Layout(tensor=2), {"tensor"}, weights)
    items = [*memory_items(full), ("elsewhere", "F32", np.zeros(2))]
    found = {name: array for name, _, array in placed_items(items, team.spread.placements)}
    assert found.keys() == weights.keys()
    for name, parameter in model.named_parameters():
        np.testing.assert_array_equal(found[name], to_raw(parameter)[1])
