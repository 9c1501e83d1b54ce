"""History: what is sent when not everything fits, and taking back."""

import json
from pathlib import Path

import pytest

from erniekit.errors import DataError
from erniekit.generate.conversation import Conversation, Message, check_messages


def three_turns(system: str | None = None) -> Conversation:
    talk = Conversation(system)
    for number in range(3):
        talk.ask(f"q{number}")
        if number < 2:
            talk.answer(f"a{number}")
    return talk


def count(messages: list[Message]) -> int:
    return 10 * len(messages)


def contents(messages: list[Message]) -> list[str]:
    return [message["content"] for message in messages]


def test_everything_is_sent_when_it_fits() -> None:
    messages, dropped = three_turns("s").window(count, 60)
    assert (contents(messages), dropped) == (["s", "q0", "a0", "q1", "a1", "q2"], 0)


def test_oldest_turns_leave_whole_and_the_system_message_stays() -> None:
    messages, dropped = three_turns("s").window(count, 59)
    assert (contents(messages), dropped) == (["s", "q1", "a1", "q2"], 1)
    messages, dropped = three_turns("s").window(count, 20)
    assert (contents(messages), dropped) == (["s", "q2"], 2)


def test_history_itself_keeps_what_is_not_sent() -> None:
    talk = three_turns()
    talk.window(count, 10)
    assert len(talk.messages()) == 5


def test_last_question_too_long_is_an_error_with_both_numbers() -> None:
    with pytest.raises(DataError, match="20 tokens, but only 19 fit"):
        three_turns("s").window(count, 19)
    with pytest.raises(DataError, match="no question"):
        Conversation("s").window(count, 100)


def test_undo_takes_question_and_answer() -> None:
    talk = three_turns()
    assert talk.undo() == "q2"
    assert talk.undo() == "q1"
    assert contents(talk.messages()) == ["q0", "a0"]
    assert talk.undo() == "q0"
    assert talk.undo() is None


def test_save_appends_rows_of_the_messages_format(tmp_path: Path) -> None:
    talk = Conversation("s")
    talk.ask("what is \u00e9?")
    talk.answer("a letter")
    talk.save(tmp_path / "chat.jsonl")
    talk.save(tmp_path / "chat.jsonl")
    lines = (tmp_path / "chat.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 2
    assert json.loads(lines[0])["messages"] == [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "what is \u00e9?"},
        {"role": "assistant", "content": "a letter"},
    ]


@pytest.mark.parametrize(
    ("messages", "complaint"),
    [
        ("hello", "must be a list"),
        ([], "must be a list"),
        ([{"role": "user"}], "message 1 needs role and content"),
        ([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "nothing to answer"),
    ],
)
def test_messages_that_cannot_be_answered(messages: object, complaint: str) -> None:
    with pytest.raises(DataError, match=f"rows.jsonl:3: .*{complaint}"):
        check_messages(messages, "rows.jsonl:3")
