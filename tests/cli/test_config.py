"""`erniekit config`: exit codes, and where each value comes from."""

from pathlib import Path

import pytest

from erniekit.cli.main import main
from erniekit.config.load import load_config
from erniekit.config.reference import write_reference


@pytest.fixture
def good(tmp_path: Path) -> Path:
    path = tmp_path / "good.yaml"
    path.write_text("model_name_or_path: starter\nlearning_rate: 1e-5\nfuse_rope: true\n", encoding="utf-8")
    return path


def test_check_tells_of_every_file(good: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    bad, later = tmp_path / "bad.yaml", tmp_path / "later.yaml"
    bad.write_text("seed: many\nlearning_rat: 1\n", encoding="utf-8")
    later.write_text("stage: KTO\n", encoding="utf-8")
    assert main(["config", "check", str(good)]) == 0
    assert main(["config", "check", str(later)]) == 2
    assert main(["config", "check", str(bad), str(good)]) == 2
    told = capfd.readouterr()
    assert told.out.count(f"{good}: right") == 2
    assert "without effect: fuse_rope" in told.out


def test_check_wants_a_file() -> None:
    assert main(["config", "check"]) == 2
    assert main(["config", "chek"]) == 2
    assert main(["config"]) == 2


def test_show_tells_values_and_sources(good: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from erniekit.log import console

    with console.capture() as capture:
        assert main(["config", "show", str(good), "seed=7", "--changed"]) == 0
    lines = [line.split("  # ") for line in capture.get().splitlines()]
    assert [(item.strip(), source) for item, source in lines] == [
        ("seed: 7", "command line"),
        ("model_name_or_path: starter", f"{good}:1:1"),
        ("learning_rate: 1.0e-05", f"{good}:2:1"),
    ]


def test_show_yaml_is_the_resolved_file(good: Path, tmp_path: Path) -> None:
    from erniekit.log import console

    with console.capture() as capture:
        assert main(["config", "show", str(good), "--yaml"]) == 0
    again = tmp_path / "again.yaml"
    again.write_text(capture.get(), encoding="utf-8")
    assert load_config(again, verb="check").config == load_config(good, verb="check").config


def test_reference_is_printed_as_it_is() -> None:
    from erniekit.log import console

    with console.capture() as capture:
        assert main(["config", "reference"]) == 0
    assert capture.get() == write_reference()
