"""Commands that upstream has and that are not built yet: they say so instead of being unknown."""

from erniekit.errors import UnsupportedError

HELP = "commands that are not built yet"
USAGE = "server and webui are not built yet."


def run(argv: list[str]) -> int:
    """Always raises: the command named first in `argv` is not built yet.

    Raises:
        UnsupportedError: always.
    """
    raise UnsupportedError(f"erniekit {argv[0]}: not built yet; erniekit help lists the commands that are")
