"""How a field of a section is declared: its default, and what a person and the loader must know of it."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

# What a configuration can be read for. A key that belongs to another one is never an error.
VERBS = ("train", "eval", "chat", "generate", "export", "split", "data")
REQUIRED = dataclasses.MISSING


@dataclass(frozen=True)
class About:
    """What is known of one key.

    `choices` are compared without regard to case. `not_built` maps values that are valid in
    principle to the name of the feature that is missing. Bounds hold for numbers; `above` and
    `below` exclude the bound itself. `form` names a check of the text in `coerce.py`.
    """

    help: str
    verbs: tuple[str, ...] = VERBS
    choices: tuple[str, ...] = ()
    not_built: Mapping[str, str] = field(default_factory=dict)
    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    form: str = ""
    required_for: tuple[str, ...] = ()

    def bounds(self) -> str:
        """The range in words, empty when there is none."""
        words = []
        for word, bound in (
            ("at least", self.at_least),
            ("above", self.above),
            ("at most", self.at_most),
            ("below", self.below),
        ):
            if bound is not None:
                words.append(f"{word} {bound:g}" if abs(bound) < 1e6 else f"{word} {bound:.0f}")
        return ", ".join(words)

    def accepts(self, number: float) -> bool:
        """Whether a number lies within the bounds."""
        return not (
            (self.at_least is not None and number < self.at_least)
            or (self.above is not None and number <= self.above)
            or (self.at_most is not None and number > self.at_most)
            or (self.below is not None and number >= self.below)
        )


def setting(default: Any, help: str, **about: Any) -> Any:
    """A dataclass field with its `About`; `REQUIRED` as default means that it must be given."""
    return field(default=default, metadata={"about": About(help, **about)})


def about(declared: "dataclasses.Field[Any]") -> About:
    """What was declared of a field."""
    return declared.metadata["about"]
