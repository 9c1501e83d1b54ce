import json

import pytest

from erniekit.checkpoint.manifest import verify, write_manifest
from erniekit.errors import CheckpointError


def test_every_file_is_in_it(tmp_path):
    (tmp_path / "a").write_text("1")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b").write_text("22")
    write_manifest(tmp_path)
    files = json.loads((tmp_path / "manifest.json").read_text())["files"]
    assert {name: entry["size"] for name, entry in files.items()} == {"a": 1, "sub/b": 2}
    # SHA-256 of the single byte "1", from the standard's own tools.
    assert files["a"]["sha256"] == "6b86b273ff34fce19d6b804eff5a3f5747ada4eaa22f1d49c01e52ddb7875b4b"
    verify(tmp_path)


def test_a_damaged_manifest_is_named(tmp_path):
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"manifest\.json is damaged"):
        verify(tmp_path)
