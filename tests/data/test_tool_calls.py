"""Calls against the definitions of tools."""

import pytest

from erniekit.data.tool_calls import check_call, read_tools
from erniekit.errors import DataError

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "timer",
            "parameters": {
                "properties": {
                    "minutes": {"type": "integer"},
                    "label": {"type": ["string", "null"]},
                    "mode": {"enum": ["loud", "soft"]},
                    "other": {"type": "unheard-of"},
                },
                "required": ["minutes"],
                "additionalProperties": False,
            },
        },
    },
    {"name": "now"},
]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (("timer", {"minutes": 3}), None),
        (("timer", {"minutes": 3.0, "label": None, "mode": "loud", "other": 1}), None),
        (("now", {"anything": 1}), None),
        (("clock", {}), "no tool 'clock'; there are timer, now"),
        (("timer", [3]), "arguments are list, not an object"),
        (("timer", {}), "lacks minutes"),
        (("timer", {"minutes": "3"}), "minutes is str, not integer"),
        (("timer", {"minutes": True}), "minutes is bool"),
        (("timer", {"minutes": 1, "label": 2}), "label is int"),
        (("timer", {"minutes": 1, "mode": "off"}), "mode is 'off', not one of"),
        (("timer", {"minutes": 1, "hours": 2}), "has no argument 'hours'"),
    ],
)
def test_calls_against_definitions(call, words):
    found = check_call(*call, TOOLS)
    assert found is None if words is None else words in found


def test_tools_that_are_no_definitions():
    assert "no tool 'a'; there are none" in str(check_call("a", {}, ["a", {"function": "a"}]))


def test_definitions_of_a_file(tmp_path):
    path = tmp_path / "tools.json"
    path.write_text('{"type": "function", "function": {"name": "clock"}}')
    assert read_tools(path) == [{"type": "function", "function": {"name": "clock"}}]
    path.write_text('[{"name": "clock"}]')
    assert read_tools(path) == [{"name": "clock"}]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[", "not valid JSON"),
        ("[]", "no tool"),
        ('[{"name": "a"}, "b"]', "tool 2 has no name"),
        (None, "read"),
    ],
)
def test_a_file_without_definitions(text, said, tmp_path):
    path = tmp_path / "tools.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(DataError, match=said):
        read_tools(path)
