from pathlib import Path

import pytest

from erniekit.cli.main import main
from erniekit.testing.tiny_checkpoint import write_tiny_checkpoint


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = write_tiny_checkpoint(tmp_path / "my model"), tmp_path / "to"
    assert main(["convert", str(source), str(target), "--to", "paddle", "--max-shard-size=20KB"]) == 0
    assert "paddle layout, F32" in capsys.readouterr().out
    assert (target / "model.safetensors.index.json").exists()
    assert main(["convert", str(source), str(target), "--to", "paddle"]) == 1
    for words in (
        [str(source)],
        [str(source), str(tmp_path / "x")],
        [str(source), str(tmp_path / "x"), "--to", "paddle", "--fast"],
        [str(source), str(tmp_path / "x"), "--to", "torch"],
        [str(source), str(tmp_path / "x"), "extra", "--to", "hf"],
    ):
        assert main(["convert", *words]) == 2, words
    assert not (tmp_path / "x").exists()
