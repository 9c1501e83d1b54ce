"""The settings of adapters, as they are written here and elsewhere."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from erniekit.checkpoint import adapter_files
from erniekit.checkpoint.adapter_files import is_adapter, open_adapter
from erniekit.checkpoint.files import write_tensors
from erniekit.errors import CheckpointError, UnsupportedError

PEFT = {"peft_type": "LORA", "r": 2, "lora_alpha": 6, "target_modules": ["q_proj"]}


def write(folder: Path, content: dict, tensors=None, *, paddle: bool = False) -> Path:
    folder.mkdir(exist_ok=True)
    name = adapter_files.PADDLE_CONFIG if paddle else adapter_files.PEFT_CONFIG
    (folder / name).write_text(json.dumps(content))
    if tensors is None:
        tensors = {
            "base_model.model.model.layers.0.q_proj.lora_A.weight": np.ones((2, 5), np.float32),
            "base_model.model.model.layers.0.q_proj.lora_B.weight": np.full((7, 2), 2.0, np.float32),
        }
    write_tensors(
        folder,
        [(key, "F32", array) for key, array in tensors.items()],
        max_shard_bytes=10**9,
        metadata={},
        basename=adapter_files.PADDLE_BASENAME if paddle else adapter_files.PEFT_BASENAME,
    )
    return folder


def test_peft(tmp_path: Path) -> None:
    adapter = open_adapter(write(tmp_path, PEFT))
    (pair,) = adapter.pairs()
    assert pair.name == "model.layers.0.q_proj"
    assert pair.a.shape == (5, 2) and pair.b.shape == (2, 7)
    assert pair.scale == 3.0 and pair.magnitude is None
    assert adapter.facts == {} and adapter.dtype() == "F32"


def test_paddle(tmp_path: Path) -> None:
    tensors = {
        "ernie.layers.0.qkv_proj.lora_A": np.ones((5, 2), np.float32),
        "ernie.layers.0.qkv_proj.lora_B": np.ones((2, 7), np.float32),
    }
    adapter = open_adapter(write(tmp_path, {"r": 2, "lora_alpha": 6, "rslora": True}, tensors, paddle=True))
    (pair,) = adapter.pairs()
    assert pair.name == "model.layers.0.qkv_proj"
    assert pair.a.shape == (5, 2) and pair.b.shape == (2, 7)
    assert pair.scale == 6 / math.sqrt(2)


def test_ranks_and_alphas_by_pattern(tmp_path: Path) -> None:
    content = {**PEFT, "alpha_pattern": {"layers.0.q_proj": 1.0}, "use_rslora": False}
    (pair,) = open_adapter(write(tmp_path, content)).pairs()
    assert pair.scale == 0.5


def test_whole_tensors(tmp_path: Path) -> None:
    tensors = {"base_model.model.model.embed_tokens.weight": np.ones((3, 2), np.float32)}
    adapter = open_adapter(write(tmp_path, PEFT, tensors))
    assert adapter.whole_tensors() == {"model.embed_tokens.weight": next(iter(tensors))}


def test_bf16_is_widened() -> None:
    raw = np.array([0x3F80, 0xC000], np.uint16)
    np.testing.assert_array_equal(adapter_files.widened(raw, "BF16"), [1.0, -2.0])
    with pytest.raises(UnsupportedError, match="F8_E4M3"):
        adapter_files.widened(raw, "F8_E4M3")


def test_what_is_an_adapter(tmp_path: Path) -> None:
    assert not is_adapter(tmp_path)
    write(tmp_path / "a", PEFT)
    assert is_adapter(tmp_path / "a")
    (tmp_path / "a/config.json").write_text("{}")
    assert not is_adapter(tmp_path / "a")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({**PEFT, "peft_type": "IA3"}, "peft_type IA3 is not built"),
        ({**PEFT, "bias": "all"}, "bias: 'all' is not built"),
        ({**PEFT, "fan_in_fan_out": True}, "fan_in_fan_out: True is not built"),
        ({**PEFT, "target_parameters": ["mlp.experts.gate_up_proj"]}, "target_parameters"),
    ],
)
def test_kinds_that_are_not_built(tmp_path: Path, content: dict, message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        open_adapter(write(tmp_path, content))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({**PEFT, "r": 0}, "r: 0 is no rank"),
        ({**PEFT, "lora_alpha": "8"}, "lora_alpha: '8' is no number"),
        ([], "holds no JSON object"),
    ],
)
def test_damaged_settings(tmp_path: Path, content, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        open_adapter(write(tmp_path, content))


def test_half_a_pair_and_no_adapter(tmp_path: Path) -> None:
    key = "base_model.model.model.layers.0.q_proj.lora_A.weight"
    with pytest.raises(CheckpointError, match="only one of lora_A and lora_B"):
        list(open_adapter(write(tmp_path / "a", PEFT, {key: np.ones((2, 5), np.float32)})).pairs())
    with pytest.raises(CheckpointError, match="neither adapter_config.json nor lora_config.json"):
        open_adapter(tmp_path)
    with pytest.raises(CheckpointError, match="does not exist"):
        open_adapter(tmp_path / "gone")
