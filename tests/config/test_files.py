"""YAML and JSON files, and what is neither."""

import json
from pathlib import Path

import pytest

from erniekit.config.load import config_from_dict, load_config
from erniekit.errors import ConfigError
from tests.config.loading import write


def test_json_says_the_same_as_yaml(tmp_path: Path) -> None:
    values = {
        "model_name_or_path": "starter",
        "train_dataset_path": "a",
        "seed": 3,
        "stop": ["x"],
        "packing": False,
    }
    text = json.dumps(values, indent="\t")
    loaded = load_config(write(tmp_path, text, "run.json"), verb="train")
    assert loaded.config == config_from_dict(values, "train").config
    assert str(loaded.sources["seed"]).endswith("run.json:4:2")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "empty"),
        (b"  \n\n", "empty"),
        (b"# only this\n", "only comments"),
        (b"- a\n- b\n", "is a list"),
        (b"hello\n", "single value"),
        (b"seed: 1\nrun_name: caf\xe9\n", ":2: byte 0xe9 is not UTF-8"),
        (b"seed: [1\nrun_name: a\n", "not YAML"),
        (b"seed: 1\n\tpacking: true\n", ":2:"),
        (b"[1, 2]: 3\n", "a key must be a word"),
        (b"stop: " + b"[" * 5000, "run.yaml"),
        (b"seed: 1\n---\nseed: 2\n", "another document"),
        (b"seed: !!python/object:os.system 1\n", "seed"),
    ],
)
def test_files_that_are_no_configuration(tmp_path: Path, content: bytes, told: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_config(path, verb="train")
    assert str(caught.value).startswith(str(path))
    assert told in str(caught.value)


def test_broken_json_tells_where(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"run\.json:2:\d+: not JSON"):
        load_config(write(tmp_path, '{"seed": 1,\n seed: 2}', "run.json"), verb="train")
    with pytest.raises(ConfigError, match="given twice"):
        load_config(write(tmp_path, '{"seed": 1,\n "seed": 2}', "run.json"), verb="show")


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load_config(tmp_path / "nowhere.yaml", verb="train")
    with pytest.raises(ConfigError, match="is a folder"):
        load_config(tmp_path, verb="train")


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes(b"\xef\xbb\xbfseed: 3\n")
    assert load_config(path, verb="show").config.run.seed == 3
