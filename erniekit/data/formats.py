"""What a row means: one reader for each format, all giving a conversation or a text.

| word | columns |
|---|---|
| `erniekit` | src, tgt: text or list of texts, one each turn; system, is_system, label: 0/1 each turn |
| `alpaca` | instruction, input, output, history: [[user, answer], ...], system |
| `chatml`, `messages` | messages: [{role, content, tool_calls, reasoning_content, label}], tools, label |
| `sharegpt` | conversations: [{from, value}], system, tools |
| `text` | text (the only format of stage PT; also what `erniekit` means there) |
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from erniekit.errors import ConfigError, DataError


@dataclass(frozen=True)
class Conversation:
    """Messages for a chat template; `trained` says for each assistant message whether it is trained on."""

    messages: list[dict[str, Any]]
    trained: list[bool]
    tools: list[Any] | None = None


class RowError(ValueError):
    """Why a row is wrong, without its place."""


_SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "function_call": "function_call",
    "observation": "tool",
    "tool": "tool",
    "system": "system",
}
_ROLES = ("system", "user", "assistant", "tool")


def read_erniekit(row: Mapping[str, Any]) -> Conversation:
    """src/tgt lists; the older `is_system: 1` makes the first src the system message."""
    sources, targets = _texts(row, "src"), _texts(row, "tgt")
    system = _optional_text(row, "system")
    if row.get("is_system"):
        system, sources = sources[0], sources[1:]
        if len(targets) == len(sources) + 1:
            targets = targets[1:]
    if len(sources) != len(targets):
        raise RowError(f"src has {len(sources)} turns and tgt {len(targets)}; they must be as many")
    label = row.get("label")
    if label is None:
        trained = [True] * len(targets)
    else:
        values = label if isinstance(label, list) else [label]
        if len(values) != len(targets) or not all(value in (0, 1, True, False) for value in values):
            raise RowError(f"label is {label!r}; it must be one 0 or 1 for each of the {len(targets)} turns")
        trained = [bool(value) for value in values]
    messages = [{"role": "system", "content": system}] if system else []
    for source, target in zip(sources, targets, strict=True):
        messages += [{"role": "user", "content": source}, {"role": "assistant", "content": target}]
    return Conversation(messages, trained)


def read_alpaca(row: Mapping[str, Any]) -> Conversation:
    """instruction and input are the question, output is the answer; history comes before them."""
    question = _text(row, "instruction")
    extra = _optional_text(row, "input")
    if extra:
        question = f"{question}\n{extra}"
    history = row.get("history") or []
    messages: list[dict[str, Any]] = []
    system = _optional_text(row, "system")
    if system:
        messages.append({"role": "system", "content": system})
    if not isinstance(history, list):
        raise RowError(f"history is {type(history).__name__}; it must be a list of [question, answer] pairs")
    for number, pair in enumerate(history, start=1):
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise RowError(f"history, turn {number}: must be a pair [question, answer] of texts")
        messages += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    messages += [
        {"role": "user", "content": question},
        {"role": "assistant", "content": _text(row, "output")},
    ]
    return Conversation(messages, [True] * (len(history) + 1))


def read_messages(row: Mapping[str, Any]) -> Conversation:
    """OpenAI-style messages, with tool calls and reasoning."""
    given = row.get("messages")
    if not isinstance(given, list) or not given:
        raise RowError("messages must be a list of {role, content} and hold at least one")
    messages, trained = [], []
    for number, message in enumerate(given, start=1):
        if not isinstance(message, Mapping):
            raise RowError(
                f"message {number} is {type(message).__name__}; it must be a mapping with role and content"
            )
        role, content = message.get("role"), message.get("content")
        if role not in _ROLES:
            raise RowError(f"message {number}: role {role!r} is not one of {', '.join(_ROLES)}")
        calls = message.get("tool_calls") or None
        if content is None and calls:
            content = ""
        if not isinstance(content, str):
            raise RowError(
                f"message {number} ({role}): content is {type(content).__name__}, it must be a text"
            )
        if not content.strip() and not calls:
            raise RowError(f"message {number} ({role}): content is empty")
        clean = {"role": role, "content": content}
        for key in ("tool_calls", "reasoning_content", "name", "tool_call_id"):
            if message.get(key):
                clean[key] = message[key]
        messages.append(clean)
        if role == "assistant":
            trained.append(bool(message.get("label", message.get("weight", 1))))
    label = row.get("label")
    if label is not None:
        if not isinstance(label, list) or len(label) != len(trained):
            raise RowError(
                f"label is {label!r}; it must be one 0 or 1 for each of the {len(trained)} assistant messages"
            )
        trained = [bool(value) for value in label]
    return _ordered(Conversation(messages, trained, _tools(row)))


def read_sharegpt(row: Mapping[str, Any]) -> Conversation:
    """from/value turns; function_call and observation become tool calls and their results."""
    given = row.get("conversations")
    if not isinstance(given, list) or not given:
        raise RowError("conversations must be a list of {from, value} and hold at least one")
    messages: list[dict[str, Any]] = []
    system = _optional_text(row, "system")
    if system:
        messages.append({"role": "system", "content": system})
    for number, turn in enumerate(given, start=1):
        if not isinstance(turn, Mapping):
            raise RowError(
                f"turn {number} is {type(turn).__name__}; it must be a mapping with from and value"
            )
        role, value = _SHAREGPT_ROLES.get(str(turn.get("from"))), turn.get("value")
        if role is None:
            raise RowError(
                f"turn {number}: from {turn.get('from')!r} is not one of {', '.join(_SHAREGPT_ROLES)}"
            )
        if not isinstance(value, str) or not value.strip():
            raise RowError(f"turn {number} ({turn.get('from')}): value must be a text that is not empty")
        if role == "function_call":
            messages.append({"role": "assistant", "content": "", "tool_calls": _calls(value, number)})
        else:
            messages.append({"role": role, "content": value})
    trained = [True for message in messages if message["role"] == "assistant"]
    return _ordered(Conversation(messages, trained, _tools(row)))


def read_text(row: Mapping[str, Any]) -> str:
    """A text to be trained on as a whole."""
    return _text(row, "text")


FORMATS: dict[str, Callable[[Mapping[str, Any]], Conversation]] = {
    "erniekit": read_erniekit,
    "alpaca": read_alpaca,
    "chatml": read_messages,
    "messages": read_messages,
    "sharegpt": read_sharegpt,
}
_SIGNS = {"src": "erniekit", "instruction": "alpaca", "messages": "chatml", "conversations": "sharegpt"}


def choose_format(kind: str | None, first_row: Any, *, origin: str, stage: str) -> str:
    """The format to read a file as: the one named, else what its first row looks like.

    Raises:
        ConfigError: the name is not known, or does not belong to the stage.
        DataError: no name is given and the columns say nothing.
    """
    if stage == "PT":
        if kind in (None, "text", "erniekit", "pt"):
            return "text"
        raise ConfigError(
            f"train_dataset_type: {kind!r} holds conversations; stage PT reads texts: write text"
        )
    if kind is not None:
        if kind not in FORMATS:
            known = ", ".join(FORMATS)
            raise ConfigError(f"train_dataset_type: {kind!r} is not known for stage {stage}; known: {known}")
        return kind
    columns = list(first_row) if isinstance(first_row, Mapping) else []
    found = {_SIGNS[column] for column in columns if column in _SIGNS}
    if len(found) == 1:
        return found.pop()
    raise DataError(
        f"{origin}: which format is this? The first row has the columns "
        f"{', '.join(columns) or '(none)'}; write "
        f"train_dataset_type: {' or '.join(sorted(found) or FORMATS)}"
    )


def parse(kind: str, row: Any) -> Conversation | str:
    """A row as what it means.

    Raises:
        RowError: says what is wrong with it.
    """
    if not isinstance(row, Mapping):
        raise RowError(f"the row is {type(row).__name__}; it must be a JSON object")
    return read_text(row) if kind == "text" else FORMATS[kind](row)


def _texts(row: Mapping[str, Any], key: str) -> list[str]:
    if key not in row:
        raise RowError(f"{key} is missing; the row has {', '.join(map(str, row)) or 'nothing'}")
    values = row[key] if isinstance(row[key], list) else [row[key]]
    if not values:
        raise RowError(f"{key} is an empty list")
    for number, value in enumerate(values, start=1):
        if not isinstance(value, str):
            raise RowError(f"{key}, turn {number} is {type(value).__name__}; it must be a text")
        if not value.strip():
            raise RowError(f"{key}, turn {number} is empty")
    return values


def _text(row: Mapping[str, Any], key: str) -> str:
    if key not in row:
        raise RowError(f"{key} is missing; the row has {', '.join(map(str, row)) or 'nothing'}")
    if not isinstance(row[key], str):
        raise RowError(f"{key} is {type(row[key]).__name__}; it must be a text")
    if not row[key].strip():
        raise RowError(f"{key} is empty")
    return row[key]


def _optional_text(row: Mapping[str, Any], key: str) -> str:
    value = row.get(key)
    if value is not None and not isinstance(value, str):
        raise RowError(f"{key} is {type(value).__name__}; it must be a text")
    return value or ""


def _tools(row: Mapping[str, Any]) -> list[Any] | None:
    tools = row.get("tools")
    if isinstance(tools, str) and tools.strip():
        try:
            tools = json.loads(tools)
        except ValueError as error:
            raise RowError(f"tools is a text but no valid JSON ({error})") from error
    if tools and not isinstance(tools, list):
        raise RowError(f"tools is {type(tools).__name__}; it must be a list")
    return tools or None


def _calls(value: str, number: int) -> list[Any]:
    try:
        calls = json.loads(value)
    except ValueError as error:
        raise RowError(f"turn {number} (function_call): not valid JSON ({error})") from error
    calls = calls if isinstance(calls, list) else [calls]
    return [{"type": "function", "function": call} for call in calls]


def _ordered(conversation: Conversation) -> Conversation:
    """Check the order of roles: system first, an answer after a question or a tool's result, never first."""
    previous = None
    for number, message in enumerate(conversation.messages, start=1):
        role = message["role"]
        if role == "system" and number > 1:
            raise RowError(f"message {number}: a system message must be the first")
        if role == "assistant" and previous in (None, "system"):
            raise RowError(f"message {number}: an answer must follow a question")
        if role == "assistant" and previous == "assistant":
            raise RowError(f"message {number}: two assistant messages in a row")
        if role == "tool" and previous not in ("assistant", "tool"):
            raise RowError(f"message {number}: a tool's result must follow an assistant's tool call")
        previous = role
    if not conversation.trained:
        raise RowError("there is no answer in it: nothing could be trained on")
    return conversation
