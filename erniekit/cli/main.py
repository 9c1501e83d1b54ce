"""Entry point of the command line: dispatches to one command and turns errors into exit codes."""

import os
import signal
import sys
from importlib import import_module
from types import TracebackType

from erniekit.cli.commands import COMMANDS
from erniekit.errors import ErnieKitError

INTERRUPTED = 130
WRONG_INPUT = 2
HELP_WORDS = ("-h", "--help")


def main(argv: list[str] | None = None) -> int:
    """Run one command.

    Returns:
        0 done, 1 the run failed, 2 the input is wrong, 130 interrupted.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if argv is None:  # a process of its own; a caller in Python gets what is unexpected as it is
        sys.excepthook = _unexpected
    try:
        code = _dispatch(words)
        sys.stdout.flush()
        return code
    except ErnieKitError as error:
        return _told(error)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The reader (head, less) has gone; nothing more can be told, and Python must not try at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + int(signal.SIGPIPE)


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in HELP_WORDS:
        words = ["help"]
    if words[0] in ("-V", "--version"):
        words = ["version"]
    command, rest = words[0], words[1:]
    if command not in COMMANDS:
        return _unknown(command)
    module = COMMANDS[command][0]
    if module.endswith(".not_built"):
        rest = [command, *rest]
    if any(word in HELP_WORDS for word in rest):
        rest, module = [command], "erniekit.cli.help"
    if module != "erniekit.cli.help":
        from erniekit.log import set_up_logging

        set_up_logging()
    run = import_module(module).run
    return int(run(rest))


def _unknown(command: str) -> int:
    from erniekit.config.suggest import nearest_word

    near = nearest_word(command, COMMANDS)
    hint = f"did you mean erniekit {near}?" if near else "see erniekit help"
    return _told(ErnieKitError(f"there is no command {command}; {hint}"), WRONG_INPUT)


def _unexpected(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Tell a defect of ErnieKit: the traceback first, since nobody may be able to repeat it."""
    sys.__excepthook__(kind, error, trace)
    if not issubclass(kind, Exception):
        return
    reason = " ".join(str(error).split())[:200]
    _told(
        ErnieKitError(
            f"unexpected {kind.__name__}{': ' if reason else ''}{reason}\n"
            "This is a defect of ErnieKit, or of what it stands on. The traceback is above; report it "
            "together with the output of erniekit doctor."
        )
    )


def _told(error: ErnieKitError, code: int | None = None) -> int:
    from erniekit.log import logger, set_up_logging

    set_up_logging()
    logger.error(str(error))
    return error.exit_code if code is None else code


if __name__ == "__main__":
    sys.exit(main())
