"""The chat at the terminal, with a scripted user and a model that answers from a list."""

import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from erniekit.cli.repl import Repl
from erniekit.data.formats import parse
from erniekit.errors import DataError
from erniekit.generate.conversation import Conversation, Message
from erniekit.generate.engine import Event
from erniekit.generate.sampler import Sampling


class ScriptedGenerator:
    """Stands for a TextGenerator: one token a character, prompts are JSON, answers come from a list."""

    max_context = 400
    prompt_end = ""
    adapters: Any = None

    def __init__(self, answers: Sequence[str]) -> None:
        self.answers = list(answers)
        self.asked: list[list[Message]] = []
        self.rows: list[int] = []
        self.interrupt_after: int | None = None
        self.closed = 0

    def render(
        self, messages: Sequence[Any], *, tools: Any = None, enable_thinking: bool = False
    ) -> list[int]:
        self.tools = tools
        return [ord(letter) for letter in json.dumps(messages)]

    def text_of(self, ids: Sequence[int]) -> str:
        return "".join(map(chr, ids)) + self.prompt_end

    def stream(self, prompts: Any, sampling: Sampling, *, first_row: int = 0) -> Iterator[Event]:
        self.asked.append(json.loads("".join(map(chr, prompts[0]))))
        self.rows.append(first_row)
        answer = self.answers.pop(0)
        try:
            for number, letter in enumerate(answer, start=1):
                if number - 1 == self.interrupt_after:
                    raise KeyboardInterrupt
                yield Event(0, ord(letter), letter, "eos" if number == len(answer) else None)
        finally:
            self.closed += 1


class Terminal:
    """What is typed and what is shown."""

    def __init__(self, lines: Sequence[str | type[BaseException]]) -> None:
        self.lines = list(lines)
        self.shown = ""

    def read(self, prompt: str) -> str:
        line = self.lines.pop(0) if self.lines else EOFError
        if isinstance(line, str):
            return line
        raise line

    def write(self, text: str) -> None:
        self.shown += text


def chat(
    lines: Sequence[str | type[BaseException]],
    answers: Sequence[str],
    system: str | None = None,
    **fields: Any,
) -> tuple[Repl, ScriptedGenerator, Terminal]:
    generator, terminal = ScriptedGenerator(answers), Terminal(lines)
    sampling = Sampling(**{"max_new_tokens": 50, **fields})
    repl = Repl(generator, sampling, Conversation(system), terminal.read, terminal.write)  # type: ignore[arg-type]
    repl.loop()
    return repl, generator, terminal


def test_thinking_is_dimmed_and_calls_are_parsed() -> None:
    dimmed: list[str] = []
    call = '<tool_call>\n{"name": "clock", "arguments": {"city": "Lima"}}\n</tool_call>'
    generator, terminal = ScriptedGenerator([f"hm\n</think>\n\n{call}", "so"]), Terminal(["hi", "and?"])
    generator.prompt_end = "<think>\n"
    generator.max_context = 800
    repl = Repl(
        *(generator, Sampling(max_new_tokens=200), Conversation(None), terminal.read, terminal.write),  # type: ignore[arg-type]
        write_dim=dimmed.append,
    )
    repl.loop()
    assert "".join(dimmed).startswith("hm")
    assert terminal.shown.startswith('\ntool call: {"name": "clock", "arguments": {"city": "Lima"}}\n')
    assert contents(generator.asked[1]) == ["hi", "", "and?"], "thoughts are not part of the history"
    assert generator.asked[1][1]["tool_calls"][0]["function"] == {
        "name": "clock",
        "arguments": {"city": "Lima"},
    }


CLOCK = {"type": "function", "function": {"name": "clock", "parameters": {"required": ["city"]}}}


def test_results_of_tools_go_back_to_the_model(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    """Two calls: the model answers when both results are there."""
    calls = '<tool_call>[{"name": "clock", "arguments": {"city": "Lima"}}, {"name": "sun"}]</tool_call>'
    lines = ["hi", "/tool 07:40", "/tool", "/tool more", f"/save {tmp_path / 'talk.jsonl'}"]
    generator, terminal = ScriptedGenerator([calls, "It is 07:40."]), Terminal(lines)
    conversation = Conversation(None, [CLOCK])
    sampling = Sampling(max_new_tokens=50)
    generator.max_context = 2000
    with caplog.at_level(logging.INFO, logger="erniekit"):
        Repl(generator, sampling, conversation, terminal.read, terminal.write).loop()  # type: ignore[arg-type]
    assert generator.tools == [CLOCK]
    assert [message["role"] for message in generator.asked[1]] == ["user", "assistant", "tool", "tool"]
    results = generator.asked[1][2:]
    assert [(m["name"], m["tool_call_id"], m["content"]) for m in results] == [
        ("clock", "call_0", "07:40"),
        ("sun", "call_1", ""),
    ]
    assert terminal.shown.endswith("It is 07:40.\n\n")
    for text in ("there is no tool 'sun'", "result of clock", "result of sun", "no call of a tool waits"):
        assert text in caplog.text
    saved = parse("messages", json.loads((tmp_path / "talk.jsonl").read_text()))
    assert not isinstance(saved, str) and saved.tools == [CLOCK] and len(saved.messages) == 5


def test_a_call_that_cannot_be_read_is_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="erniekit"):
        _, _, terminal = chat(["hi"], ["<tool_call>{oops</tool_call>"])
    assert "unreadable tool call: {oops" in terminal.shown
    assert "no valid JSON" in caplog.text


