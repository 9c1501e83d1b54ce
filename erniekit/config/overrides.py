"""Reads the words after the configuration on a command line: key=value, --key value, --key=value."""

import re
from collections.abc import Sequence

import yaml

from erniekit.config.aliases import SWITCHES
from erniekit.config.coerce import type_words
from erniekit.config.entries import COMMAND_LINE, Entry, Problem, Source
from erniekit.config.files import parse_value
from erniekit.config.hidden import is_secret
from erniekit.config.keys import declared_keys
from erniekit.errors import ConfigError

_ASSIGNMENT = re.compile(r"(--)?([A-Za-z_][\w.-]*)=(.*)", re.DOTALL)
_NUMBER = re.compile(r"[+-]?[\d.]")


def is_override(word: str) -> bool:
    """Whether a word of a command line sets a key (and is no path)."""
    return word.startswith("--") or _ASSIGNMENT.fullmatch(word) is not None


def read_overrides(words: Sequence[str]) -> tuple[list[Entry], list[Problem]]:
    """The entries of a command line; of a key that is given twice the last one counts."""
    entries: dict[str, Entry] = {}
    problems: list[Problem] = []
    source = Source(COMMAND_LINE)
    rest = list(words)
    while rest:
        word = rest.pop(0)
        assignment = _ASSIGNMENT.fullmatch(word)
        if assignment:
            key, text = assignment.group(2), assignment.group(3)
        elif word.startswith("--") and len(word) > 2:
            key = word[2:]
            value = _following(key.replace("-", "_"), rest)
            if value is None:
                problems.append(Problem(source, f"--{key} needs a value: write --{key} VALUE or {key}=VALUE"))
                continue
            text = value
        else:
            problems.append(Problem(source, f"{word}: write key=value, --key value or --key=value"))
            if is_secret(word) and rest and not is_override(rest[0]):
                rest.pop(0)  # most likely its value, which must not be told
            continue
        key = key if key.startswith("x-") else key.replace("-", "_")
        try:
            entries[key] = _entry(key, text, source)
        except yaml.YAMLError:
            entries[key] = Entry(key, text, text, source)
        except ConfigError as error:
            problems.append(Problem(source, f"{key}: {error}"))
    return list(entries.values()), problems


def _entry(key: str, text: str, source: Source) -> Entry:
    value, spelling = parse_value(text)
    if isinstance(value, dict) or (text == "" and value is None):
        # Nobody writes mappings on a command line: a text with a colon in it is a text.
        return Entry(key, text, text, source)
    return Entry(key, value, spelling, source)


def _following(key: str, rest: list[str]) -> str | None:
    """The value after `--key`; a switch needs none."""
    switch = key in SWITCHES or (
        key in declared_keys() and type_words(declared_keys()[key]) == "true or false"
    )
    following = rest[0] if rest else None
    if following is None or (following.startswith("--") and not _NUMBER.match(following[1:])):
        return "true" if switch else None
    if switch and _ASSIGNMENT.fullmatch(following):
        return "true"
    return rest.pop(0)
