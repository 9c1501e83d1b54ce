"""Runs over the stages of a pipeline against runs of one process: losses, held-out figures, checkpoints."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from erniekit.checkpoint.files import open_tensors
from erniekit.testing.tiny_checkpoint import tiny_config, tiny_moe_config
from erniekit.testing.tiny_run import write_pairs, write_run
from erniekit.train.reporting import read_log
from tests.train.together import run_together

STEPS, HALF = 4, 2
pytestmark = [pytest.mark.slow, pytest.mark.several]
KEYS = {
    "kernels": "paddle",
    "compute_type": "fp32",
    "max_steps": STEPS,
    "eval_steps": STEPS,
    "save_steps": HALF,
    "logging_steps": 1,
    "gradient_accumulation_steps": 4,
    # With less of it Adam makes as much of a gradient that is next to nothing as of any other.
    "adam_epsilon": 1e-4,
}
EXPERTS = {
    "moe_use_aux_free": True,
    "moe_use_aux_free_update_coef": 0.02,
    "moe_orthogonal_loss_lambda": 0.1,
    "moe_z_loss_lambda": 0.001,
    "moe_aux_loss_lambda": 0.01,
}
MODELS: dict[str, tuple[Any, dict[str, Any]]] = {
    "tied": (lambda: tiny_config(num_hidden_layers=4, use_bias=True), {}),
    "dropout": (
        lambda: tiny_config(num_hidden_layers=4),
        {"hidden_dropout_prob": 0.1, "layerwise_lr_decay_bound": 0.5},
    ),
    "experts": (
        lambda: tiny_moe_config(
            num_hidden_layers=4, moe_layer_start_index=(1,), num_nextn_predict_layers=1, use_bias=True
        ),
        EXPERTS,
    ),
    "modalities": (lambda: tiny_moe_config(2, num_hidden_layers=4), EXPERTS),
}
LORA = {"fine_tuning": "LoRA", "lora_rank": 4}
PAIRS = {"stage": "DPO", "learning_rate": 1e-3}
MODELS |= {
    "adapter": (MODELS["experts"][0], {**LORA, "lora_target": ["all-linear", "experts"]}),
    "fresh": (MODELS["experts"][0], {"continue_training": False, "num_nextn_predict_layers": 2}),
    # The first stage trains nothing.
    "frozen": (
        lambda: tiny_config(num_hidden_layers=4, tie_word_embeddings=False),
        {"freeze": ["embed_tokens", r"layers\.[01]\."]},
    ),
    "pairs": (MODELS["tied"][0], PAIRS),
    "pairs with adapter": (MODELS["tied"][0], {**PAIRS, **LORA, "sft_loss_ratio": 0.2}),
}
PP2 = {"pipeline_parallel_degree": 2}
# Name -> model, changes of keys. Those of as many processes share them.
TWO: dict[str, tuple[str, dict[str, Any]]] = {
    "tied 1f1b": ("tied", {**PP2}),
    "tied interleaved": ("tied", {**PP2, "virtual_pp_degree": 2, "recompute": "auto"}),
    "dropout zero_bubble": ("dropout", {**PP2, "pipeline_schedule": "zero_bubble", "recompute": True}),
    "experts 1f1b": ("experts", {**PP2, "pp_seg_method": "auto"}),
    "experts capped": (
        "experts",
        {
            **PP2,
            "pipeline_schedule": "memory_capped",
            "pipeline_activation_cap": 3,
            "virtual_pp_degree": 2,
            "recompute": True,
            "recompute_granularity": "selective",
            "refined_recompute": "mtp:all,head:all,router:all,gate_up:2",
        },
    ),
    "modalities zero_bubble": (
        "modalities",
        {
            **PP2,
            "pipeline_schedule": "zero_bubble",
            "pp_seg_method": "0,2",
            "recompute": True,
            "recompute_granularity": "full_attn",
        },
    ),
}
TWO |= {
    "fresh 1f1b": ("fresh", PP2),
    "frozen 1f1b": ("frozen", PP2),
    "adapter zero_bubble": ("adapter", {**PP2, "pipeline_schedule": "zero_bubble"}),
    "pairs interleaved": ("pairs", {**PP2, "virtual_pp_degree": 2}),
    "pairs with adapter 1f1b": ("pairs with adapter", {**PP2, "ref_logps": "precompute"}),
}
FOUR: dict[str, tuple[str, dict[str, Any]]] = {
    "tied pp2 cp2": ("tied", {**PP2, "context_parallel_degree": 2, "recompute": True}),
    "experts pp2 cp2 zero_bubble": (
        "experts",
        {**PP2, "context_parallel_degree": 2, "pipeline_schedule": "zero_bubble"},
    ),
    "tied pp4": ("tied", {"pipeline_parallel_degree": 4}),
    "experts pp4 zero_bubble": (
        "experts",
        {"pipeline_parallel_degree": 4, "pipeline_schedule": "zero_bubble"},
    ),
    "tied pp2 tp2": ("tied", {**PP2, "tensor_parallel_degree": 2}),
    "dropout pp2 dp2": ("dropout", {**PP2, "gradient_accumulation_steps": 2}),
    "tied pp2 sharding2": ("tied", {**PP2, "gradient_accumulation_steps": 2, "sharding": "stage1"}),
    "experts pp2 ep2": (
        "experts",
        {**PP2, "gradient_accumulation_steps": 2, "moe_group": "dp", "expert_parallel_degree": 2},
    ),
    "experts pp2 mp2": ("experts", {**PP2, "tensor_parallel_degree": 2, "moe_group": "mp"}),
    "experts pp2 mp2 sp": (
        "experts",
        {**PP2, "tensor_parallel_degree": 2, "moe_group": "mp", "sequence_parallel": True},
    ),
    "modalities pp2 dp2 interleaved": (
        "modalities",
        {**PP2, "gradient_accumulation_steps": 2, "virtual_pp_degree": 2},
    ),
}


AGAIN = {"experts capped", "modalities zero_bubble", "tied pp2 sharding2", "experts pp2 mp2 sp"}


def write(folder: Path, model: str, **changes: Any) -> Path:
    numbers, keys = MODELS[model]
    path = write_run(folder, numbers(), **{**KEYS, **keys, **changes})
    if keys.get("stage") == "DPO":
        write_pairs(folder / "train.jsonl", 40)
        write_pairs(folder / "eval.jsonl", 8, seed=1)
    return path


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The folder of the run of each model in one process, on one thread as the others."""
    folder = tmp_path_factory.mktemp("one")
    paths = {
        model: write(folder / model, model)
        for model in sorted({m for m, _ in (*FOUR.values(), *TWO.values())})
    }
    run_together(1, {name: (path, []) for name, path in paths.items()})
    return lambda model: paths[model].parent / "out"


