"""Training for a scheme from end to end: what was evaluated is what `erniekit quantize` makes."""

import math
from types import SimpleNamespace

import numpy as np
import pytest

from erniekit.checkpoint.files import open_tensors
from erniekit.config.load import load_config
from erniekit.errors import CheckpointError, ConfigError, UnsupportedError
from erniekit.export.export import export_model
from erniekit.export.quantise import quantise_model
from erniekit.ops.backend import use_kernels
from erniekit.parallel.layout import Layout
from erniekit.quant.trained import read_trained
from erniekit.testing.tiny_checkpoint import tiny_moe_config
from erniekit.testing.tiny_run import run_erniekit, write_pairs, write_run
from erniekit.train import session
from erniekit.train.reporting import read_log
from erniekit.train.session import eval_session, train_session

pytestmark = pytest.mark.several


@pytest.fixture(autouse=True)
def kernels():
    yield
    use_kernels("auto")


def train(path, *overrides):
    return train_session(load_config(path, overrides, verb="train"))


def last_evaluation(path):
    return [row for row in read_log(path.parent / "out" / "train_log.jsonl") if "eval_loss" in row][-1]


def quantised(path, source, *overrides):
    """The folder that `erniekit quantize` makes of a checkpoint."""
    words = [f"model_name_or_path={source}", "quant_method=trained", "overwrite_output_dir=true", *overrides]
    config = load_config(path, words, verb="quantize").config
    return quantise_model(config, source, path.parent / "out")


def evaluated(path, folder, *overrides):
    config = load_config(path, [f"model_name_or_path={folder}", *overrides], verb="eval").config
    return eval_session(config, folder).loss


EXACT = {"compute_type": "fp32", "max_steps": 6, "eval_steps": 3, "save_steps": 6}


SHARED, EXPERTS, DENSE = tiny_moe_config(moe_num_shared_experts=1), tiny_moe_config(), None


# Matrix by matrix `tests/quant/test_qat.py` and `test_learned.py` compare every scheme under both kernels.
@pytest.mark.parametrize(
    ("scheme", "numbers", "kernels_word", "numbers_of", "learned"),
    [
        ("w4a8", SHARED, "auto", "fp32", False),
        ("w4a8", SHARED, "auto", "bf16", True),
        ("fp8_tensor", EXPERTS, "paddle", "fp32", False),
        ("fp8_tensor", DENSE, "auto", "bf16", False),
        ("w8a8", DENSE, "auto", "fp32", False),
        ("wint4_g64", EXPERTS, "paddle", "fp32", True),
        ("fp8_block", DENSE, "auto", "bf16", False),
        ("int2", DENSE, "auto", "bf16", False),
    ],
)
def test_evaluation_is_that_of_the_converted_model(
    tmp_path, scheme, numbers, kernels_word, numbers_of, learned
):
    keys = {**EXACT, "qat_scheme": scheme, "apply_online_actscale_step": 2, "kernels": kernels_word}
    keys |= {"compute_type": numbers_of, "qat_learn_scales": learned}
    path = write_run(tmp_path, numbers, **keys)
    assert train(path) == 0
    checkpoint = tmp_path / "out" / "checkpoint-6"
    trained = read_trained(checkpoint)
    assert (trained.scheme, trained.step, bool(trained.weights)) == (scheme, 6, learned)
    states = open_tensors(checkpoint, "optimizer")
    moved = [name for name in states.names() if name.startswith("exp_avg.") and "weight_scale" in name]
    assert len(moved) == len(trained.weights) and all(states.read(name).any() for name in moved)
    done = quantised(path, checkpoint)
    assert done.quantisation.scheme == scheme and done.num_tokens == 0
    loss = last_evaluation(path)["eval_loss"]
    assert evaluated(path, checkpoint) != loss  # in full
    assert evaluated(path, done.folder) == loss


