"""What `doctor` says of the kernels."""

from types import SimpleNamespace

import pytest

from erniekit.ops.kernels import describe, library
from erniekit.ops.kernels.library import Found


def test_kernels_that_run(monkeypatch: pytest.MonkeyPatch) -> None:
    record = {"levels": ["portable", "avx512bf16"], "compiler": "g++ 12"}
    library = SimpleNamespace(level="avx512bf16", threads=2, folder="/somewhere", record=record)
    monkeypatch.setattr(describe, "find_library", lambda: Found(library))  # type: ignore[arg-type]
    facts = describe.describe()
    assert facts["native kernels"] == "run here" and facts["threads"] == "2"
    assert facts["level"] == "avx512bf16 of portable, avx512bf16; products in bf16 and fp32"
    assert facts["library"] == "/somewhere, made by g++ 12"


def test_kernels_that_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(describe, "find_library", lambda: Found(None, "no space"))
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setenv("ERNIEKIT_KERNELS", "paddle")
    facts = describe.describe()
    assert facts["native kernels"] == "do not run: no space"
    assert "no-such-compiler" in facts["compiler"]
    assert facts["chosen by the environment"] == "paddle"


def test_facts_of_this_machine() -> None:
    facts = describe.describe()
    assert facts["native kernels"].startswith(("run here", "do not run: "))
    assert {"compiler", "cache folder", "oneDNN of Paddle"} <= set(facts)


def test_onednn_lies_in_the_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    path = library.onednn_path()
    assert path is None or path.name.startswith("libdnnl.so")
    monkeypatch.setattr(library, "find_spec", lambda name: None)
    assert library.onednn_path() is None
    assert describe.describe()["oneDNN of Paddle"] == "not found"
