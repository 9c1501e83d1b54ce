"""Steps of several processes that share states, gradients or parameters, against those of one process."""

from typing import Any

import numpy as np
import pytest

from erniekit.parallel.layout import Layout
from erniekit.testing.distributed import run_distributed
from tests.parallel.plans import batches_of, fill, step_loss_of
from tests.parallel.test_distribute import PATIENCE, adapted, begin, build, padded

pytestmark = pytest.mark.slow

HERE = "tests.parallel.test_sharding"
# Two processes cannot share seven evenly: one computes a micro-batch that counts nothing.
STEPS, MICRO_BATCHES = 3, 7
TWO, EXPERTS = Layout(sharding=2), Layout(sharding=2, expert=2, moe_group="dp")
# Name -> model, layout, stage, what else: recomputation ("again"), sequence parallelism, no overlap.
PLANS: dict[str, tuple[str, Layout, int, tuple[str, ...]]] = {
    "dp2": ("dense", Layout(data=2), 0, ()),
    "dp2 afterwards": ("dense", Layout(data=2), 0, ("afterwards",)),
    "dp2 experts again": ("experts", Layout(data=2), 0, ("again",)),
    "stage 1": ("dense", TWO, 1, ()),
    "stage 2": ("dense", TWO, 2, ()),
    "stage 3": ("dense", TWO, 3, ()),
    "stage 3 afterwards": ("dense", TWO, 3, ("afterwards",)),
    "stage 2 tied again": ("tied", TWO, 2, ("again",)),
    "stage 3 tied again": ("tied", TWO, 3, ("again",)),
    "stage 1 experts": ("experts", TWO, 1, ()),
    "stage 2 experts": ("experts", TWO, 2, ("again",)),
    "stage 3 experts": ("experts", TWO, 3, ()),
    "stage 3 experts again": ("experts", TWO, 3, ("again",)),
    "stage 1 ep2": ("experts", EXPERTS, 1, ()),
    "stage 2 ep2": ("experts", EXPERTS, 2, ()),
    "stage 3 ep2": ("experts", EXPERTS, 3, ("again",)),
    "stage 1 lora": ("experts lora everywhere", TWO, 1, ()),
    "stage 2 lora": ("dense lora", TWO, 2, ("again",)),
    "stage 3 lora": ("experts lora everywhere", TWO, 3, ()),
    "stage 3 lora again": ("dense lora", TWO, 3, ("again",)),
}
MORE = {
    "dp2 stage 1": ("dense", Layout(data=2, sharding=2), 1, ()),
    "dp2 stage 2": ("experts", Layout(data=2, sharding=2), 2, ()),
    "dp2 stage 3": ("dense", Layout(data=2, sharding=2), 3, ("again",)),
    "tp2 stage 1": ("dense", Layout(sharding=2, tensor=2), 1, ()),
    "tp2 sp stage 2": ("tied", Layout(sharding=2, tensor=2), 2, ("sequence",)),
    "tp2 stage 3": ("dense", Layout(sharding=2, tensor=2), 3, ()),
    "tp2 sp stage 3": ("dense", Layout(sharding=2, tensor=2), 3, ("sequence", "again")),
    "cp2 stage 2": ("experts", Layout(sharding=2, context=2), 2, ()),
    "dp2 ep2 stage 3": ("experts", Layout(data=2, sharding=2, expert=2, moe_group="dp"), 3, ()),
    "ep2 stage 3": ("experts", Layout(sharding=4, expert=2, moe_group="dp"), 3, ("again",)),
    "mp2 sp stage 3": (
        "experts",
        Layout(sharding=2, tensor=2, expert=2, moe_group="mp"),
        3,
        ("sequence",),
    ),
    "four stage 3": ("tied", Layout(sharding=4), 3, ()),
}


def optimizer_of(model: Any, held: Any = None) -> Any:
    from erniekit.optim.adamw import AdamW

    return AdamW(
        list(model.named_parameters()),
        held=held,
        weight_decay=0.1,
        adam_beta1=0.9,
        adam_beta2=0.95,
        adam_epsilon=1e-3,
        max_grad_norm=0.5,
        layerwise_lr_decay_bound=1.0,
    )