def run_plans(folder: Path, plans: dict[str, tuple[str, dict[str, Any]]], nproc: int) -> dict[str, Path]:
    """Run plans over processes, those of `AGAIN` once more from their checkpoint in the middle."""
    paths = {
        name: write(folder / name.replace(" ", "-"), model, **keys) for name, (model, keys) in plans.items()
    }
    for name in AGAIN & plans.keys():
        model, keys = plans[name]
        first = paths[name].parent
        start = {
            "model_name_or_path": str(first / "model"),
            "resume_from_checkpoint": str(first / "out" / f"checkpoint-{HALF}"),
        }
        paths[f"{name} again"] = write(folder / f"{first.name}-again", model, **keys, **start)
    run_together(nproc, {name: (path, []) for name, path in paths.items()})
    return {name: path.parent / "out" for name, path in paths.items()}


@pytest.fixture(scope="module")
def over_two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return run_plans(tmp_path_factory.mktemp("two"), TWO, 2)


@pytest.fixture(scope="module")
def over_four(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return run_plans(tmp_path_factory.mktemp("four"), FOUR, 4)


@pytest.mark.parametrize("name", FOUR)
def test_four_processes(name: str, over_four: dict[str, Path], alone: Any) -> None:
    check_equal(over_four[name], alone(FOUR[name][0]))


@pytest.mark.parametrize("name", TWO)
def test_two_processes(name: str, over_two: dict[str, Path], alone: Any) -> None:
    check_equal(over_two[name], alone(TWO[name][0]))


@pytest.mark.parametrize("name", sorted(AGAIN))
def test_a_run_goes_on_from_its_checkpoint_bit_by_bit(
    name: str, over_two: dict[str, Path], over_four: dict[str, Path]
) -> None:
    found = over_two | over_four
    first, again = (found[word] / f"checkpoint-{STEPS}" for word in (name, f"{name} again"))
    files = [path.name for path in first.glob("*.safetensors")]
    assert len(files) >= 2
    for file in files:
        assert (first / file).read_bytes() == (again / file).read_bytes(), file


@pytest.mark.parametrize("name", ["experts capped", "experts pp2 mp2 sp"])
def test_one_process_goes_on_where_several_stopped(
    name: str, over_two: dict[str, Path], over_four: dict[str, Path], alone: Any, tmp_path: Path
) -> None:
    begun = (over_two | over_four)[name]
    start = {
        "model_name_or_path": str(alone("experts").parent / "model"),
        "resume_from_checkpoint": str(begun / f"checkpoint-{HALF}"),
    }
    path = write(tmp_path, "experts", **start)
    run_together(1, {name: (path, [])})
    check_equal(path.parent / "out", alone("experts"), after=HALF)


def tolerance(key: str) -> dict[str, float]:
    if key.startswith("router"):
        return {"rel": 1e-6, "abs": 2e-6}  # they are told in six digits
    if "/" in key or key.endswith("kl"):
        return {"rel": 1e-6, "abs": 1e-5}  # rewards are small differences of large sums
    return {"rel": 1e-5 if key == "grad_norm" or key.startswith("eval") else 1e-6}


def check_equal(found: Path, expected: Path, after: int = -1) -> None:
    rows, wanted = (
        [row for row in read_log(folder / "train_log.jsonl") if row["step"] > after]
        for folder in (found, expected)
    )
    assert [row["step"] for row in rows] == [row["step"] for row in wanted]
    for row, other in zip(rows, wanted, strict=True):
        assert row.keys() - {"expert_processes_text", "expert_processes_vision"} == other.keys()
        for key, value in other.items():
            if key == "routers":
                assert [r["load"] for r in row[key]] == [r["load"] for r in value], row["step"]
            else:
                assert row[key] == pytest.approx(value, **tolerance(key)), (row["step"], key)
    checkpoints = [folder / f"checkpoint-{STEPS}" for folder in (found, expected)]
    files, expected_files = (sorted(path.name for path in folder.iterdir()) for folder in checkpoints)
    assert files == expected_files
    for basename in (name.removesuffix(".safetensors") for name in files if name.endswith(".safetensors")):
        one, other = (open_tensors(folder, basename) for folder in checkpoints)
        assert one.names() == other.names()
        for name in one.names():
            array, exact = one.read(name), other.read(name)
            # After four updates: Adam makes more of the order of sums than gradients have of it.
            assert np.abs(array - exact).max() <= 5e-5 * np.abs(exact).max() + 1e-9, (basename, name)
    states = [json.loads((folder / "trainer_state.json").read_text()) for folder in checkpoints]
    assert states[0]["loader"] == states[1]["loader"]
