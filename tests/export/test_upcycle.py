"""A dense folder becomes a folder of experts that computes the same."""

import json

import numpy as np
import paddle
import pytest

from erniekit import assemble
from erniekit.checkpoint.files import open_tensors
from erniekit.cli.main import main
from erniekit.errors import CheckpointError, ConfigError
from erniekit.export.convert import convert_model
from erniekit.export.upcycle import parse_upcycle, upcycle_model
from erniekit.testing.tiny_checkpoint import tiny_config, write_tiny_checkpoint


def logits(folder):
    model = assemble.load_for_inference(folder, compute_type="fp32").model
    ids = np.random.default_rng(5).integers(3, 250, (2, 40))
    positions = np.tile(np.arange(40), (2, 1))
    with paddle.no_grad():
        hidden = model(
            paddle.to_tensor(ids), paddle.to_tensor(positions), paddle.to_tensor(np.zeros((2, 40), np.int32))
        )
        return model.logits(hidden.reshape([-1, hidden.shape[-1]])).numpy()


@pytest.mark.parametrize("numbers", [(8, 2, 1, 1), (4, 1, 0, 1), (3, 3, 0, 2)])
def test_the_logits_are_those_of_the_dense_model(tmp_path, numbers):
    experts, top_k, start, interval = numbers
    source = write_tiny_checkpoint(tmp_path / "dense", tiny_config(num_hidden_layers=4))
    done = upcycle_model(
        source, tmp_path / "moe", experts=experts, top_k=top_k, start=start, interval=interval
    )
    expected = logits(source)
    assert np.abs(logits(done.folder) - expected).max() < 1e-4 < np.abs(expected).max()
    assert done.num_layers == (4 - start) // interval
    content = json.loads((done.folder / "config.json").read_text())
    assert content["model_type"] == "ernie4_5_moe" and content["moe_num_experts"] == experts
    assert (done.folder / "tokenizer.json").exists()
    parameters = sum(p.size for p in assemble.load_for_inference(done.folder).model.parameters())
    assert done.num_parameters == parameters > done.num_active_parameters or top_k == experts


def test_noise_moves_the_logits_a_little(tmp_path):
    source = write_tiny_checkpoint(tmp_path / "dense")
    expected = logits(source)
    noisy = upcycle_model(source, tmp_path / "noisy", experts=4, top_k=2, noise=0.01)
    difference = np.abs(logits(noisy.folder) - expected).max() / np.abs(expected).max()
    assert 1e-4 < difference < 0.1


def test_in_16_bits_and_in_paddles_layout(tmp_path):
    source = write_tiny_checkpoint(tmp_path / "dense")
    half = convert_model(source, tmp_path / "half", layout="hf", dtype="bf16").folder
    done = upcycle_model(half, tmp_path / "moe", experts=4, top_k=2, noise=0.01, layout="paddle")
    dtypes = {name: dtype for name, dtype, _ in open_tensors(done.folder).specs()}
    routers = {name for name, dtype in dtypes.items() if dtype == "F32"}
    assert routers and all(".gate." in name or "moe_statics" in name for name in routers)
    assert set(dtypes.values()) == {"F32", "BF16"}
    assert logits(done.folder).shape == logits(source).shape


def test_what_is_refused(tmp_path):
    source = write_tiny_checkpoint(tmp_path / "dense")
    upcycle_model(source, tmp_path / "moe", experts=4, top_k=2)
    with pytest.raises(CheckpointError, match="not empty"):
        upcycle_model(source, tmp_path / "moe", experts=4, top_k=2)
    with pytest.raises(CheckpointError, match="experts already"):
        upcycle_model(tmp_path / "moe", tmp_path / "again", experts=4, top_k=2)
    assert not (tmp_path / "again").exists()


def test_numbers_of_the_command_line():
    assert parse_upcycle("experts=8,top_k=2,start=1") == {
        "experts": 8, "top_k": 2, "start": 1, "interval": 1, "noise": 0.0, "seed": 0,
    }  # fmt: skip
    assert parse_upcycle("experts=8, top_k=2, noise=0.5, interval=3")["noise"] == 0.5
    for text, message in [
        ("experts=8", "top_k must be given"),
        ("experts=8,top_k=2,width=3", "width"),
        ("experts=8,top_k=2.5", "whole number"),
        ("experts=8,experts=9,top_k=1", "twice"),
        ("experts=8,top_k=2,noise=-1", "below 0"),
        ("8,2", "none of"),
    ]:
        with pytest.raises(ConfigError, match=message):
            parse_upcycle(text)


def test_the_command(tmp_path, capsys):
    source = write_tiny_checkpoint(tmp_path / "dense")
    words = ["convert", str(source), str(tmp_path / "moe"), "--upcycle", "experts=4,top_k=2,start=1"]
    assert main(words) == 0
    assert "experts in 1 layers" in capsys.readouterr().out.replace("\n", " ")
    assert main([*words, "--dtype", "bf16"]) == 2
