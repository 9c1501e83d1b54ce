"""References in values: what they become, and what is refused before it fills the memory."""

from pathlib import Path

import pytest

from tests.config.loading import load, problems


def test_references_in_lists_and_to_lists(tmp_path: Path) -> None:
    config = load(tmp_path, "x-part: norm\nx-all: [a, b]\nfreeze: ['${x-part}', c]\nstop: ${x-all}\n").config
    assert config.model.freeze == ("norm", "c")
    assert config.generation.stop == ("a", "b")


def test_an_environment_variable_may_have_a_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EK_NOWHERE", raising=False)
    assert load(tmp_path, "output_dir: ${oc.env:EK_NOWHERE,here}/a\n").config.run.output_dir == "here/a"
    (line,) = problems(tmp_path, "output_dir: ${oc.env:EK_NOWHERE}\n")
    assert "EK_NOWHERE" in line


def test_texts_that_double_in_every_line_are_refused(tmp_path: Path) -> None:
    lines = ["x-0: lololololol", *(f"x-{n}: ${{x-{n - 1}}}${{x-{n - 1}}}" for n in range(1, 40))]
    told = problems(tmp_path, "\n".join(lines) + "\nrun_name: ${x-39}\n")
    assert all("more than 20,000 characters" in line for line in told)
    assert any(": run_name: " in line for line in told)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("x-a: ${x-a}\n", "back to itself"),
        ("x-a: ${x-b}${x-b}\nx-b: ${x-a}${x-a}\n", "back to itself"),
        ("x-a: seed\nrun_name: ${${x-a}}\n", "written out"),
        ("run_name: ${oc.select:seed}\n", "oc.select"),
        ("x-n: [1]\nrun_name: ${unclosed\n", "${unclosed"),
    ],
)
def test_references_that_lead_nowhere(tmp_path: Path, text: str, reason: str) -> None:
    assert all(reason in line for line in problems(tmp_path, text))


def test_a_long_chain_is_refused_not_followed(tmp_path: Path) -> None:
    lines = ["x-0: a", *(f"x-{n}: ${{x-{n - 1}}}" for n in range(1, 5000))]
    assert all("more than 50 keys" in line for line in problems(tmp_path, "\n".join(lines) + "\n"))
