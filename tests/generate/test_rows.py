from pathlib import Path

import pytest

from erniekit.errors import DataError
from erniekit.generate.rows import parse_question, read_questions


def asked(line: str) -> list[tuple[str, str]]:
    question = parse_question(line, "f.jsonl:1", is_json=True)
    return [(message["role"], message["content"]) for message in question.messages]


@pytest.mark.parametrize(
    ("line", "messages"),
    [
        ('{"prompt": "a"}', [("user", "a")]),
        ('{"prompt": "a", "system": "s"}', [("system", "s"), ("user", "a")]),
        ('{"messages": [{"role": "user", "content": "a"}]}', [("user", "a")]),
        ('{"instruction": "a", "input": "b", "output": "known"}', [("user", "a\nb")]),
        ('{"instruction": "a", "input": ""}', [("user", "a")]),
        ('{"src": ["a"], "tgt": ["known"]}', [("user", "a")]),
        ('{"src": "a", "tgt": "known", "system": "s"}', [("system", "s"), ("user", "a")]),
        ('{"src": ["a", "c"], "tgt": ["b", "known"]}', [("user", "a"), ("assistant", "b"), ("user", "c")]),
        ('{"src": ["a", "c"], "tgt": ["b"]}', [("user", "a"), ("assistant", "b"), ("user", "c")]),
    ],
)
def test_every_row_format(line: str, messages: list[tuple[str, str]]) -> None:
    assert asked(line) == messages


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{", "not valid JSON"),
        ("[1]", "expected a JSON object, found list"),
        ('{"text": "a"}', "no prompt, messages, instruction or src in this row; it has text"),
        ('{"prompt": 3}', "prompt must be a text, found int"),
        ('{"src": ["a", "b"]}', "2 src need at least 1 tgt"),
        ('{"src": [], "tgt": []}', "src and tgt must be texts"),
        ('{"messages": [{"role": "assistant", "content": "a"}]}', "nothing to answer"),
    ],
)
def test_bad_rows_name_file_and_line(line: str, complaint: str) -> None:
    with pytest.raises(DataError, match=f"f.jsonl:1: .*{complaint}"):
        asked(line)


def test_plain_lines_and_line_numbers(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n\n{two\n", encoding="utf-8")
    questions = list(read_questions(tmp_path / "a.txt"))
    assert [question.text for question in questions] == ["one", "{two"]
    assert [question.origin.rpartition(":")[2] for question in questions] == ["1", "3"]


def test_unreadable_files(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="not UTF-8"):
        list(read_questions(tmp_path / "a.txt"))
    with pytest.raises(DataError, match="cannot be read"):
        list(read_questions(tmp_path / "none.txt"))
