"""Pipelines of real processes against one process: losses, gradients, activations held at once."""

from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from erniekit.ops import backend
from erniekit.parallel.schedule import build_schedule, simulate
from erniekit.parallel.stages import choose_stages
from erniekit.testing.distributed import run_distributed
from erniekit.testing.tiny_checkpoint import tiny_config, tiny_moe_config
from tests.parallel.plans import batches_of, fill, gradients_of, step_loss_of

pytestmark = pytest.mark.slow

HERE = "tests.parallel.test_pipeline"
SCHEDULES: dict[str, dict[str, Any]] = {
    "1f1b": {"name": "1f1b"},
    "interleaved": {"name": "interleaved", "virtual_pp_degree": 2},
    "zero_bubble": {"name": "zero_bubble"},
    "capped": {"name": "memory_capped", "activation_cap": 1},
    "folded": {"name": "memory_capped", "virtual_pp_degree": 2, "activation_cap": 3},
}
MODELS = {
    "dense": lambda: tiny_config(num_hidden_layers=9, vocab_size=64, tie_word_embeddings=False),
    "tied": lambda: tiny_config(num_hidden_layers=9, vocab_size=64),
    "frozen": lambda: tiny_config(num_hidden_layers=9, vocab_size=64, tie_word_embeddings=False),
    # One dense block, then experts, and two blocks of multi-token prediction.
    "experts": lambda: tiny_moe_config(
        num_hidden_layers=8,
        vocab_size=64,
        tie_word_embeddings=False,
        num_nextn_predict_layers=2,
    ),
}


def build(kind: str) -> Any:
    """The model with the same weights in every process, in training mode; `frozen` trains its end only."""
    import paddle

    from erniekit.models.ernie45 import plan
    from erniekit.models.ernie45.model import Ernie45
    from erniekit.parallel.seeds import apply_seeds

    paddle.set_device("cpu")
    model = Ernie45(MODELS[kind]())
    fill(model)
    if kind == "frozen":
        for name, parameter in model.named_parameters():
            parameter.stop_gradient = not name.startswith(("model.layers.7", "lm_head"))
    apply_seeds(model, plan)
    model.train()
    return model


def seed_of(step: int) -> Any:
    return lambda micro_batch: 1000 * step + micro_batch


def descend(model: Any) -> dict[str, np.ndarray]:
    """Take the gradients, and move the weights along them."""
    import paddle

    from erniekit.ops import gradients

    found = gradients_of(model)
    for parameter in model.parameters():
        gradient = gradients.of(parameter)
        if gradient is not None:
            with paddle.no_grad():
                parameter.subtract_(gradient * 0.01)
        gradients.clear(parameter)
    return found


def in_one_process(kind: str, count: int, dropout: float) -> tuple[list[Any], list[Any]]:
    from erniekit.parallel import seeds

    model = build(kind)
    model.set_dropout(dropout, dropout)
    step_loss = step_loss_of(model, kind)
    found = []
    for step in range(2):
        batches = batches_of(step, count)
        step_loss.begin(batches)
        for index, batch in enumerate(batches):
            seeds.begin_micro_batch(seed_of(step)(index))
            step_loss(model, batch).backward()
        found.append((step_loss.values(), descend(model)))
    return found, evaluation(model, batches_of(7, 3))


def figures(model: Any, batch: Any) -> tuple[float, int]:
    from erniekit.train.sft import next_token_loss

    loss, metrics = next_token_loss(model, batch, loss_subbatch_seqlen=8, use_sparse_head_and_loss_fn=True)
    return float(loss), int(metrics["num_tokens"])


def evaluation(model: Any, batches: list[Any]) -> list[tuple[float, int]]:
    import paddle

    model.eval()
    with paddle.no_grad():
        return [figures(model, batch) for batch in batches]


