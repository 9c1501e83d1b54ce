"""Elements of arrays that do not fit into the window."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from erniekit.data.arrays import index_array
from erniekit.data.rows import JsonRows
from erniekit.errors import DataError

VALUE = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text()
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(
    rows=st.lists(VALUE, max_size=8),
    indent=st.sampled_from([None, 0, 3]),
    plain=st.booleans(),
    window=st.integers(1, 40),
    mark=st.booleans(),
)
def test_any_array_comes_back_through_any_window(tmp_path_factory, rows, indent, plain, window, mark):
    rows = json.loads(json.dumps(rows))
    if any("\\ud" in json.dumps(row) for row in rows):
        plain = True  # other signs than those of the BMP are pairs there
    path = tmp_path_factory.mktemp("array") / "a.json"
    text = json.dumps(rows, indent=indent, ensure_ascii=plain)
    path.write_bytes((b"\xef\xbb\xbf" if mark else b"") + text.encode("utf-8"))
    found = JsonRows(path, "a", index_array(path, "a", window=window))
    assert [found.row(i) for i in range(len(found))] == rows


@pytest.mark.parametrize("window", [1, 7, 1 << 20])
def test_each_element_has_its_line(tmp_path, window):
    path = tmp_path / "a.json"
    path.write_text('[{"a":\n 1},\n\n {"a": 2}, {"a": "\u4e09"}\n]\n', encoding="utf-8")
    rows = JsonRows(path, "a", index_array(path, "a", window=window))
    assert [rows.origin(i) for i in range(len(rows))] == ["a:1", "a:4", "a:4"]
    assert rows.row(2) == {"a": "\u4e09"}


@pytest.mark.parametrize("window", [1, 1 << 20])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'[{"a": 1},\n {"a": }]', r"a:2: not valid JSON \(column 8: Expecting value"),
        (b'[{"a": 1} {"a": 2}]', r"a:1: .*column 11: a comma or \] must follow this element"),
        (b'[{"a": 1},\n', r"a:2: not valid JSON \(column 1: Expecting value"),
        (b'[{"a": 1}', r"the file ends here"),
        (b'[{"a": "x', r"a:1: not valid JSON \(column 8: Unterminated string"),
        (b'[{"a": 1}]\n[2]', "a:2: .*there is more after the array"),
        (b"[1,]", "Expecting value"),
        (b'["caf\xe9", 2]', "byte 5 is no UTF-8"),
        (b"[NaN]", "NaN is no JSON value"),
        (b"[" * 100000, "nested too deeply"),
    ],
)
def test_errors_have_their_place(tmp_path, window, content, message):
    if content.startswith(b"[[[") and window == 1:
        window = 1 << 16  # letter by letter this one is quadratic
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        index_array(path, "a", window=window)


@pytest.mark.parametrize("window", range(1, 60))
def test_numbers_are_not_cut_where_the_window_ends(tmp_path, window):
    path = tmp_path / "a.json"
    path.write_text("[1.5e+3,-0.25, 12345678901234567890 ,0, 1e-7]")
    rows = JsonRows(path, "a", index_array(path, "a", window=window))
    assert [rows.row(i) for i in range(len(rows))] == [1500.0, -0.25, 12345678901234567890, 0, 1e-7]
