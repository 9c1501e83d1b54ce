"""The one logger and console of ErnieKit; nothing else prints.

Messages for people go to standard error through `logger` (rank 0 only, unless they are errors, or have
`all_ranks=True` in `extra`), and to the file that LOG_VARIABLE names, if it does; results that a command is
asked for go to standard output through `console`.
"""

import logging
import os
import sys

from rich.console import Console

console = Console(soft_wrap=True, highlight=False)
error_console = Console(stderr=True, soft_wrap=True, highlight=False)
logger = logging.getLogger("erniekit")
LOG_VARIABLE = "ERNIEKIT_LOG"


def rank() -> int:
    """Rank of this process in the run, 0 when there is one process."""
    return int(os.environ.get("PADDLE_TRAINER_ID", "0"))


class _RankFilter(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return rank() == 0 or record.levelno >= logging.ERROR or getattr(record, "all_ranks", False)


class _Handler(logging.Handler):
    """Writes through rich, so that a live progress line stays below the messages."""

    def emit(self, record: logging.LogRecord) -> None:
        prefix = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
        style = "yellow" if record.levelno == logging.WARNING else None
        if record.levelno >= logging.ERROR:
            style = "red"
        error_console.print(prefix + self.format(record), style=style, markup=False)


def set_up_logging(level: int = logging.INFO) -> None:
    """Attach the handler once; later calls only change the level."""
    if not logger.handlers:
        handler = _Handler()
        handler.addFilter(_RankFilter())
        logger.addHandler(handler)
        if LOG_VARIABLE in os.environ:
            path = os.environ[LOG_VARIABLE]
            os.makedirs(os.path.dirname(path), exist_ok=True)
            file = logging.FileHandler(path, mode="w", encoding="utf-8")
            file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
            logger.addHandler(file)
        logger.propagate = False
    logger.setLevel(level)


def is_terminal() -> bool:
    """Whether standard error is an interactive terminal (live lines are allowed)."""
    return sys.stderr.isatty()
