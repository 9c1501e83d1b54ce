"""`erniekit help` lists the commands and tells the usage of one."""

import pytest

from erniekit.cli.commands import COMMANDS
from erniekit.cli.main import main


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    listed = capsys.readouterr().out
    assert all(f"  {name} " in listed for name in COMMANDS)
    assert main([]) == 0
    assert capsys.readouterr().out == listed


def test_help_after_a_command_is_its_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "run.yaml", "--help"]) == 0
    told = capsys.readouterr().out
    assert told.startswith("usage: erniekit train")
    assert main(["help", "train"]) == 0
    assert capsys.readouterr().out == told


@pytest.mark.parametrize("command", COMMANDS)
def test_both_ways_to_ask_give_the_usage(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    answers = []
    for words in (["help", command], [command, "--help"], [command, "-h"], [command, "a", "--help"]):
        assert main(words) == 0
        answers.append(capsys.readouterr().out)
    assert answers[0].startswith(f"usage: erniekit {command}")
    assert len(set(answers)) == 1


def test_help_for_a_misspelt_command_names_the_right_one(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["help", "exprot"]) == 2
    assert "did you mean erniekit help export?" in capfd.readouterr().err
