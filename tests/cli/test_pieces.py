import pytest

from erniekit.cli.pieces import harmless, show_piece


def test_control_characters_cannot_drive_the_terminal() -> None:
    assert harmless("a\tb\r\nc\x1b[2J\x07\x9b1m") == "a\tb\nc\ufffd[2J\ufffd\ufffd1m"
    assert harmless("\u00e9\u4f60\U0001f600") == "\u00e9\u4f60\U0001f600"


def test_pieces_join_without_markup(capsys: pytest.CaptureFixture[str]) -> None:
    for piece in ("[bold]x", " ", "y" * 200, "\n"):
        show_piece(piece)
    assert capsys.readouterr().out == "[bold]x " + "y" * 200 + "\n"