def recompute(model: Any) -> None:
    from erniekit.models.ernie45 import plan
    from erniekit.parallel.recomputation import Recomputation
    from erniekit.parallel.recompute import apply_recompute

    layers = len(model.model.layers)
    apply_recompute(model, plan, Recomputation((("block",),) * layers, mtp=True))


def batches(step: int) -> list[Any]:
    return [padded(batch) for batch in batches_of(step, MICRO_BATCHES)]


def in_one_process(kind: str) -> tuple[list[float], list[float], dict[str, np.ndarray]]:
    """Losses and norms of the steps, and the weights after them."""
    model = build(kind)
    fill(model)
    begin(model, adapted(model, kind), kind)
    optimizer, step_loss = optimizer_of(model), step_loss_of(model, kind)
    losses, norms = [], []
    for step in range(STEPS):
        step_loss.begin(batches(step))
        for batch in batches(step):
            step_loss(model, batch).backward()
            optimizer.accumulate_grads()
        losses.append(step_loss.values()["loss"])
        norms.append(optimizer.grad_norm_and_clip())
        optimizer.step(0.01)
        optimizer.zero_grad()
    return losses, norms, {name: parameter.numpy() for name, parameter in model.named_parameters()}


def check_all(plans: dict[str, Any]) -> dict[str, Any]:
    from erniekit.parallel import comm

    world = comm.open_world()
    wanted: dict[str, Any] = {}
    found = {}
    for name, (kind, layout, stage, words) in plans.items():
        if kind not in wanted:
            wanted[kind] = in_one_process(kind)
        found[name] = check(world, kind, layout, stage, words, *wanted[kind])
    return found


def check(
    world: Any,
    kind: str,
    layout: Layout,
    stage: int,
    words: tuple[str, ...],
    losses: Any,
    norms: Any,
    after: Any,
) -> dict[str, Any]:
    """In every process: differences from one process, and the bits of what it has in the end."""
    import paddle

    from erniekit.models.ernie45 import plan
    from erniekit.parallel.distribute import distribute
    from erniekit.parallel.mesh import open_mesh
    from erniekit.parallel.sharding import Sharing
    from erniekit.train.shared_routers import share_routers
    from erniekit.train.team import Team

    sequence = "sequence" in words
    mesh = open_mesh(layout, world)
    model = build(kind, lazily=True)
    applied = adapted(model, kind)
    spread = distribute(model, plan, mesh, sequence_parallel=sequence)
    start = build(kind)
    fill(start)
    begin(start, adapted(start, kind), kind)
    values = {name: parameter.numpy() for name, parameter in start.named_parameters()}
    for name, parameter in model.named_parameters():
        parameter.set_value(paddle.to_tensor(spread.placements[name].take(values[name])))
    if "again" in words:
        recompute(model)
    sharing = Sharing(
        model, plan, spread, stage, overlap="afterwards" not in words, part_trained=applied is None
    )
    team = Team(spread, sharing)
    optimizer, step_loss = optimizer_of(model, team.held()), step_loss_of(model, kind)
    for routers in step_loss.companions:
        share_routers(routers, spread, sequence_parallel=sequence)
    worst = {"losses": 0.0, "norms": 0.0}
    gradients = 0
    for step in range(STEPS):
        step_loss.begin(batches(step))
        turns = team.turns_of_step(batches(step))
        for turn in turns:
            run = step_loss if turn.counts else step_loss.without_effect
            with team.micro_batch(last=turn is turns[-1]):
                run(model, turn.batch).backward()
                optimizer.accumulate_grads()
        team.sum_gradients(dict(model.named_parameters()))
        loss = step_loss.values(team.total)["loss"]
        norm = optimizer.grad_norm_and_clip(team.counts, team.sum_of)
        gradients = max(gradients, sharing.bytes_held()["gradients"])
        worst["losses"] = max(worst["losses"], abs(loss - losses[step]) / losses[step])
        worst["norms"] = max(worst["norms"], abs(norm - norms[step]) / norms[step])
        optimizer.step(0.01)
        team.take_updates()
        optimizer.zero_grad()
    kept = team.kept(dict(model.named_parameters()))
    differences = [
        np.abs(tensor.numpy() - sharing.placements[name].take(after[name])).max()
        for name, tensor in kept.items()
    ]
    worst["weights"] = float(max(differences, default=0.0))
    # What is whole is whole everywhere.
    for name, parameter in model.named_parameters():
        if parameter._is_initialized():
            wanted = spread.placements[name].take(after[name])
            worst["weights"] = max(worst["weights"], float(np.abs(parameter.numpy() - wanted).max()))
    return {
        **worst,
        "held": {**sharing.bytes_held(), "gradients": gradients},
        "numbers": {name: tensor.size for name, tensor in kept.items()},
        "bits": {name: tensor.numpy().tobytes() for name, tensor in kept.items()},
    }


