"""What a row of preference data means: a prompt, a better and a worse answer to it.

| word | columns |
|---|---|
| `erniekit` | src, tgt (one text less than src), response: two answers, sort: two numbers, higher is better |
| `alpaca` | instruction, question or prompt, with input, history, system; chosen, rejected: texts |
| `chatml`, `messages` | chosen, rejected: messages, with prompt or messages before them, or beginning alike |
| `sharegpt` | conversations: [{from, value}], chosen, rejected: {from, value} |

Everywhere `chosen_score` and `rejected_score` (or `sort`) say how good the answers are; `tools` and
`system` are as in other data.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from erniekit.data.formats import (
    Conversation,
    RowError,
    missing,
    optional_text,
    read_alpaca,
    read_erniekit,
    read_messages,
    read_sharegpt,
    texts_of,
)


@dataclass(frozen=True)
class Pair:
    """Messages of a prompt and of what follows it in either case.

    `score_difference` is how much better the chosen answer is, 1 where nobody says it.
    """

    prompt: list[dict[str, Any]]
    chosen: list[dict[str, Any]]
    rejected: list[dict[str, Any]]
    score_difference: float = 1.0
    tools: list[Any] | None = None


class NoPreference(ValueError):
    """Both answers are as good, or the same: nothing is wrong, and nothing can be learned."""


def parse_pair(kind: str, row: Any) -> Pair:
    """A row as a pair.

    Raises:
        RowError: says what is wrong with it.
        NoPreference: it prefers neither answer.
    """
    if not isinstance(row, Mapping):
        raise RowError(f"the row is {type(row).__name__}; it must be a JSON object")
    pair = PAIR_FORMATS[kind](row)
    if pair.chosen == pair.rejected:
        raise NoPreference("chosen and rejected are the same")
    return pair


def _read_erniekit(row: Mapping[str, Any]) -> Pair:
    sources = texts_of(row, "src")
    targets = texts_of(row, "tgt", may_begin_empty=True) if row.get("tgt") else []
    responses, sort = row.get("response"), row.get("sort")
    if responses is None:
        raise missing(row, "response")
    if not isinstance(responses, list) or len(responses) != 2:
        given = f"{len(responses)} answers" if isinstance(responses, list) else type(responses).__name__
        raise RowError(f"response is {given}; it must be a list of two answers")
    answers = [_turns(response, f"response {n}") for n, response in enumerate(responses, start=1)]
    if not isinstance(sort, list) or len(sort) != 2 or not all(_is_number(score) for score in sort):
        raise RowError(f"sort is {sort!r}; it must be two numbers, the higher one for the better answer")
    if sort[0] == sort[1]:
        raise NoPreference(f"sort is {sort}: no answer is better")
    better = 0 if sort[0] > sort[1] else 1
    system = optional_text(row, "system")
    if row.get("is_system"):
        system, sources = sources[0], sources[1:]
        targets = targets[1:] if len(targets) == len(sources) else targets
    if len(targets) != len(sources) - 1:
        raise RowError(f"src has {len(sources)} turns and tgt {len(targets)}; tgt must have one less")
    placeholder = answers[better][0]["content"]
    whole = read_erniekit(
        {"src": sources, "tgt": [*targets, placeholder], **({"system": system} if system else {})}
    )
    return Pair(
        whole.messages[:-1], answers[better], answers[1 - better], abs(float(sort[0]) - float(sort[1]))
    )


def _turns(response: Any, where: str) -> list[dict[str, Any]]:
    """An answer, or an answer, a further question, an answer, ..."""
    parts = response if isinstance(response, list) else [response]
    if len(parts) % 2 == 0:
        raise RowError(f"{where} has {len(parts)} turns; it must be an answer, or end with one")
    for number, part in enumerate(parts, start=1):
        if not isinstance(part, str) or not part.strip():
            raise RowError(f"{where}, turn {number} must be a text that is not empty")
    roles = ("assistant", "user")
    return [{"role": roles[number % 2], "content": part} for number, part in enumerate(parts)]


def _read_alpaca(row: Mapping[str, Any]) -> Pair:
    question = next((key for key in ("instruction", "question", "prompt") if key in row), "instruction")
    sides = []
    for side in ("chosen", "rejected"):
        plain = {**row, "instruction": row.get(question), "output": _answer_text(row, side)}
        if question not in row:
            del plain["instruction"]
        sides.append(read_alpaca(plain).messages)
    return Pair(sides[0][:-1], sides[0][-1:], sides[1][-1:], _score_difference(row))


def _answer_text(row: Mapping[str, Any], side: str) -> str:
    if side not in row:
        raise missing(row, side)
    if not isinstance(row[side], str) or not row[side].strip():
        raise RowError(f"{side} must be a text that is not empty")
    return row[side]


def _read_messages(row: Mapping[str, Any]) -> Pair:
    before = _listed(row, "prompt", "user") + _listed(row, "messages", "user")
    sides = {side: _listed(row, side, "assistant") for side in ("chosen", "rejected")}
    conversations: dict[str, Conversation] = {}
    for side, messages in sides.items():
        if not messages:
            raise RowError(f"{side} must be a message, a list of messages or a text that is not empty")
        try:
            conversations[side] = read_messages({"messages": before + messages, "tools": row.get("tools")})
        except RowError as error:
            raise RowError(f"{side}: {error}") from error
    chosen, rejected = conversations["chosen"].messages, conversations["rejected"].messages
    shared = len(before)
    if not before:
        while chosen[shared : shared + 1] == rejected[shared : shared + 1] != []:
            shared += 1
        if chosen == rejected:
            raise NoPreference("chosen and rejected are the same")
        if not shared or min(len(chosen), len(rejected)) == shared:
            raise RowError(
                "chosen and rejected must begin with the same messages and then differ in an answer"
            )
    for side, messages in (("chosen", chosen), ("rejected", rejected)):
        if messages[shared]["role"] != "assistant" or messages[-1]["role"] != "assistant":
            raise RowError(f"{side}: an answer must follow the prompt, and the last message be one")
    return Pair(
        chosen[:shared],
        chosen[shared:],
        rejected[shared:],
        _score_difference(row),
        conversations["chosen"].tools,
    )


def _listed(row: Mapping[str, Any], key: str, role: str) -> list[Any]:
    """Messages of a column that may hold a list, one message, or a text."""
    value = row.get(key)
    if isinstance(value, str):
        return [{"role": role, "content": value}] if value.strip() else []
    if isinstance(value, Mapping):
        return [value]
    if value is None or isinstance(value, list):
        return list(value or [])
    raise RowError(f"{key} is {type(value).__name__}; it must be a list of messages")


def _read_sharegpt(row: Mapping[str, Any]) -> Pair:
    before = row.get("conversations")
    if not isinstance(before, list) or not before:
        raise RowError("conversations must be a list of {from, value} and hold at least one")
    sides = []
    for side in ("chosen", "rejected"):
        answer = row.get(side)
        turns = [answer] if isinstance(answer, Mapping) else answer
        if isinstance(turns, str):
            turns = [{"from": "gpt", "value": turns}]
        if not isinstance(turns, list) or not turns:
            raise RowError(f"{side} must be {{from, value}}, or a list of such turns")
        try:
            sides.append(read_sharegpt({**row, "conversations": [*before, *turns]}))
        except RowError as error:
            raise RowError(f"{side}: {error}") from error
    shared = len(before) + (1 if optional_text(row, "system") else 0)
    chosen, rejected = (side.messages for side in sides)
    for side, messages in (("chosen", chosen), ("rejected", rejected)):
        if messages[shared]["role"] != "assistant" or messages[-1]["role"] != "assistant":
            raise RowError(f"{side}: must be an answer (from: gpt)")
    return Pair(chosen[:shared], chosen[shared:], rejected[shared:], _score_difference(row), sides[0].tools)


def _score_difference(row: Mapping[str, Any]) -> float:
    """How much better the chosen answer is; 1 without scores."""
    scores = [row.get(key, row.get(f"score_{key[:-6]}")) for key in ("chosen_score", "rejected_score")]
    if scores == [None, None]:
        return 1.0
    if not all(_is_number(score) for score in scores):
        raise RowError(
            f"chosen_score and rejected_score must be two numbers, not {scores[0]!r} and {scores[1]!r}"
        )
    difference = float(scores[0] or 0) - float(scores[1] or 0)
    if difference == 0:
        raise NoPreference(f"chosen_score and rejected_score are both {scores[0]}")
    if difference < 0:
        raise RowError(f"chosen_score {scores[0]} is below rejected_score {scores[1]}")
    return difference


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


PAIR_FORMATS: dict[str, Callable[[Mapping[str, Any]], Pair]] = {
    "erniekit": _read_erniekit,
    "alpaca": _read_alpaca,
    "chatml": _read_messages,
    "messages": _read_messages,
    "sharegpt": _read_sharegpt,
}
