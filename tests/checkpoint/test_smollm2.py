"""SmolLM2 as an ERNIE folder: ids against those that transformers 5.23 gives with its own GGUF reader."""

import json
from pathlib import Path

import pytest

from erniekit.checkpoint.smollm2 import write_smollm2
from erniekit.checkpoint.starter import GGUF_NAME, build_starter
from erniekit.errors import CheckpointError

IDS = {
    "The quick brown fox": [504, 2365, 6354, 16438],
    "Hello  world 12345\n\n\tfoo": [19556, 216, 905, 216, 33, 34, 35, 36, 37, 1116, 197, 15236],
    "\u4f60\u597d na\u00efve caf\u00e9 \U0001f600": [18645, 250, 48392, 138, 15486, 46494, 37366, 40303, 218],
    "<|im_start|>user\nHi<|im_end|>": [1, 4093, 198, 26843, 2],
    "don't we'll  a 3.14 x": [12420, 982, 392, 3060, 216, 253, 216, 35, 30, 33, 36, 1792],
    "   lead": [256, 1022],
}


@pytest.fixture(scope="module")
def folder() -> Path:
    return build_starter()


def test_another_file_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    (tmp_path / GGUF_NAME).write_bytes(b"GGUF")
    with pytest.raises(CheckpointError, match="not the expected file"):
        write_smollm2(tmp_path / GGUF_NAME, tmp_path)


@pytest.mark.starter
def test_tokenizer_gives_the_ids_of_the_original(folder: Path) -> None:
    from erniekit.data.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(folder)
    for text, ids in IDS.items():
        assert tokenizer.encode(text) == ids, text
        assert tokenizer.decode(ids) == text
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (1, 2, 2)
    special = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    assert len(special) == 17 and all(entry["special"] for entry in special)


@pytest.mark.starter
def test_folder_is_a_complete_hugging_face_model(folder: Path) -> None:
    from erniekit.models.ernie45.weights import open_weights
    from erniekit.models.registry import read_model_config

    names = {path.name for path in folder.iterdir()}
    assert names == {
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    config = read_model_config(folder)
    assert config.num_parameters() == 134_515_008
    assert (config.rms_norm_eps, config.rope_theta, config.head_dim) == (1e-5, 1e5, 64)
    weights = open_weights(folder, config)
    assert weights.layout == "hf"
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == 2
    assert "Apache-2.0" in (folder / "README.md").read_text()
