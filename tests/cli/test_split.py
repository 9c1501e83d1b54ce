"""`erniekit split` as a command."""

from pathlib import Path

from tests.cli.told import Told

ASK = ("--prompt", "hello", "max_new_tokens=12", "temperature=0")


def test_split(tiny_run: Path, told: Told, tmp_path: Path) -> None:
    code, out, err = told("split", tiny_run / "model", "max_shard_size=20KB", f"output_dir={tmp_path}")
    assert code == 0, err
    assert out == f"{tmp_path}/split_export\n"
    assert len(list((tmp_path / "split_export").glob("*.safetensors"))) > 3
    assert (
        told("generate", tmp_path / "split_export", *ASK)[1] == told("generate", tiny_run / "model", *ASK)[1]
    )
