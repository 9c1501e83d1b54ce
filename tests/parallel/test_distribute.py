"""Models over real processes against one process: losses, gradients, and what is saved and counted."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from erniekit.parallel.layout import Layout
from erniekit.testing.distributed import run_distributed
from erniekit.testing.tiny_checkpoint import tiny_config, tiny_moe_config
from tests.parallel.plans import batches_of, fill, gradients_of, step_loss_of

HERE = "tests.parallel.test_distribute"
# Of a machine with much other work.
PATIENCE = 480
MODELS = {
    "dense": lambda: tiny_config(vocab_size=64, tie_word_embeddings=False),
    "tied": lambda: tiny_config(vocab_size=64, use_bias=True),
    "experts": lambda: tiny_moe_config(
        vocab_size=64, moe_layer_start_index=(1,), num_nextn_predict_layers=2, use_bias=True
    ),
}
# Name -> model, layout, sequence parallelism.
PLANS: dict[str, tuple[str, Layout, bool]] = {
    "dense tp2": ("dense", Layout(tensor=2), False),
    "tied tp2": ("tied", Layout(tensor=2), False),
    "dense tp2 sp": ("dense", Layout(tensor=2), True),
    "tied tp2 sp": ("tied", Layout(tensor=2), True),
    "dense dp2": ("dense", Layout(data=2), False),
    "experts dp2": ("experts", Layout(data=2), False),
    "experts tp2": ("experts", Layout(tensor=2), False),
    "experts ep2": ("experts", Layout(data=2, expert=2, moe_group="dp"), False),
    "experts mp2": ("experts", Layout(tensor=2, expert=2, moe_group="mp"), False),
    "experts mp2 sp": ("experts", Layout(tensor=2, expert=2, moe_group="mp"), True),
}
MORE = {
    "dense dp2 tp2": ("dense", Layout(data=2, tensor=2), False),
    "dense dp2 tp2 sp": ("dense", Layout(data=2, tensor=2), True),
    "experts ep4": ("experts", Layout(data=4, expert=4, moe_group="dp"), False),
    "experts dp2 ep2": ("experts", Layout(data=4, expert=2, moe_group="dp"), False),
    "experts dp2 mp2 sp": ("experts", Layout(data=2, tensor=2, expert=2, moe_group="mp"), True),
}


def build(kind: str, *, lazily: bool = False) -> Any:
    import paddle

    from erniekit.models.ernie45.model import Ernie45

    paddle.set_device("cpu")
    if lazily:
        with paddle.LazyGuard():
            return Ernie45(MODELS[kind]())
    return Ernie45(MODELS[kind]())


def in_one_process(kind: str, batches: list[Any]) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    model = build(kind)
    fill(model)
    step_loss = step_loss_of(model, kind)
    step_loss.begin(batches)
    for batch in batches:
        step_loss(model, batch).backward()
    return step_loss.values(), gradients_of(model)


def check_all(plans: dict[str, tuple[str, Layout, bool]]) -> dict[str, Any]:
    """In every process: each plan's largest differences from one process."""
    from erniekit.parallel import comm

    world = comm.open_world()
    return {name: check(world, *plan) for name, plan in plans.items()}


def check(world: Any, kind: str, layout: Layout, sequence: bool) -> dict[str, Any]:
    import paddle

    from erniekit.models.ernie45 import plan
    from erniekit.parallel import comm
    from erniekit.parallel.distribute import distribute
    from erniekit.parallel.mesh import open_mesh

    # Columns that two can share.
    batches = [padded(batch) for batch in batches_of(3, 4)]
    expected, wanted = in_one_process(kind, batches)
    mesh = open_mesh(layout, world)
    model = build(kind, lazily=True)
    spread = distribute(model, plan, mesh, sequence_parallel=sequence)
    full = build(kind)
    fill(full)
    values = {name: parameter.numpy() for name, parameter in full.named_parameters()}
    parameters = dict(model.named_parameters())
    for name, parameter in parameters.items():
        parameter.set_value(paddle.to_tensor(spread.placements[name].take(values[name])))
    step_loss = step_loss_of(model, kind)
    if sequence:
        for companion in step_loss.companions:
            companion.of_weights = 1 / mesh.tensor.size
    step_loss.begin(batches)
    for batch in batches[mesh.batch.rank :: mesh.batch.size]:
        step_loss(model, batch).backward()
    spread.sum_gradients(parameters)
    found: dict[str, float] = {}
    for part in comm.gather_objects(step_loss.values(), mesh.batch):
        for name, value in part.items():
            found[name] = found.get(name, 0.0) + value
    worst = 0.0
    for name, gradient in gradients_of(model).items():
        own = spread.placements[name].take(wanted[name])
        worst = max(worst, float(np.abs(gradient - own).max() / np.abs(wanted[name]).max()))
    assert gradients_of(model).keys() == wanted.keys()
    counted = {
        name: sum(part.size for _, part in spread.placements[name].give(parameter.numpy()))
        for name, parameter in parameters.items()
        if spread.counts(name)
    }
    losses = {name: abs(found[name] - expected[name]) / abs(expected[name] or 1.0) for name in expected}
    return {"losses": losses, "gradients": worst, "counted": counted}


def padded(batch: Any) -> Any:
    """The batch with a column more where their number is odd."""
    if batch.input_ids.shape[1] % 2 == 0:
        return batch
    columns = batch.input_ids.shape[1]

    def longer(array: np.ndarray, value: int) -> np.ndarray:
        return np.pad(array, ((0, 0), (0, 1)), constant_values=value)

    return type(batch)(
        input_ids=longer(batch.input_ids, 3),
        labels=longer(batch.labels, -100),
        position_ids=longer(batch.position_ids, 0),
        attend_from=longer(batch.attend_from, columns),
        token_types=None,
        is_token=lambda: np.tile(np.arange(columns + 1) < columns, (2, 1)),
    )


def hold(found: list[dict[str, Any]], plans: dict[str, Any]) -> None:
    sizes = {
        kind: {name: int(np.prod(p.shape)) for name, p in build(kind).named_parameters()} for kind in MODELS
    }
    for name, (kind, _, _) in plans.items():
        for rank in found:
            assert max(rank[name]["losses"].values()) < 1e-6, (name, rank[name])
            assert rank[name]["gradients"] < 1e-5, (name, rank[name])
        total: dict[str, int] = {}
        for rank in found:
            for parameter, size in rank[name]["counted"].items():
                total[parameter] = total.get(parameter, 0) + size
        assert total == sizes[kind], name


def test_two_processes() -> None:
    hold(run_distributed(f"{HERE}:check_all", 2, PLANS, timeout=PATIENCE), PLANS)


def test_four_processes() -> None:
    hold(run_distributed(f"{HERE}:check_all", 4, MORE, timeout=PATIENCE), MORE)


def test_what_does_not_divide_is_refused() -> None:
    from erniekit.errors import ConfigError
    from erniekit.models.ernie45 import plan
    from erniekit.parallel.comm import Group
    from erniekit.parallel.expert import apply_expert_parallel
    from erniekit.parallel.tensor import apply_tensor_parallel

    three = Group((0, 1, 2), 0)
    with pytest.raises(ConfigError, match="tensor_parallel_degree: 3 does not divide .* num_heads, 4"):
        apply_tensor_parallel(build("dense"), plan, three)
    with pytest.raises(ConfigError, match="expert_parallel_degree: 3 does not divide the 4 experts"):
        apply_expert_parallel(build("experts"), plan, three)
    with pytest.raises(ConfigError, match="this model has none"):
        apply_expert_parallel(build("dense"), plan, replace(three, ranks=(0, 1)))
