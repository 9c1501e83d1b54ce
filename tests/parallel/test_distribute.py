"""Models over real processes against one process: losses, gradients, and what is saved and counted."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from erniekit.parallel.layout import Layout
from erniekit.testing.distributed import run_distributed
from erniekit.testing.tiny_checkpoint import tiny_config, tiny_moe_config
from tests.parallel.plans import adapt, batches_of, fill, gradients_of, step_loss_of

pytestmark = pytest.mark.slow

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
MODELS["two"] = lambda: tiny_moe_config(2, vocab_size=64)
# Word of a plan -> method and what it is on, under the name of the model and this word.
EXPERTS_TOO = ("all-linear", "experts", "router")
ADAPTED: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("lora", {}),
    "lora everywhere": ("lora", {"lora_target": EXPERTS_TOO, "lora_modules_to_save": ("embed_tokens",)}),
    "lora head": ("lora", {"lora_target": ("all-linear", "head"), "lora_modules_to_save": ("embed_tokens",)}),
    "some": ("lora", {"lora_target": ("q_proj", "v_proj", "up_proj", "down_proj"), "rslora": True}),
    "dora": ("dora", {}),
    "pissa": ("pissa", {}),
}
# Name -> model, layout, sequence parallelism, operators that are recomputed.
CHEAP = ("norm", "core_attention", "dispatch", "activation")
PLANS: dict[str, tuple[Any, ...]] = {
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
    "lora tp2": ("dense lora head", Layout(tensor=2), False),
    "lora tp2 sp": ("dense lora", Layout(tensor=2), True),
    "some tied tp2": ("tied some", Layout(tensor=2), False),
    "dora tp2": ("dense dora", Layout(tensor=2), False),
    "dora tp2 sp": ("tied dora", Layout(tensor=2), True),
    "pissa tp2": ("dense pissa", Layout(tensor=2), False),
    "experts ep2 recomputed": ("experts", Layout(data=2, expert=2, moe_group="dp"), False, ("block",)),
    "experts ep2 cheap recomputed": ("experts", Layout(data=2, expert=2, moe_group="dp"), False, CHEAP),
    "lora mp2 sp recomputed": (
        "experts lora everywhere",
        Layout(tensor=2, expert=2, moe_group="mp"),
        True,
        ("block",),
    ),
    "two ep2 recomputed": ("two", Layout(data=2, expert=2, moe_group="dp"), False, ("experts",)),
    "two dp2": ("two", Layout(data=2), False),
    "two ep2": ("two", Layout(data=2, expert=2, moe_group="dp"), False),
    "two tp2": ("two", Layout(tensor=2), False),
    "two mp2": ("two", Layout(tensor=2, expert=2, moe_group="mp"), False),
    "two cp2": ("two", Layout(context=2), False),
    "two cp2 world": ("two", Layout(context=2, expert=2, moe_group="world"), False),
    "two mp2 sp": ("two", Layout(tensor=2, expert=2, moe_group="mp"), True),
    "two lora ep2": ("two lora everywhere", Layout(data=2, expert=2, moe_group="dp"), False),
    "dense cp2": ("dense", Layout(context=2), False),
    "tied cp2": ("tied", Layout(context=2), False),
    "experts cp2": ("experts", Layout(context=2), False),
    "experts cp2 world": ("experts", Layout(context=2, expert=2, moe_group="world"), False),
    "lora cp2": ("experts lora everywhere", Layout(context=2), False),
    "lora dp2": ("experts lora everywhere", Layout(data=2), False),
    "lora ep2": ("experts lora everywhere", Layout(data=2, expert=2, moe_group="dp"), False),
    "lora experts tp2": ("experts lora everywhere", Layout(tensor=2), False),
    "lora mp2": ("experts lora everywhere", Layout(tensor=2, expert=2, moe_group="mp"), False),
    "lora mp2 sp": ("experts lora everywhere", Layout(tensor=2, expert=2, moe_group="mp"), True),
}
MORE = {
    "dense dp2 tp2": ("dense", Layout(data=2, tensor=2), False),
    "dense dp2 tp2 sp": ("dense", Layout(data=2, tensor=2), True),
    "experts ep4": ("experts", Layout(data=4, expert=4, moe_group="dp"), False),
    "experts dp2 ep2": ("experts", Layout(data=4, expert=2, moe_group="dp"), False),
    "experts dp2 mp2 sp": ("experts", Layout(data=2, tensor=2, expert=2, moe_group="mp"), True),
    "experts ep2 tp2": ("experts", Layout(data=2, tensor=2, expert=2, moe_group="dp"), False),
    "experts world ep4 sp": ("experts", Layout(data=2, tensor=2, expert=4, moe_group="world"), True),
    "two cp2 mp2 sp": ("two", Layout(context=2, tensor=2, expert=2, moe_group="mp"), True),
    "two dp2 ep2": ("two", Layout(data=4, expert=2, moe_group="dp"), False),
    "two ep2 tp2": ("two", Layout(data=2, tensor=2, expert=2, moe_group="dp"), False),
    "experts dp2 cp2": ("experts", Layout(data=2, context=2), False),
    "experts cp2 ep2": ("experts", Layout(data=2, context=2, expert=2, moe_group="dp"), False),
    "dense cp2 tp2": ("dense", Layout(context=2, tensor=2), False),
    "dense cp2 tp2 sp": ("dense", Layout(context=2, tensor=2), True),
    "experts cp2 mp2 sp": ("experts", Layout(context=2, tensor=2, expert=2, moe_group="mp"), True),
    "tied cp4": ("tied", Layout(context=4), False),
    "lora dp2 tp2": ("dense lora", Layout(data=2, tensor=2), False),
    "lora ep2 tp2": ("experts lora everywhere", Layout(data=2, tensor=2, expert=2, moe_group="dp"), False),
}


def build(kind: str, *, lazily: bool = False) -> Any:
    import paddle

    from erniekit.models.ernie45.model import Ernie45

    paddle.set_device("cpu")
    config = MODELS[kind.partition(" ")[0]]()
    if lazily:
        with paddle.LazyGuard():
            return Ernie45(config)
    return Ernie45(config)


def adapted(model: Any, kind: str) -> Any:
    """The adapter of a plan's model, or None."""
    import paddle

    word = kind.partition(" ")[2]
    paddle.seed(7)
    return adapt(model, ADAPTED[word][0], **ADAPTED[word][1]) if word else None


