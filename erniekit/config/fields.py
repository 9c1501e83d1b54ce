"""How a section declares a key: its default, its one-line help, and what values it allows.

A section is a frozen dataclass whose fields are the YAML keys. What a type cannot say (choices,
bounds, the help text of the reference) travels in the field's metadata, so that the loader, the
checks and the generated reference all read the same place.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, field
from typing import Any, cast

METADATA_KEY = "erniekit"


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What a key means and allows beyond its type.

    Args:
        choices: the only words allowed.
        synonyms: other spellings of a choice, and the choice they mean.
        not_built: values that are known, and the feature each of them needs.
        minimum, maximum: bounds that are allowed themselves.
        above, below: bounds that are not allowed themselves.
        pattern, pattern_help: what a text must match, and the same in words.
        check: gives the reason why a value is wrong, or None.
        required_by: the verbs that cannot work without the key.
        comma_list: the text is a list separated by commas, and may be written as a YAML list.
    """

    help: str
    choices: tuple[str, ...] = ()
    synonyms: Mapping[str, str] = field(default_factory=dict)
    not_built: Mapping[str, str] = field(default_factory=dict)
    minimum: float | None = None
    maximum: float | None = None
    above: float | None = None
    below: float | None = None
    pattern: str | None = None
    pattern_help: str = ""
    check: Callable[[Any], str | None] | None = None
    required_by: tuple[str, ...] = ()
    comma_list: bool = False


def key(default: Any, help: str, **limits: Any) -> Any:
    """A dataclass field for a key, as `name: int = key(1, "what it does", minimum=1)`.

    Args:
        default: the value when the key is absent.
        help: one line for the reference.
        limits: the other fields of `Rule`.
    """
    return field(default=default, metadata={METADATA_KEY: Rule(help=help, **limits)})


def regular_expressions(patterns: tuple[str, ...]) -> str | None:
    """Why one of `patterns` is no regular expression, or None."""
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            return f"{pattern!r} is not a regular expression: {error}"
    return None


def rule_of(declared: "Field[Any]") -> Rule:
    """The rule that `key` stored in a field."""
    return cast(Rule, declared.metadata[METADATA_KEY])


def describe_limits(rule: Rule) -> str:
    """What a key allows, in words: `one of a, b`, `at least 1`; empty where the type says all."""
    if rule.choices:
        words = [choice or "nothing" for choice in rule.choices]
        return words[0] if len(words) == 1 else "one of " + ", ".join(words)
    bounds = (
        ("at least", rule.minimum),
        ("above", rule.above),
        ("at most", rule.maximum),
        ("below", rule.below),
    )
    parts = [f"{words} {limit:.15g}" for words, limit in bounds if limit is not None]
    return " and ".join(parts) or rule.pattern_help
