"""Sizes as people write them."""

import re

from erniekit.errors import ConfigError

_UNITS = {"": 10**9, "B": 1}
_UNITS |= {f"{letter}B": 1000**power for power, letter in enumerate("KMGT", start=1)}
_UNITS |= {f"{letter}IB": 1024**power for power, letter in enumerate("KMGT", start=1)}


def shard_bytes(max_shard_size: float | str) -> int:
    """Bytes of `max_shard_size`: a number is in GB, a text may name its unit (`500MB`, `2GiB`).

    Raises:
        ConfigError: it is not a size above zero.
    """
    text = str(max_shard_size).strip()
    match = re.fullmatch(r"([0-9]*\.?[0-9]+(?:e[+-]?[0-9]+)?)\s*([a-zA-Z]*)", text)
    unit = match.group(2).upper() if match else "?"
    size = int(float(match.group(1)) * _UNITS[unit]) if match and unit in _UNITS else 0
    if size < 1:
        raise ConfigError(
            f"max_shard_size: {max_shard_size!r} is not a size; write a number of GB (5, 0.5), or one with "
            "one of B, KB, MB, GB, KiB, MiB, GiB (500MB)"
        )
    return size