def begin(model: Any, applied: Any, kind: str) -> None:
    """Factors as if they had been trained; those of PiSSA as they begin."""
    if applied is not None:
        applied.initialise()
        if not kind.endswith("pissa"):
            fill(model, ".lora_")


def values_of(model: Any) -> dict[str, np.ndarray]:
    return {name: parameter.numpy() for name, parameter in model.named_parameters()}


def in_one_process(
    kind: str, batches: list[Any]
) -> tuple[dict[str, float], dict[str, np.ndarray], dict[str, np.ndarray], dict[str, Any]]:
    model = build(kind)
    fill(model)
    begin(model, adapted(model, kind), kind)
    values = values_of(model)
    step_loss = step_loss_of(model, kind)
    step_loss.begin(batches)
    for batch in batches:
        step_loss(model, batch).backward()
    gradients = gradients_of(model)
    return step_loss.values(), gradients, values, after(step_loss, model)


def check_all(plans: dict[str, tuple[Any, ...]]) -> dict[str, Any]:
    """In every process: each plan's largest differences from one process."""
    from erniekit.parallel import comm

    world = comm.open_world()
    return {name: check(world, *plan) for name, plan in plans.items()}


def check(
    world: Any, kind: str, layout: Layout, sequence: bool, recompute: tuple[str, ...] = ()
) -> dict[str, Any]:
    import paddle

    from erniekit.models.ernie45 import plan
    from erniekit.parallel.distribute import distribute
    from erniekit.parallel.mesh import open_mesh
    from erniekit.parallel.recomputation import Recomputation
    from erniekit.parallel.recompute import apply_recompute
    from erniekit.train.shared_routers import share_routers
    from erniekit.train.team import Team

    # Columns that four can share.
    batches = [padded(batch) for batch in batches_of(3, 4)]
    if kind.startswith("two"):
        batches = [typed(batch, number) for number, batch in enumerate(batches)]
    expected, wanted, wanted_values, wanted_after = in_one_process(kind, batches)
    mesh = open_mesh(layout, world)
    model = build(kind, lazily=True)
    applied = adapted(model, kind)
    spread = distribute(model, plan, mesh, sequence_parallel=sequence)
    full = build(kind)
    fill(full)
    values = values_of(full)
    parameters = dict(model.named_parameters())
    for name in values:
        parameters[name].set_value(paddle.to_tensor(spread.placements[name].take(values[name])))
    if applied is not None:
        applied.initialise()
    for name, parameter in parameters.items():
        own = spread.placements[name].take(wanted_values[name])
        if name in values or kind.endswith("pissa"):
            np.testing.assert_allclose(parameter.numpy(), own, rtol=1e-5, atol=1e-6)
        parameter.set_value(paddle.to_tensor(own))
    if recompute:
        num_layers = model.config.num_hidden_layers
        apply_recompute(model, plan, Recomputation((recompute,) * num_layers, mtp=recompute == ("block",)))
    step_loss = step_loss_of(model, kind)
    for routers in step_loss.companions:
        share_routers(routers, spread, sequence_parallel=sequence)
    step_loss.begin(batches)
    for batch in batches[mesh.batch.rank :: mesh.batch.size]:
        step_loss(model, batch).backward()
    spread.sum_gradients(parameters)
    found = step_loss.values(Team(spread).total)
    worst = 0.0
    for name, gradient in gradients_of(model).items():
        own = spread.placements[name].take(wanted[name])
        worst = max(worst, float(np.abs(gradient - own).max() / np.abs(wanted[name]).max()))
    assert gradients_of(model).keys() == wanted.keys()
    found_after = after(step_loss, model)
    if mesh.tensor.rank:  # the first of those that see the same tokens tells
        assert not found_after["loads"]
        found_after["loads"] = wanted_after["loads"]
    np.testing.assert_equal(found_after, wanted_after)
    counted = {
        name: sum(part.size for _, part in spread.placements[name].give(parameter.numpy()))
        for name, parameter in parameters.items()
        if spread.counts(name)
    }
    losses = {name: abs(found[name] - expected[name]) / abs(expected[name] or 1.0) for name in expected}
    return {"losses": losses, "gradients": worst, "counted": counted}


