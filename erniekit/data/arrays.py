"""Where the elements of a JSON array are, in a file of any size.

The array is read through a window and each element parsed once, to find its end and to give an
error its line. Only byte ranges are kept: an element is parsed again when it is asked for.
"""

import json
from codecs import utf_8_decode
from pathlib import Path
from typing import Any

from erniekit.data.rows import Index, not_utf8, refuse_constant
from erniekit.errors import DataError

_SPACE = " \t\r\n"
_WINDOW = 1 << 22
# What is found this near to the end of the window may only mean that the rest is not there yet.
_NEAR = 16


def index_array(path: Path, name: str, *, window: int = _WINDOW) -> Index:
    """The elements of the array that a file holds.

    Raises:
        DataError: `file:line`, the column and what is wrong with the JSON there.
    """
    index = Index()
    with path.open("rb") as file:
        text = _Window(file, name, window)
        text.expect("[", "the file must begin with [")
        if text.peek() == "]":
            text.advance(1)
        else:
            while True:
                text.peek()
                start, line = text.byte, text.line
                text.skip_value()
                index.add(start, text.byte, line)
                letter = text.expect(",]", "a comma or ] must follow this element")
                if letter == "]":
                    break
        if text.peek():
            raise DataError(f"{name}:{text.line}: not valid JSON (there is more after the array)")
    return index


class _Window:
    """A decoded part of a file and the place in it."""

    def __init__(self, file: Any, name: str, size: int) -> None:
        self._file, self._name, self._size = file, name, max(size, len("\ufeff".encode()))
        self._decoder = json.JSONDecoder(parse_constant=refuse_constant)
        self._rest, self._read, self._ended = b"", 0, False
        self._text, self._at = "", 0
        self.byte, self.line, self._column = 0, 1, 1
        self._more()
        if self._text.startswith("\ufeff"):
            self._at, self.byte = 1, 3

    def peek(self) -> str:
        """The next letter that is no space, which stays; empty at the end of the file."""
        while True:
            stop = self._at
            while stop < len(self._text) and self._text[stop] in _SPACE:
                stop += 1
            self.advance(stop - self._at)
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                return ""

    def expect(self, letters: str, reason: str) -> str:
        """Take one of these letters, or say why it should be there."""
        letter = self.peek()
        if not letter or letter not in letters:
            what = f"the file ends here; {reason}" if not letter else f"column {self._column}: {reason}"
            raise DataError(f"{self._name}:{self.line}: not valid JSON ({what})")
        self.advance(1)
        return letter

    def skip_value(self) -> None:
        """Take one JSON value."""
        while True:
            try:
                _, stop = self._decoder.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                ahead = error.pos - self._at
                cut = error.msg.startswith("Unterminated string") or error.pos + _NEAR >= len(self._text)
                if not (cut and self._more()):
                    self.advance(ahead)
                    place = f"{self._name}:{self.line}"
                    message = f"{place}: not valid JSON (column {self._column}: {error.msg})"
                    raise DataError(message) from error
            except (ValueError, RecursionError) as error:
                reason = "nested too deeply" if isinstance(error, RecursionError) else error
                raise DataError(f"{self._name}:{self.line}: not valid JSON ({reason})") from error
            else:
                ahead = stop - self._at
                # A number near the end of the window may go on: `1` is `1.5` or `1e+3` with the rest.
                if stop + _NEAR < len(self._text) or not self._more():
                    self.advance(ahead)
                    return

    def advance(self, count: int) -> None:
        """Step over letters, counting bytes, lines and columns."""
        piece = self._text[self._at : self._at + count]
        self._at += count
        self.byte += len(piece.encode("utf-8"))
        newlines = piece.count("\n")
        self.line += newlines
        self._column = len(piece) - piece.rfind("\n") if newlines else self._column + len(piece)

    def _more(self) -> bool:
        """Read on; False at the end of the file."""
        if self._ended:
            return False
        data = self._file.read(max(self._size, len(self._text) - self._at))
        self._read += len(data)
        self._ended = not data
        self._rest += data
        try:
            text, used = utf_8_decode(self._rest, "strict", self._ended)
        except UnicodeDecodeError as error:
            position = self._read - len(self._rest) + error.start
            raise DataError(f"{self._name}: {not_utf8(position)}") from error
        self._rest = self._rest[used:]
        self._text, self._at = self._text[self._at :] + text, 0
        return not self._ended or bool(text)
