"""Recomputation in a run: the same weights to the last bit, and what `auto` chooses and tells."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from erniekit import assemble
from erniekit.assemble import Assembled
from erniekit.checkpoint.files import open_tensors
from erniekit.config.load import config_from_dict, load_config
from erniekit.data.pipeline import open_train_samples
from erniekit.data.report import DataReport
from erniekit.log import logger
from erniekit.models.ernie45.config import Ernie45Config
from erniekit.ops import backend
from erniekit.ops.backend import use_kernels
from erniekit.parallel.recomputation import Recomputation
from erniekit.testing.tiny_checkpoint import tiny_moe_config, write_tiny_checkpoint
from erniekit.testing.tiny_run import run_erniekit, write_run
from erniekit.train.recompute import adapter_size, recompute_as_asked, step_memory
from erniekit.train.session import find_model, reader_of
from tests.train.test_contents import BUILD, build

SETTINGS: dict[str, dict[str, Any]] = {
    "full": {"recompute": True},
    "all": {
        "recompute": True,
        "recompute_granularity": "selective",
        "refined_recompute": "qkv:all,core_attention:1,gate_up:0-1,activation:all",
        "use_recompute_loss_fn": True,
    },
}


def result(folder: Path, **keys: Any) -> tuple[dict[str, bytes], list[float], str]:
    """Tensors of the last checkpoint, losses of the log, and what was told."""
    path = write_run(
        folder, hidden_dropout_prob=0.1, max_steps=3, save_steps=3, evaluation_strategy="no", **keys
    )
    done = run_erniekit("train", str(path))
    assert done.returncode == 0, done.stderr
    tensors = open_tensors(folder / "out" / "checkpoint-3")
    rows = [json.loads(line) for line in (folder / "out" / "train_log.jsonl").read_text("utf-8").splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    return {name: tensors.read(name).tobytes() for name in tensors.names()}, losses, done.stderr


def memory_between(folder: Path, share: float, **keys: Any) -> float:
    """GiB between the estimates of this run with every layer recomputed (0) and with none (1)."""
    use_kernels("auto")  # as the command does, whatever ran in this process before
    path = write_run(folder, hidden_dropout_prob=0.1, **keys)
    config = load_config(path, verb="train").config
    model = find_model(config)
    report = open_train_samples(reader_of(config, model), config.run.seed, **asdict(config.train_data)).report
    built = assemble.build_model(model, fine_tuning="Full", **{**BUILD, "compute_type": "auto"})
    layers = built.config.num_hidden_layers
    least, most = (
        sum(step_memory(config, built, report, Recomputation((operators,) * layers)).values())
        for operators in (("block",), ())
    )
    assert least < most
    return (least + share * (most - least)) / 2**30


@pytest.mark.parametrize("model", ["dense", "experts"])
def test_a_run_ends_with_the_same_weights(tmp_path: Path, model: str) -> None:
    keys: dict[str, Any] = {"attention_probs_dropout_prob": 0.1}
    if model == "experts":
        numbers = tiny_moe_config(num_nextn_predict_layers=1)
        keys["model_name_or_path"] = str(write_tiny_checkpoint(tmp_path / "model", numbers))
        keys |= {"moe_orthogonal_loss_lambda": 0.01, "multi_token_pred_lambda": 0.3, "moe_use_aux_free": True}
    expected = result(tmp_path / "none", **keys)
    assert len(expected[0]) > 10 and len(expected[1]) == 3
    limit = memory_between(tmp_path / "auto", 0.5, **keys)
    for name, setting in {**SETTINGS, "auto": {"recompute": "auto", "memory_limit_gb": limit}}.items():
        found = result(tmp_path / name, **keys, **setting)
        assert found[0] == expected[0] and found[1] == expected[1]
        assert "recomputed in the backward pass: " in found[2]


def chosen_for(limit_gb: float, caplog: pytest.LogCaptureFixture) -> tuple[Recomputation, str]:
    """What `auto` chooses for the released model, 4 rows of 2,048 tokens, and what it tells."""
    numbers = Ernie45Config()
    num_parameters = numbers.num_parameters()
    built = Assembled(None, numbers, "bf16", num_parameters, num_parameters)
    keys = {"max_seq_len": 2048, "per_device_train_batch_size": 4, "compute_type": "bf16"}
    keys |= {"recompute": "auto", "memory_limit_gb": limit_gb}
    config = config_from_dict({"model_name_or_path": "m", "train_dataset_path": "a", **keys}).config
    report = DataReport(samples=10, lengths=[512] * 10, tokens=5120, trained_tokens=2560)
    applied: list[Recomputation] = []
    with pytest.MonkeyPatch.context() as patch, caplog.at_level("INFO", logger=logger.name):
        patch.setattr(assemble, "apply_recomputation", lambda built, chosen, **_: applied.append(chosen))
        # The limits are for what native kernels keep; nothing is computed here.
        patch.setattr(backend, "_backend", "native")
        logger.addHandler(caplog.handler)
        try:
            chosen = recompute_as_asked(config, built, report, lambda: 0)
        finally:
            logger.removeHandler(caplog.handler)
        assert applied == [chosen]
        assert sum(step_memory(config, built, report, chosen).values()) <= limit_gb * 2**30
    return chosen, caplog.text


def test_auto_recomputes_as_little_as_fits(caplog: pytest.LogCaptureFixture) -> None:
    plenty, told = chosen_for(100.0, caplog)
    assert plenty.is_nothing() and "auto: nothing" in told
    counts = []
    for limit in (8.9, 8.6, 8.3):
        chosen, told = chosen_for(limit, caplog)
        counts.append(sum(map(len, chosen.operators)))
        assert f"{limit:.2f} allowed" in told and "% more arithmetic" in told
    assert 0 < counts[0] < counts[1] < counts[2]


@pytest.mark.parametrize(("stage", "expected"), [("SFT", (True, True)), ("DPO", (False, False))])
def test_pairs_have_no_head_and_no_prediction_ahead_to_recompute(
    tmp_path: Path, stage: str, expected: tuple[bool, bool], caplog: pytest.LogCaptureFixture
) -> None:
    source = write_tiny_checkpoint(tmp_path / "model", tiny_moe_config(num_nextn_predict_layers=1))
    built = assemble.build_model(source, fine_tuning="Full", **BUILD)
    keys = {"recompute": True, "use_recompute_loss_fn": True, "stage": stage}
    config = config_from_dict({"model_name_or_path": "m", "train_dataset_path": "a", **keys}).config
    with caplog.at_level("INFO", logger=logger.name):
        logger.addHandler(caplog.handler)
        try:
            chosen = recompute_as_asked(config, built, DataReport(), lambda: 0)
        finally:
            logger.removeHandler(caplog.handler)
    assert (chosen.head, chosen.mtp) == expected and chosen.operators == (("block",),) * 3
    assert ("no effect in stage: DPO" in caplog.text) == (stage == "DPO")


def test_a_dense_model_has_no_prediction_ahead_to_recompute(tmp_path: Path) -> None:
    path = write_run(tmp_path, recompute=True, max_steps=1, evaluation_strategy="no")
    done = run_erniekit("train", str(path))
    assert done.returncode == 0 and "recomputed in the backward pass: everything in 2 of 2" in done.stderr
    assert "multi-token" not in done.stderr


def test_auto_says_what_the_least_is(tmp_path: Path) -> None:
    path = write_run(tmp_path, recompute="auto", memory_limit_gb=0.001)
    done = run_erniekit("train", str(path))
    assert done.returncode == 2 and "with every layer recomputed the run needs 0." in done.stderr


def test_auto_without_a_limit_runs(tmp_path: Path) -> None:
    path = write_run(tmp_path, recompute="auto", max_steps=1, evaluation_strategy="no")
    done = run_erniekit("train", str(path))
    assert done.returncode == 0 and "recompute: auto: nothing" in done.stderr


@pytest.mark.parametrize(
    ("method", "dropout", "kept", "kept_fp32"),
    [
        # Rank 3: q, k, v, o, gate, up, down in each of two layers.
        ("LoRA", 0.0, 2 * 3 * 7, 0.0),
        # What A saw (hidden, queries, hidden, inner) in fp32 with a mask in bytes, and the products.
        ("LoRA", 0.1, 0.0, 2 * (1.25 * (32 + 64 + 32 + 48) + 3 * 7)),
        # Results of all matrices: q, k, v; o; gate and up; down.
        ("DoRA", 0.0, 2 * 3 * 7, 2 * (128 + 32 + 96 + 32)),
    ],
)
def test_what_an_adapter_keeps(
    tmp_path: Path, method: str, dropout: float, kept: float, kept_fp32: float
) -> None:
    built = build(write_tiny_checkpoint(tmp_path / "model"), method, lora_rank=3, lora_dropout=dropout)
    size = adapter_size(built)
    assert size is not None and size.kept == kept and size.kept_fp32 == pytest.approx(kept_fp32)
    lengths = 2 * (128 + 32 + 96 + 32) if method == "DoRA" else 0
    assert size.num_parameters + lengths == built.num_trained


def test_experts_keep_a_row_for_each_that_a_token_takes(tmp_path: Path) -> None:
    source = write_tiny_checkpoint(tmp_path / "model", tiny_moe_config())
    built = build(source, lora_rank=3, lora_target=["experts"])
    size, layers = adapter_size(built), 2
    assert size is not None and size.kept == layers * 2 * (3 * 2 + 3) and size.kept_fp32 == 0.0
