"""From the tokens of one answer to text that can be shown as it comes.

Two things must never be shown too early: half of a character (a token may end in the middle of
its bytes; the tokenizer's stream decoder waits for the rest), and the beginning of what may turn
out to be a stop string, which belongs to no answer and may be spread over several tokens.
"""

from collections.abc import Sequence
from typing import Protocol


class TokenDecoder(Protocol):
    """What turns the tokens of one answer into text; `erniekit.data.tokenizer.StreamDecoder` is one."""

    def push(self, token_id: int) -> str: ...

    def flush(self) -> str: ...


class TextStream:
    """The text of one answer, piece by piece.

    Args:
        decoder: a fresh decoder.
        stop: texts at whose first occurrence the answer ends; they are not part of it.
    """

    def __init__(self, decoder: TokenDecoder, stop: Sequence[str] = ()) -> None:
        self._decoder = decoder
        self._stop = tuple(stop)
        self._pending = ""
        self.stopped_at: str | None = None

    def push(self, token_id: int) -> str:
        """Take the next token; returns the text that is now certain, often empty."""
        return self._advance(self._decoder.push(token_id))

    def flush(self) -> str:
        """The rest of the text, after the last token."""
        certain = self._advance(self._decoder.flush())
        rest, self._pending = self._pending, ""
        return certain + rest

    def _advance(self, text: str) -> str:
        if self.stopped_at is not None:
            return ""
        pending = self._pending + text
        found = [(pending.find(stop), stop) for stop in self._stop if stop in pending]
        if found:
            # Of two that begin at the same place the longer one is meant.
            position, self.stopped_at = min(found, key=lambda pair: (pair[0], -len(pair[1])))
            self._pending = ""
            return pending[:position]
        held = held_back(pending, self._stop)
        cut = len(pending) - held
        self._pending = pending[cut:]
        return pending[:cut]


def held_back(text: str, stop: Sequence[str]) -> int:
    """Length of the longest end of `text` with which one of `stop` begins."""
    longest = 0
    for word in stop:
        for length in range(min(len(word) - 1, len(text)), longest, -1):
            if text.endswith(word[:length]):
                longest = length
                break
    return longest
