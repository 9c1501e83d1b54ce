"""Rows of preference data in every form, and what is wrong with wrong ones."""

import pytest

from erniekit.data.formats import RowError, choose_format
from erniekit.data.pair_formats import NoPreference, parse_pair
from erniekit.errors import DataError


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


SYSTEM = {"role": "system", "content": "Be kind."}
TALK = [user("a"), assistant("b"), user("c")]
# (format, row, prompt, chosen, rejected, score difference)
ROWS = [
    (
        "erniekit",
        {"src": ["a", "c"], "tgt": ["b"], "response": [["good"], ["bad"]], "sort": [1, 0]},
        *(TALK, [assistant("good")], [assistant("bad")], 1.0),
    ),
    (
        "erniekit",
        {"src": "a", "tgt": [], "response": ["bad", "good"], "sort": [0.5, 3], "system": "Be kind."},
        *([SYSTEM, user("a")], [assistant("good")], [assistant("bad")], 2.5),
    ),
    (
        "erniekit",
        {"src": ["Be kind.", "a"], "tgt": [""], "is_system": 1, "response": ["x", "y"], "sort": [2, 1]},
        *([SYSTEM, user("a")], [assistant("x")], [assistant("y")], 1.0),
    ),
    (
        "erniekit",
        {"src": ["a"], "response": [["x", "and?", "z"], ["y"]], "sort": [2, 1]},
        *([user("a")], [assistant("x"), user("and?"), assistant("z")], [assistant("y")], 1.0),
    ),
    (
        "alpaca",
        {"instruction": "a", "input": "more", "chosen": "x", "rejected": "y", "system": "Be kind."},
        *([SYSTEM, user("a\nmore")], [assistant("x")], [assistant("y")], 1.0),
    ),
    (
        "alpaca",
        {"question": "c", "history": [["a", "b"]], "chosen": "x", "rejected": "y"},
        *(TALK, [assistant("x")], [assistant("y")], 1.0),
    ),
    (
        "alpaca",
        {"prompt": "a", "chosen": "x", "rejected": "y", "chosen_score": 5, "rejected_score": 1.5},
        *([user("a")], [assistant("x")], [assistant("y")], 3.5),
    ),
    (
        "chatml",
        {"prompt": TALK, "chosen": [assistant("x")], "rejected": [assistant("y")]},
        *(TALK, [assistant("x")], [assistant("y")], 1.0),
    ),
    (
        "messages",
        {"messages": TALK, "chosen": assistant("x"), "rejected": "y", "score_chosen": 2, "score_rejected": 1},
        *(TALK, [assistant("x")], [assistant("y")], 1.0),
    ),
    (
        "chatml",
        {"chosen": [SYSTEM, *TALK, assistant("x")], "rejected": [SYSTEM, *TALK, assistant("y")]},
        *([SYSTEM, *TALK], [assistant("x")], [assistant("y")], 1.0),
    ),
    (
        "sharegpt",
        {
            "conversations": [
                *({"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}),
                {"from": "human", "value": "c"},
            ],
            "chosen": {"from": "gpt", "value": "x"},
            "rejected": {"from": "gpt", "value": "y"},
        },
        *(TALK, [assistant("x")], [assistant("y")], 1.0),
    ),
]


@pytest.mark.parametrize("case", ROWS, ids=range(len(ROWS)))
def test_rows(case):
    kind, row, prompt, chosen, rejected, difference = case
    pair = parse_pair(kind, row)
    assert (pair.prompt, pair.chosen, pair.rejected) == (prompt, chosen, rejected)
    assert pair.score_difference == difference
    guessed = choose_format(None, row, origin="f:1", stage="DPO")
    assert guessed == ("chatml" if kind == "messages" else kind)


def test_tools():
    tools = [{"type": "function", "function": {"name": "clock"}}]
    call = {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"function": {"name": "clock", "arguments": "{}"}}],
    }
    pair = parse_pair("chatml", {"prompt": [user("a")], "chosen": call, "rejected": "y", "tools": tools})
    assert pair.tools == tools
    assert pair.chosen[0]["tool_calls"][0]["function"]["arguments"] == {}


TWO = {"src": ["a"], "response": ["x", "y"], "sort": [1, 0]}


@pytest.mark.parametrize(
    ("kind", "row", "words"),
    [
        ("erniekit", {"src": ["a"], "tgt": ["b"]}, "response is missing; the row has src, tgt"),
        ("erniekit", {**TWO, "response": ["x"]}, "it must be a list of two"),
        ("erniekit", {**TWO, "response": ["x", ""]}, "response 2, turn 1"),
        ("erniekit", {**TWO, "response": ["x", ["y", "z"]]}, "response 2 has 2 turns"),
        ("erniekit", {**TWO, "sort": [1]}, "sort is [1]"),
        ("erniekit", {**TWO, "sort": ["1", "2"]}, "two numbers"),
        ("erniekit", {**TWO, "src": ["a", "b"]}, "src has 2 turns and tgt 0"),
        ("alpaca", {"chosen": "x", "rejected": "y"}, "instruction is missing"),
        ("alpaca", {"prompt": "a", "chosen": "x"}, "rejected is missing"),
        ("alpaca", {"prompt": "a", "chosen": "x", "rejected": " "}, "rejected must be a text"),
        (
            "alpaca",
            {"prompt": "a", "chosen": "x", "rejected": "y", "chosen_score": 1, "rejected_score": 2},
            "below",
        ),
        ("alpaca", {"prompt": "a", "chosen": "x", "rejected": "y", "chosen_score": 1}, "two numbers"),
        ("chatml", {"prompt": TALK, "chosen": [assistant("x")], "rejected": []}, "rejected must be"),
        ("chatml", {"prompt": TALK, "chosen": [user("x")], "rejected": "y"}, "chosen"),
        (
            "chatml",
            {"chosen": [assistant("x")], "rejected": [assistant("y")]},
            "an answer must follow a question",
        ),
        (
            "chatml",
            {"chosen": [user("a"), assistant("x")], "rejected": [user("b"), assistant("y")]},
            "begin with",
        ),
        ("sharegpt", {"conversations": [], "chosen": "x", "rejected": "y"}, "conversations must be"),
        (
            "sharegpt",
            {
                "conversations": [{"from": "human", "value": "a"}],
                "chosen": {"from": "gpt", "value": ""},
                "rejected": "y",
            },
            "chosen: ",
        ),
        ("alpaca", ["x"], "the row is list"),
    ],
)
def test_mistakes(kind, row, words):
    with pytest.raises(RowError) as raised:
        parse_pair(kind, row)
    assert words in str(raised.value)


@pytest.mark.parametrize(
    ("kind", "row"),
    [
        ("erniekit", {**TWO, "sort": [1, 1]}),
        ("erniekit", {**TWO, "response": ["x", "x"]}),
        ("alpaca", {"prompt": "a", "chosen": "x", "rejected": "x"}),
        ("alpaca", {"prompt": "a", "chosen": "x", "rejected": "y", "chosen_score": 2, "rejected_score": 2}),
        ("chatml", {"chosen": [user("a"), assistant("x")], "rejected": [user("a"), assistant("x")]}),
    ],
)
def test_no_preference(kind, row):
    with pytest.raises(NoPreference):
        parse_pair(kind, row)


def test_rows_of_other_data_are_no_pairs():
    with pytest.raises(DataError, match="reads pairs of answers"):
        choose_format(None, {"src": ["a"], "tgt": ["b"]}, origin="f:1", stage="DPO")
