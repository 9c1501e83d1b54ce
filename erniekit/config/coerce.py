"""Turns a written value into the type of its key, strictly but not pedantically.

YAML 1.1 reads `1e-5` as a text, `no` as false and `23` as a number; a key that knows its type knows
what was meant. Anything else of the wrong type is an error, never a silent conversion.
"""

import datetime
import math
import re
import types
from dataclasses import Field
from typing import Any, Union, get_args, get_origin

from erniekit.config.entries import Entry
from erniekit.config.fields import Rule, describe_limits, rule_of

_TRUE = ("true", "yes", "on", "1")
_FALSE = ("false", "no", "off", "0")
_NULLS = ("None", "")
# As texts these are words like any other; YAML 1.1 reads them as true and false.
_WORDS = ("yes", "no", "on", "off")
_OCTAL = re.compile(r"[+-]?0\d+")
_DIGITS = 100
_NUMBER = re.compile(r"[+-]?(\d[\d_]*(\.\d*)?|\.\d+)([eE][+-]?\d+)?")


class WrongValue(Exception):
    """Why a value is not allowed; the message goes into the report."""


class NotBuiltYet(Exception):
    """The value is known; the message names the feature that it needs."""


def is_null(declared: "Field[Any]", entry: Entry) -> bool:
    """Whether the value means "not given": null, Python's spelling of it, or an empty text."""
    if entry.value is None or entry.value == "None":
        return True
    return entry.value == "" and str in _kinds(declared.type)


def coerce(declared: "Field[Any]", entry: Entry) -> Any:
    """The value of `entry` in the type of its key.

    Raises:
        WrongValue: it is of another type or outside its limits.
        NotBuiltYet: it is a value that ErnieKit knows and cannot serve yet.
    """
    rule = rule_of(declared)
    kinds = _kinds(declared.type)
    if tuple in kinds:
        value: Any = _words(entry, rule)
    elif bool in kinds:
        value = _boolean(entry)
    elif rule.comma_list and isinstance(entry.value, list | tuple):
        value = _joined(entry.value)
    elif str in kinds:
        value = _text(entry, rule, numbers=float in kinds)
    else:
        value = _number(entry, whole=float not in kinds)
    _check(value, rule)
    return value


def type_words(declared: "Field[Any]") -> str:
    """The type of a key in words, for messages and the reference."""
    kinds = _kinds(declared.type)
    if tuple in kinds:
        return "list of texts"
    if bool in kinds:
        return "true or false"
    if str in kinds:
        return "number or text" if float in kinds else "text"
    return "number" if float in kinds else "whole number"


def _kinds(annotation: Any) -> set[type]:
    if get_origin(annotation) in (Union, types.UnionType):
        return {kind for part in get_args(annotation) for kind in _kinds(part)} - {types.NoneType}
    return {get_origin(annotation) or annotation}


def _boolean(entry: Entry) -> bool:
    if isinstance(entry.value, bool):
        return entry.value
    word = str(entry.value).lower()
    if word in _TRUE or word in _FALSE:
        return word in _TRUE
    raise WrongValue("write true or false")


def _number(entry: Entry, *, whole: bool) -> int | float:
    kind = "a whole number" if whole else "a number"
    value = entry.value
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise WrongValue(f"write {kind}")
    # YAML 1.1 reads 010 as 8, 0x10 as 16 and 1:30 as 90; what was written says what was meant.
    text = (str(value) if entry.spelling is None else entry.spelling).strip().replace("_", "")
    if _OCTAL.fullmatch(text):
        raise WrongValue(f"YAML reads a leading zero as octal; write {text.lstrip('0+-') or 0}")
    if not _NUMBER.fullmatch(text) or len(text) > _DIGITS:
        raise WrongValue(f"write {kind}")
    number = int(text) if re.fullmatch(r"[+-]?\d+", text) else float(text)
    if not math.isfinite(number) or (whole and number != int(number)):
        raise WrongValue(f"write {kind}")
    return int(number) if whole else float(number)


def _text(entry: Entry, rule: Rule, *, numbers: bool) -> Any:
    value = entry.value
    if numbers and isinstance(value, int | float) and not isinstance(value, bool):
        return _number(entry, whole=isinstance(value, int))
    spelling = entry.spelling if entry.spelling is not None else value
    if isinstance(value, bool) and str(spelling).lower() not in (
        *rule.choices,
        *rule.synonyms,
        *(() if rule.choices else _WORDS),
    ):
        raise WrongValue(describe_wanted(rule, "a text"))
    if not isinstance(
        value, str | bool | int | float | datetime.date
    ):  # a plain 2024-01-01 is a date to YAML
        raise WrongValue(describe_wanted(rule, "a text"))
    return _choice(str(spelling), rule)


def _choice(word: str, rule: Rule) -> str:
    """A word in the spelling of the choices; upstream's keys do not mind upper and lower case."""
    for feature_word, feature in rule.not_built.items():
        if word.lower() == feature_word.lower():
            raise NotBuiltYet(feature)
    if not rule.choices:
        return word
    for known in (*rule.choices, *rule.synonyms):
        if word.lower() == known.lower():
            return rule.synonyms.get(known, known)
    raise WrongValue(f"write {describe_limits(rule)}")


def describe_wanted(rule: Rule, kind: str) -> str:
    """What to write instead: the choices where there are some, else the kind of value."""
    return f"write {describe_limits(rule) or kind}"


def _words(entry: Entry, rule: Rule) -> tuple[str, ...]:
    value = entry.value
    if isinstance(value, str):
        # A pattern or a stop text may hold a comma, so only words of a fixed set are split there.
        value = [part.strip() for part in value.split(",")] if rule.choices else [value]
    if isinstance(value, bool) or not isinstance(value, list | tuple):
        raise WrongValue("write a list, as in [a, b]")
    words = []
    for part in value:
        if isinstance(part, bool) or not isinstance(part, str | int | float):
            raise WrongValue(f"{part!r} is no text; write a list of texts, as in [a, b]")
        if part in _NULLS:
            continue
        words.append(_choice(str(part), rule))
    return tuple(words)


def _joined(parts: "list[Any] | tuple[Any, ...]") -> str:
    """A list under a key that is a list separated by commas."""
    for part in parts:
        if isinstance(part, bool) or not isinstance(part, str | int | float):
            raise WrongValue(f"{part!r} is no text; write a list of texts, as in [a, b]")
        if "," in str(part):
            raise WrongValue(f"{part!r} holds a comma, which separates entries")
    return ",".join(map(str, parts))


def _check(value: Any, rule: Rule) -> None:
    if isinstance(value, int | float) and not isinstance(value, bool):
        if (
            (rule.minimum is not None and value < rule.minimum)
            or (rule.maximum is not None and value > rule.maximum)
            or (rule.above is not None and value <= rule.above)
            or (rule.below is not None and value >= rule.below)
        ):
            raise WrongValue(f"must be {describe_limits(rule)}")
    if rule.pattern and not re.fullmatch(rule.pattern, str(value)):
        raise WrongValue(f"write {rule.pattern_help}")
    reason = rule.check(value) if rule.check else None
    if reason:
        raise WrongValue(reason)
