"""Reads the words of a command that works from a configuration."""

from collections.abc import Sequence
from pathlib import Path

from erniekit.cli.launch import has_parent
from erniekit.config.load import LoadedConfig, load_config, load_overrides
from erniekit.config.overrides import is_override
from erniekit.errors import ConfigError


def read_config(argv: Sequence[str], verb: str) -> LoadedConfig:
    """The configuration of `argv`: a path first (it may be absent), then key=value, --key value, --key=value.

    Keys that are accepted without effect are told once, on standard error: where this process is one of
    several, by the one that starts them.

    Raises:
        ConfigError: nothing is given, or something is wrong with it.
        UnsupportedError: a feature that is asked for is not built yet.
    """
    if not argv:
        raise ConfigError(f"erniekit {verb} needs a configuration: erniekit {verb} CONFIG [key=value ...]")
    first, rest = argv[0], list(argv[1:])
    if Path(first).is_file() or not is_override(first):
        loaded = load_config(first, rest, verb=verb)
    else:
        loaded = load_overrides(argv, verb=verb)
    if loaded.notices and not has_parent():
        from erniekit.log import logger

        logger.info("accepted without effect here:")
        for notice in loaded.notices:
            logger.info(f"  {notice}")
    return loaded