def after(step_loss: Any, model: Any) -> dict[str, Any]:
    """What routers tell of a step, and the biases that balance their experts after it."""
    rows = [router for companion in step_loss.companions for router in companion.row().get("routers", ())]
    for companion in step_loss.companions:
        companion.after_update()
    loads = {(router["layer"], router["modality"]): router["load"] for router in rows}
    biases = {n: p.numpy() for n, p in model.named_parameters() if n.endswith("correction_bias")}
    return {"loads": loads, "biases": biases}


def typed(batch: Any, number: int) -> Any:
    """The batch with tokens of both kinds, of text alone (said or not), of vision alone."""
    shape = batch.input_ids.shape
    both = np.random.default_rng(number).integers(0, 3, shape)
    types = (both, None, np.ones(shape, np.int64), np.zeros(shape, np.int64))[number % 4]
    return SimpleNamespace(**{**vars(batch), "token_types": types})


def padded(batch: Any) -> Any:
    """The batch with more columns where four processes could not share them."""
    columns = batch.input_ids.shape[1]
    more = -columns % 4

    def longer(array: np.ndarray, value: int) -> np.ndarray:
        return np.pad(array, ((0, 0), (0, more)), constant_values=value)

    attend_from = longer(batch.attend_from, 0)
    attend_from[:, columns:] = np.arange(columns, columns + more)
    return type(batch)(
        input_ids=longer(batch.input_ids, 3),
        labels=longer(batch.labels, -100),
        position_ids=longer(batch.position_ids, 0),
        attend_from=attend_from,
        token_types=None,
        is_token=lambda: np.tile(np.arange(columns + more) < columns, (2, 1)),
    )


def hold(found: list[dict[str, Any]], plans: dict[str, Any]) -> None:
    sizes = {}
    for kind in {kind for kind, *_ in plans.values()}:
        model = build(kind)
        adapted(model, kind)
        sizes[kind] = {name: int(np.prod(p.shape)) for name, p in model.named_parameters()}
    for name, (kind, *_) in plans.items():
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
    from erniekit.errors import ConfigError, UnsupportedError
    from erniekit.models.ernie45 import plan
    from erniekit.parallel.comm import Group
    from erniekit.parallel.distribute import distribute
    from erniekit.parallel.expert import apply_expert_parallel
    from erniekit.parallel.tensor import apply_tensor_parallel

    three = Group((0, 1, 2), 0)
    with pytest.raises(ConfigError, match="tensor_parallel_degree: 3 does not divide .* num_heads, 4"):
        apply_tensor_parallel(build("dense"), plan, three)
    with pytest.raises(ConfigError, match="expert_parallel_degree: 3 does not divide the 4 experts"):
        apply_expert_parallel(build("experts"), plan, three)
    layout = Layout(data=2, tensor=2, expert=4, moe_group="world")
    with pytest.raises(
        UnsupportedError, match="would compute every token 2 times; .*sequence_parallel: true"
    ):
        distribute(build("experts"), plan, SimpleNamespace(layout=layout))
    with pytest.raises(ConfigError, match="this model has none"):
        apply_expert_parallel(build("dense"), plan, replace(three, ranks=(0, 1)))
