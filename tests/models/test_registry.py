import json

import pytest

from erniekit.errors import CheckpointError, UnsupportedError
from erniekit.models.registry import load_family, read_model_config
from erniekit.testing.tiny_checkpoint import tiny_config, tiny_moe_config


def write(folder, content):
    (folder / "config.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def test_the_family_of_a_folder(tmp_path):
    config = tiny_config()
    read = read_model_config(write(tmp_path, config.to_json()))
    assert read == config and load_family(read).model_type == "ernie4_5"
    content = config.to_json()
    del content["model_type"]
    assert read_model_config(write(tmp_path, content)) == config  # Baidu's first releases name the class only


@pytest.mark.parametrize(
    ("content", "kind", "message"),
    [
        ("{", CheckpointError, "not valid JSON"),
        (
            {"model_type": "ernie4_5", "moe_num_experts": 64},
            UnsupportedError,
            "moe_num_experts 64.*ernie4_5_moe",
        ),
        ({"model_type": "ernie4_5_moe", "moe_num_experts": 0}, CheckpointError, "moe_num_experts is 0"),
        ({"model_type": "llama"}, UnsupportedError, "'llama' is not known; known: ernie4_5"),
        ({"model_type": "ernie4_5"}, CheckpointError, "vocab_size is missing"),
    ],
)
def test_what_is_wrong_is_said(tmp_path, content, kind, message):
    with pytest.raises(kind, match=message):
        read_model_config(write(tmp_path, content))


@pytest.mark.parametrize("modalities", [1, 2])
def test_the_family_of_a_mixture_of_experts(tmp_path, modalities):
    config = tiny_moe_config(modalities=modalities)
    content = config.to_json()
    assert content["model_type"] == ("ernie4_5_moe", "ernie4_5_moe_vl")[modalities - 1]
    read = read_model_config(write(tmp_path, content))
    assert read == config
    assert load_family(read).plan.__name__ == "erniekit.models.ernie45.plan"
    del content["model_type"]
    assert read_model_config(write(tmp_path, content)) == config


def test_a_folder_without_a_configuration(tmp_path):
    with pytest.raises(CheckpointError, match="no model folder"):
        read_model_config(tmp_path)
