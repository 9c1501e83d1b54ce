"""Runs of preference training from a configuration: reference, first loss, resuming, evaluation."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest

from erniekit.config.load import config_from_dict
from erniekit.errors import UnsupportedError
from erniekit.parallel.comm import Group
from erniekit.testing.tiny_checkpoint import tiny_moe_config
from erniekit.testing.tiny_run import run_erniekit, write_pairs, write_run
from erniekit.train.preference import how_asked, require_whole, settings_of, words_for_start_screen
from tests.train.test_trainer_resume import contents, start, wait_for

LN2 = float(np.float32(math.log(2.0)))


def write(folder, **keys):
    """A run over pairs; returns its YAML."""
    folder.mkdir(parents=True, exist_ok=True)
    data = {
        "train_dataset_path": str(write_pairs(folder / "pairs.jsonl", 40)),
        "eval_dataset_path": str(write_pairs(folder / "held-out.jsonl", 8, seed=1)),
    }
    return write_run(
        folder, **{"stage": "DPO", "learning_rate": 1e-3, "compute_type": "fp32", **data, **keys}
    )


def log(folder):
    return [json.loads(line) for line in (folder / "out/train_log.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("ref_logps", ["precompute", "model"])
def test_a_run(tmp_path, ref_logps):
    done = run_erniekit("train", str(write(tmp_path, ref_logps=ref_logps, normalize_logps=False)))
    assert done.returncode == 0, done.stderr
    rows = log(tmp_path)
    evaluations, steps = [r for r in rows if "eval_loss" in r], [r for r in rows if "loss" in r]
    assert evaluations[0]["eval_loss"] == steps[0]["loss"] == LN2
    assert steps[0]["rewards/margins"] == 0.0
    assert evaluations[-1]["eval_rewards/accuracies"] > 0.8
    assert evaluations[-1]["eval_rewards/margins"] > 0.1
    assert (tmp_path / "out/reference_logps.json").exists() == (ref_logps == "precompute")
    assert "preference accuracy" in (tmp_path / "out/report.md").read_text()
    assert {path.name for path in (tmp_path / "out").glob("*.svg")} == {
        "loss.svg",
        "margin.svg",
        "accuracy.svg",
    }
    assert "preference" in done.stderr and "beta 0.1" in done.stderr


@pytest.mark.slow
def test_reference_by_table_and_by_model_train_alike(tmp_path):
    rows = []
    for ref_logps in ("precompute", "model"):
        folder = tmp_path / ref_logps
        assert run_erniekit("train", str(write(folder, ref_logps=ref_logps))).returncode == 0
        rows.append([row["loss"] for row in log(folder) if "loss" in row])
    np.testing.assert_allclose(rows[0], rows[1], rtol=1e-5)


CASES = {
    "packed": {},
    "padded, bf16, dropout": {
        "packing": False,
        "compute_type": "bf16",
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
    },
    "a reference that moves": {"ref_model_update_steps": 3},
    "experts": {"numbers": tiny_moe_config(), "loss_type": "ipo", "sft_loss_ratio": 0.1},
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_kill_and_continue_is_byte_equal(tmp_path, case):
    whole = run_erniekit("train", str(write(tmp_path / "whole", **CASES[case])))
    assert whole.returncode == 0, whole.stderr
    run = write(tmp_path / "cut", **CASES[case], model_name_or_path=str(tmp_path / "whole" / "model"))
    out = tmp_path / "cut" / "out"
    path = out / "train_log.jsonl"
    for rows_seen in (5,):
        process = start(run)
        try:
            wait_for(lambda n=rows_seen: path.exists() and path.read_bytes().count(b"\n") >= n, process)
        finally:
            process.kill()
            process.wait(30)
    # Without its numbers, the reference is asked again: the first model, not the present one.
    (out / "reference_logps.json").unlink(missing_ok=True)
    last = run_erniekit("train", str(run))
    assert last.returncode == 0, last.stderr
    finished = tmp_path / "whole" / "out"
    assert contents(out / "checkpoint-8") == contents(finished / "checkpoint-8")
    assert path.read_bytes() == (finished / "train_log.jsonl").read_bytes()


@pytest.mark.slow
def test_evaluation_of_its_own(tmp_path):
    run = write(tmp_path)
    assert run_erniekit("train", str(run)).returncode == 0
    done = run_erniekit("eval", str(run))
    assert done.returncode == 0, done.stderr
    last = [row for row in log(tmp_path) if "eval_loss" in row][-1]
    assert f"{last['eval_loss']:.4f}"[:5] in done.stdout + done.stderr


@pytest.mark.slow
def test_a_reference_that_moves(tmp_path):
    """Right after the third update, and the sixth, the model is its own reference again."""
    done = run_erniekit("train", str(write(tmp_path, ref_model_update_steps=3)))
    assert done.returncode == 0, done.stderr
    steps = [row for row in log(tmp_path) if "loss" in row]
    assert [row["reference_age"] for row in steps] == [1, 2, 0, 1, 2, 0, 1, 2]
    assert steps[0]["loss"] == LN2
    assert steps[3]["loss"] == pytest.approx(LN2, abs=1e-6) and steps[6]["loss"] == pytest.approx(
        LN2, abs=1e-6
    )
    assert abs(steps[2]["loss"] - LN2) > 1e-3


@pytest.mark.slow
def test_with_an_adapter_the_reference_is_the_model_without_it(tmp_path):
    rows = []
    for ref_logps in ("auto", "precompute"):
        folder = tmp_path / ref_logps
        done = run_erniekit(
            "train", str(write(folder, fine_tuning="LoRA", ref_logps=ref_logps, learning_rate=1e-2))
        )
        assert done.returncode == 0, done.stderr
        rows.append([row["loss"] for row in log(folder) if "loss" in row])
        assert rows[-1][0] == LN2 and rows[-1][-1] < LN2 - 0.01
        assert not (folder / "out/checkpoint-8/model.safetensors").exists()
    np.testing.assert_allclose(rows[0], rows[1], rtol=1e-5)


def settings(**keys):
    return settings_of(config_from_dict({"stage": "DPO", **keys}, verb="check").config)


@pytest.mark.parametrize(
    ("keys", "adapted", "expected"),
    [
        ({}, False, "precompute"),
        ({}, True, "model"),
        ({"ref_model_update_steps": 5}, False, "model"),
        ({"ref_logps": "model"}, False, "model"),
        ({"ref_logps": "precompute"}, True, "precompute"),
    ],
)
def test_how_the_reference_is_asked(keys, adapted, expected):
    assert how_asked(settings(model_name_or_path="starter", **keys), adapted=adapted) == expected


def test_the_start_screen_says_where_dpo_is_not_as_published():
    plain = settings(model_name_or_path="starter")
    assert "normalize_logps: false is standard DPO" in words_for_start_screen(plain, adapted=False)
    published = settings(model_name_or_path="starter", normalize_logps=False)
    assert "normalize" not in words_for_start_screen(published, adapted=False)
    averaged = settings(model_name_or_path="starter", loss_type="simpo")
    words = words_for_start_screen(averaged, adapted=False)
    assert "no reference" in words and "normalize" not in words
    assert "without its adapter" in words_for_start_screen(plain, adapted=True)


def test_a_reference_that_moves_wants_the_whole_model():
    def spread(split=(), experts=(), ranks=(0,)):
        mesh = SimpleNamespace(sharding=Group(ranks, 0))
        return SimpleNamespace(split=frozenset(split), experts=frozenset(experts), mesh=mesh)

    for sharding, whole in (("stage3", None), ("stage3", spread()), ("stage2", spread(ranks=(0, 1)))):
        require_whole(sharding, whole)
    parts = (("", spread(split=("w",))), ("", spread(experts=("w",))), ("stage3", spread(ranks=(0, 1))))
    for sharding, part in parts:
        with pytest.raises(UnsupportedError, match="ref_model_update_steps is not built"):
            require_whole(sharding, part)
