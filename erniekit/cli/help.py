"""`erniekit help`: the list of commands, or the usage of one.

Writes to standard output directly: this answer must come at once, and rich takes longer to start
than the rest of the command.
"""

import sys
from importlib import import_module
from importlib.util import find_spec

from erniekit.cli.commands import COMMANDS, NOT_BUILT
from erniekit.errors import ConfigError

HELP = "this list, or the usage of a command"
USAGE = """usage: erniekit help [COMMAND]

Lists the commands, or tells how to use one."""

_FRAME = """usage: erniekit COMMAND [words ...]

{commands}

erniekit COMMAND --help tells more about one. A configuration is a YAML or JSON file; its keys can
also be given as key=value, --key value or --key=value.

Exit codes: 0 done, 1 the run failed, 2 the input is wrong, 130 interrupted."""


def run(argv: list[str]) -> int:
    """Run the command; returns the exit code."""
    sys.stdout.write((usage_of(argv[0]) if argv else list_commands()) + "\n")
    return 0


def list_commands() -> str:
    """The commands with a line each."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {line}" for name, (_, line) in COMMANDS.items()]
    return _FRAME.format(commands="\n".join(lines))


def usage_of(command: str) -> str:
    """How to use one command.

    Raises:
        ConfigError: there is no such command.
    """
    if command not in COMMANDS:
        from erniekit.config.suggest import nearest_word

        near = nearest_word(command, COMMANDS)
        hint = f"did you mean erniekit help {near}?" if near else "see erniekit help"
        raise ConfigError(f"there is no command {command}; {hint}")
    module = COMMANDS[command][0]
    if find_spec(module) is None:
        raise ConfigError(f"erniekit {command} is missing from this installation; install ErnieKit again")
    if command in NOT_BUILT:
        return f"usage: erniekit {command}\n\n{COMMANDS[command][1]}\n\n{import_module(module).USAGE}"
    return str(import_module(module).USAGE)
