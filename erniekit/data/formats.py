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
# Keys of a message beside role, content and tool_calls, under the one name that templates get.
_OTHER_KEYS = {
    "reasoning_content": "reasoning_content",
    "reasoning": "reasoning_content",
    "thinking": "reasoning_content",
    "name": "name",
    "tool_call_id": "tool_call_id",
}
_ROLES = ("system", "user", "assistant", "tool")


def read_erniekit(row: Mapping[str, Any]) -> Conversation:
    """src/tgt lists; the older `is_system: 1` makes the first src the system message."""
    sources, targets = texts_of(row, "src"), texts_of(row, "tgt", may_begin_empty=bool(row.get("is_system")))
    system = optional_text(row, "system")
    num_given = len(targets)
    if row.get("is_system"):
        system, sources = sources[0], sources[1:]
        # Some files answer the system message too, with nothing or with a greeting.
        targets = targets[len(targets) - len(sources) :] if num_given == len(sources) + 1 else targets
        if not sources:
            raise RowError("is_system is set and src has only the system message; a question must follow")
        if not targets[0].strip():
            raise RowError("tgt, turn 1 is empty")
    if len(sources) != len(targets):
        raise RowError(f"src has {len(sources)} turns and tgt {len(targets)}; they must be as many")
    label = row.get("label")
    if isinstance(label, list) and len(label) == num_given:
        label = label[num_given - len(targets) :]
    trained = _flags(label, len(targets), "turns")
    messages = [{"role": "system", "content": system}] if system else []
    for source, target in zip(sources, targets, strict=True):
        messages += [{"role": "user", "content": source}, {"role": "assistant", "content": target}]
    return Conversation(messages, trained)


def read_alpaca(row: Mapping[str, Any]) -> Conversation:
    """instruction and input are the question, output is the answer; history comes before them."""
    question = _text(row, "instruction")
    extra = optional_text(row, "input")
    if extra:
        question = f"{question}\n{extra}"
    history = row.get("history") or []
    messages: list[dict[str, Any]] = []
    system = optional_text(row, "system")
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
        clean = _message(message, f"message {number}")
        messages.append(clean)
        if clean["role"] == "assistant":
            where = f"message {number}: label"
            trained.append(_flag(message.get("label", message.get("weight")), where))
    label = row.get("label")
    if label is not None:
        trained = _flags(label, len(trained), "assistant messages")
    return _ordered(Conversation(messages, trained, tools_of(row)))


def _message(message: Any, where: str) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise RowError(f"{where} is {type(message).__name__}; it must be a mapping with role and content")
    role, content = message.get("role"), message.get("content")
    if role not in _ROLES:
        raise RowError(f"{where}: role {role!r} is not one of {', '.join(_ROLES)}")
    where = f"{where} ({role})"
    calls = message.get("tool_calls") or None
    if calls is not None and not isinstance(calls, list):
        raise RowError(f"{where}: tool_calls is {type(calls).__name__}; it must be a list")
    content = "" if content is None and calls else _content(content, where)
    # A tool may have nothing to say; a person and a model may not.
    if not content.strip() and not calls and role != "tool":
        raise RowError(f"{where}: content is empty")
    clean: dict[str, Any] = {"role": role, "content": content}
    if calls:
        clean["tool_calls"] = [_call(call, where) for call in calls]
    for key, meaning in _OTHER_KEYS.items():
        value = message.get(key)
        if value is not None and not isinstance(value, str):
            raise RowError(f"{where}: {key} is {type(value).__name__}; it must be a text")
        if value:
            clean.setdefault(meaning, value)
    return clean


