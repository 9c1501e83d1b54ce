"""Reads a YAML or JSON file into entries that know their line and column."""

import json
from json.decoder import scanstring  # type: ignore[attr-defined]
from pathlib import Path
from typing import Any

import yaml

from erniekit.config.entries import Entry, Problem, Source
from erniekit.config.limits import MAX_BYTES, check_depth, check_nesting, check_nodes, too_deep
from erniekit.errors import ConfigError

try:
    from yaml import CSafeLoader as _Loader
except ImportError:  # PyYAML was built without libyaml
    from yaml import SafeLoader as _Loader  # type: ignore[assignment]

_MERGE = "tag:yaml.org,2002:merge"
_JSON_SPACE = " \t\r\n"


def read_file(path: Path) -> tuple[list[Entry], list[Problem]]:
    """The entries of a configuration file, and the problems that do not hinder reading it.

    Raises:
        ConfigError: there is no such file, or it is no mapping of keys to values.
    """
    text = _read_text(path)
    if not text.strip():
        raise ConfigError(
            f"{path}:1:1: the file is empty; write keys and values, as in model_name_or_path: starter"
        )
    entries = _json_entries(path, text) if path.suffix == ".json" else _yaml_entries(path, text)
    return _without_duplicates(entries)


def parse_value(text: str) -> tuple[Any, str | None]:
    """A value of the command line, read as YAML reads it, and its spelling where it is a plain scalar.

    Raises:
        yaml.YAMLError: the text is no YAML value.
        ConfigError: the value is nested too deeply, or its aliases stand for too much.
    """
    check_nesting(text, "value", _Loader)
    node = yaml.compose(text, Loader=_Loader)
    if node is None:
        return None, text.strip()
    check_nodes(node, "value")
    return _construct(node), _spelling(node)


def _read_text(path: Path) -> str:
    try:
        if path.is_dir():
            raise ConfigError(f"{path}: is a folder; name a YAML or JSON file")
        if not path.exists():
            raise ConfigError(f"{path}: there is no such file")
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
    if len(data) > MAX_BYTES:
        raise ConfigError(
            f"{path}:1:1: the file is larger than {MAX_BYTES // 1_000_000} MB, which no configuration is; "
            "was a data file or a model named by mistake?"
        )
    if data.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in data[:2]:
        raise ConfigError(f"{path}:1:1: the file is UTF-16; save it as UTF-8")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = data[: error.start]
        line = before.count(b"\n") + 1
        column = len(before[before.rfind(b"\n") + 1 :].decode("utf-8")) + 1
        raise ConfigError(
            f"{path}:{line}:{column}: byte 0x{data[error.start]:02x} is not UTF-8; save the file as UTF-8"
        ) from error


def _yaml_entries(path: Path, text: str) -> list[Entry]:
    try:
        check_nesting(text, str(path), _Loader)
        node = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else f"{path}:1:1"
        hint = "; indent with spaces" if "\\t" in str(error.problem) else ""
        reason = ", ".join(part for part in (error.context, error.problem) if part)
        raise ConfigError(f"{place}: not YAML: {reason}{hint}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}:1:1: not YAML: {' '.join(str(error).split())}") from error
    if node is None:
        raise ConfigError(f"{path}:1:1: the file holds only comments; write keys and values")
    if not isinstance(node, yaml.MappingNode):
        kind = "a list" if isinstance(node, yaml.SequenceNode) else "a single value"
        source = _source(path, node)
        raise ConfigError(f"{source}: is {kind}, not a mapping of `key: value` lines")
    check_nodes(node, str(path))
    return _mapping_entries(path, node, text.splitlines())


def _mapping_entries(path: Path, node: yaml.MappingNode, lines: list[str]) -> list[Entry]:
    """The entries of a mapping; `<<: *name` adds those of another that are not given here."""
    entries, merged = [], []
    for key_node, value_node in node.value:
        source = _source(path, key_node)
        if not isinstance(key_node, yaml.ScalarNode):
            raise ConfigError(f"{source}: a key must be a word, as in `seed: 42`")
        if key_node.tag == _MERGE:
            for other in _merged_mappings(source, value_node):
                merged += _mapping_entries(path, other, lines)
            continue
        try:
            value = _construct(value_node)
        except yaml.MarkedYAMLError as error:
            raise ConfigError(f"{source}: {key_node.value}: {error.problem}") from error
        except (ValueError, TypeError) as error:
            raise ConfigError(f"{source}: {key_node.value}: {error}") from error
        place = _value_source(path, key_node, value_node, lines)
        entries.append(Entry(key_node.value, value, _spelling(value_node), source, value_source=place))
    given = {entry.key for entry in entries}
    for entry in merged:
        if entry.key not in given:
            given.add(entry.key)
            entries.append(entry)
    return entries


def _merged_mappings(source: Source, node: yaml.Node) -> list[yaml.MappingNode]:
    """The mappings that `<<` names: one, or a list of which the first that has a key counts."""
    parts = node.value if isinstance(node, yaml.SequenceNode) else [node]
    if not all(isinstance(part, yaml.MappingNode) for part in parts):
        raise ConfigError(f"{source}: <<: merges mappings, as in <<: *name; write the name of an anchor")
    return list(parts)


def _source(path: Path, node: yaml.Node) -> Source:
    return Source(str(path), node.start_mark.line + 1, node.start_mark.column + 1)


def _value_source(path: Path, key: yaml.Node, value: yaml.Node, lines: list[str]) -> Source:
    """Where a value stands; an alias is a node of another place, so its own is looked for."""
    end = key.end_mark
    if value.start_mark.index >= end.index and value.start_mark.line >= end.line:
        return _source(path, value)
    column = lines[end.line].find("*", end.column) if end.line < len(lines) else -1
    return _source(path, key) if column < 0 else Source(str(path), end.line + 1, column + 1)


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
    except RecursionError as error:
        raise too_deep(f"{path}:1:1") from error
    except ValueError as error:  # a number of more than 4300 digits
        raise ConfigError(f"{path}:1:1: not JSON: {error}") from error
    check_depth(whole, f"{path}:1:1")
    if not isinstance(whole, dict):
        raise ConfigError(f'{path}:1:1: is not a mapping: write {{"key": value, ...}}')
    decoder = json.JSONDecoder()
    entries: list[Entry] = []
    at = text.index("{") + 1
    while text[at := _skip(text, at, _JSON_SPACE + ",")] != "}":
        line_start = text.rfind("\n", 0, at) + 1
        source = Source(str(path), text.count("\n", 0, at) + 1, at - line_start + 1)
        key, at = scanstring(text, at + 1)
        at = _skip(text, at, _JSON_SPACE + ":")
        line_start = text.rfind("\n", 0, at) + 1
        place = Source(str(path), text.count("\n", 0, at) + 1, at - line_start + 1)
        value, end = decoder.raw_decode(text, at)
        spelling = (
            value if isinstance(value, str) else None if isinstance(value, dict | list) else text[at:end]
        )
        entries.append(Entry(key, value, spelling, source, value_source=place))
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
