import pytest

from erniekit.data.formats import Conversation, RowError, choose_format, parse
from erniekit.errors import ConfigError, DataError


def turns(*texts):
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]


SYSTEM = {"role": "system", "content": "s"}
GOOD = [
    ("erniekit", {"src": "a", "tgt": "b"}, Conversation(turns("a", "b"), [True])),
    (
        "erniekit",
        {"src": ["a", "c"], "tgt": ["b", "d"], "label": [0, 1], "system": "s"},
        Conversation([SYSTEM, *turns("a", "b", "c", "d")], [False, True]),
    ),
    (
        "erniekit",
        {"src": ["s", "a"], "tgt": ["b"], "is_system": 1},
        Conversation([SYSTEM, *turns("a", "b")], [True]),
    ),
    ("alpaca", {"instruction": "a", "input": "", "output": "b"}, Conversation(turns("a", "b"), [True])),
    (
        "alpaca",
        {"instruction": "c", "input": "i", "output": "d", "history": [["a", "b"]], "system": "s"},
        Conversation([SYSTEM, *turns("a", "b", "c\ni", "d")], [True, True]),
    ),
    ("chatml", {"messages": [SYSTEM, *turns("a", "b")]}, Conversation([SYSTEM, *turns("a", "b")], [True])),
    (
        "messages",
        {"messages": turns("a", "b", "c", "d"), "label": [1, 0]},
        Conversation(turns("a", "b", "c", "d"), [True, False]),
    ),
    (
        "sharegpt",
        {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}], "system": "s"},
        Conversation([SYSTEM, *turns("a", "b")], [True]),
    ),
    (
        "erniekit",
        {"src": ["s", "a", "c"], "tgt": ["", "b", "d"], "is_system": 1, "label": [0, 0, 1]},
        Conversation([SYSTEM, *turns("a", "b", "c", "d")], [False, True]),
    ),
    (
        "chatml",
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
                {"role": "assistant", "content": "c", "label": 0},
                *turns("d", "e"),
            ]
        },
        Conversation(turns("ab", "c", "d", "e"), [False, True]),
    ),
    ("text", {"text": "hello"}, "hello"),
]


@pytest.mark.parametrize(("kind", "row", "expected"), GOOD)
def test_good_rows(kind, row, expected):
    assert parse(kind, row) == expected


def test_sharegpt_calls():
    row = {
        "conversations": [
            {"from": "human", "value": "weather?"},
            {"from": "function_call", "value": '{"name": "w", "arguments": {"x": 1}}'},
            {"from": "observation", "value": "sunny"},
            {"from": "gpt", "value": "It is sunny."},
        ],
        "tools": '[{"name": "w"}]',
    }
    parsed = parse("sharegpt", row)
    assert [message["role"] for message in parsed.messages] == ["user", "assistant", "tool", "assistant"]
    assert parsed.messages[1]["tool_calls"][0]["function"] == {"name": "w", "arguments": {"x": 1}}
    assert parsed.tools == [{"name": "w"}] and parsed.trained == [True, True]


def test_calls_are_read_in_every_way_they_are_written():
    wanted = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
    written = [
        {"function": {"name": "f", "arguments": '{"x": 1}'}},
        {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}},
        {"name": "f", "arguments": {"x": 1}},
    ]
    for call in written:
        row = {"messages": [*turns("a"), {"role": "assistant", "content": None, "tool_calls": [call]}]}
        assert parse("chatml", row).messages[1] == {
            "role": "assistant",
            "content": "",
            "tool_calls": [wanted],
        }
    with_id = {"id": "c1", **written[0]}
    row["messages"] += [{"role": "tool", "content": "", "tool_call_id": "c1"}, *turns("x", "b")[1:]]
    row["messages"][1]["tool_calls"] = [with_id]
    parsed = parse("chatml", row)
    assert parsed.messages[1]["tool_calls"] == [{**wanted, "id": "c1"}]
    assert parsed.messages[2] == {"role": "tool", "content": "", "tool_call_id": "c1"}


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_has_one_name(key):
    row = {"messages": [*turns("a"), {"role": "assistant", "content": "b", key: "why"}]}
    assert parse("chatml", row).messages[1] == {
        "role": "assistant",
        "content": "b",
        "reasoning_content": "why",
    }


