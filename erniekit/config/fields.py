"""How a section declares its keys: a dataclass field with help text, choices and bounds."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

REQUIRED = object()


@dataclass(frozen=True)
class Meta:
    """What is known of a key beside its type and default."""

    help: str
    choices: tuple[Any, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    above: float | None = None
    path: bool = False


def key(
    default: Any,
    help: str,
    *,
    choices: Sequence[Any] = (),
    minimum: float | None = None,
    maximum: float | None = None,
    above: float | None = None,
    path: bool = False,
) -> Any:
    """A key of a section.

    Args:
        choices: the only values allowed.
        minimum, maximum: bounds that are allowed themselves.
        above: a bound that is not allowed itself.
        path: the value is a path, relative to the working directory.
    """
    meta = Meta(help, tuple(choices), minimum, maximum, above, path)
    return field(default=default, metadata={"key": meta})
