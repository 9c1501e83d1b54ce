"""Tables: cells stay what was written, records have their lines, hubs answer or not."""

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from erniekit.data import tables
from erniekit.data.rows import BadRow
from erniekit.data.tables import ArrowRows, CsvRows, open_hub, open_parquet
from erniekit.errors import DataError, UnsupportedError

# Lone carriage returns are line ends for the csv module, and a NUL none of its versions agree on.
CELL = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\x00\r"), max_size=8)


def rows_of(tmp_path, text):
    path = tmp_path / "a.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8"))
    return CsvRows(path, "a")


@given(cells=st.lists(st.tuples(CELL, CELL), max_size=8))
def test_any_cells_come_back(tmp_path_factory, cells):
    file = io.StringIO()
    csv.writer(file, quoting=csv.QUOTE_ALL).writerows([("src", "tgt"), *cells])
    rows = rows_of(tmp_path_factory.mktemp("csv"), file.getvalue())
    assert [rows.row(i) for i in range(len(rows))] == [{"src": a, "tgt": b} for a, b in cells]


def test_cells_are_texts_and_records_have_their_lines(tmp_path):
    rows = rows_of(tmp_path, '\ufeffsrc,tgt\nhow many,42\n"two\nlines, ""quoted""",NA\n\nlast,null')
    assert [(rows.row(i), rows.origin(i)) for i in range(len(rows))] == [
        ({"src": "how many", "tgt": "42"}, "a:2"),
        ({"src": 'two\nlines, "quoted"', "tgt": "NA"}, "a:3"),
        ({"src": "last", "tgt": "null"}, "a:6"),
    ]


def test_columns_that_are_no_text_are_json(tmp_path):
    rows = rows_of(tmp_path, 'instruction,output,history\na,b,"[[""q"", ""a""]]"\na,b,\na,b,[[\n')
    assert rows.row(0)["history"] == [["q", "a"]]
    assert "history" not in rows.row(1)
    assert "column history holds no valid JSON" in rows.row(2).reason


def test_what_is_wrong_with_a_csv_is_said(tmp_path):
    rows = rows_of(tmp_path, b"src,tgt\na\na,caf\xe9\na,b,c\n")
    reasons = [rows.row(i).reason for i in range(3) if isinstance(rows.row(i), BadRow)]
    assert reasons[0] == "1 cells, but the first line names 2 columns"
    assert "byte 15 is no UTF-8" in reasons[1]
    assert reasons[2].startswith("3 cells")
    with pytest.raises(DataError, match="a:1: the column src is there more than once"):
        rows_of(tmp_path, "src,src\na,b\n")
    with pytest.raises(DataError, match="a:3: not valid csv"):
        rows_of(tmp_path, 'src,tgt\na,b\na,"b\nc,d\n')


def test_parquet_rows_have_only_their_own_fields(tmp_path):
    from datasets import Dataset

    given = [
        {"messages": [{"role": "user", "content": "a"}], "tools": None},
        {"messages": [{"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]}], "tools": "x"},
    ]
    path = tmp_path / "a.parquet"
    Dataset.from_list(given).to_parquet(str(path))
    rows = open_parquet(path, "a")
    assert rows.row(0) == {"messages": [{"role": "user", "content": "a"}]}
    assert rows.row(1)["messages"] == [{"role": "assistant", "tool_calls": [{"name": "f"}]}]
    assert rows.origin(1) == "a:2"


def test_a_hub_that_does_not_answer_is_told_at_once(monkeypatch):
    import datasets
    from huggingface_hub import constants

    for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    before = datasets.config.HF_HUB_OFFLINE
    with pytest.raises(UnsupportedError, match="nobody/nothing: .*127.0.0.1:9 does not answer"):
        open_hub("nobody/nothing")
    assert datasets.config.HF_HUB_OFFLINE == before


def test_a_hub_id_may_name_a_split(monkeypatch):
    import datasets

    asked = []

    def load(name, split):
        asked.append((name, split))
        return [{"src": "a", "tgt": None}]

    monkeypatch.setattr(tables, "_reachable", lambda endpoint: True)
    monkeypatch.setattr(datasets, "load_dataset", load)
    assert isinstance(open_hub("owner/name"), ArrowRows)
    assert open_hub("owner/name:test").row(0) == {"src": "a"}
    assert asked == [("owner/name", "train"), ("owner/name", "test")]
