"""One `key: value` as it was written, with the place where it stands."""

from dataclasses import dataclass
from typing import Any

from erniekit.config.hidden import HIDDEN, is_secret, masked

COMMAND_LINE = "command line"
DEFAULT = "default"


@dataclass(frozen=True)
class Source:
    """Where a value comes from; its text is `run.yaml:3:1`, `command line`, or `default`."""

    place: str
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        return f"{self.place}:{self.line}:{self.column}" if self.line else self.place


@dataclass(frozen=True)
class Entry:
    """A key as it was written.

    Args:
        spelling: of the value, where it is a plain scalar.
        source: where the key stands.
        alias: the key that the user wrote, where it means `key`.
        value_source: where the value stands, when that is another place.
    """

    key: str
    value: Any
    spelling: str | None
    source: Source
    alias: str = ""
    value_source: Source | None = None

    @property
    def place(self) -> Source:
        """Where the value stands, for problems with the value."""
        return self.value_source or self.source

    @property
    def written_key(self) -> str:
        """The key as it stands in the file."""
        return self.alias or self.key

    def shown(self) -> str:
        """The value as the user wrote it, for messages; a secret is not shown."""
        if is_secret(self.written_key):
            return HIDDEN
        if self.spelling is not None:
            return self.spelling
        text = repr(masked(self.key, self.value))
        return text if len(text) <= 60 else text[:57] + "..."


@dataclass(frozen=True)
class Problem:
    """What is wrong at a place; all problems of a file are told together."""

    source: Source
    message: str

    def __str__(self) -> str:
        return f"{self.source}: {self.message}"
