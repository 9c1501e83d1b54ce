"""What must answer at once imports neither Paddle nor anything else that takes long."""

import json
import subprocess
import sys

import pytest

from tests.house.sources import ROOT, package_sources

# No Paddle in these. `datasets` and `gguf` pull in pandas and pyarrow; `rich` is allowed for the logger.
HEAVY = ("paddle", "datasets", "gguf", "pyarrow", "pandas", "huggingface_hub", "transformers", "torch")
LIGHT_ROOMS = ("", "errors", "log", "config", "cli", "data", "estimate", "checkpoint", "export.sizes")
LIGHT_FILES = ("config.py", "plan.py", "weights.py", "registry.py", "schemes.py", "presets.py")
# The command line alone may not even import numpy: `erniekit --help` would feel it.
HELP_HEAVY = (*HEAVY, "numpy", "omegaconf", "yaml", "rich", "jinja2", "tokenizers")


def light_modules() -> list[str]:
    """Modules that the architecture promises to be light."""
    chosen = []
    for source in package_sources():
        if source.module == "erniekit.__main__":
            continue
        in_room = source.room in LIGHT_ROOMS
        in_file = source.room in ("models", "quant") and source.path.name in LIGHT_FILES
        if in_room or in_file:
            chosen.append(source.module)
    return chosen


def imported_by(statements: str) -> set[str]:
    """Top-level modules that a fresh interpreter holds after the statements."""
    program = (
        f"{statements}\nimport sys, json\nsys.stderr.write('MODULES ' + json.dumps(sorted(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    modules = json.loads(done.stderr.rpartition("MODULES ")[2])
    return {name.partition(".")[0] for name in modules}


def test_light_modules_are_light() -> None:
    modules = light_modules()
    assert len(modules) > 50
    loaded = imported_by("\n".join(f"import {module}" for module in modules))
    heavy = sorted(loaded & set(HEAVY))
    if heavy:
        blame = [name for name in modules if imported_by(f"import {name}") & set(heavy)]
        pytest.fail(f"{heavy} are imported by {blame}")


@pytest.mark.parametrize("words", [["--help"], [], ["help"], ["train", "--help"], ["help", "export"]])
def test_help_is_light(words: list[str]) -> None:
    loaded = imported_by(f"from erniekit.cli.main import main\nassert main({words!r}) == 0")
    assert loaded & set(HELP_HEAVY) == set()


def test_version_and_recipes_import_no_paddle() -> None:
    for words in (["version"], ["recipes", "list"]):
        loaded = imported_by(f"from erniekit.cli.main import main\nassert main({words!r}) == 0")
        assert "paddle" not in loaded
