"""Parts of answers, whole and piece by piece."""

import json

import pytest

from erniekit.generate.parsers import (
    AnswerParser,
    ToolCall,
    gather,
    opens_reasoning,
    parse_answer,
)

CLOCK = '{"name": "clock", "arguments": {"city": "Lima"}}'
TIMER = '{"name": "timer", "arguments": "{\\"minutes\\": 3}"}'
ANSWERS = [
    ("plain", "", "plain", []),
    ("<think>\nhm\n</think>\n\nYes", "hm", "Yes", []),
    ("hm\n</think>\n\nYes", "hm", "Yes", []),
    ("<think>\nhm", "hm", "", []),
    ("<think>a</think><response>\nYes\n</response>\n", "a", "Yes", []),
    ("<think>\n\n</think>\n\nYes\n", "", "Yes\n", []),
    ("a < b", "", "a < b", []),
    ("two\n\nparagraphs", "", "two\n\nparagraphs", []),
    (f"<tool_call>\n{CLOCK}\n</tool_call>", "", "", ["clock"]),
    (
        f"<think>\nhm\n</think>\n\n<tool_call>\n{CLOCK}\n</tool_call>\n<tool_call>{TIMER}</tool_call>\n",
        *("hm", ""),
        ["clock", "timer"],
    ),
    (f"I look.\n<tool_call>[{CLOCK}, {TIMER}]</tool_call>", "", "I look.", ["clock", "timer"]),
    (
        f"<think>x</think><response>\nSo\n</response>\n<tool_call>\n{CLOCK}\n</tool_call>\n",
        *("x", "So"),
        ["clock"],
    ),
    ("<think>if a < b: </th>\n</think>c", "if a < b: </th>", "c", []),
]


@pytest.mark.parametrize("case", ANSWERS, ids=range(len(ANSWERS)))
def test_whole_answers(case):
    text, reasoning, content, names = case
    parsed = parse_answer(text)
    assert (parsed.reasoning, parsed.content) == (reasoning, content)
    assert [call.name for call in parsed.tool_calls] == names and not parsed.malformed


@pytest.mark.parametrize("size", [1, 2, 3, 7])
@pytest.mark.parametrize("case", ANSWERS, ids=range(len(ANSWERS)))
def test_piece_by_piece(case, size):
    text, reasoning, content, names = case
    in_reasoning = "</think>" in text and not text.startswith("<think>")
    parser = AnswerParser(in_reasoning=in_reasoning)
    pieces = [p for start in range(0, len(text), size) for p in parser.push(text[start : start + size])]
    parsed = gather([*pieces, *parser.flush()])
    assert (parsed.reasoning, parsed.content) == (reasoning, content)
    assert [call.name for call in parsed.tool_calls] == names


def test_text_comes_as_early_as_it_is_certain():
    parser = AnswerParser()
    shown = [[piece.text for piece in parser.push(text)] for text in ("Yes", " <", "b> and\n", "\n", "more")]
    assert shown == [["Yes"], [" "], ["<b> and"], [], ["\n\nmore"]]


def test_arguments_are_parsed_and_written_as_messages_hold_them():
    parsed = parse_answer(f"<tool_call>{TIMER}</tool_call>")
    assert parsed.tool_calls == [ToolCall("timer", {"minutes": 3})]
    message = parsed.as_message()
    assert message["role"] == "assistant" and message["content"] == ""
    call = message["tool_calls"][0]
    assert call["id"] == "call_0" and call["function"] == {"name": "timer", "arguments": {"minutes": 3}}
    function = parsed.tool_calls[0].as_message(0)["function"]
    assert json.loads(function["arguments"]) == {"minutes": 3}, "as answers of a server hold them"


def test_reasoning_is_not_part_of_the_message():
    assert parse_answer("<think>hm</think>Yes").as_message() == {"role": "assistant", "content": "Yes"}


@pytest.mark.parametrize(
    "inside",
    [
        "{oops",
        '"text"',
        '{"arguments": {}}',
        '{"name": "f", "arguments": "{oops"}',
        '{"name": "f", "arguments": [1]}',
    ],
)
def test_calls_that_cannot_be_read(inside):
    parsed = parse_answer(f"<tool_call>{inside}</tool_call>")
    assert not parsed.tool_calls and len(parsed.malformed) == 1


def test_a_call_that_was_cut_off():
    parsed = parse_answer('Wait.\n<tool_call>\n{"name": "clo')
    assert parsed.content == "Wait." and parsed.malformed == ['{"name": "clo']


def test_a_call_without_arguments():
    assert parse_answer('<tool_call>{"name": "now"}</tool_call>').tool_calls == [ToolCall("now", {})]


def test_prompts_that_open_reasoning():
    assert opens_reasoning("...<|im_start|>assistant\n<think>\n")
    assert not opens_reasoning("...Assistant: ") and not opens_reasoning("<think>\n\n</think>\n\n")
