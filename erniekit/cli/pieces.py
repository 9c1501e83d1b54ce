"""Pieces of an answer on standard output, as they come."""

import re

from erniekit.log import console

# A model may write anything; control characters other than newline and tab would drive the terminal.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def show_piece(text: str) -> None:
    """Show a piece as it is, without a line end."""
    console.out(harmless(text), end="", highlight=False)


def show_dim_piece(text: str) -> None:
    """The same, dimmed where the terminal can: what a model thinks before it answers."""
    console.out(harmless(text), end="", highlight=False, style="dim")


def harmless(text: str) -> str:
    """Text whose control characters are replaced by a visible mark (carriage returns are dropped)."""
    return _CONTROL.sub("\ufffd", text.replace("\r", ""))
