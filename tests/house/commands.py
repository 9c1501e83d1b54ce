"""Command lines of ErnieKit in documents and comments, and whether they would be accepted.

Nothing is run here: the command has to exist, the files it names have to be there, and its
configuration, with the overrides of the line, has to be right.
"""

import re
import shlex
from pathlib import Path

from erniekit.cli.commands import COMMANDS, NOT_BUILT
from erniekit.cli.options import take_options
from erniekit.config.load import load_config
from erniekit.errors import ErnieKitError
from tests.house.sources import ROOT

# Verbs that read a configuration, with the options that are not keys.
WITH_CONFIG: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "train": ((), ()),
    "eval": ((), ("--base", "--json")),
    "export": ((), ()),
    "quantize": ((), ()),
    "split": ((), ()),
    "chat": (("--prompt", "--system", "--tools"), ("--raw",)),
    "generate": (("--prompt", "--system", "--input", "--output", "--rows"), ("--raw",)),
}
CONFIG_SUFFIXES = (".yaml", ".yml", ".json")
# Names in examples that stand for files of the reader's.
READERS_FILES = re.compile(
    r"^(\./)?(my|run|your|out|path/to|/path/to|config|model|paddle|hf|other|big|a\.|b\.|old|new)"
)


def command_lines(text: str) -> list[str]:
    """Every `erniekit ...` at the start of a line (comment marks, prompts and environment aside)."""
    lines = text.replace("\\\n", " ").splitlines()
    found = []
    for line in lines:
        match = re.match(r"^\s*(?:#\s*)?(?:\$ )?((?:[A-Z_]+=\S+ )*erniekit( .*)?)$", line.rstrip())
        if match:
            found.append(re.sub(r"^(?:[A-Z_]+=\S+ )*", "", match[1]))
    return found


def blocks(markdown: str) -> list[tuple[str, str]]:
    """(language, text) of every fenced block of a page."""
    return re.findall(r"^```(\w*)[^\n]*\n(.*?)^```", markdown, flags=re.MULTILINE | re.DOTALL)


def problem(line: str, *, folder: Path = ROOT) -> str | None:
    """Why a command line would be refused; None when it would not."""
    words = shlex.split(line, comments=True)[1:]
    words = words[: next((i for i, word in enumerate(words) if word in ("|", "&&", ">", ";")), len(words))]
    if not words or words[0].startswith("-"):
        return None
    verb, rest = words[0], words[1:]
    if verb not in COMMANDS:
        return f"there is no command {verb}"
    if verb in NOT_BUILT:
        return f"{verb} is not built"
    if verb in ("config", "data") and len(rest) > 1:
        rest, verb = rest[1:], "train"
        rest = [word for word in rest if not word.startswith("--")]
    if verb not in WITH_CONFIG or not rest or "--help" in rest:
        return None
    return _configuration_problem(verb, rest, folder)


def _configuration_problem(verb: str, words: list[str], folder: Path) -> str | None:
    valued, flags = WITH_CONFIG[verb]
    try:
        _, words = take_options(words, valued=valued, flags=flags)
        first, overrides = words[0], words[1:]
        if not first.endswith(CONFIG_SUFFIXES):
            return _override_problem(overrides, verb)
        path = folder / first
        if not path.is_file():
            return None if READERS_FILES.match(first) else f"{first} does not exist"
        load_config(path, overrides, verb=verb)
    except ErnieKitError as error:
        return str(error)
    return None


def _override_problem(overrides: list[str], verb: str) -> str | None:
    from erniekit.config.load import load_overrides

    words = ["model_name_or_path=starter", "train_dataset_path=a", "eval_dataset_path=b", *overrides]
    try:
        load_overrides(words, verb=verb)
    except ErnieKitError as error:
        return str(error)
    return None
