"""The history of a chat: what was said, what still fits the model's context, and taking back.

The history keeps everything; `window` chooses what is sent. Only whole turns (a question with its
answer) leave the window, oldest first, and the caller is told how many, so that nothing is
forgotten silently. What a model thought before it answered is not part of the history: templates
expect it that way, and it would push out what was really said.
"""

import json
from collections.abc import Callable, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

from erniekit.errors import DataError

Message = dict[str, Any]


class Conversation:
    """Messages of one chat, in the order in which they were said."""

    def __init__(self, system: str | None = None, tools: list[Any] | None = None) -> None:
        """Args:
        tools: definitions of the tools that the model may call.
        """
        self.system, self.tools = system, tools
        self.turns: list[Message] = []

    def messages(self) -> list[Message]:
        """Everything, the system message first."""
        return self._opening() + self.turns

    def ask(self, text: str) -> None:
        """Add what the user says."""
        self.turns.append({"role": "user", "content": text})

    def answer(self, text: str, tool_calls: Sequence[Any] = ()) -> None:
        """Add what the model says (without what it thought), and the calls that it asks for."""
        calls = {"tool_calls": list(tool_calls)} if tool_calls else {}
        self.turns.append({"role": "assistant", "content": text, **calls})

    def waiting(self) -> list[dict[str, Any]]:
        """Calls of the last answer whose results are not given yet, in their order."""
        given = sum(1 for _ in takewhile(lambda message: message["role"] == "tool", reversed(self.turns)))
        before = self.turns[: len(self.turns) - given]
        return list(before[-1].get("tool_calls", ())[given:]) if before else []

    def give_result(self, text: str) -> None:
        """Add the result of the first call that waits for one."""
        call = self.waiting()[0]
        about = {"name": call["function"]["name"], "tool_call_id": call["id"]}
        self.turns.append({"role": "tool", **about, "content": text})

    def clear(self) -> None:
        """Forget all turns; the system message stays."""
        self.turns = []

    def undo(self) -> str | None:
        """Take back the last question and its answer; returns the question, None if there is none."""
        while self.turns:
            message = self.turns.pop()
            if message["role"] == "user":
                return message["content"]
        return None

    def window(self, count_tokens: Callable[[list[Message]], int], limit: int) -> tuple[list[Message], int]:
        """What fits: the system message and the newest turns, at least the last question.

        Args:
            count_tokens: number of tokens of a prompt made of these messages.
            limit: the most tokens that the prompt may have.

        Returns:
            The messages to send, and the number of turns left out.

        Raises:
            DataError: the last question alone does not fit.
        """
        starts = [index for index, message in enumerate(self.turns) if message["role"] == "user"]
        for dropped, start in enumerate(starts):
            messages = self._opening() + self.turns[start:]
            num_tokens = count_tokens(messages)
            if num_tokens <= limit:
                return messages, dropped
        if not starts:
            raise DataError("there is no question to answer")
        raise DataError(
            f"the last question alone (with the system message) has {num_tokens} tokens, but only {limit} "
            "fit beside the answer in the model's context; shorten it, or lower max_new_tokens"
        )

    def save(self, path: Path) -> None:
        """Append the conversation to a JSON-lines file, as a row of the `messages` data format."""
        with path.open("a", encoding="utf-8") as file:
            row = {"messages": self.messages(), **({"tools": self.tools} if self.tools else {})}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")

    def _opening(self) -> list[Message]:
        return [{"role": "system", "content": self.system}] if self.system else []


def check_messages(messages: Any, origin: str) -> list[Message]:
    """Accept a list of `{role, content}` that ends with something to answer.

    Raises:
        DataError: names `origin` and what is wrong.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise DataError(f"{origin}: messages must be a list of {{role, content}}, not {messages!r}")
    for number, message in enumerate(messages, start=1):
        if not isinstance(message, dict) or not {"role", "content"} <= set(message):
            raise DataError(f"{origin}: message {number} needs role and content, got {message!r}")
    if messages[-1]["role"] == "assistant":
        raise DataError(f"{origin}: the last message is the assistant's, so there is nothing to answer")
    return list(messages)
