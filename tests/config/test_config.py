"""Every key belongs to one section, says what it does, and reaches a function under its own name."""

import ast
from collections import Counter
from dataclasses import fields
from pathlib import Path

import pytest

import erniekit
from erniekit.config.aliases import ALIASES
from erniekit.config.coerce import coerce, type_words
from erniekit.config.config import SECTIONS, Config, build_config
from erniekit.config.entries import Entry, Source
from erniekit.config.fields import rule_of
from erniekit.config.keys import FATES, IMPLEMENTED, NOT_BUILT, declared_keys, upstream_keys

ROOT = Path(erniekit.__file__).parent


def keyword_only(target: str) -> set[str]:
    """Keyword-only arguments of `module:function`, or of a class's constructor; nothing is imported."""
    module, name = target.split(":")
    path = ROOT.joinpath(*module.split(".")[1:]).with_suffix(".py")
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            return {argument.arg for argument in node.args.kwonlyargs}
        if isinstance(node, ast.ClassDef) and node.name == name:
            for inner in node.body:
                if isinstance(inner, ast.FunctionDef) and inner.name == "__init__":
                    return {argument.arg for argument in inner.args.kwonlyargs}
            assert "kw_only=True" in ast.unparse(node.decorator_list[0]), f"{target} takes no keywords"
            return {inner.target.id for inner in node.body if isinstance(inner, ast.AnnAssign)}  # type: ignore[union-attr]
    raise AssertionError(f"{target} does not exist")


@pytest.mark.parametrize("section", SECTIONS)
def test_fields_are_the_arguments_of_what_they_configure(section: str) -> None:
    configured = SECTIONS[section].configures  # type: ignore[attr-defined]
    arguments = set().union(*(keyword_only(target) for target in configured))
    own = {declared.name for declared in fields(SECTIONS[section])}
    assert own - arguments == set()
    # A function may take keys of several sections, but no word that is not a key.
    assert arguments - set(declared_keys()) == set()


def test_a_key_belongs_to_one_section() -> None:
    counts = Counter(declared.name for section in SECTIONS.values() for declared in fields(section))
    assert [key for key, count in counts.items() if count > 1] == []
    assert all(len(fields(section)) <= 15 for section in SECTIONS.values())


@pytest.mark.parametrize("key", declared_keys())
def test_a_key_is_explained_and_its_default_is_allowed(key: str) -> None:
    declared = declared_keys()[key]
    assert rule_of(declared).help and not rule_of(declared).help.endswith(".")
    assert type_words(declared)
    if declared.default not in (None, ""):
        spelling = None if isinstance(declared.default, tuple) else str(declared.default)
        assert coerce(declared, Entry(key, declared.default, spelling, Source("here"))) == declared.default


def test_the_default_config_is_the_empty_config() -> None:
    assert build_config({}) == Config()


def test_the_upstream_table_is_complete_in_itself() -> None:
    table = upstream_keys()
    assert len(table) >= 400
    for key, row in table.items():
        assert row.fate in FATES, key
        if row.fate == IMPLEMENTED:
            assert key in declared_keys() or key in ALIASES, key
        else:
            assert row.detail, key
            assert key not in declared_keys(), key
        if row.fate != NOT_BUILT:
            assert row.harmless == (), key
