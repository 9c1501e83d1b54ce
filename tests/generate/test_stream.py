"""Text pieces: stop strings over token borders, held text, thinking."""

from erniekit.generate.stream import TextStream


class Letters:
    """A decoder whose tokens are code points."""

    def push(self, token_id: int) -> str:
        return chr(token_id)

    def flush(self) -> str:
        return ""


class HalfCharacter(Letters):
    """A decoder that still holds something at the end."""

    def flush(self) -> str:
        return "\ufffd"


def run(text: str, stop: list[str]) -> tuple[list[str], str | None]:
    stream = TextStream(Letters(), stop)
    pieces = []
    for letter in text:
        pieces.append(stream.push(ord(letter)))
        if stream.stopped_at is not None:
            break
    pieces.append(stream.flush())
    return pieces, stream.stopped_at


def test_text_without_stop_comes_at_once() -> None:
    assert run("abc", []) == (["a", "b", "c", ""], None)


def test_stop_over_several_tokens_is_held_back_and_removed() -> None:
    assert run("ab\nUser: x", ["\nUser:"]) == (["a", "b"] + [""] * 7, "\nUser:")


def test_false_start_of_stop_is_shown_later() -> None:
    pieces, stopped = run("a<b<end>c", ["<end>"])
    assert pieces[:4] == ["a", "", "<b", ""]
    assert "".join(pieces) == "a<b"
    assert stopped == "<end>"


def test_stop_that_overlaps_itself() -> None:
    assert "".join(run("xaab", ["aab"])[0]) == "x"
    assert "".join(run("xaaab", ["aab"])[0]) == "xa"


def test_held_text_comes_at_the_end() -> None:
    pieces, stopped = run("ab<en", ["<end>"])
    assert (pieces[-1], stopped) == ("<en", None)


def test_first_stop_wins_and_the_longer_of_two() -> None:
    stream = TextStream(Letters(), ["cd", "bcx"])
    assert "".join(stream.push(ord(c)) for c in "abcd") == "ab"
    assert stream.stopped_at == "cd"
    assert run("abc", ["b", "bc"])[1] == "b"  # it is complete first


def test_rest_of_decoder_is_flushed() -> None:
    stream = TextStream(HalfCharacter(), [])
    assert stream.push(ord("a")) + stream.flush() == "a\ufffd"
