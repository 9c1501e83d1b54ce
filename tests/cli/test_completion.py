"""The completion scripts are valid and offer commands, actions and keys."""

import shutil
import subprocess

import pytest

from erniekit.cli.commands import COMMANDS
from erniekit.cli.completion import run, script
from erniekit.config.keys import declared_keys
from erniekit.errors import ConfigError


def complete(*words: str) -> list[str]:
    """What bash offers for the last of the words."""
    program = (
        f"{script('bash')}\nCOMP_WORDS=({' '.join(map(repr, words))})\nCOMP_CWORD={len(words) - 1}\n"
        '_erniekit\nprintf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, timeout=60, check=True)
    return done.stdout.split()


def test_bash_completes_commands_actions_and_keys() -> None:
    assert complete("erniekit", "tr") == ["train"]
    assert set(complete("erniekit", "config", "")) == {"check", "show", "reference"}
    assert complete("erniekit", "train", "learning") == ["learning_rate="]
    assert complete("erniekit", "train", "run.yaml", "--warmup_s") == ["--warmup_steps"]
    assert complete("erniekit", "help", "expo") == ["export"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_accepts_its_script(shell: str) -> None:
    text = script(shell)
    assert all(name in text for name in COMMANDS)
    assert all(key in text for key in declared_keys())
    if shutil.which(shell):
        done = subprocess.run(
            [shell, "-n"], input=text, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("words", [[], ["tcsh"], ["bash", "zsh"]])
def test_other_words_are_wrong_input(words: list[str]) -> None:
    with pytest.raises(ConfigError, match="bash, zsh, fish"):
        run(words)
