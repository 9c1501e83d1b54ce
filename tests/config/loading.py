"""Short ways to write a configuration file and load it."""

from pathlib import Path

import pytest

from erniekit.config.load import LoadedConfig, load_config
from erniekit.errors import ConfigError

LEAST = "model_name_or_path: starter\ntrain_dataset_path: train.jsonl\n"


def write(folder: Path, text: str, name: str = "run.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def load(folder: Path, text: str, *words: str, verb: str = "train") -> LoadedConfig:
    return load_config(write(folder, LEAST + text), words, verb=verb)


def problems(folder: Path, text: str, *words: str, verb: str = "train") -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(folder, text, *words, verb=verb)
    return [line.strip() for line in str(caught.value).splitlines()[1:]]
