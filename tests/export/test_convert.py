"""Conversion between layouts: bits, files beside the weights, memory."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from erniekit.checkpoint.files import open_tensors, write_tensors
from erniekit.errors import CheckpointError, ConfigError
from erniekit.export.convert import convert_model
from erniekit.export.dtypes import convert
from erniekit.models.ernie45.config import Ernie45Config
from erniekit.models.registry import read_model_config
from erniekit.testing.tiny_checkpoint import tiny_config, write_tiny_checkpoint


def content(folder: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    tensors = open_tensors(folder)
    return {name: (dtype, array.shape, array.tobytes()) for name, dtype, array in tensors.items()}


VARIANTS = [{}, {"tie_word_embeddings": False}, {"use_bias": True}, {"head_dim": 8, "num_key_value_heads": 4}]


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
@pytest.mark.parametrize("shard", ["20KB", 5])
def test_there_and_back_gives_the_same_bytes(
    tmp_path: Path, changes: dict[str, Any], shard: str | int
) -> None:
    source = write_tiny_checkpoint(tmp_path / "hf", tiny_config(**changes))
    convert_model(source, tmp_path / "paddle", layout="paddle", max_shard_size=shard)
    done = convert_model(tmp_path / "paddle", tmp_path / "back", layout="hf", max_shard_size=shard)
    assert content(tmp_path / "back") == content(source)
    assert (done.source_layout, done.layout, done.dtype) == ("paddle", "hf", "F32")
    assert (done.num_files > 3) == (shard == "20KB")
    assert (
        read_model_config(tmp_path / "paddle")
        == read_model_config(tmp_path / "back")
        == read_model_config(source)
    )
    # All in one file: the bytes of the files are equal too.
    if shard == 5:
        again = convert_model(source, tmp_path / "again", layout="hf")
        assert (again.folder / "model.safetensors").read_bytes() == (
            tmp_path / "back" / "model.safetensors"
        ).read_bytes()


def test_names_and_shapes_in_paddles_layout(tmp_path: Path) -> None:
    convert_model(write_tiny_checkpoint(tmp_path / "hf"), tmp_path / "paddle", layout="paddle")
    tensors = open_tensors(tmp_path / "paddle")
    names = tensors.names()
    assert all(name.startswith("ernie.") for name in names) and len(names) == 2 * 6 + 2
    config = tiny_config()
    qkv = (config.num_attention_heads + 2 * config.num_key_value_heads) * config.head_dim
    assert tensors.info("ernie.layers.1.self_attn.qkv_proj.weight").shape == (config.hidden_size, qkv)
    assert tensors.metadata == {"format": "np"}
    assert open_tensors(tmp_path / "hf").metadata == {"format": "pt"}


def test_config_is_written_for_the_readers_of_the_layout(tmp_path: Path) -> None:
    source = write_tiny_checkpoint(tmp_path / "hf")
    path = source / "config.json"
    own = json.loads(path.read_text()) | {
        "x_note": "kept",
        "auto_map": {"AutoModel": "m.py"},
        "transformers_version": "5",
    }
    path.write_text(json.dumps(own))
    convert_model(source, tmp_path / "paddle", layout="paddle")
    convert_model(tmp_path / "paddle", tmp_path / "back", layout="hf", dtype="bf16")
    paddle = json.loads((tmp_path / "paddle" / "config.json").read_text())
    back = json.loads((tmp_path / "back" / "config.json").read_text())
    for written in (paddle, back):
        assert written["rope_theta"] == written["rope_parameters"]["rope_theta"] == 500000.0
        assert written["x_note"] == "kept"
        assert "auto_map" not in written and "transformers_version" not in written
    assert paddle["dtype"] == "float32" and "torch_dtype" not in paddle
    assert back["torch_dtype"] == "bfloat16" and "dtype" not in back
    assert paddle["architectures"] == ["Ernie4_5_ForCausalLM"]
    assert back["architectures"] == ["Ernie4_5ForCausalLM"]


def test_what_lies_beside_the_weights(tmp_path: Path) -> None:
    source = write_tiny_checkpoint(tmp_path / "checkpoint-1")
    for name in ("LICENSE", "chat_template.jinja", "README.md"):
        (source / name).write_text(name)
    for name in ("modeling_ernie.py", "pytorch_model.bin", "trainer_state.json", "erniekit.yaml", "rng.pkl"):
        (source / name).write_text(name)
    write_tensors(
        source, [("m", "F32", np.zeros(1, "<f4"))], max_shard_bytes=9, metadata={}, basename="optimizer"
    )
    convert_model(source, tmp_path / "to", layout="paddle")
    assert sorted(path.name for path in (tmp_path / "to").iterdir()) == [
        "LICENSE",
        "README.md",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert (tmp_path / "to" / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()


@pytest.mark.parametrize(
    ("word", "stored", "kind"), [("bf16", "BF16", np.uint16), ("fp16", "F16", np.float16)]
)
def test_another_number_format(tmp_path: Path, word: str, stored: str, kind: type) -> None:
    paddle = pytest.importorskip("paddle")
    source = write_tiny_checkpoint(tmp_path / "hf")
    done = convert_model(source, tmp_path / "to", layout="hf", dtype=word)
    assert done.dtype == stored
    before, after = open_tensors(source), open_tensors(tmp_path / "to")
    for name in before.names():
        expected = paddle.to_tensor(before.read(name)).astype("bfloat16" if word == "bf16" else "float16")
        assert after.info(name).dtype == stored
        assert np.array_equal(after.read(name).view(np.uint16), expected.numpy().view(np.uint16)), name


def test_destination_is_never_overwritten(tmp_path: Path) -> None:
    source = write_tiny_checkpoint(tmp_path / "hf")
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "thesis.pdf").write_text("mine")
    for destination in (taken, source, taken / "thesis.pdf"):
        with pytest.raises(CheckpointError, match="is not empty"):
            convert_model(source, destination, layout="paddle")
    assert [path.name for path in taken.iterdir()] == ["thesis.pdf"]
    (tmp_path / "empty").mkdir()
    convert_model(source, tmp_path / "empty", layout="paddle")
    assert (tmp_path / "empty" / "config.json").exists()


def test_failure_leaves_nothing(tmp_path: Path) -> None:
    source = write_tiny_checkpoint(tmp_path / "hf")
    arrays = {name: array for name, _, array in open_tensors(source).items()}
    arrays["model.norm.weight"][0] = 1e6  # beyond fp16
    write_tensors(source, [(n, "F32", a) for n, a in arrays.items()], max_shard_bytes=10**9, metadata={})
    with pytest.raises(CheckpointError, match="model.norm.weight.*beyond the range of float16"):
        convert_model(source, tmp_path / "to", layout="paddle", dtype="fp16")
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def test_values_that_are_not_allowed(tmp_path: Path) -> None:
    source = write_tiny_checkpoint(tmp_path / "hf")
    for words in (
        {"layout": "torch"},
        {"layout": "hf", "dtype": "int8"},
        {"layout": "hf", "max_shard_size": "big"},
    ):
        with pytest.raises(ConfigError):
            convert_model(source, tmp_path / "to", **words)


# The peak is read from /proc: getrusage's counts what the parent held before it started this process.
PEAK = """
import re, sys
from pathlib import Path
from erniekit.export.convert import convert_model
from erniekit.export.dtypes import convert

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