def run_cases(cases: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What a rank sees in every case."""
    from erniekit.parallel.comm import open_world

    world = open_world()
    return {name: in_pipeline(world, **case) for name, case in cases.items()}


def engine_of(model: Any, world: Any, **keys: Any) -> tuple[Any, frozenset[str]]:
    """The engine of a model that is cut for this rank, and the parameters that an earlier stage has too."""
    from erniekit.models.ernie45 import plan
    from erniekit.parallel.pipeline import PipelineEngine
    from erniekit.parallel.schedule import places_of
    from erniekit.parallel.stage_model import cut_model

    chunks = keys.get("virtual_pp_degree", 1)
    stages = choose_stages(["block"] * model.config.num_hidden_layers, world.size * chunks)
    own = places_of(keys["name"], world.size, chunks)[world.rank]
    cut = cut_model(model, plan, stages, own)
    return PipelineEngine(model, plan, world, cut=cut, **keys), cut.copies


def in_pipeline(
    world: Any,
    kind: str,
    count: int,
    keys: dict[str, Any],
    dropout: float = 0.0,
    recompute: str = "",
    fillers: Any = (),
) -> SimpleNamespace:
    """Losses and gradients of two steps, evaluation, and what the engine knows."""
    from erniekit.models.ernie45 import plan
    from erniekit.parallel.recomputation import Recomputation
    from erniekit.parallel.recompute import apply_recompute

    model = build(kind)
    num_layers = model.config.num_hidden_layers
    engine, copies = engine_of(model, world, **keys)
    if recompute:
        apply_recompute(model, plan, Recomputation(((recompute,),) * num_layers, mtp=True))
    model.set_dropout(dropout, dropout)
    step_loss = step_loss_of(model, kind)
    steps = []
    for step in range(2):
        batches = batches_of(step, count)
        step_loss.begin(batches)
        batches += [batches[0] for _ in fillers]
        engine.run(batches, step_loss, seed_of=seed_of(step), fillers=fillers)
        steps.append((step_loss.values(engine.total), descend(model)))
    model.eval()
    return SimpleNamespace(
        steps=steps,
        evaluated=engine.forward(batches_of(7, 3), figures),
        peak=engine.peak,
        copies=sorted(copies),
        names=[name for name, _ in model.named_parameters()],
    )


@cache
def alone(kind: str, count: int, dropout: float, kernels: str) -> tuple[list[Any], list[Any]]:
    """The same in this process, with the kernels that the ranks have, which round sums alike."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(backend.VARIABLE, kernels)
        backend.use_kernels(kernels)
        found = in_one_process(kind, count, dropout)
    backend.use_kernels("auto")
    return found


# (ranks, name): the case. All of as many ranks share their processes.
CASES: dict[tuple[int, str], dict[str, Any]] = {
    (ranks, f"{kind} {schedule}"): {"kind": kind, "count": 4, "keys": keys}
    for ranks, kinds in ((2, ("dense", "experts")), (4, ("tied", "experts")))
    for kind in kinds
    for schedule, keys in SCHEDULES.items()
} | {
    (2, "tied dropout"): {"kind": "tied", "count": 3, "keys": SCHEDULES["1f1b"], "dropout": 0.2},
    (2, "experts dropout recompute folded"): {
        "kind": "experts",
        "count": 3,
        "keys": SCHEDULES["folded"],
        "dropout": 0.2,
        "recompute": "block",
    },
    (2, "dense recompute zero_bubble"): {
        "kind": "dense",
        "count": 3,
        "keys": SCHEDULES["zero_bubble"],
        "recompute": "activation",
    },
    (2, "frozen zero_bubble"): {"kind": "frozen", "count": 3, "keys": SCHEDULES["zero_bubble"]},
    (2, "experts filled up"): {
        "kind": "experts",
        "count": 3,
        "keys": SCHEDULES["interleaved"],
        "fillers": (3,),
    },
    (2, "experts one micro-batch"): {"kind": "experts", "count": 1, "keys": SCHEDULES["1f1b"]},
}
# With the native kernels, which put gradients off in their own way.
NATIVE = {
    f"{kind} {schedule}": CASES[2, f"{kind} {schedule}"]
    for kind, schedule in (("dense", "zero_bubble"), ("experts", "folded"))
}


@cache
def results_of(ranks: int, kernels: str = "paddle") -> list[dict[str, Any]]:
    cases = {name: case for (number, name), case in CASES.items() if number == ranks}
    cases = NATIVE if kernels == "native" else cases
    return run_distributed(f"{HERE}:run_cases", ranks, cases, timeout=400, ERNIEKIT_KERNELS=kernels)


@pytest.mark.parametrize("name", NATIVE)
def test_equal_to_one_process_with_native_kernels(name: str) -> None:
    if backend.find_library().library is None:
        pytest.skip("native kernels do not run here")
    check_equal(NATIVE[name], [result[name] for result in results_of(2, "native")], "native")


@pytest.mark.parametrize(("ranks", "name"), CASES)
def test_equal_to_one_process(ranks: int, name: str) -> None:
    check_equal(CASES[ranks, name], [result[name] for result in results_of(ranks)])


def check_equal(case: dict[str, Any], results: list[SimpleNamespace], kernels: str = "paddle") -> None:
    """Losses, gradients and evaluation of the ranks against those of this process."""
    steps, evaluated = alone(case["kind"], case["count"], case.get("dropout", 0.0), kernels)
    for step, (values, gradients) in enumerate(steps):
        together: dict[str, np.ndarray] = {}
        for rank, result in enumerate(results):
            found, of_rank = result.steps[step]
            assert found.keys() == values.keys()
            for word, value in values.items():
                assert found[word] == pytest.approx(value, rel=1e-6), (step, rank, word)
            for parameter, gradient in of_rank.items():
                if parameter in together:
                    np.testing.assert_array_equal(gradient, together[parameter])
                together[parameter] = gradient
        assert together.keys() == gradients.keys()
        for parameter, gradient in gradients.items():
            worst = np.abs(together[parameter] - gradient).max() / np.abs(gradient).max()
            assert worst < 1e-5, (step, parameter, worst)
    for result in results:
        assert result.evaluated == [(pytest.approx(loss, rel=1e-6), tokens) for loss, tokens in evaluated]


@pytest.mark.parametrize(("ranks", "name"), CASES)
def test_activations_held_are_those_of_the_simulation(ranks: int, name: str) -> None:
    case = CASES[ranks, name]
    schedule = build_schedule(
        num_ranks=ranks, num_micro_batches=case["count"] + len(case.get("fillers", ())), **case["keys"]
    )
    peaks = tuple(result[name].peak for result in results_of(ranks))
    assert peaks == simulate(schedule).peaks


def test_a_rank_holds_its_own_parameters() -> None:
    """The first and the last rank both have a tied embedding, and the first answers for it."""
    first, *middle, last = [result["tied 1f1b"] for result in results_of(4)]
    embedding = "model.embed_tokens.weight"
    assert embedding in first.names and first.copies == []
    assert embedding in last.names and last.copies == [embedding]
    assert "model.norm.weight" in last.names and "model.norm.weight" not in first.names
    for rank, part in enumerate((first, *middle, last)):
        blocks = {int(name.split(".")[2]) for name in part.names if name.startswith("model.layers.")}
        expected = choose_stages(["block"] * 9, 4)[rank]
        assert blocks == set(range(*expected))
    # Stages that go forth and back have both ends on one rank.
    folded = [result["tied folded"] for result in results_of(4)]
    assert [embedding in part.names for part in folded] == [True, False, False, False]
    assert not any(part.copies for part in folded)
