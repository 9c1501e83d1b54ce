"""Reads a YAML or JSON file into entries that know their line and column."""

import json
from json.decoder import scanstring  # type: ignore[attr-defined]
from pathlib import Path
from typing import Any

import yaml

from erniekit.config.entries import Entry, Problem, Source
from erniekit.errors import ConfigError

try:
    from yaml import CSafeLoader as _Loader
except ImportError:  # PyYAML was built without libyaml
    from yaml import SafeLoader as _Loader  # type: ignore[assignment]

_JSON_SPACE = " \t\r\n"


def read_file(path: Path) -> tuple[list[Entry], list[Problem]]:
    """The entries of a configuration file, and the problems that do not hinder reading it.

    Raises:
        ConfigError: there is no such file, or it is no mapping of keys to values.
    """
    text = _read_text(path)
    if not text.strip():
        raise ConfigError(
            f"{path}: the file is empty; write keys and values, as in model_name_or_path: starter"
        )
    try:
        entries = _json_entries(path, text) if path.suffix == ".json" else _yaml_entries(path, text)
    except RecursionError as error:
        raise ConfigError(f"{path}: values are nested too deeply; a configuration is flat") from error
    return _without_duplicates(entries)


def parse_value(text: str) -> tuple[Any, str | None]:
    """A value of the command line, read as YAML reads it, and its spelling where it is a plain scalar.

    Raises:
        yaml.YAMLError: the text is no YAML value.
    """
    node = yaml.compose(text, Loader=_Loader)
    if node is None:
        return None, text.strip()
    return _construct(node), _spelling(node)


def _read_text(path: Path) -> str:
    try:
        if path.is_dir():
            raise ConfigError(f"{path}: is a folder; name a YAML or JSON file")
        if not path.exists():
            raise ConfigError(f"{path}: there is no such file")
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ConfigError(
            f"{path}:{line}: byte 0x{error.object[error.start]:02x} is not UTF-8; save the file as UTF-8"
        ) from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error


def _yaml_entries(path: Path, text: str) -> list[Entry]:
    try:
        node = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
        hint = "; indent with spaces" if "\\t" in str(error.problem) else ""
        reason = ", ".join(part for part in (error.context, error.problem) if part)
        raise ConfigError(f"{place}: not YAML: {reason}{hint}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    if node is None:
        raise ConfigError(f"{path}: the file holds only comments; write keys and values")
    if not isinstance(node, yaml.MappingNode):
        kind = "a list" if isinstance(node, yaml.SequenceNode) else "a single value"
        raise ConfigError(
            f"{path}:{node.start_mark.line + 1}: is {kind}, not a mapping of `key: value` lines"
        )
    entries = []
    for key_node, value_node in node.value:
        mark = key_node.start_mark
        source = Source(str(path), mark.line + 1, mark.column + 1)
        if not isinstance(key_node, yaml.ScalarNode):
            raise ConfigError(f"{source}: a key must be a word, as in `seed: 42`")
        try:
            value = _construct(value_node)
        except yaml.MarkedYAMLError as error:
            raise ConfigError(f"{source}: {key_node.value}: {error.problem}") from error
        except (ValueError, TypeError) as error:
            raise ConfigError(f"{source}: {key_node.value}: {error}") from error
        entries.append(Entry(key_node.value, value, _spelling(value_node), source))
    return entries


def _construct(node: yaml.Node) -> Any:
    loader = _Loader("")
    try:
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _spelling(node: yaml.Node) -> str | None:
    return node.value if isinstance(node, yaml.ScalarNode) else None


def _json_entries(path: Path, text: str) -> list[Entry]:
    try:
        whole = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}:{error.lineno}:{error.colno}: not JSON: {error.msg}") from error
    if not isinstance(whole, dict):
        raise ConfigError(f'{path}:1: is not a mapping: write {{"key": value, ...}}')
    decoder = json.JSONDecoder()
    entries: list[Entry] = []
    at = text.index("{") + 1
    while text[at := _skip(text, at, _JSON_SPACE + ",")] != "}":
        line_start = text.rfind("\n", 0, at) + 1
        source = Source(str(path), text.count("\n", 0, at) + 1, at - line_start + 1)
        key, at = scanstring(text, at + 1)
        at = _skip(text, at, _JSON_SPACE + ":")
        value, end = decoder.raw_decode(text, at)
        spelling = (
            value if isinstance(value, str) else None if isinstance(value, dict | list) else text[at:end]
        )
        entries.append(Entry(key, value, spelling, source))
        at = end
    return entries


def _skip(text: str, at: int, characters: str) -> int:
    while text[at] in characters:
        at += 1
    return at


def _without_duplicates(entries: list[Entry]) -> tuple[list[Entry], list[Problem]]:
    first: dict[str, Entry] = {}
    problems = []
    for entry in entries:
        earlier = first.setdefault(entry.key, entry)
        if earlier is not entry:
            problems.append(
                Problem(entry.source, f"{entry.key}: is given twice (first at {earlier.source}); keep one")
            )
    return list(first.values()), problems
