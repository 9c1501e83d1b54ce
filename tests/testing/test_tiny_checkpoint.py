from pathlib import Path

from erniekit.data.tokenizer import load_tokenizer
from erniekit.models.ernie45.weights import load_weights
from erniekit.models.registry import read_model_config
from erniekit.testing.tiny_checkpoint import SPECIALS, tiny_config, write_tiny_checkpoint


def test_tiny_checkpoint_is_a_complete_model(tmp_path: Path) -> None:
    folder = write_tiny_checkpoint(tmp_path / "model")
    config = read_model_config(folder)
    assert config == tiny_config()
    assert sum(array.size for _, _, array in load_weights(folder, config)) == config.num_parameters()
    tokenizer = load_tokenizer(folder)
    text = "<|user|>caf\u00e9 \u4f60\n<|end|>"
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert ids[0] == SPECIALS.index("<|user|>") and ids[-1] == SPECIALS.index("<|end|>")
    assert len(ids) == 2 + len("caf\u00e9 \u4f60\n".encode())
    assert max(ids) < config.vocab_size


def test_seed_decides_the_weights(tmp_path: Path) -> None:
    folders = [write_tiny_checkpoint(tmp_path / str(n), seed=seed) for n, seed in enumerate((1, 1, 2))]
    contents = [(folder / "model.safetensors").read_bytes() for folder in folders]
    assert contents[0] == contents[1] != contents[2]
