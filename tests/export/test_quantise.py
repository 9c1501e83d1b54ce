"""`quantize` from end to end: methods, resuming, what a killed run leaves, budgets, what is refused."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from erniekit.checkpoint.files import open_tensors
from erniekit.errors import CheckpointError, ConfigError, UnsupportedError
from erniekit.export import quantise
from erniekit.export.export import export_model
from erniekit.quant.folder import read_quantisation
from erniekit.testing.tiny_checkpoint import tiny_config, tiny_moe_config
from tests.quant.folders import quantised_folder

pytestmark = pytest.mark.several
LARGER = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4}


def content(folder):
    return {name: (word, raw.tobytes()) for name, word, raw in open_tensors(folder).items()}


def total(done):
    return sum(done.errors.values())


def test_methods_are_better_than_rounding(tmp_path):
    config = tiny_config(**{**LARGER, "num_hidden_layers": 2})
    found = {
        name: quantised_folder(tmp_path, config, quant_scheme="int2", **keys)[1]
        for name, keys in {
            "plain": {"quant_method": "rtn", "clip_search": False},
            "rtn": {"quant_method": "rtn"},
            "awq": {"quant_method": "awq"},
            "gptq": {"quant_method": "gptq"},
            "both": {"quant_method": "gptq", "smooth_alpha": 0.3},
        }.items()
    }
    assert total(found["gptq"]) < 0.8 * total(found["rtn"]) < 0.8 * total(found["plain"])
    assert total(found["awq"]) < total(found["rtn"])
    assert (
        found["gptq"].quality.divergence < found["rtn"].quality.divergence < found["plain"].quality.divergence
    )
    assert found["both"].quantisation.method == "gptq, with clipping, smoothed by 0.3"


def test_rotation_is_of_every_matrix(tmp_path):
    _, done = quantised_folder(
        tmp_path, tiny_config(**LARGER), quant_scheme="w8a8", quant_method="rtn", rotation_block_size=16
    )
    assert read_quantisation(done.folder).hadamard_block_size == 16
    assert done.quality.divergence < 0.1 and total(done) < 0.01


def test_the_same_bytes_after_an_interruption(tmp_path, monkeypatch):
    config = tiny_config(**LARGER)
    keys = {
        "quant_scheme": "w4a8c8",
        "quant_method": "gptq",
        "smooth_alpha": 0.5,
        "overwrite_output_dir": False,
    }
    _, whole = quantised_folder(tmp_path / "one", config, **keys)
    expected = content(whole.folder)
    real, calls = quantise.quantise_block, []

    def fails(stream, index, *rest):
        calls.append(index)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(stream, index, *rest)

    monkeypatch.setattr(quantise, "quantise_block", fails)
    with pytest.raises(KeyboardInterrupt):
        quantised_folder(tmp_path / "two", config, **keys)
    assert not (tmp_path / "two/out/quantized").exists()
    blocks = tmp_path / "two/out/quantized.blocks"
    assert sorted(path.name for path in blocks.iterdir()) == ["00000", "00001", "state.json"]
    with pytest.raises(ConfigError, match="from other data, another model, or with other settings"):
        quantised_folder(tmp_path / "two", config, **{**keys, "smooth_alpha": 0.4})
    (tmp_path / "two/out/quantized").mkdir()
    (tmp_path / "two/out/quantized/mine.txt").write_text("not an export's")
    with pytest.raises(CheckpointError, match="holds mine.txt, which no export writes"):
        quantised_folder(tmp_path / "two", config, **keys)
    (tmp_path / "two/out/quantized/mine.txt").unlink()
    _, again = quantised_folder(tmp_path / "two", config, **keys)
    assert calls == [0, 1, 2, 2, 3] and not blocks.exists()
    assert content(again.folder) == expected
    assert again.errors == whole.errors
    with pytest.raises(CheckpointError, match="is not empty"):
        quantised_folder(tmp_path / "two", config, **keys)


_KILLED = """
import sys, time
from pathlib import Path
from erniekit.export import quantise
from tests.quant.folders import quantised_folder
real = quantise.quantise_block
def slowly(stream, index, *rest):
    done = real(stream, index, *rest)
    if index == 2:
        print("now", flush=True)
        time.sleep(600)
    return done
