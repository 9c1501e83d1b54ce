"""Listing, copying and checking recipes, from the repository and as an installed package would."""

from pathlib import Path

import pytest

from erniekit.cli import recipes
from erniekit.cli.recipes import bundle, recipe_names, run
from erniekit.errors import ConfigError


def test_recipes_are_found_in_the_repository() -> None:
    assert recipe_names(bundle())[:2] == ["00-quickstart", "01-sft"]


def test_list_names_recipes_and_configurations(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["list"]) == 0
    told = capsys.readouterr().out
    assert "00-quickstart    Quickstart: " in told
    of_starter = told.split("examples/configs/starter\n", 1)[1]
    assert "    pt/run_pt.yaml\n" in of_starter and "    sft/run_sft.yaml\n" in of_starter


@pytest.mark.parametrize("name", ["00-quickstart", "quickstart"])
def test_copy_keeps_the_layout(name: str, tmp_path: Path) -> None:
    assert run(["copy", name, str(tmp_path / "mine")]) == 0
    assert (tmp_path / "mine/recipes/00-quickstart/run.sh").is_file()
    assert (tmp_path / "mine/examples/data/sft-train.jsonl").is_file()
    assert not (tmp_path / "mine/recipes/01-sft").exists()
    assert not (tmp_path / "mine/recipes/00-quickstart/output").exists()


def test_copy_all_and_examples(tmp_path: Path) -> None:
    assert run(["copy", "examples", str(tmp_path / "e")]) == 0
    assert [path.name for path in (tmp_path / "e").iterdir()] == ["examples"]
    assert run(["copy", "all", str(tmp_path / "a")]) == 0
    assert recipe_names(tmp_path / "a") == recipe_names(bundle())


def test_copy_overwrites_nothing(tmp_path: Path) -> None:
    assert run(["copy", "quickstart", str(tmp_path)]) == 0
    config = tmp_path / "recipes/00-quickstart/sft.yaml"
    config.write_text("mine\n")
    (tmp_path / "examples/data/README.md").unlink()
    with pytest.raises(ConfigError, match=r"nothing was copied:\n .*sft\.yaml"):
        run(["copy", "quickstart", str(tmp_path)])
    assert config.read_text() == "mine\n"
    assert not (tmp_path / "examples/data/README.md").exists()
    config.unlink()
    assert run(["copy", "quickstart", str(tmp_path)]) == 0


def test_an_installed_package_brings_its_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import erniekit

    bundled = tmp_path / "erniekit/_bundled"
    run(["copy", "all", str(bundled)])
    monkeypatch.setattr(erniekit, "__file__", str(tmp_path / "erniekit/__init__.py"))
    assert bundle() == bundled
    monkeypatch.setattr(erniekit, "__file__", str(tmp_path / "elsewhere/erniekit/__init__.py"))
    with pytest.raises(ConfigError, match="has no recipes"):
        bundle()


def test_unknown_recipes_and_words() -> None:
    with pytest.raises(ConfigError, match="did you mean 00-quickstart"):
        run(["copy", "quikstart"])
    for words in ([], ["copy"], ["show", "x"], ["list", "x"]):
        with pytest.raises(ConfigError, match="erniekit recipes list"):
            run(words)


def test_check_tells_every_outcome(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.json").write_text('{"a": 1}')
    (tmp_path / "expected.json").write_text(
        '{"expectations": [{"what": "a is one", "file": "x.json", "key": "a", "at_least": 1, "at_most": 1},'
        ' {"what": "a is big", "file": "x.json", "key": "a", "at_least": 5}]}'
    )
    assert run(["check", str(tmp_path)]) == 1
    told = capsys.readouterr().out
    assert "ok   a is one: 1 (wanted >= 1 and <= 1)" in told
    assert "FAIL a is big: 1 (wanted >= 5)" in told
    assert "1 of 2 DO NOT HOLD" in told


def test_build_copies_the_same_folders() -> None:
    """setup.py and this command have to agree on where the copy is."""
    setup = (Path(recipes.__file__).parents[2] / "setup.py").read_text(encoding="utf-8")
    assert '"_bundled"' in setup and '("recipes", "examples")' in setup
