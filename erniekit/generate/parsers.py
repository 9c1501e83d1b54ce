"""The parts of an answer: what the model thought, what it says, which tools it calls.

One parser serves whole answers and answers that come piece by piece, the chat at a terminal and a
server. It knows the tags of ERNIE's and of most other templates:

    <think> ... </think>            what was thought; the opening tag may stand in the prompt already
    <response> ... </response>      around what is said (21B-Thinking), or nothing around it
    <tool_call> {JSON} </tool_call> a call {"name": ..., "arguments": {...}}, or a list of calls

A tag may be spread over several pieces, and newlines beside a tag belong to it, so the end of a
piece is held back while it may become either.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from erniekit.generate.stream import held_back

REASONING, CONTENT, CALL, MALFORMED = "reasoning", "content", "tool_call", "malformed"
OPEN_THINKING = "<think>"
CLOSE_THINKING = "</think>"
# In each state: tag -> the next state.
_TAGS: dict[str, dict[str, str]] = {
    CONTENT: {
        OPEN_THINKING: REASONING,
        CLOSE_THINKING: CONTENT,
        "<response>": CONTENT,
        "</response>": CONTENT,
        "<tool_call>": CALL,
    },
    REASONING: {CLOSE_THINKING: CONTENT},
    CALL: {"</tool_call>": CONTENT},
}


@dataclass(frozen=True)
class ToolCall:
    """A call that an answer asks for."""

    name: str
    arguments: dict[str, Any]

    def as_message(self, number: int) -> dict[str, Any]:
        """As the `tool_calls` of a server's answer hold it, arguments as a text; `number` makes the id."""
        arguments = json.dumps(self.arguments, ensure_ascii=False)
        function = {"name": self.name, "arguments": arguments}
        return {"id": f"call_{number}", "type": "function", "function": function}


@dataclass(frozen=True)
class Piece:
    """A part of an answer as it comes: `kind` is reasoning, content, tool_call or malformed.

    `text` is to be shown; of a call that was read it is its JSON in one line, and `call` is set.
    """

    kind: str
    text: str
    call: ToolCall | None = None


@dataclass
class Parsed:
    """A whole answer in its parts; `malformed` holds the insides of calls that could not be read."""

    reasoning: str = ""
    content: str = ""
    tool_calls: list[ToolCall] = field(default_factory=list)
    malformed: list[str] = field(default_factory=list)

    def as_message(self) -> dict[str, Any]:
        """The answer for the history, as templates expect it: without what was thought."""
        message: dict[str, Any] = {"role": "assistant", "content": self.content}
        if self.tool_calls:
            message["tool_calls"] = [
                {**call.as_message(n), "function": {"name": call.name, "arguments": call.arguments}}
                for n, call in enumerate(self.tool_calls)
            ]
        return message


class AnswerParser:
    """Takes an answer piece by piece.

    Args:
        in_reasoning: the prompt ends with an open `<think>`, see `opens_reasoning`.
    """

    def __init__(self, *, in_reasoning: bool = False) -> None:
        self._state = REASONING if in_reasoning else CONTENT
        self._pending = ""
        # Newlines at the beginning are dropped right behind a tag.
        self._behind_tag = in_reasoning
        self._closed = False

    def push(self, text: str) -> list[Piece]:
        """What is certain after the next piece of text."""
        self._pending += text
        pieces: list[Piece] = []
        while True:
            tags = _TAGS[self._state]
            found = [(self._pending.find(tag), tag) for tag in tags if tag in self._pending]
            if not found:
                break
            position, tag = min(found)
            self._close(self._pending[:position], pieces)
            self._pending = self._pending[position + len(tag) :]
            self._state, self._behind_tag = tags[tag], True
            self._closed = tag == "</response>"
        if self._state != CALL:
            self._advance(pieces)
        return pieces

    def flush(self) -> list[Piece]:
        """The rest, after the last piece; a call that was cut off is malformed."""
        pieces: list[Piece] = []
        rest, self._pending = self._pending, ""
        if self._state == CALL:
            if rest.strip():
                pieces.append(Piece(MALFORMED, rest.strip("\n")))
        else:
            self._emit(rest.rstrip("\n") if self._closed or self._state == REASONING else rest, pieces)
        return pieces

    def _close(self, text: str, pieces: list[Piece]) -> None:
        """The end of a part, right before a tag."""
        if self._state == CALL:
            pieces.extend(_calls(text.strip()))
        else:
            self._emit(text.rstrip("\n"), pieces)

    def _advance(self, pieces: list[Piece]) -> None:
        """Let go of what can be neither a tag nor newlines before one."""
        held = held_back(self._pending, tuple(_TAGS[self._state]))
        certain = self._pending[: len(self._pending) - held].rstrip("\n")
        if certain:
            self._pending = self._pending[len(certain) :]
            self._emit(certain, pieces)
        elif self._behind_tag:
            self._pending = self._pending.lstrip("\n")

    def _emit(self, text: str, pieces: list[Piece]) -> None:
        if self._behind_tag:
            text = text.lstrip("\n")
        if text:
            self._behind_tag = False
            pieces.append(Piece(self._state, text))


def parse_answer(text: str, *, in_reasoning: bool = False) -> Parsed:
    """A whole answer in its parts.

    Args:
        in_reasoning: the prompt ends with an open `<think>`; also assumed of an answer that closes
            what it has not opened.
    """
    before, closing, _ = text.partition(CLOSE_THINKING)
    in_reasoning = in_reasoning or bool(closing and OPEN_THINKING not in before)
    if in_reasoning:
        text = text.removeprefix(OPEN_THINKING)
    parser = AnswerParser(in_reasoning=in_reasoning)
    return gather([*parser.push(text), *parser.flush()])


def gather(pieces: Iterable[Piece]) -> Parsed:
    """The pieces of an answer as a whole."""
    parsed = Parsed()
    for piece in pieces:
        if piece.kind == REASONING:
            parsed.reasoning += piece.text
        elif piece.kind == CONTENT:
            parsed.content += piece.text
        elif piece.call is not None:
            parsed.tool_calls.append(piece.call)
        else:
            parsed.malformed.append(piece.text)
    return parsed


def opens_reasoning(prompt: str) -> bool:
    """Whether a rendered prompt ends inside of what is thought."""
    return prompt.rstrip().endswith(OPEN_THINKING)


def _calls(text: str) -> list[Piece]:
    """The calls of one `<tool_call>` block."""
    try:
        content = json.loads(text)
    except ValueError:
        return [Piece(MALFORMED, text)]
    pieces = []
    for item in content if isinstance(content, list) else [content]:
        function = item.get("function", item) if isinstance(item, dict) else None
        call = _call(function) if isinstance(function, dict) else None
        shown = json.dumps(item, ensure_ascii=False)
        pieces.append(Piece(CALL, shown, call) if call is not None else Piece(MALFORMED, shown))
    return pieces


def _call(function: dict[str, Any]) -> ToolCall | None:
    arguments = function.get("arguments", function.get("parameters", {}))
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments) if arguments.strip() else {}
        except ValueError:
            return None
    if not isinstance(function.get("name"), str) or not isinstance(arguments, dict):
        return None
    return ToolCall(function["name"], arguments)