def with_read_calls(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Messages whose calls have their arguments as objects.

    Raises:
        RowError: a call has no name, or its arguments are no JSON object.
    """
    return [
        {**message, "tool_calls": [_call(call, f"message {number}") for call in message["tool_calls"]]}
        if message.get("tool_calls")
        else message
        for number, message in enumerate(messages, start=1)
    ]


def _content(content: Any, where: str) -> str:
    """A content as a text; the parts of one are joined."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise RowError(f"{where}: content is {type(content).__name__}, it must be a text")
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
        if kind != "text" or not isinstance(part.get("text"), str):
            raise RowError(f"{where}: content has a part of type {kind!r}; only text is read")
        texts.append(part["text"])
    return "".join(texts)


def _call(call: Any, where: str) -> dict[str, Any]:
    """A tool call; arguments that are written as JSON become what they mean, as templates expect."""
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise RowError(f"{where}: a tool call must be a mapping with the name of a function")
    arguments = function.get("arguments") or {}
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError as error:
            raise RowError(
                f"{where}: the arguments of {function['name']} are no valid JSON ({error})"
            ) from error
    if not isinstance(arguments, Mapping):
        raise RowError(
            f"{where}: the arguments of {function['name']} are {type(arguments).__name__}; "
            "they must be an object"
        )
    clean: dict[str, Any] = {"type": "function", "function": {**function, "arguments": arguments}}
    if "function" in call and call.get("id"):
        clean["id"] = call["id"]
    return clean


def read_sharegpt(row: Mapping[str, Any]) -> Conversation:
    """from/value turns; function_call and observation become tool calls and their results."""
    given = row.get("conversations")
    if not isinstance(given, list) or not given:
        raise RowError("conversations must be a list of {from, value} and hold at least one")
    messages: list[dict[str, Any]] = []
    system = optional_text(row, "system")
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
    return _ordered(Conversation(messages, trained, tools_of(row)))


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


def choose_format(
    kind: str | None, first_row: Any, *, origin: str, stage: str, key: str = "train_dataset_type"
) -> str:
    """The format to read a file as: the one named, else what its first row looks like.

    Raises:
        ConfigError: the name is not known, or does not belong to the stage.
        DataError: no name is given and the columns say nothing.
    """
    if stage == "PT":
        if kind in (None, "text", "erniekit", "pt"):
            return "text"
        raise ConfigError(f"{key}: {kind!r} holds conversations; stage PT reads texts: write text")
    if kind is not None:
        if kind not in FORMATS:
            known = ", ".join(FORMATS)
            hint = "; texts are trained on in stage: PT" if kind == "text" else ""
            raise ConfigError(f"{key}: {kind!r} is not known for stage {stage}; known: {known}{hint}")
        return kind
    columns = list(first_row) if isinstance(first_row, Mapping) else []
    found = {_SIGNS[column] for column in columns if column in _SIGNS}
    if stage == "DPO":
        found = _pair_signs(first_row) if isinstance(first_row, Mapping) else set()
    if len(found) == 1:
        return found.pop()
    if not isinstance(first_row, Mapping):
        seen = f"The first row is {type(first_row).__name__}, not a JSON object"
    elif columns == ["text"]:
        seen = f"It holds texts, and stage {stage} reads conversations; texts are trained on in stage: PT"
    elif stage == "DPO" and not found:
        seen = (
            "stage: DPO reads pairs of answers (response and sort, or chosen and rejected), and the first "
            f"row has the columns {', '.join(map(str, columns)) or '(none)'}"
        )
    else:
        seen = f"The first row has the columns {', '.join(map(str, columns)) or '(none)'}"
    raise DataError(
        f"{origin}: which format is this? {seen}; write {key}: {' or '.join(sorted(found) or FORMATS)}"
    )


def _pair_signs(row: Mapping[str, Any]) -> set[str]:
    """The formats of preference pairs that a row looks like, see `pair_formats.py`."""
    if "response" in row and "src" in row:
        return {"erniekit"}
    if "chosen" not in row or "rejected" not in row:
        return set()
    if "conversations" in row:
        return {"sharegpt"}
    structured = any(isinstance(row.get(key), list | Mapping) for key in ("chosen", "prompt", "messages"))
    return {"chatml"} if structured else {"alpaca"}


def parse(kind: str, row: Any) -> Conversation | str:
    """A row as what it means.

    Raises:
        RowError: says what is wrong with it.
    """
    if not isinstance(row, Mapping):
        raise RowError(f"the row is {type(row).__name__}; it must be a JSON object")
    return read_text(row) if kind == "text" else FORMATS[kind](row)


def missing(row: Mapping[str, Any], key: str) -> RowError:
    """The error for a column that is not there."""
    return RowError(f"{key} is missing; the row has {', '.join(map(str, row)) or 'nothing'}")


def texts_of(row: Mapping[str, Any], key: str, *, may_begin_empty: bool = False) -> list[str]:
    if key not in row:
        raise missing(row, key)
    values = row[key] if isinstance(row[key], list) else [row[key]]
    if not values:
        raise RowError(f"{key} is an empty list")
    for number, value in enumerate(values, start=1):
        if not isinstance(value, str):
            raise RowError(f"{key}, turn {number} is {type(value).__name__}; it must be a text")
        if not value.strip() and not (may_begin_empty and number == 1):
            raise RowError(f"{key}, turn {number} is empty")
    return values


def _text(row: Mapping[str, Any], key: str) -> str:
    if key not in row:
        raise missing(row, key)
    if not isinstance(row[key], str):
        raise RowError(f"{key} is {type(row[key]).__name__}; it must be a text")
    if not row[key].strip():
        raise RowError(f"{key} is empty")
    return row[key]


def optional_text(row: Mapping[str, Any], key: str) -> str:
    value = row.get(key)
    if value is not None and not isinstance(value, str):
        raise RowError(f"{key} is {type(value).__name__}; it must be a text")
    return value or ""


def tools_of(row: Mapping[str, Any]) -> list[Any] | None:
    """The definitions of the tools of a row.

    Raises:
        RowError: they are no list, or a text that is no JSON.
    """
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
    where = f"turn {number} (function_call)"
    try:
        calls = json.loads(value)
    except ValueError as error:
        raise RowError(f"{where}: not valid JSON ({error})") from error
    return [_call(call, where) for call in (calls if isinstance(calls, list) else [calls])]


def _flag(value: Any, where: str) -> bool:
    """0 or 1; without a word an answer is trained on."""
    if value is None:
        return True
    if isinstance(value, bool | int | float) and value in (0, 1):
        return bool(value)
    raise RowError(f"{where} is {value!r}; it must be 0 or 1")


def _flags(label: Any, count: int, what: str) -> list[bool]:
    """One flag for each answer; a single one serves a single answer."""
    if label is None:
        return [True] * count
    values = label if isinstance(label, list) else [label]
    fits = all(isinstance(value, bool | int | float) and value in (0, 1) for value in values)
    if len(values) != count or not fits:
        raise RowError(f"label is {label!r}; it must be one 0 or 1 for each of the {count} {what}")
    return [bool(value) for value in values]


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