def contents(messages: list[Message]) -> list[str]:
    return [message["content"] for message in messages]


def test_answers_are_shown_and_remembered() -> None:
    repl, generator, terminal = chat(["hi", "", "and?"], ["hello", "so"])
    assert terminal.shown == "hello\nso\n\n"
    assert contents(generator.asked[1]) == ["hi", "hello", "and?"]


def test_thinking_is_shown_but_not_remembered() -> None:
    repl, generator, terminal = chat(["hi", "and?"], ["<think>\nhm\n</think>\n\nhello", "so"])
    assert "hm" in terminal.shown
    assert contents(generator.asked[1]) == ["hi", "hello", "and?"]


@pytest.mark.parametrize("word", ["clear", "/clear"])
def test_clear_keeps_the_system_message(word: str) -> None:
    _, generator, _ = chat(["hi", word, "again"], ["a", "b"], system="s")
    assert contents(generator.asked[1]) == ["s", "again"]


@pytest.mark.parametrize("word", ["exit", "/exit"])
def test_exit_leaves(word: str) -> None:
    _, generator, terminal = chat([word, "hi"], ["a"])
    assert generator.asked == [] and terminal.lines == ["hi"]


def test_system_begins_anew() -> None:
    _, generator, _ = chat(["hi", "/system Be brief.", "again"], ["a", "b"])
    assert generator.asked[1] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "again"},
    ]


def test_undo_and_retry() -> None:
    repl, generator, _ = chat(["one", "two", "/retry", "/undo"], ["a", "b", "c"])
    assert contents(generator.asked[2]) == ["one", "a", "two"]
    assert contents(repl.conversation.messages()) == ["one", "a"]
    assert generator.rows == [0, 1, 2]  # a retry draws with another generator


def test_multi_line_messages() -> None:
    _, generator, _ = chat(["one \\", "two", '"""', "three", "", "four", '"""'], ["a", "b"])
    assert generator.asked[0][0]["content"] == "one \ntwo"
    assert generator.asked[1][-1]["content"] == "three\n\nfour"


def test_interrupt_stops_the_answer_and_keeps_what_was_said() -> None:
    generator, terminal = ScriptedGenerator(["hello", "b"]), Terminal(["hi", "on"])
    generator.interrupt_after = 3
    sampling = Sampling(max_new_tokens=50)
    repl = Repl(generator, sampling, Conversation(), terminal.read, terminal.write)  # type: ignore[arg-type]
    repl.handle("hi")
    generator.interrupt_after = None
    repl.handle("on")
    assert generator.closed == 2
    assert contents(generator.asked[1]) == ["hi", "hel", "on"]


def test_interrupt_at_the_prompt_does_not_leave() -> None:
    _, generator, _ = chat([KeyboardInterrupt, "hi"], ["a"])
    assert len(generator.asked) == 1


def test_save(tmp_path: Path) -> None:
    chat(["hi", f"/save {tmp_path}/my chat.jsonl"], ["a"])
    row = json.loads((tmp_path / "my chat.jsonl").read_text(encoding="utf-8"))
    assert contents(row["messages"]) == ["hi", "a"]


def test_long_history_is_cut_with_a_notice(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("erniekit")
    logger.addHandler(caplog.handler)
    try:
        _, generator, _ = chat(["x" * 150, "y" * 150, "z"], ["a", "b", "c"])
    finally:
        logger.removeHandler(caplog.handler)
    assert contents(generator.asked[2])[0] == "y" * 150
    assert "oldest 1 turn is no longer sent" in caplog.text


def test_error_of_one_question_does_not_end_the_chat() -> None:
    repl, generator, _ = chat(["x" * 500, "hi"], ["a"])
    assert contents(generator.asked[0]) == ["hi"]
    with pytest.raises(DataError):
        repl.conversation.ask("x" * 500)
        repl.answer_last()
    assert contents(repl.conversation.messages()) == ["hi", "a"]


def test_unknown_command_is_not_sent_but_paths_are() -> None:
    _, generator, _ = chat(["/foo", "/etc/passwd is what?"], ["a"])
    assert contents(generator.asked[0]) == ["/etc/passwd is what?"]


def test_stream_false_shows_the_whole_answer_at_once() -> None:
    _, _, terminal = chat(["hi"], ["hello"], stream=False)
    assert terminal.shown == "hello\n\n"


class Switch:
    """Stands for the adapters of a model."""

    def __init__(self) -> None:
        self.used: list[str] = []

    def use(self, word: str) -> None:
        if word == "9":
            raise DataError("9 is no adapter here")
        self.used.append(word)

    def lines(self) -> list[str]:
        return [f"on: {self.used}"]


def test_adapters_are_switched(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("erniekit")
    logger.addHandler(caplog.handler)
    caplog.set_level(logging.INFO, "erniekit")
    try:
        chat(["/adapter", "/adapter 1"], [])
        assert "lora_path=FOLDER,FOLDER names some" in caplog.text
        generator, terminal = (
            ScriptedGenerator(["a"]),
            Terminal(["/adapter 2", "/adapter 9", "hi", "/adapter"]),
        )
        generator.adapters = Switch()
        repl = Repl(
            generator,  # type: ignore[arg-type]
            Sampling(),
            Conversation(),
            terminal.read,
            terminal.write,
        )
        repl.loop()
    finally:
        logger.removeHandler(caplog.handler)
    assert generator.adapters.used == ["2"] and "9 is no adapter here" in caplog.text
    assert "on: ['2']" in caplog.text and len(generator.asked) == 1
