"""What is a key: those of the sections, those of upstream, and what becomes of each."""

from dataclasses import Field, dataclass, fields
from functools import cache
from importlib.resources import files
from typing import Any

from erniekit.config.config import SECTIONS

IMPLEMENTED = "implemented"
NO_EFFECT = "no effect"
NOT_BUILT = "not built yet"
FATES = (IMPLEMENTED, NO_EFFECT, NOT_BUILT)
NOTE_PREFIX = "x-"


@dataclass(frozen=True)
class Upstream:
    """The fate of an upstream key.

    Args:
        fate: one of FATES.
        harmless: values of a key that is not built yet which ask for nothing.
        detail: why the key has no effect, or the feature that is not built yet.
    """

    fate: str
    harmless: tuple[str, ...]
    detail: str

    def is_harmless(self, value: Any) -> bool:
        """Whether a value of a key that is not built yet asks for nothing."""
        return value in (None, "None", "", [], False) or str(value).lower() in self.harmless


@cache
def declared_keys() -> dict[str, "Field[Any]"]:
    """Every key of the sections, in their order."""
    return {declared.name: declared for section in SECTIONS.values() for declared in fields(section)}


@cache
def section_of() -> dict[str, str]:
    """The section of each key."""
    return {declared.name: name for name, section in SECTIONS.items() for declared in fields(section)}


@cache
def upstream_keys() -> dict[str, Upstream]:
    """Upstream's keys with their fates, from `upstream.tsv`."""
    text = (files("erniekit.config") / "upstream.tsv").read_text(encoding="utf-8")
    table = {}
    for line in text.splitlines()[1:]:
        key, fate, harmless, detail = line.split("\t")
        table[key] = Upstream(fate, tuple(harmless.split("|")) if harmless else (), detail)
    return table
