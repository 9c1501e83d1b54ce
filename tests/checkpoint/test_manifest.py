import json

import pytest

from erniekit.checkpoint.manifest import read_number, verify, write_manifest
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


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "{}",
        '{"files": 3}',
        '{"files": {}}',
        '{"files": {"a": {}}}',
        '{"files": {"a": null}}',
        "\xff",
    ]
    + ['{"files": {"../a": {"size": 1, "sha256": "0"}}}', '{"files": {"/a": {"size": 1, "sha256": "0"}}}'],
)
def test_a_damaged_manifest_is_named(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text, encoding="latin-1")
    with pytest.raises(CheckpointError, match=r"manifest\.json is damaged"):
        verify(tmp_path)
    assert read_number(tmp_path) == 0


def test_each_single_bit_counts(tmp_path):
    (tmp_path / "a").write_bytes(b"\x00" * 40)
    write_manifest(tmp_path, number=3)
    assert read_number(tmp_path) == 3
    for bit in range(0, 320, 7):
        data = bytearray(40)
        data[bit // 8] ^= 1 << bit % 8
        (tmp_path / "a").write_bytes(data)
        with pytest.raises(CheckpointError, match="a is damaged"):
            verify(tmp_path)
    verify(tmp_path, only=lambda name: name != "a")


def test_what_is_not_there_is_told(tmp_path):
    with pytest.raises(CheckpointError, match="there is no folder .*nowhere"):
        verify(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="is no complete checkpoint"):
        verify(tmp_path)