def hold(found: list[dict[str, Any]], plans: dict[str, Any]) -> None:
    for name, (kind, _, _, _) in plans.items():
        model = build(kind)
        adapted(model, kind)
        for rank in found:
            assert rank[name]["losses"] < 1e-6, (name, rank[name]["losses"])
            assert rank[name]["norms"] < 1e-5, (name, rank[name]["norms"])
            assert rank[name]["weights"] < 2e-5, (name, rank[name]["weights"])
        for parameter, tensor in model.named_parameters():
            total = sum(rank[name]["numbers"].get(parameter, 0) for rank in found)
            assert total == tensor.size, (name, parameter)


def test_two_processes() -> None:
    found = run_distributed(f"{HERE}:check_all", 2, PLANS, timeout=PATIENCE)
    hold(found, PLANS)
    for rank in found:
        # Sums are taken in the same order, whenever they travel.
        assert rank["dp2"]["bits"] == rank["dp2 afterwards"]["bits"]
        assert rank["stage 3"]["bits"] == rank["stage 3 afterwards"]["bits"]


def test_four_processes() -> None:
    hold(run_distributed(f"{HERE}:check_all", 4, MORE, timeout=PATIENCE), MORE)


def read_in_ranges() -> tuple[int, int, float]:
    """The most bytes while a model is read, those of its largest parameter, and the difference of results."""
    import paddle

    from erniekit.checkpoint.raw import load_weights
    from erniekit.models.ernie45 import plan
    from erniekit.parallel import comm
    from erniekit.parallel.distribute import distribute
    from erniekit.parallel.mesh import open_mesh
    from erniekit.parallel.sharding import Sharing, keep_ranges

    mesh = open_mesh(TWO, comm.open_world())
    source, model = build("experts"), build("experts", lazily=True)
    fill(source)
    values = {name: parameter.numpy() for name, parameter in source.named_parameters()}
    spread = distribute(model, plan, mesh, waiting=values)
    most = 0

    def items() -> Any:
        nonlocal most
        for name, value in values.items():
            yield name, "F32", value
            there = [p for p in model.parameters() if p._is_initialized()] + list(spread.ranges.values())
            most = max(most, 4 * sum(tensor.size for tensor in there))

    load_weights(model, keep_ranges(items(), model, plan, spread))
    sharing = Sharing(model, plan, spread, 3)
    assert not spread.ranges
    for name, placed in sharing.placements.items():
        if placed.counted:
            kept = sharing.kept(name)
            assert kept is not None and (kept.numpy() == placed.take(values[name])).all(), name
    with paddle.no_grad():
        batch = padded(batches_of(0, 1)[0])
        inputs = [
            paddle.to_tensor(array) for array in (batch.input_ids, batch.position_ids, batch.attend_from)
        ]
        hidden, wanted = model(*inputs), source(*inputs)
    return most, 4 * max(value.size for value in values.values()), float((hidden - wanted).abs().max())


def test_no_more_than_one_parameter_is_whole_while_a_model_is_read() -> None:
    model = build("experts")
    whole = 4 * sum(parameter.size for parameter in model.parameters())
    routers = 4 * sum(
        p.size for name, p in model.named_parameters() if ".gate." in name or "correction" in name
    )
    for most, largest, difference in run_distributed(f"{HERE}:read_in_ranges", 2, timeout=PATIENCE):
        assert whole / 2 < most <= whole / 2 + routers + 1.5 * largest
        assert difference == 0.0
