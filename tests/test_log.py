import logging

import pytest

from erniekit import log


@pytest.fixture
def handler(monkeypatch):
    lines = []
    monkeypatch.setattr(log.error_console, "print", lambda text, **_: lines.append(text))
    made = log._Handler()
    made.addFilter(log._RankFilter())
    return lines, made


def record(message, level=logging.INFO, **extra):
    made = logging.LogRecord("erniekit", level, "f", 1, message, (), None)
    vars(made).update(extra)
    return made


def test_only_rank_zero_speaks_unless_all_are_meant(handler, monkeypatch):
    lines, made = handler
    made.handle(record("one"))
    monkeypatch.setenv("PADDLE_TRAINER_ID", "1")
    made.handle(record("two"))
    made.handle(record("three", all_ranks=True))
    assert lines == ["one", "three"]


def test_warnings_and_errors_say_what_they_are(handler):
    lines, made = handler
    made.handle(record("a", logging.WARNING))
    made.handle(record("b", logging.ERROR))
    assert lines == ["warning: a", "error: b"]
