"""Whole runs in this process: what they write, that they learn, what they refuse."""

import json
import re

import pytest

from erniekit.checkpoint.files import open_tensors
from erniekit.config.load import load_config
from erniekit.errors import ConfigError, DataError, RunError
from erniekit.export.export import export_model
from erniekit.testing.tiny_checkpoint import tiny_moe_config
from erniekit.testing.tiny_run import write_run
from erniekit.train.reporting import read_log
from erniekit.train.session import deciding_settings, eval_session, find_model, train_session


def train(path, *overrides):
    return train_session(load_config(path, overrides, verb="train"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    path = write_run(folder, max_steps=40, eval_steps=20, save_steps=20, load_best_model_at_end=True)
    assert train(path) == 0
    return path


def test_it_learns(finished):
    rows = read_log(finished.parent / "out" / "train_log.jsonl")
    steps = [row for row in rows if "loss" in row]
    held_out = {row["step"]: row["eval_loss"] for row in rows if "eval_loss" in row}
    assert [row["step"] for row in steps] == list(range(1, 41))
    assert steps[-1]["loss"] < 0.7 * steps[0]["loss"]
    assert set(held_out) == {0, 20, 40} and held_out[40] < held_out[0] - 0.5
    assert steps[0]["learning_rate"] == 0.0  # a warm-up of one step
    assert 0.009 < steps[1]["learning_rate"] <= 0.01


def test_the_report_and_the_figure(finished):
    out = finished.parent / "out"
    report = (out / "report.md").read_text()
    assert "held-out loss" in report and "| steps | 40 |" in report and "tokens/s" in report
    assert (out / "loss.svg").read_text().startswith("<svg")
    assert (out / "best").read_text().strip() in ("checkpoint-20", "checkpoint-40")


def test_evaluation_of_the_run_agrees_with_its_log(finished):
    config = load_config(finished, [], verb="eval").config
    out = finished.parent / "out"
    rows = {row["step"]: row for row in read_log(out / "train_log.jsonl") if "eval_loss" in row}
    for step in (20, 40):
        result = eval_session(config, out / f"checkpoint-{step}")
        assert result.loss == pytest.approx(rows[step]["eval_loss"], rel=1e-6)
    base = eval_session(config, find_model(config))
    assert base.loss == pytest.approx(rows[0]["eval_loss"], rel=1e-6)


@pytest.fixture(scope="module")
def experts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("experts")
    path = write_run(
        folder, tiny_moe_config(num_nextn_predict_layers=1), max_steps=30, eval_steps=15, save_steps=15,
        moe_use_aux_free=True, moe_use_aux_free_update_coef=0.02, moe_orthogonal_loss_lambda=0.1,
        moe_z_loss_lambda=0.001, moe_aux_loss_lambda=0.01,
    )  # fmt: skip
    assert train(path) == 0
    return path


def test_a_mixture_of_experts_learns_and_its_experts_are_balanced(experts):
    rows = [row for row in read_log(experts.parent / "out" / "train_log.jsonl") if "loss" in row]
    weights = {"mtp_loss": 0.3, "aux_loss": 0.01, "z_loss": 0.001, "orthogonal_loss": 0.1}
    for row in rows:
        parts = row["lm_loss"] + sum(weight * row[name] for name, weight in weights.items())
        assert row["loss"] == pytest.approx(parts, rel=1e-5)
        assert [len(router["load"]) for router in row["routers"]] == [4, 4]
        assert {router["layer"] for router in row["routers"]} == {1, 2}
    first, last = rows[0], rows[-1]
    assert last["lm_loss"] < 0.7 * first["lm_loss"] and last["mtp_loss"] < first["mtp_loss"]
    assert last["orthogonal_loss"] < first["orthogonal_loss"]
    uneven = [sum(row["router_max_over_mean"] for row in part) / 5 for part in (rows[:5], rows[-5:])]
    assert uneven[1] < uneven[0]
    assert first["router_bias_max"] != last["router_bias_max"]


def test_what_a_run_tells_about_its_routers(experts):
    out = experts.parent / "out"
    report = (out / "report.md").read_text()
    assert "largest load of an expert over the mean" in report and "![load of experts](router.svg)" in report
    assert (out / "router.svg").read_text().startswith("<svg")
    config = load_config(experts, [], verb="eval").config
    result = eval_session(config, out / "checkpoint-30")
    assert [(f.layer, f.num_tokens > result.num_tokens) for f in result.routers] == [(1, True), (2, True)]
    rows = {row["step"]: row for row in read_log(out / "train_log.jsonl") if "eval_loss" in row}
    assert result.loss == pytest.approx(rows[30]["eval_loss"], rel=1e-6)


def test_a_run_without_pictures_leaves_the_vision_half_alone(tmp_path):
    """<|system|> stands for a placeholder: first text alone, then rows with it, through train and eval."""
    numbers = tiny_moe_config(2, im_patch_id=5, image_start_token_id=None)
    path = write_run(
        tmp_path, numbers, max_steps=4, save_steps=4, eval_steps=4, moe_use_aux_free=True,
        token_balance_loss=True, moe_aux_loss_lambda=0.1, learning_rate=0.02, compute_type="fp32",
    )  # fmt: skip

    def vision_half(folder):
        tensors = open_tensors(folder)
        names = [n for n in tensors.names() if "gate.weight_1" in n or re.search(r"experts\.[4-7]\.", n)]
        assert len(names) == 2 * (1 + 4 * 3)
        return {name: tensors.read(name) for name in names}

    assert train(path) == 0
    before = vision_half(tmp_path / "model")
    after = vision_half(tmp_path / "out" / "checkpoint-4")
    assert all((before[name] == after[name]).all() for name in before)
    rows = read_log(tmp_path / "out" / "train_log.jsonl")
    assert {r["modality"] for row in rows for r in row.get("routers", ())} == {"text"}

    question = "<|system|><|system|> what is it"
    seen = tmp_path / "seen.jsonl"
    seen.write_text("\n".join(json.dumps({"src": [question], "tgt": ["a cat"]}) for _ in range(8)) + "\n")
    sets = [f"train_dataset_path={seen}", f"eval_dataset_path={seen}", f"output_dir={tmp_path / 'two'}"]
    assert train(path, *sets) == 0
    after = vision_half(tmp_path / "two" / "checkpoint-4")
    assert all((before[name] != after[name]).any() for name in before)
    row = next(row for row in read_log(tmp_path / "two" / "train_log.jsonl") if "routers" in row)
    load = {r["modality"]: sum(r["load"]) for r in row["routers"] if r["layer"] == 1}
    # Two placeholders a sample, two experts a token.
    assert load["vision"] % 4 == 0 and load["text"] > load["vision"] > 0
    result = eval_session(load_config(path, sets, verb="eval").config, tmp_path / "two" / "checkpoint-4")
    assert {f.modality for f in result.routers} == {"text", "vision"}
    # All positions are in the denominator, those of placeholders too.
    share = row["tokens"] / (sum(load.values()) / 2)
    assert row["token_balanced_loss"] == pytest.approx(row["lm_loss"] * share, rel=1e-5)


def test_blocks_of_prediction_ahead_that_the_checkpoint_has_not(tmp_path):
    """They are trained, saved, evaluated around, exported; with 0 in the YAML they go again."""
    path = write_run(
        tmp_path, tiny_moe_config(), num_nextn_predict_layers=1, max_steps=12, eval_steps=12, save_steps=12,
        compute_type="fp32",
    )  # fmt: skip
    assert train(path) == 0
    rows = [row for row in read_log(tmp_path / "out" / "train_log.jsonl") if "loss" in row]
    assert rows[-1]["mtp_loss"] < rows[0]["mtp_loss"]
    checkpoint = tmp_path / "out" / "checkpoint-12"
    assert json.loads((checkpoint / "config.json").read_text())["num_nextn_predict_layers"] == 1
    ahead = [name for name in open_tensors(checkpoint).names() if "mtp_" in name]
    assert len(ahead) == 12
    exported = export_model(checkpoint, tmp_path, export_layout="paddle")
    assert {name.replace("ernie.", "model.") for name in open_tensors(exported.folder).names()} > {
        "model.mtp_emb_norm.0.weight", "model.mtp_linear_proj.0.weight"
    }  # fmt: skip
    without = [
        *(f"model_name_or_path={checkpoint}", "num_nextn_predict_layers=0", f"output_dir={tmp_path / 'two'}"),
        *("max_steps=2", "save_steps=2", "evaluation_strategy=no"),
    ]
    assert train(path, *without) == 0
    assert not any("mtp_" in name for name in open_tensors(tmp_path / "two" / "checkpoint-2").names())
    for more in ("multi_token_pred_lambda=0", "num_nextn_predict_layers=2"), ("num_nextn_predict_layers=2",):
        words = [
            *more,
            f"model_name_or_path={checkpoint}",
            f"output_dir={tmp_path / f'more-{len(more)}'}",
            "max_steps=1",
        ]
        if len(more) == 2:
            with pytest.raises(ConfigError, match="multi_token_pred_lambda: 0 would leave the new blocks"):
                train(path, *words)
        else:
            assert train(path, *words) == 0


def test_early_stopping_ends_a_run(tmp_path):
    path = write_run(
        tmp_path, max_steps=50, eval_steps=2, learning_rate=1e-9, early_stopping_patience=2,
        early_stopping_threshold=0.5,
    )  # fmt: skip
    assert train(path) == 0
    steps = [row["step"] for row in read_log(tmp_path / "out" / "train_log.jsonl") if "loss" in row]
    assert steps[-1] == 6  # the first evaluation is a gain, the next two are not
    assert (tmp_path / "out" / "latest").read_text().strip() == "checkpoint-6"


def test_a_loss_that_is_not_finite_stops_names_rows_and_keeps_the_checkpoint(tmp_path):
    path = write_run(tmp_path, learning_rate=1e30, save_steps=1, max_grad_norm=0, evaluation_strategy="no")
    with pytest.raises(RunError, match=r"step \d: .*train\.jsonl:\d+.*last good checkpoint is .*checkpoint-"):
        train(path)
    assert list((tmp_path / "out").glob("checkpoint-*"))


def test_pretraining_from_scratch(tmp_path):
    text = tmp_path / "texts.jsonl"
    text.write_text("\n".join(json.dumps({"text": "the cat sat on the mat " * 9}) for _ in range(12)))
    path = write_run(
        tmp_path, stage="PT", continue_training=False, train_dataset_path=str(text), eval_dataset_path=None,
        evaluation_strategy="no", max_steps=12,
    )  # fmt: skip
    (tmp_path / "model" / "model.safetensors").unlink()
    assert train(path) == 0
    losses = [row["loss"] for row in read_log(tmp_path / "out" / "train_log.jsonl")]
    assert losses[0] == pytest.approx(5.58, abs=0.6)  # about the log of a vocabulary of 264
    assert losses[-1] < losses[0] - 1


def test_data_are_looked_at_before_the_output_folder_is_made(tmp_path):
    path = write_run(tmp_path, train_dataset_path=str(tmp_path / "missing.jsonl"))
    with pytest.raises(DataError, match="missing.jsonl"):
        train(path)
    assert not (tmp_path / "out").exists()


def test_which_keys_decide_a_result(finished):
    config = load_config(finished, [], verb="train").config
    keys = set(deciding_settings(config))
    assert {"learning_rate", "seed", "max_seq_len", "train_dataset_path", "max_steps"} <= keys
    assert not {"logging_steps", "output_dir", "dataloader_num_workers", "temperature", "save_steps"} & keys
    assert "gradient_accumulation_steps" not in keys  # the sequences of a step do, and a checkpoint has them
