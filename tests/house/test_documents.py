"""Documents say what is so: their commands are accepted, their links lead somewhere."""

import ast
import re
import shlex
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from erniekit.cli.commands import COMMANDS, NOT_BUILT
from tests.house.commands import blocks, command_lines, problem
from tests.house.readme import pages
from tests.house.sources import ROOT

DOCUMENTS = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "recipes").glob("*/README.md")),
    *sorted((ROOT / "examples").rglob("README.md")),
    *sorted((ROOT / "benchmarks").glob("*.md")),
]
SHELL = ("bash", "sh", "shell", "console")
# Commands that need no model, no network and no Paddle: the tests run them.
RUNNABLE = ("config check examples", "config show examples", "config reference", "recipes list")
RUNNABLE += ("models list", "help", "version", "completion bash")


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def shell_lines(path: Path) -> list[str]:
    text = path.read_text(encoding="utf-8")
    return [line for language, block in blocks(text) if language in SHELL for line in command_lines(block)]


def test_documents_are_found() -> None:
    assert {"README.md", "CONTRIBUTING.md", "CHANGELOG.md"} <= {name_of(path) for path in DOCUMENTS}
    assert len(DOCUMENTS) >= 14
    assert sum(len(shell_lines(path)) for path in DOCUMENTS) >= 40


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_commands_are_accepted(path: Path) -> None:
    problems = {line: problem(line) for line in shell_lines(path)}
    assert {line: text for line, text in problems.items() if text} == {}


def test_the_rule_on_commands_notices() -> None:
    example = "examples/configs/starter/sft/run_sft.yaml"
    wrong = [
        f"erniekit trian {example}",
        f"erniekit train {example} learning_rte=1e-5",
        "erniekit train examples/configs/starter/sft/gone.yaml",
        "erniekit export ./output export_layout=pickle",
        "erniekit server ./output",
    ]
    assert [line for line in wrong if problem(line) is None] == []
    assert problem(f"erniekit train {example} learning_rate=1e-5 --max_steps 3  # quick") is None


@pytest.mark.parametrize("command", [name for name in COMMANDS if name not in NOT_BUILT])
def test_commands_in_help_are_accepted(command: str) -> None:
    usage = import_module(COMMANDS[command][0]).USAGE
    assert usage.startswith(f"usage: erniekit {command}")
    _, _, below = usage.partition("\n\n")
    lines = [line for line in command_lines(below) if not re.search(r"[A-Z]{3}|\||\.\.\.|\*", line)]
    assert [(line, problem(line)) for line in lines if problem(line)] == []


def test_light_commands_of_documents_run() -> None:
    lines = dict.fromkeys(line for path in DOCUMENTS for line in shell_lines(path))
    chosen = [line for line in lines if line.removeprefix("erniekit ").startswith(RUNNABLE)]
    assert len(chosen) >= 3
    for line in chosen:
        words = shlex.split(line, comments=True)[1:]
        done = subprocess.run(
            [sys.executable, "-m", "erniekit", *words],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, f"{line}\n{done.stderr}"
        assert done.stdout.strip()


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_links_lead_somewhere(path: Path) -> None:
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    targets = re.findall(r"\]\(([^)#\s]+)", text)
    local = [target for target in targets if "://" not in target]
    assert [target for target in local if not (path.parent / target).exists()] == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_files_named_in_documents_exist(path: Path) -> None:
    """A path in backticks that starts at a folder of the repository is there."""
    text = path.read_text(encoding="utf-8")
    folders = r"(?:erniekit|tests|docs|recipes|examples|benchmarks|\.ci)"
    names = re.findall(rf"`({folders}/[\w./-]+)`", text)
    assert [name for name in names if not (ROOT / name).exists() and not name.endswith("/x.py")] == []


def test_make_targets_in_documents_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, flags=re.MULTILINE))
    named = set()
    for path in DOCUMENTS:
        text = path.read_text(encoding="utf-8")
        commands = "\n".join(block for language, block in blocks(text) if language in SHELL)
        named |= set(re.findall(r"^make ([a-z-]+)", commands, flags=re.MULTILINE))
        named |= set(re.findall(r"`make ([a-z-]+)`", text))
    assert {"quickstart", "test", "check"} <= named
    assert named - targets == set()


def test_extras_in_documents_and_messages_exist() -> None:
    declared = set(re.findall(r'^        "(\w+)": \[', (ROOT / "setup.py").read_text("utf-8"), re.MULTILINE))
    texts = [path.read_text(encoding="utf-8") for path in DOCUMENTS]
    texts += [path.read_text(encoding="utf-8") for path in (ROOT / "erniekit").rglob("*.py")]
    named = set()
    for text in texts:
        for group in re.findall(r"(?:erniekit|'\.|\"\.)\[([\w,]+)\]", text):
            named |= set(group.split(","))
    assert {"cpu", "starter"} <= named
    assert named - declared == set()


@pytest.mark.parametrize("path", pages(), ids=name_of)
def test_generated_pages_are_up_to_date(path: Path) -> None:
    assert path.read_text(encoding="utf-8") == pages()[path], "run: make docs"


ERRORS = re.compile(r"^\| `([^`]+)`", flags=re.MULTILINE)


def test_errors_in_documents_are_those_of_the_code() -> None:
    """The rows of "Trouble, by the text of the error": every piece between values stands in a message."""
    text = (ROOT / "docs" / "multi-node.md").read_text(encoding="utf-8")
    trouble = re.search(r"^## Trouble, by the text of the error$(.*?)^## ", text, re.MULTILINE | re.DOTALL)
    assert trouble is not None
    quoted = ERRORS.findall(trouble[1])
    assert len(quoted) >= 20
    pieces = {piece.strip() for words in quoted for piece in words.split("...") if piece.strip(" ()")}
    said = "\n".join(
        node.value
        for path in sorted((ROOT / "erniekit").rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )
    assert [piece for piece in sorted(pieces) if piece not in said] == []


def test_names_of_a_plan_are_described() -> None:
    from erniekit.models.ernie45 import plan

    text = (ROOT / "docs" / "parallel.md").read_text(encoding="utf-8")
    described = set(re.findall(r"`([A-Z_]+)`", text[text.index("## A plan for a new model") :]))
    assert described == {name for name in vars(plan) if name.isupper()}
