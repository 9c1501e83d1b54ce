import gzip
import json

import pytest

from erniekit.data.rows import BadRow, find_files, open_rows
from erniekit.errors import DataError

ROWS = [{"text": "one"}, {"text": "zwei ü"}, {"text": "三\n三"}]


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


def test_jsonl_with_blank_lines_a_mark_and_no_last_newline(tmp_path):
    path = tmp_path / "a.jsonl"
    text = "\ufeff" + json.dumps(ROWS[0]) + "\n\n  \n" + json.dumps(ROWS[1], ensure_ascii=False) + "\r\n"
    path.write_bytes((text + json.dumps(ROWS[2])).encode())
    assert read(path) == [(ROWS[0], "1"), (ROWS[1], "4"), (ROWS[2], "5")]


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
    assert read(tmp_path / "b.csv") == [({"text": "hello", "n": 1}, "2"), ({"text": "a, b", "n": 2}, "3")]
    from datasets import Dataset

    Dataset.from_list(ROWS).to_parquet(str(tmp_path / "c.parquet"))
    assert [row for row, _ in read(tmp_path / "c.parquet")] == ROWS
    assert len(open_rows(str(tmp_path))) == 3
    assert [path.name for path in find_files(str(tmp_path / "*.csv"))] == ["b.csv"]


def test_text_documents_are_separated_by_blank_lines(tmp_path):
    path = tmp_path / "a b.txt"
    path.write_text("first line\nsecond line\n\n\nthird\n", encoding="utf-8")
    assert read(path) == [({"text": "first line\nsecond line"}, "1"), ({"text": "third"}, "5")]


def test_a_broken_line_is_a_bad_row_with_its_place(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "ok"}\n{"text": oops}\n{"text": "caf\xe9"}\n')
    (rows,) = open_rows(str(path))
    assert rows.row(0) == {"text": "ok"}
    bad, latin = rows.row(1), rows.row(2)
    assert isinstance(bad, BadRow) and "column 10" in bad.reason
    assert isinstance(latin, BadRow) and "no UTF-8" in latin.reason and "iconv" in latin.reason
    assert rows.origin(2).endswith("a.jsonl:3")


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
        ("a.jsonl.gz", b"not gzip", "cannot be unpacked"),
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
