"""What a benchmark measured is kept under its name; what failed leaves the old figures."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from tests.house.sources import ROOT

GOOD = "import sys; print('a table'); print('{\"words\": %d}' % len(sys.argv))"


@pytest.fixture
def record(
    script: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> ModuleType:
    module = script("record")
    (tmp_path / "good.py").write_text(GOOD)
    (tmp_path / "bad.py").write_text("print('{}'); raise SystemExit(1)")
    monkeypatch.setattr(module, "HERE", tmp_path)
    monkeypatch.setattr(module, "FIGURES", tmp_path / "figures")
    monkeypatch.setattr(
        module,
        "BENCHMARKS",
        {"one": ("good.py", ("--a", "b"), True), "two": ("good.py", (), False), "bad": ("bad.py", (), False)},
    )
    return module


def test_figures_are_kept(record: ModuleType, tmp_path: Path) -> None:
    assert record.main(["one", "two", "--peer", "none"]) == 0
    one = json.loads((tmp_path / "figures/one.json").read_text())
    assert one == {"command": "python benchmarks/good.py --a b", "words": 5}
    assert json.loads((tmp_path / "figures/two.json").read_text())["words"] == 1


def test_a_failure_keeps_the_old_figures(record: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures/bad.json").write_text("old")
    assert record.main([]) == 1
    assert (tmp_path / "figures/bad.json").read_text() == "old"
    assert (tmp_path / "figures/two.json").is_file()
    with pytest.raises(SystemExit, match="there are no figures three; there are one, two, bad"):
        record.main(["three"])


def test_scripts_exist(script: Callable[[str], ModuleType]) -> None:
    scripts = {name for name, _, _ in script("record").BENCHMARKS.values()}
    missing = {name for name in scripts if not (ROOT / "benchmarks" / name).is_file()}
    assert missing == set() and len(scripts) >= 6
