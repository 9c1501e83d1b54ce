"""The resolved configuration is a configuration."""

from pathlib import Path

import yaml

from erniekit.config.load import load_config
from tests.config.loading import load, write


def test_the_resolved_file_alone_repeats_the_run(tmp_path: Path) -> None:
    text = "x-note: mine\nlearning_rate: 3e-4\nstop: [a, 'b: c']\nrun_name: '007'\n"
    text += "fuse_rope: true\nreport_to: none\n"
    loaded = load(tmp_path, text, "batch_size=3")
    again = load_config(write(tmp_path, loaded.to_yaml(), "erniekit.yaml"), verb="train")
    assert again.config == loaded.config
    assert again.to_yaml() == loaded.to_yaml()
    assert again.notices == []
    assert yaml.safe_load(loaded.to_yaml()) == {
        "x-note": "mine",
        **{k: list(v) if isinstance(v, tuple) else v for k, v in loaded.config.values().items()},
    }


def test_the_resolved_file_is_safe_to_start_again(tmp_path: Path) -> None:
    for words in (
        ["overwrite_output_dir=true"],
        ["resume_from_checkpoint=output/checkpoint-4"],
        ["resume_from_checkpoint=none"],
    ):
        loaded = load(tmp_path, "", *words)
        saved = yaml.safe_load(loaded.to_yaml())
        assert saved["overwrite_output_dir"] is False
        assert saved["resume_from_checkpoint"] == "auto"
