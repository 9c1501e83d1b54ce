"""The type of the fixture that runs a command."""

from collections.abc import Callable

# (words of the command) -> (exit code, standard output, standard error)
Told = Callable[..., tuple[int, str, str]]
