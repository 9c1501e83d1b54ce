from pathlib import Path

import pytest

from erniekit.errors import CheckpointError
from erniekit.export.destination import check_destination


def folder(path: Path, *names: str) -> Path:
    path.mkdir(parents=True)
    for name in names:
        (path / name).touch()
    return path


def test_new_and_empty_destinations_are_free(tmp_path: Path) -> None:
    source = folder(tmp_path / "run" / "checkpoint-1", "config.json")
    check_destination(tmp_path / "run" / "export", source, overwrite=False)
    check_destination(folder(tmp_path / "empty"), source, overwrite=False)


def test_taken_destination_is_refused_without_overwrite(tmp_path: Path) -> None:
    source = folder(tmp_path / "source", "config.json")
    taken = folder(
        tmp_path / "taken", "config.json", "qat.json", "model-00001-of-00002.safetensors", "README.md"
    )
    with pytest.raises(CheckpointError, match="overwrite_output_dir=true"):
        check_destination(taken, source, overwrite=False)
    with pytest.raises(CheckpointError, match="name another destination with quant_dir="):
        check_destination(taken, source, overwrite=False, key="quant_dir")
    check_destination(taken, source, overwrite=True)


@pytest.mark.parametrize("name", ["thesis.pdf", "optimizer.safetensors", "trainer_state.json"])
def test_folder_with_other_things_is_never_replaced(tmp_path: Path, name: str) -> None:
    source = folder(tmp_path / "source", "config.json")
    with pytest.raises(CheckpointError, match=f"holds {name}"):
        check_destination(folder(tmp_path / "taken", "config.json", name), source, overwrite=True)
    folder(tmp_path / "home" / "documents")
    with pytest.raises(CheckpointError, match="holds documents"):
        check_destination(tmp_path / "home", source, overwrite=True)


def test_source_is_never_the_destination(tmp_path: Path) -> None:
    source = folder(tmp_path / "run" / "checkpoint-1", "config.json")
    for destination in (source, tmp_path / "run", tmp_path / "run" / "x" / ".." / "checkpoint-1"):
        with pytest.raises(CheckpointError, match="holds the source"):
            check_destination(destination, source, overwrite=True)


def test_file_is_no_destination(tmp_path: Path) -> None:
    source = folder(tmp_path / "source", "config.json")
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="is a file"):
        check_destination(tmp_path / "file", source, overwrite=True)
