"""Replaces `${key}` and `${oc.env:NAME}` in values, as OmegaConf does.

What a value refers to is measured first: ten lines that each name the line before twice stand for a
thousand texts, and forty for more than any memory holds.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from erniekit.config.entries import Entry, Problem
from erniekit.config.hidden import is_secret
from erniekit.config.keys import declared_keys

MAX_CHARACTERS = 20_000
MAX_CHAIN = 50
_KEY = re.compile(r"\$\{\s*\.*([^{}:.\[]+)[^{}:]*\}")
_RESOLVER = re.compile(r"\$\{\s*([^{}$]*?)\s*:\s*([^{},]*)")
_COMPUTED = re.compile(r"\$\{[^{}:]*\$\{")
_ENVIRONMENT = "oc.env"


def interpolate(entries: Mapping[str, Entry]) -> tuple[dict[str, Entry], dict[str, Problem]]:
    """The entries with their references replaced, and for each key the problem with it."""
    referring = {key: str(entry.value) for key, entry in entries.items() if "${" in str(entry.value)}
    if not referring:
        return dict(entries), {}
    known: dict[str, tuple[int, int]] = {}
    refused = {key: reason for key in referring if (reason := _refusal(key, referring, entries, known))}
    needed = {name for text in referring.values() for name in _KEY.findall(text)} | set(referring)
    merged, unreadable = _merge({key: entries[key] for key in needed if key in entries}, refused)
    resolved, problems = dict(entries), {}
    for key in referring:
        entry = entries[key]
        reason = refused.get(key) or unreadable.get(key)
        value = None
        if reason is None:
            value, reason = _value_of(merged, key)
        if reason is not None:
            told = "" if is_secret(key) else f": {reason}"
            problems[key] = Problem(entry.place, f"{entry.written_key}: {entry.shown()}{told}")
            continue
        resolved[key] = replace(
            entry, value=value, spelling=None if isinstance(value, list | dict) else str(value)
        )
    return resolved, problems


def _refusal(
    key: str,
    referring: Mapping[str, str],
    entries: Mapping[str, Entry],
    known: dict[str, tuple[int, int]],
) -> str | None:
    """Why the references of a value are not followed, or None."""
    text = referring[key]
    if _COMPUTED.search(text):
        return "the name of a key in ${...} is written out, not put together from others"
    for resolver, argument in _RESOLVER.findall(text):
        if resolver != _ENVIRONMENT:
            return f"${{{resolver}:...}} is unknown; write ${{key}} or ${{{_ENVIRONMENT}:NAME}}"
        if is_secret(argument) and not is_secret(key):
            return f"{argument.strip()} is a secret by its name, and runs save their configuration"
    for name in _KEY.findall(text):
        if is_secret(name) and not is_secret(key):
            return f"{name} is a secret by its name, and runs save their configuration"
    characters, chain = _measure(key, referring, entries, known)
    if chain > MAX_CHAIN:
        return f"its references lead through more than {MAX_CHAIN} keys, or back to itself"
    if characters > MAX_CHARACTERS:
        return f"its references stand for more than {MAX_CHARACTERS:,} characters"
    return None


def _measure(
    key: str,
    referring: Mapping[str, str],
    entries: Mapping[str, Entry],
    known: dict[str, tuple[int, int]],
    level: int = 0,
) -> tuple[int, int]:
    """The characters that a key's value becomes at most, and how many keys its longest chain passes."""
    if key in known:
        return known[key]
    text = referring.get(key)
    if text is None:
        known[key] = (len(str(entries[key].value)) if key in entries else 0, 0)
        return known[key]
    known[key] = (0, MAX_CHAIN + 1)  # what leads back to here has no end
    if level > MAX_CHAIN:
        return known[key]
    characters, chain = len(text), 0
    for name in _KEY.findall(text):
        inner, steps = _measure(name, referring, entries, known, level + 1)
        characters, chain = characters + inner, max(chain, steps + 1)
    known[key] = (characters, chain)
    return known[key]


def _merge(entries: Mapping[str, Entry], refused: Mapping[str, str]) -> tuple[Any, dict[str, str]]:
    """An OmegaConf configuration of defaults and entries, and why some values could not be read."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    merged = OmegaConf.create({key: _plain(declared.default) for key, declared in declared_keys().items()})
    unreadable = {}
    for key, entry in entries.items():
        if entry.value is None or key in refused:
            continue
        try:
            merged[key] = _plain(entry.value)
        except OmegaConfBaseException as error:
            unreadable[key] = str(error).splitlines()[0]
    return merged, unreadable


def _value_of(merged: Any, key: str) -> tuple[Any, str | None]:
    """The value of a key with all references replaced, or the reason why there is none."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        value = merged[key]
        return (OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value), None
    except OmegaConfBaseException as error:
        return None, str(error).splitlines()[0]


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
