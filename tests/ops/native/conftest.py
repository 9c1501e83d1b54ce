"""The kernels that operators are tested with: every level of instructions that runs here.

Under the sanitizers the results of operators lie where the sanitizer guards their ends.
"""

from collections.abc import Iterator

import pytest

from erniekit.ops.kernels import library as kernels
from erniekit.ops.kernels.library import Library, find_library, load
from erniekit.ops.native import memory

BEST = find_library().library
LEVELS = BEST.record["levels"][: BEST.record["levels"].index(BEST.level) + 1] if BEST else []


@pytest.fixture(params=LEVELS)
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Library]:
    """Every level of instructions that runs here, with two threads, for all operators."""
    chosen = load(request.param)
    monkeypatch.setattr(kernels, "load", lambda: chosen)
    before = chosen.threads
    chosen.set_threads(2)
    yield chosen
    chosen.set_threads(before)


@pytest.fixture(autouse=True, scope="module")
def guarded_memory(request: pytest.FixtureRequest) -> Iterator[None]:
    """Large results in Paddle's memory, tensor by tensor, except where our own is what is tested."""
    library = find_library().library
    sanitized = library is not None and any("-fsanitize" in flag for flag in library.record["flags"])
    with pytest.MonkeyPatch.context() as patch:
        if sanitized and request.path.name != "test_memory.py":
            patch.setattr(memory, "SMALLEST", 1 << 62)
        yield