def test_adapters_train_for_the_merged_model(tmp_path):
    keys = {"qat_scheme": "w4a8", "fine_tuning": "LoRA", "lora_rank": 4, "apply_online_actscale_step": 2}
    path = write_run(tmp_path, tiny_moe_config(), **EXACT, **keys)
    assert train(path) == 0
    checkpoint = tmp_path / "out" / "checkpoint-6"
    export_model(checkpoint, tmp_path, export_dir=str(tmp_path / "merged"))
    assert read_trained(tmp_path / "merged") == read_trained(checkpoint)
    done = quantised(path, tmp_path / "merged")
    # NumPy merges what Paddle merged: a bit may differ, and with it a number that lies between two.
    loss = last_evaluation(path)["eval_loss"]
    assert evaluated(path, done.folder) == pytest.approx(loss, rel=1e-4)
    assert abs(evaluated(path, tmp_path / "merged") - loss) > 1e-3 * loss


@pytest.mark.parametrize("tuning", ["Full", "LoRA"])
def test_preference_training_against_the_model_in_full(tmp_path, tuning):
    pairs = write_pairs(tmp_path / "pairs.jsonl", 24)
    keys = {"stage": "DPO", "train_dataset_path": str(pairs), "eval_dataset_path": str(pairs)}
    keys |= {"qat_scheme": "wint4", "fine_tuning": tuning, "learning_rate": 0.001}
    path = write_run(tmp_path, **{**EXACT, **keys})
    assert train(path) == 0
    first = next(row for row in read_log(tmp_path / "out" / "train_log.jsonl") if "loss" in row)
    assert first["loss"] != pytest.approx(math.log(2), abs=1e-7)  # rounded, and the reference is not
    assert read_trained(tmp_path / "out" / "checkpoint-6").scheme == "wint4"


def test_what_is_refused(tmp_path):
    path = write_run(tmp_path, **EXACT)
    with pytest.raises(ConfigError, match="quant_method: trained takes the scales that training"):
        quantised(path, tmp_path / "model")
    assert train(path, "max_steps=2", "save_steps=1", "qat_scheme=w8a8") == 0
    with pytest.raises(ConfigError, match='qat_scheme: "w8a8" before, "w4a8" now'):
        train(path, "max_steps=2", "qat_scheme=w4a8")
    other = ["max_steps=4", f"output_dir={tmp_path / 'other'}", "qat_scheme=wint4"]
    with pytest.raises(CheckpointError, match="trained for w8a8, not for wint4"):
        train(path, *other, f"resume_from_checkpoint={tmp_path / 'out' / 'checkpoint-2'}")


@pytest.mark.slow
def test_two_processes_find_the_scales_of_one(tmp_path):
    keys = {**EXACT, "qat_scheme": "w8a8", "apply_online_actscale_step": 0, "actscale_moving_rate": 0.3}
    numbers = tiny_moe_config()
    alone = write_run(tmp_path / "one", numbers, **keys)
    assert train(alone) == 0
    both = write_run(tmp_path / "two", numbers, **keys, gradient_accumulation_steps=1, nproc_per_node=2)
    done = run_erniekit("train", str(both), timeout=300, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    one, two = (read_trained(path.parent / "out" / "checkpoint-6") for path in (alone, both))
    assert one.steps == two.steps
    for name, scales in one.scales.items():
        np.testing.assert_allclose(two.scales[name], scales, rtol=1e-5)
    assert last_evaluation(both)["eval_loss"] == pytest.approx(last_evaluation(alone)["eval_loss"], rel=1e-5)


def test_processes_are_checked_when_they_meet(tmp_path, monkeypatch):
    config = load_config(write_run(tmp_path, **EXACT, qat_scheme="w8a8"), [], verb="train")
    monkeypatch.setattr(session, "own_place", lambda: (0, 2))
    mesh = SimpleNamespace(layout=Layout(tensor=2))
    monkeypatch.setattr(session, "open_processes", lambda *given, **more: mesh)
    with pytest.raises(UnsupportedError, match="not built for processes that share matrices"):
        session._mesh(config.config, config)
