"""The command with sharding: it goes on bit by bit under the same plan, and under others as it would have."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from erniekit.checkpoint.files import open_tensors
from erniekit.testing.tiny_checkpoint import tiny_moe_config
from erniekit.testing.tiny_run import run_erniekit, write_run

pytestmark = [pytest.mark.slow, pytest.mark.several]

STEPS = 6
KEYS = {
    **{"compute_type": "fp32", "max_steps": STEPS, "eval_steps": 2, "logging_steps": 1, "save_steps": 2},
    **{"gradient_accumulation_steps": 2, "adam_epsilon": 1e-4, "hidden_dropout_prob": 0.1},
}
MODELS: dict[str, dict[str, Any]] = {
    "dense": {"recompute": True, "recompute_granularity": "full"},
    "experts": {
        "numbers": tiny_moe_config(num_nextn_predict_layers=1),
        "moe_use_aux_free": True,
        "moe_group": "dp",
        "expert_parallel_degree": 2,
    },
}
ALONE = ["nproc_per_node=1", "sharding=null", "gradient_accumulation_steps=4", "expert_parallel_degree=null"]


def train(path: Path, *words: str) -> None:
    done = run_erniekit("train", str(path), *words, timeout=400)
    assert done.returncode == 0, done.stderr


def rows_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "train_log.jsonl").read_text(encoding="utf-8").splitlines()]


def losses_of(out: Path) -> dict[tuple[int, str], float]:
    keys = ("loss", "eval_loss", "grad_norm")
    return {(row["step"], key): row[key] for row in rows_of(out) for key in keys if key in row}


def back_to(out: Path, step: int) -> None:
    """Forget the checkpoints after a step; a run goes on from there."""
    for later in range(step + 2, STEPS + 1, 2):
        shutil.rmtree(out / f"checkpoint-{later}")


@pytest.mark.parametrize("kind", MODELS)
def test_a_sharded_run_goes_on_under_any_plan(kind: str, tmp_path: Path) -> None:
    path = write_run(tmp_path / "run", nproc_per_node=2, **KEYS, **MODELS[kind])
    out, first = path.parent / "out", tmp_path / "first"
    train(path, "sharding=stage1")
    shutil.copytree(out, first)
    wanted = losses_of(first)
    assert len(wanted) > 2 * STEPS
    # Under the same plan: the same bits.
    back_to(out, 2)
    train(path, "sharding=stage1")
    assert losses_of(out) == wanted
    for name in ("model", "optimizer"):
        before, after = (open_tensors(folder / f"checkpoint-{STEPS}", name) for folder in (first, out))
        assert list(before.names()) == list(after.names())
        assert all((before.read(tensor) == after.read(tensor)).all() for tensor in before.names())
    # stage1 to step 2, stage3 to step 4, and one process to the end.
    back_to(out, 2)
    train(path, "sharding=stage3")
    back_to(out, 4)
    train(path, *ALONE)
    found = losses_of(out)
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        assert found[key] == pytest.approx(value, rel=1e-5 if key[1] == "grad_norm" else 1e-6), key


def test_another_number_of_sequences_in_a_step_is_refused_with_what_to_write(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run", **KEYS)
    train(path, "max_steps=2")
    done = run_erniekit("train", str(path), "max_steps=2", "nproc_per_node=2", "sharding=stage2", timeout=400)
    assert done.returncode == 2, done.stderr
    assert "Write gradient_accumulation_steps: 1 to go on" in done.stderr


@pytest.mark.parametrize(
    "plan",
    [
        {"sharding": "stage1", "pipeline_parallel_degree": 2},
        {"sharding": "stage3", "sharding_parallel_degree": 2, "tensor_parallel_degree": 2},
    ],
    ids=["stage1, pipeline", "stage3, tensor"],
)
def test_four_processes_train_as_one(plan: dict[str, Any], tmp_path: Path) -> None:
    keys = {**KEYS, "hidden_dropout_prob": 0.0, "max_steps": 3}
    one = write_run(tmp_path / "one", **keys | {"gradient_accumulation_steps": 4})
    four = write_run(tmp_path / "four", nproc_per_node=4, **keys, **plan)
    train(one)
    train(four)
    wanted, found = (losses_of(path.parent / "out") for path in (one, four))
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        assert found[key] == pytest.approx(value, rel=1e-5 if key[1] == "grad_norm" else 1e-6), key