BAD = [
    ("erniekit", {"src": ["s"], "tgt": ["b"], "is_system": 1}, "a question must follow"),
    ("erniekit", {"src": ["s", "a"], "tgt": ["", ""], "is_system": 1}, "tgt, turn 2 is empty"),
    ("erniekit", {"src": ["s", "a"], "tgt": [""], "is_system": 1}, "tgt, turn 1 is empty"),
    ("chatml", {"messages": [*turns("a"), {"role": "assistant", "content": "b", "label": "0"}]}, "0 or 1"),
    ("chatml", {"messages": turns("a", "b"), "label": ["x"]}, "one 0 or 1 for each of the 1 assistant"),
    ("chatml", {"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "a part of type 'image'"),
    ("chatml", {"messages": [*turns("a"), {"role": "assistant", "tool_calls": [{}]}]}, "name of a function"),
    ("chatml", {"messages": [*turns("a"), {"role": "assistant", "tool_calls": {"name": "f"}}]}, "is dict"),
    (
        "chatml",
        {"messages": [*turns("a"), {"role": "assistant", "tool_calls": [{"name": "f", "arguments": "{"}]}]},
        "the arguments of f are no valid JSON",
    ),
    (
        "sharegpt",
        {"conversations": [{"from": "human", "value": "a"}, {"from": "function_call", "value": "[1]"}]},
        "name of a function",
    ),
    ("erniekit", ["a"], "must be a JSON object"),
    ("erniekit", {"src": "a"}, "tgt is missing"),
    ("erniekit", {"src": ["a", "b"], "tgt": ["c"]}, "src has 2 turns and tgt 1"),
    ("erniekit", {"src": "a", "tgt": "  "}, "tgt, turn 1 is empty"),
    ("erniekit", {"src": "a", "tgt": 3}, "tgt, turn 1 is int"),
    ("erniekit", {"src": [], "tgt": []}, "empty list"),
    ("erniekit", {"src": "a", "tgt": "b", "label": [1, 1]}, "one 0 or 1 for each of the 1 turns"),
    ("erniekit", {"src": "a", "tgt": "b", "label": [2]}, "one 0 or 1"),
    ("alpaca", {"instruction": "a"}, "output is missing"),
    ("alpaca", {"instruction": "a", "output": None}, "output is NoneType"),
    ("alpaca", {"instruction": "a", "output": "b", "history": [["x"]]}, "history, turn 1"),
    ("alpaca", {"instruction": "a", "output": "b", "history": "x"}, "history is str"),
    ("chatml", {"messages": []}, "must be a list"),
    ("chatml", {"messages": ["x"]}, "message 1 is str"),
    ("chatml", {"messages": [{"role": "human", "content": "a"}]}, "role 'human' is not one of"),
    ("chatml", {"messages": [{"role": "user", "content": None}]}, "content is NoneType"),
    ("chatml", {"messages": [{"role": "user", "content": ""}]}, "content is empty"),
    ("chatml", {"messages": turns("a", "b")[::-1]}, "an answer must follow a question"),
    ("chatml", {"messages": [*turns("a"), SYSTEM]}, "system message must be the first"),
    ("chatml", {"messages": turns("a")}, "no answer in it"),
    ("chatml", {"messages": [*turns("a", "b"), turns("a", "b")[1]]}, "two assistant messages"),
    ("chatml", {"messages": turns("a", "b"), "tools": "{"}, "no valid JSON"),
    ("sharegpt", {"conversations": [{"from": "bot", "value": "a"}]}, "from 'bot' is not one of"),
    ("sharegpt", {"conversations": [{"from": "human", "value": ""}]}, "must be a text that is not empty"),
    (
        "sharegpt",
        {"conversations": [{"from": "human", "value": "a"}, {"from": "function_call", "value": "x"}]},
        "JSON",
    ),
    ("text", {"txt": "a"}, "text is missing; the row has txt"),
]


@pytest.mark.parametrize(("kind", "row", "message"), BAD)
def test_bad_rows_say_why(kind, row, message):
    with pytest.raises(RowError, match=message):
        parse(kind, row)


def test_the_format_is_guessed_from_the_columns():
    def guess(row, stage="SFT", kind=None):
        return choose_format(kind, row, origin="f:1", stage=stage)

    assert guess({"src": 1}) == "erniekit"
    assert guess({"instruction": 1}) == "alpaca"
    assert guess({"messages": 1}) == "chatml"
    assert guess({"conversations": 1}) == "sharegpt"
    assert guess({"text": 1}, "PT") == "text" and guess({}, "PT", "erniekit") == "text"
    with pytest.raises(DataError, match="columns question, answer"):
        guess({"question": 1, "answer": 2})
    with pytest.raises(DataError, match="alpaca or erniekit"):
        guess({"src": 1, "instruction": 2})
    with pytest.raises(ConfigError, match="'alpca' is not known"):
        guess({}, "SFT", "alpca")
    with pytest.raises(ConfigError, match="eval_dataset_type: 'text' .* stage: PT"):
        choose_format("text", {}, origin="f:1", stage="SFT", key="eval_dataset_type")
    with pytest.raises(DataError, match="It holds texts, .* trained on in stage: PT"):
        guess({"text": "a"})
    with pytest.raises(DataError, match="The first row is list, not a JSON object"):
        guess([1])
    with pytest.raises(ConfigError, match="stage PT reads texts"):
        guess({}, "PT", "alpaca")