small, large, target, layout = sys.argv[1:]
convert_model(Path(small), Path(target + "-small"), layout=layout, max_shard_size="32MB")
before = peak()
convert_model(Path(large), Path(target), layout=layout, max_shard_size="32MB")
print(peak() - before)
"""


def test_peak_memory_is_that_of_the_largest_shard(tmp_path: Path) -> None:
    if not Path("/proc/self/status").exists():
        pytest.skip("the peak of a process is read from /proc")
    config = Ernie45Config(
        vocab_size=15000,
        hidden_size=512,
        intermediate_size=1536,
        num_hidden_layers=10,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=64,
    )
    small = write_tiny_checkpoint(tmp_path / "small")
    folder = write_tiny_checkpoint(tmp_path / "large", config)
    for layout in ("paddle", "hf"):
        target = tmp_path / layout
        command = [sys.executable, "-c", PEAK, str(small), str(folder), str(target), layout]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        shards = [path.stat().st_size for path in target.glob("*.safetensors")]
        assert len(shards) >= 5 and sum(shards) > 148e6 and max(shards) <= 32.1e6
        held = int(re.findall(r"\d+", done.stdout)[-1])
        assert held <= 1.2 * max(shards), (layout, held)
        folder = target  # the way back reads shards


def test_formats_round_as_paddle_rounds() -> None:
    """Every 16-bit pattern, and fp32 values at every edge: ties, denormals, zeros, infinities, NaN."""
    paddle = pytest.importorskip("paddle")

    def as_paddle(array: np.ndarray, source: str, target: str) -> np.ndarray:
        words = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
        tensor = paddle.to_tensor(array)
        return (tensor.view("bfloat16") if source == "BF16" else tensor).astype(words[target]).numpy()

    every = np.arange(1 << 16, dtype=np.uint16)
    halves = every.view(np.float16)
    high = every.astype(np.uint32) << 16
    low = np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], dtype=np.uint32)
    wide = (high[:, None] | low).reshape(-1).view(np.float32)
    # Finite values that would become infinite are refused, so they are left out.
    wide = wide[~((np.abs(wide) > 3.3895314e38) & np.isfinite(wide))]
    small = wide[~((np.abs(wide) > 65504.0) & np.isfinite(wide))]
    # Paddle 3.3.1 makes 6e-8 of fp32 values between 1.6e-27 and 6.6e-24; to nearest they are zero.
    tiny = np.abs(small) < 1e-20
    assert not convert("w", small[tiny], "F32", "F16").any()
    small = small[~tiny]
    cases = [
        (every, "BF16", "F32"),
        (halves, "F16", "F32"),
        (halves, "F16", "BF16"),
        (wide, "F32", "BF16"),
        (small, "F32", "F16"),
    ]
    for array, source, target in cases:
        found, expected = convert("w", array, source, target), as_paddle(array, source, target)
        assert found.dtype.itemsize == expected.dtype.itemsize
        wide_found = found if target == "F32" else convert("w", found, target, "F32")
        nan = np.isnan(wide_found)
        assert np.array_equal(nan, np.isnan(convert("w", array, source, "F32")))
        bits = f"<u{found.dtype.itemsize}"
        assert np.array_equal(found.view(bits)[~nan], expected.view(bits)[~nan]), (source, target)