quantise.quantise_block = slowly
from erniekit.testing.tiny_checkpoint import tiny_config
keys = {"quant_scheme": "wint4", "overwrite_output_dir": False}
quantised_folder(Path(sys.argv[1]), tiny_config(hidden_size=64, intermediate_size=128, num_hidden_layers=4),
**keys)
"""


@pytest.mark.slow
def test_a_killed_run_goes_on(tmp_path):
    words = [sys.executable, "-c", _KILLED, str(tmp_path)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline().strip() == "now"
        time.sleep(0.1)
        os.kill(process.pid, signal.SIGKILL)
    blocks = tmp_path / "out/quantized.blocks"
    assert sorted(path.name for path in blocks.iterdir()) == ["00000", "00001", "state.json"]
    before = (blocks / "00001/model.safetensors").stat().st_mtime_ns
    # Half of a folder, as a kill while it is written leaves it.
    (blocks / ".00002.writing-999999").mkdir()
    keys = {"quant_scheme": "wint4", "overwrite_output_dir": False}
    seen = []
    real = quantise.BlockStream.run
    try:
        quantise.BlockStream.run = lambda *given, **more: (
            seen.append((blocks / "00001/model.safetensors").stat().st_mtime_ns),
            real(*given, **more),
        )
        _, done = quantised_folder(tmp_path, tiny_config(**LARGER), **keys)
    finally:
        quantise.BlockStream.run = real
    assert set(seen) == {before} and not blocks.exists()
    assert len(done.errors) == 16


def test_formats_by_sensitivity(tmp_path):
    config = tiny_moe_config(num_hidden_layers=2, hidden_size=64, moe_num_experts=(2,))
    keys = {"quant_scheme": "wint4_g64", "quant_method": "rtn"}
    _, done = quantised_folder(tmp_path, config, **keys, target_bits=6.0)
    assert done.bits <= 6.0 and len(set(done.quantisation.formats.values())) >= 2
    smaller = quantised_folder(tmp_path, config, **keys, target_bits=5.0)[1]
    assert smaller.bits <= 5.0 and total(smaller) > total(done)
    with pytest.raises(ConfigError, match="target_bits: 2.1: .* the smallest formats take"):
        quantised_folder(tmp_path / "dense", tiny_config(num_hidden_layers=1), **keys, target_bits=2.1)


def test_what_is_quantised_already_is_refused(tmp_path):
    _, done = quantised_folder(tmp_path, quant_scheme="wint8", quant_method="rtn")
    other = tmp_path / "again"
    other.mkdir()
    (other / "model").symlink_to(done.folder)
    with pytest.raises(ConfigError, match="is quantised already"):
        quantised_folder(other, quant_scheme="wint4")
    for layout in ("hf", "gguf"):
        with pytest.raises(UnsupportedError, match=r"is quantised \(wint8\), and exports are of models in"):
            export_model(done.folder, tmp_path / "other", export_layout=layout)


def test_rounding_of_weights_needs_no_data(tmp_path):
    keys = {"quant_method": "rtn", "clip_search": False}
    _, found = quantised_folder(tmp_path, tiny_moe_config(), quant_scheme="wint4/8", **keys)
    alone = quantised_folder(tmp_path, quant_scheme="wint4/8", **keys, train_dataset_path=None)[1]
    assert alone.num_tokens == 0 < found.num_tokens
    assert alone.quality == found.quality


def test_multi_token_prediction_stays_as_it_is(tmp_path):
    config = tiny_moe_config(num_nextn_predict_layers=1)
    _, done = quantised_folder(tmp_path, config, quant_scheme="wint8", quant_method="rtn")
    names = open_tensors(done.folder).names()
    assert any(name.startswith("ernie.mtp_block.0") and name.endswith("proj.weight") for name in names)
    assert not any("mtp" in name and name.endswith("quant_weight") for name in names)


def test_the_folder_holds_a_report(tmp_path):
    _, done = quantised_folder(tmp_path, quant_scheme="wint4", max_quality_drop=50.0)
    found = json.loads((done.folder / "quantization.json").read_text())
    assert found["scheme"] == "wint4" and found["passed"] is True and found["bits"] == done.bits
    assert "PASSED" in (done.folder / "report.md").read_text()
    assert (done.folder / "sensitivity.svg").read_text().startswith("<svg")
    assert (done.folder / "tokenizer.json").exists()
    size = (done.folder / "model.safetensors").stat().st_size
    assert done.num_bytes < size < done.num_bytes + 20000
    assert np.isclose(done.bits, 4 + 32 / (32 * 2 + 48 + 64) * 4, atol=0.4)


def test_without_held_out_text_quality_is_not_known(tmp_path):
    _, done = quantised_folder(tmp_path, quant_scheme="wint8", eval_dataset_path=None)
    assert done.quality is None and done.passed
    assert len(done.lines()) == 1
