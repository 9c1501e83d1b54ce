"""Preference training over real processes against one process: losses, figures, gradients, reference."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from erniekit.data.pack import collate
from erniekit.parallel.layout import Layout
from erniekit.testing.distributed import run_distributed
from erniekit.testing.tiny_checkpoint import tiny_config, tiny_moe_config
from tests.parallel.plans import fill, gradients_of
from tests.train.pairs import random_pair, settings

pytestmark = [pytest.mark.slow, pytest.mark.several]

HERE = "tests.train.test_shared_preference"
PATIENCE = 480
MODELS = {"dense": lambda: tiny_config(), "experts": lambda: tiny_moe_config(moe_layer_start_index=(1,))}
# Name -> model, layout, sequence parallelism, changed settings.
CASES: dict[str, tuple[str, Layout, bool, dict[str, Any]]] = {
    "dp2": ("dense", Layout(data=2), False, {"normalize_logps": True, "sft_loss_ratio": 0.3}),
    "tp2": ("dense", Layout(tensor=2), False, {"sft_loss_ratio": 0.3}),
    "tp2 sp, ORPO": ("dense", Layout(tensor=2), True, {"loss_type": "orpo"}),
    "cp2": ("dense", Layout(context=2), False, {"sft_loss_ratio": 0.3}),
    "cp2, SimPO": ("dense", Layout(context=2), False, {"loss_type": "simpo"}),
    "cp2, KTO": ("experts", Layout(context=2), False, {"loss_type": "kto_pair"}),
    "ep2": ("experts", Layout(data=2, expert=2, moe_group="dp"), False, {"label_smoothing": 0.1}),
    "cp2 reference in every step": ("dense", Layout(context=2), False, {"ref_logps": "model"}),
}
MORE = {
    "dp2 cp2": ("dense", Layout(data=2, context=2), False, {"sft_loss_ratio": 0.3}),
    "dp2 tp2": ("dense", Layout(data=2, tensor=2), False, {}),
    "cp2 tp2 sp": ("dense", Layout(context=2, tensor=2), True, {"loss_type": "ipo"}),
}


def micro_batches() -> list[Any]:
    """Three of them, which two replicas cannot share evenly; one has no label in its second half."""
    sizes = [(9, 5, 7), (3, 12, 2), (1, 4, 4), (20, 1, 9), (6, 2, 3)]
    pairs = [random_pair(*size, seed) for seed, size in enumerate(sizes)]
    rows = [[tuple(pairs[:2]), tuple(pairs[2:3])], [(pairs[3],)], [(pairs[4],)]]
    return [collate(each, pad_id=0, num_parts=4, pad_to=60 if len(each) == 1 else None) for each in rows]


def run(model: Any, reference: Any, changes: dict[str, Any], team: Any, cache: Path) -> dict[str, Any]:
    """A step and an evaluation of a policy against a reference that is another model."""
    from erniekit.train.dpo import PreferenceObjective
    from erniekit.train.evaluation import evaluate
    from erniekit.train.reference import ModelReference, score_once
    from erniekit.train.step_loss import StepLoss

    batches, chosen = micro_batches(), settings(**changes)
    scorer, scored = ModelReference(reference, None, loss_subbatch_seqlen=7), None
    if chosen.needs_reference and chosen.ref_logps == "auto":
        scored = score_once(batches, lambda: scorer, cache, "digest", team=team)
    elif chosen.needs_reference:
        scored = scorer
    objective = PreferenceObjective(chosen, scored, loss_subbatch_seqlen=7)
    step_loss = StepLoss(objective)
    step_loss.begin(batches)
    for turn in team.turns_of_step(batches):
        each = step_loss if turn.counts else step_loss.without_effect
        each(model, turn.batch).backward()
    team.sum_gradients(dict(model.named_parameters()))
    figures = evaluate(model, batches, objective, team=team).metrics()
    return {"values": step_loss.values(team.total) | figures, "gradients": gradients_of(model)}


def full_model(kind: str, scale: float) -> Any:
    import paddle

    from erniekit.models.ernie45.model import Ernie45

    paddle.set_device("cpu")
    made = Ernie45(MODELS[kind]())
    fill(made)
    for name, parameter in made.named_parameters():
        parameter.set_value(parameter * (1.0 if "norm" in name else scale))
    return made


def spread_model(kind: str, mesh: Any, sequence: bool, scale: float) -> tuple[Any, Any]:
    import paddle

    from erniekit.models.ernie45 import plan
    from erniekit.models.ernie45.model import Ernie45
    from erniekit.parallel.distribute import distribute

    with paddle.LazyGuard():
        made = Ernie45(MODELS[kind]())
    spread = distribute(made, plan, mesh, sequence_parallel=sequence)
    parameters = dict(made.named_parameters())
    for name, parameter in full_model(kind, scale).named_parameters():
        parameters[name].set_value(paddle.to_tensor(spread.placements[name].take(parameter.numpy())))
    return made, spread


def check_all(cases: dict[str, Any], folder: Path) -> dict[str, Any]:
    """In every process: the largest differences of each case from one process."""
    from erniekit.parallel import comm
    from erniekit.parallel.mesh import open_mesh
    from erniekit.train.team import ALONE, Team

    world = comm.open_world()
    found = {}
    for number, (name, (kind, layout, sequence, changes)) in enumerate(cases.items()):
        alone = folder / f"alone-{number}-{world.rank}.json"
        expected = run(full_model(kind, 1.0), full_model(kind, 0.8), changes, ALONE, alone)
        mesh = open_mesh(layout, world)
        model, spread = spread_model(kind, mesh, sequence, 1.0)
        reference, _ = spread_model(kind, mesh, sequence, 0.8)
        got = run(model, reference, changes, Team(spread), folder / f"{number}.json")
        worst = 0.0
        assert got["gradients"].keys() == expected["gradients"].keys()
        for parameter, gradient in got["gradients"].items():
            wanted = expected["gradients"][parameter]
            own = spread.placements[parameter].take(wanted)
            worst = max(worst, float(np.abs(gradient - own).max() / np.abs(wanted).max()))
        found[name] = (expected["values"], got["values"], worst)
    return found


def hold(cases: dict[str, Any], found: list[dict[str, Any]], folder: Path) -> None:
    for number, (name, (_, _, _, changes)) in enumerate(cases.items()):
        for rank in found:
            expected, values, gradients = rank[name]
            assert expected.keys() == values.keys()
            for key, value in expected.items():
                # A mean of rewards may be near 0 where they are not.
                assert abs(values[key] - value) <= 1e-6 * max(abs(value), 1.0), (
                    name,
                    key,
                    value,
                    values[key],
                )
            assert gradients < 1e-5, name
        chosen = settings(**changes)
        if chosen.needs_reference and chosen.ref_logps == "auto":
            alone, shared = (
                json.loads((folder / file).read_text(encoding="utf-8"))["pairs"]
                for file in (f"alone-{number}-0.json", f"{number}.json")
            )
            assert len(shared) == 5 and alone.keys() == shared.keys()
            for pair, numbers in alone.items():
                np.testing.assert_allclose(shared[pair], numbers, rtol=1e-6)


def test_two_processes(tmp_path: Path) -> None:
    hold(CASES, run_distributed(f"{HERE}:check_all", 2, CASES, tmp_path, timeout=PATIENCE), tmp_path)


def test_four_processes(tmp_path: Path) -> None:
    hold(MORE, run_distributed(f"{HERE}:check_all", 4, MORE, tmp_path, timeout=PATIENCE), tmp_path)
