"""Paths to files, files to rows."""

import gzip
import json

import pytest

from erniekit.data.sources import find_files, open_rows
from erniekit.errors import DataError

ROWS = [{"text": "one"}, {"text": "zwei \u00fc"}, {"text": "\u4e09\n\u4e09"}]


def write(path, rows, **how):
    lines = "\n".join(json.dumps(row, **how) for row in rows) + "\n"
    path.write_text(lines, encoding="utf-8")
    return path


def read(path):
    return [
        (rows.row(i), rows.origin(i).rsplit(":", 1)[1])
        for rows in open_rows(str(path))
        for i in range(len(rows))
    ]


@pytest.mark.parametrize("indent", [None, 1])
def test_json_array_keeps_lines(tmp_path, indent):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(ROWS, indent=indent, ensure_ascii=False), encoding="utf-8")
    found = read(path)
    assert [row for row, _ in found] == ROWS
    assert [line for _, line in found] == (["2", "5", "8"] if indent else ["1", "1", "1"])


def test_json_lines_in_a_json_file(tmp_path):
    assert [row for row, _ in read(write(tmp_path / "a.json", ROWS))] == ROWS


def test_gzip_csv_parquet_folder_and_glob(tmp_path):
    with gzip.open(tmp_path / "a.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write("\n".join(map(json.dumps, ROWS)))
    assert [row for row, _ in read(tmp_path / "a.jsonl.gz")] == ROWS
    (tmp_path / "b.csv").write_text('text,n\nhello,1\n"a, b",2\n')
    assert read(tmp_path / "b.csv") == [({"text": "hello", "n": "1"}, "2"), ({"text": "a, b", "n": "2"}, "3")]
    from datasets import Dataset

    Dataset.from_list(ROWS).to_parquet(str(tmp_path / "c.parquet"))
    assert [row for row, _ in read(tmp_path / "c.parquet")] == ROWS
    assert len(open_rows(str(tmp_path))) == 3
    assert [path.name for path in find_files(str(tmp_path / "*.csv"))] == ["b.csv"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"", "file is empty"),
        ("a.jsonl", b"\n \n", "holds no row"),
        ("a.json", b"[]", "holds no row"),
        ("a.json", b'[{"a": 1},\n {"a": }]', r"a.json:2: not valid JSON \(column 8"),
        ("a.json", b'[{"a": 1} {"a": 2}]', "a comma or ]"),
        ("a.json", b'["caf\xe9"]', "no UTF-8"),
        ("a.doc", b"x", "files of type .doc are not read"),
        ("a.json", b'{"data":\n [1]}', r"one JSON object \(data\), not a list of rows"),
        ("a.jsonl.gz", b"not gzip", "cannot be unpacked"),
        ("a.jsonl.gz", b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03broken", "cannot be unpacked"),
        ("a.parquet", b"nonsense", "not a valid parquet file"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        open_rows(str(tmp_path / name))


def test_a_missing_file_names_similar_ones(tmp_path):
    write(tmp_path / "train.jsonl", ROWS)
    with pytest.raises(DataError, match=r"similar names there: train\.jsonl"):
        open_rows(str(tmp_path / "trian.jsonl"))
    with pytest.raises(DataError, match="no file matches"):
        open_rows(str(tmp_path / "*.csv"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="the folder holds no"):
        open_rows(str(tmp_path / "empty"))


def test_a_missing_folder_names_the_last_one_that_is_there(tmp_path):
    with pytest.raises(DataError, match=f"of its folders, {tmp_path} is the last one"):
        open_rows(str(tmp_path / "no" / "such" / "a.jsonl"))


def test_what_looks_like_a_hub_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_files("owner/name") is None and find_files("owner/name:test") is None
    (tmp_path / "owner").mkdir()
    for path in ("owner/name", "./a/b", "name", "a/b/c", "owner/name.jsonl", "/abs/x"):
        with pytest.raises(DataError, match="no such file"):
            find_files(path)


def test_an_unreadable_file_is_told(tmp_path, monkeypatch):
    path = write(tmp_path / "a.jsonl", ROWS)

    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(path), "open", refuse)
    with pytest.raises(DataError, match=r"a\.jsonl: the file cannot be read \(Permission denied\)"):
        open_rows(str(path))


def test_a_folder_of_somebody_else_is_not_unpacked_into(tmp_path, monkeypatch):
    import os
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / f"erniekit-unpacked-{os.getuid()}").symlink_to(tmp_path / "elsewhere")
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as file:
        file.write("{}")
    with pytest.raises(DataError, match="belongs to somebody else"):
        open_rows(str(tmp_path / "a.jsonl.gz"))
