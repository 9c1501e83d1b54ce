import pytest

from erniekit.errors import ConfigError
from erniekit.export.sizes import shard_bytes


@pytest.mark.parametrize(
    ("written", "size"),
    [
        (5, 5 * 10**9),
        (0.5, 5 * 10**8),
        ("5", 5 * 10**9),
        ("500MB", 5 * 10**8),
        ("2 GiB", 2 * 2**30),
        ("10kb", 10**4),
    ],
)
def test_sizes(written: float | str, size: int) -> None:
    assert shard_bytes(written) == size


@pytest.mark.parametrize("written", [0, -1, "big", "5TBB", ""])
def test_not_a_size(written: float | str) -> None:
    with pytest.raises(ConfigError, match="max_shard_size"):
        shard_bytes(written)
