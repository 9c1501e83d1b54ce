"""The table of commands agrees with the files of the commands."""

from importlib import import_module

import pytest

from erniekit.cli.commands import COMMANDS, NOT_BUILT


@pytest.mark.parametrize("command", [name for name in COMMANDS if name not in NOT_BUILT])
def test_a_command_has_a_run_a_line_and_a_usage(command: str) -> None:
    module = import_module(COMMANDS[command][0])
    assert callable(module.run)
    assert COMMANDS[command][1] == module.HELP
    assert module.USAGE.startswith(f"usage: erniekit {command}")
