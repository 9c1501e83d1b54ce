"""The reference in docs/ is the one that the sections give."""

from pathlib import Path

import erniekit
from erniekit.config.keys import declared_keys, upstream_keys
from erniekit.config.reference import write_reference

DOCUMENT = Path(erniekit.__file__).parent.parent / "docs" / "configuration.md"


def test_every_key_is_in_the_reference() -> None:
    text = write_reference()
    assert [key for key in (*declared_keys(), *upstream_keys()) if f"`{key}`" not in text] == []


def test_the_document_is_current() -> None:
    assert DOCUMENT.read_text(encoding="utf-8") == write_reference(), (
        "write it again: erniekit config reference > docs/configuration.md"
    )
