"""Under the sanitizers the results of operators lie where the sanitizer guards their ends."""

from collections.abc import Iterator

import pytest

from erniekit.ops.kernels.library import find_library
from erniekit.ops.native import memory


@pytest.fixture(autouse=True, scope="module")
def guarded_memory(request: pytest.FixtureRequest) -> Iterator[None]:
    """Large results in Paddle's memory, tensor by tensor, except where our own is what is tested."""
    library = find_library().library
    sanitized = library is not None and any("-fsanitize" in flag for flag in library.record["flags"])
    with pytest.MonkeyPatch.context() as patch:
        if sanitized and request.path.name != "test_memory.py":
            patch.setattr(memory, "SMALLEST", 1 << 62)
        yield
