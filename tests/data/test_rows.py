"""Rows by number out of byte ranges."""

import json

from hypothesis import given
from hypothesis import strategies as st

from erniekit.data.rows import BadRow, JsonRows, TextRows, index_documents, index_lines

ROWS = [{"text": "one"}, {"text": "zwei \u00fc"}, {"text": "\u4e09\n\u4e09"}]


def read(rows):
    return [(rows.row(i), rows.origin(i)) for i in range(len(rows))]


def test_lines_with_blank_ones_a_mark_and_no_last_newline(tmp_path):
    path = tmp_path / "a.jsonl"
    text = "\ufeff" + json.dumps(ROWS[0]) + "\n\n  \n" + json.dumps(ROWS[1], ensure_ascii=False) + "\r\n"
    path.write_bytes((text + json.dumps(ROWS[2])).encode())
    rows = JsonRows(path, "named so", index_lines(path))
    assert read(rows) == [(ROWS[0], "named so:1"), (ROWS[1], "named so:4"), (ROWS[2], "named so:5")]


@given(rows=st.lists(st.dictionaries(st.text(max_size=3), st.text(max_size=9), max_size=3), max_size=9))
def test_any_rows_come_back_in_any_order(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("rows") / "a.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    found = JsonRows(path, "a", index_lines(path))
    assert [found.row(i) for i in reversed(range(len(found)))] == rows[::-1]


def test_documents_are_separated_by_blank_lines(tmp_path):
    path = tmp_path / "a b.txt"
    path.write_text("first line\nsecond line\n\n \nthird\n", encoding="utf-8")
    rows = TextRows(path, "a", index_documents(path))
    assert read(rows) == [({"text": "first line\nsecond line"}, "a:1"), ({"text": "third"}, "a:5")]


def test_a_broken_line_is_a_bad_row_with_its_place(tmp_path):
    path = tmp_path / "a.jsonl"
    lines = [b'{"text": "ok"}', b'{"text": oops}', b'{"text": "caf\xe9"}', b'{"text": NaN}', b"[" * 100000]
    path.write_bytes(b"\n".join(lines))
    rows = JsonRows(path, "a", index_lines(path))
    assert rows.row(0) == {"text": "ok"}
    syntax, latin, nan, deep = (rows.row(i) for i in (1, 2, 3, 4))
    assert all(isinstance(row, BadRow) for row in (syntax, latin, nan, deep))
    broken = path.read_bytes().index(b"\xe9")
    assert "column 10" in syntax.reason
    assert f"byte {broken} is no UTF-8" in latin.reason and "iconv" in latin.reason
    assert "NaN is no JSON value" in nan.reason and "nested too deeply" in deep.reason
    assert rows.origin(2) == "a:3"


def test_many_files_keep_none_open(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("{}")
    opened = [JsonRows(path, "a", index_lines(path)) for _ in range(1500)]
    assert [rows.row(0) for rows in opened] == [{}] * 1500
