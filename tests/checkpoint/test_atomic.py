import pytest

from erniekit.checkpoint.atomic import write_file_atomic, write_folder
from erniekit.errors import CheckpointError


def test_a_folder_has_its_name_only_when_it_is_complete(tmp_path):
    target = tmp_path / "a" / "model"
    with write_folder(target) as folder:
        (folder / "x").write_text("1")
        assert not target.exists()
    assert (target / "x").read_text() == "1"
    assert [path.name for path in target.parent.iterdir()] == ["model"]


def test_an_error_leaves_nothing_and_the_old_folder_stays(tmp_path):
    target = tmp_path / "model"
    with write_folder(target) as folder:
        (folder / "x").write_text("old")
    with pytest.raises(ZeroDivisionError), write_folder(target, overwrite=True) as folder:
        (folder / "x").write_text("new")
        raise ZeroDivisionError
    assert (target / "x").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    with pytest.raises(CheckpointError, match="exists already"), write_folder(target):
        pass
    with write_folder(target, overwrite=True) as folder:
        (folder / "y").write_text("new")
    assert [path.name for path in target.iterdir()] == ["y"]


def test_a_file_is_replaced_in_one_step(tmp_path):
    path = tmp_path / "f"
    write_file_atomic(path, b"one")
    write_file_atomic(path, b"two")
    assert path.read_bytes() == b"two" and len(list(tmp_path.iterdir())) == 1
    with pytest.raises(CheckpointError, match="writing .* failed"):
        write_file_atomic(tmp_path / "no" / "f", b"x")
