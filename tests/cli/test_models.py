from pathlib import Path

import pytest

from erniekit.checkpoint.presets import read_presets
from erniekit.cli.main import main
from erniekit.cli.models import count, gigabytes, list_lines, show_lines
from erniekit.testing.tiny_checkpoint import tiny_config, write_tiny_checkpoint


def output(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["models", *words]) == 0
    return capsys.readouterr().out


def failure(capsys: pytest.CaptureFixture[str], code: int, *words: str) -> str:
    assert main(["models", *words]) == code
    return " ".join(capsys.readouterr().err.split())


def test_list_has_a_line_for_every_model() -> None:
    header, *lines = list_lines()
    assert header.split()[:3] == ["name", "kind", "parameters"]
    assert [line.split()[0] for line in lines] == [preset.name for preset in read_presets()]
    by_name = {line.split()[0]: line for line in lines}
    assert "134.52M" in by_name["starter"]
    small = by_name["ERNIE-4.5-0.3B"]
    assert "360.75M" in small and "721.5 MB" in small and "1.44 GB" in small
    assert "baidu/ERNIE-4.5-0.3B-PT" in small and "not built" not in small
    assert "text side built" in by_name["ERNIE-4.5-VL-28B-A3B"]
    assert "built" not in by_name["ERNIE-4.5-21B-A3B"]
    assert "~299.48B" in by_name["ERNIE-4.5-300B-A47B"]


def test_list_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert output(capsys, "list").splitlines() == list(list_lines())


def test_show_a_model_that_is_built() -> None:
    text = "\n".join(show_lines("ernie-4.5-0.3b"))
    for part in (
        "360.75M (360,748,032)",
        "embedding",
        "head_dim",
        "128",
        "AdamW",
        "optimizer 3.61 GB",
        "1.44 GB in fp32",
    ):
        assert part in text
    assert "?" not in text


def test_show_a_mixture_of_experts() -> None:
    text = "\n".join(show_lines("ERNIE-4.5-300B-A47B"))
    assert "299.48B (299,484,163,264)" in text and "active      47.93B" in text
    assert "287.49B   96.0 %" in text and "97.78 at 4,096" in text
    assert "tie_word_embeddings" in text and "? published sources disagree" in text


def test_show_the_text_side_of_a_multimodal_model() -> None:
    text = "\n".join(show_lines("ERNIE-4.5-VL-28B-A3B"))
    assert "of 29.40B parameters; the vision tower (774.66M) is not built yet" in text
    assert "28.62B" in text and "on a text token" in text and "on a vision token" in text


@pytest.mark.parametrize("tied", [True, False])
def test_show_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str], tied: bool) -> None:
    config = tiny_config(tie_word_embeddings=tied)
    text = output(capsys, "show", str(write_tiny_checkpoint(tmp_path / "m", config)))
    assert "hf layout, F32" in text
    assert f"{config.num_parameters():,}" in text
    assert "tokenizer.json" in text
    assert ("\n  head" in text) != tied


def test_show_a_run_shows_its_checkpoint(tmp_path: Path) -> None:
    write_tiny_checkpoint(tmp_path / "checkpoint-3")
    assert next(show_lines(str(tmp_path))) == str(tmp_path / "checkpoint-3")


def test_show_does_not_download(capsys: pytest.CaptureFixture[str]) -> None:
    assert "`erniekit models get org/name` downloads it" in failure(capsys, 1, "show", "org/name")


def test_get_prints_the_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_tiny_checkpoint(tmp_path / "m")
    assert output(capsys, "get", str(folder)) == f"{folder}\n"


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ([], 2, "takes one of list, show, get"),
        (["lst"], 2, "lst was given"),
        (["show"], 2, "takes one NAME; given: nothing"),
        (["get", "a", "b"], 2, "given: a b"),
        (["list", "x"], 2, "takes no more words"),
        (["get", "--hub"], 2, "given: --hub"),
        (["get", "startr"], 2, "did you mean starter"),
    ],
)
def test_wrong_words(capsys: pytest.CaptureFixture[str], words: list[str], code: int, message: str) -> None:
    assert message in failure(capsys, code, *words)


def test_numbers_for_people() -> None:
    assert [count(n) for n in (999_999, 134_515_008, 21_825_437_888)] == ["999,999", "134.52M", "21.83B"]
    assert [gigabytes(n) for n in (5e5, 7.215e8, 1.443e9, 5.99e11)] == [
        "0.5 MB",
        "721.5 MB",
        "1.44 GB",
        "599 GB",
    ]
