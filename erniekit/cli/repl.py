"""The conversation at the terminal: what is typed, what is answered, and the commands in between."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from erniekit.data.tool_calls import check_call
from erniekit.errors import ErnieKitError
from erniekit.generate.conversation import Conversation, Message
from erniekit.generate.parsers import (
    CALL,
    MALFORMED,
    REASONING,
    AnswerParser,
    Piece,
    opens_reasoning,
    parse_answer,
)
from erniekit.generate.sampler import Sampling
from erniekit.log import logger

if TYPE_CHECKING:
    from erniekit.generate.text import TextGenerator

PROMPT = "you> "
CONTINUED = "...> "
QUOTES = '"""'

# command -> (method of Repl, what it does)
COMMANDS: dict[str, tuple[str, str]] = {
    "/clear": ("clear", "forget the conversation (also: clear)"),
    "/system": ("system", "/system TEXT sets the system message and starts anew; without TEXT shows it"),
    "/undo": ("undo", "take back the last question and its answer"),
    "/retry": ("retry", "answer the last question again, drawing anew"),
    "/tool": ("tool", "/tool TEXT gives the model the result of the tool that it called"),
    "/save": ("save", "/save FILE.jsonl appends the conversation, in the form that training reads"),
    "/adapter": ("adapter", "/adapter N puts that adapter on, /adapter off none; without N lists them"),
    "/help": ("help", "this list"),
    "/exit": ("leave", "leave (also: exit, Ctrl-D)"),
}
BARE = {"clear": "/clear", "exit": "/exit"}
HINT = (
    "Enter sends; a line that ends with \\ goes on, and so does everything between two lines of "
    f"{QUOTES}. Ctrl-C stops an answer, Ctrl-D leaves, /help lists the commands."
)


@dataclass
class Repl:
    """A chat with one model.

    Args:
        read: asks for a line, given the prompt to show; raises EOFError at the end of the input.
        write: shows a piece of an answer.
        write_dim: shows a piece of what the model thinks before it answers; None shows it like the rest.
    """

    generator: "TextGenerator"
    sampling: Sampling
    conversation: Conversation
    read: Callable[[str], str]
    write: Callable[[str], None]
    write_dim: Callable[[str], None] | None = None
    _num_answers: int = 0
    _num_dropped: int = 0
    _left: bool = False

    def loop(self) -> None:
        """Read and answer until the user leaves."""
        logger.info(HINT)
        while not self._left:
            try:
                text = self.read_message()
            except EOFError:
                self.write("\n")
                return
            except KeyboardInterrupt:
                logger.info("(Ctrl-D or /exit leaves)")
                continue
            if text.strip():
                self.handle(text)

    def read_message(self) -> str:
        """One message: a line, lines joined by a final backslash, or a block between triple quotes."""
        line = self.read(PROMPT)
        if line.strip() == QUOTES:
            lines = []
            while (line := self.read(CONTINUED)).strip() != QUOTES:
                lines.append(line)
            return "\n".join(lines)
        lines = [line]
        while lines[-1].endswith("\\"):
            lines[-1] = lines[-1][:-1]
            lines.append(self.read(CONTINUED))
        return "\n".join(lines)

    def handle(self, text: str) -> None:
        """Obey a command or answer a question; what goes wrong with one question does not end the chat."""
        stripped = text.strip()
        word, _, rest = BARE.get(stripped.lower(), stripped).partition(" ")
        try:
            if word in COMMANDS:
                getattr(self, COMMANDS[word][0])(rest.strip())
            elif word.startswith("/") and word[1:].isalpha() and "\n" not in text:
                logger.warning(f"{word} is no command; /help lists them")
            else:
                self.conversation.ask(text)
                self.answer_last()
        except ErnieKitError as error:
            logger.error(str(error))

    def answer_last(self) -> None:
        """Answer what was said last, show the answer as it comes, and add it to the history."""
        sampling = self.sampling
        try:
            messages = self._window()
            prompt = self._render(messages)
            pieces, reason, in_reasoning = self._show(prompt)
        except ErnieKitError:
            # A question that cannot be answered would stand in the way of every later one.
            self.conversation.undo()
            raise
        parsed = parse_answer("".join(pieces), in_reasoning=in_reasoning)
        message = parsed.as_message()
        self.conversation.answer(message["content"], message.get("tool_calls", ()))
        if parsed.malformed:
            logger.warning("(a tool call of this answer is no valid JSON with a name and arguments)")
        for call in parsed.tool_calls if self.conversation.tools else ():
            wrong = check_call(call.name, call.arguments, self.conversation.tools or ())
            if wrong is not None:
                logger.warning(f"(this call does not fit the tools: {wrong})")
        self._say_what_waits()
        if reason == "length":
            logger.info(f"(cut off after max_new_tokens={sampling.max_new_tokens})")
        elif reason == "context":
            logger.info(f"(cut off: the model's context of {self.generator.max_context} tokens is full)")
        elif reason == "stopped":
            logger.info("(stopped)")

    def _say_what_waits(self) -> None:
        waiting = self.conversation.waiting()
        if waiting:
            logger.info(f"(/tool TEXT gives the result of {waiting[0]['function']['name']} to the model)")

    def _render(self, messages: list[Message]) -> list[int]:
        thinking = self.sampling.enable_thinking
        return self.generator.render(messages, tools=self.conversation.tools, enable_thinking=thinking)

    def _window(self) -> list[Message]:
        generator, sampling = self.generator, self.sampling
        room = generator.max_context - min(sampling.max_new_tokens, generator.max_context // 2)
        messages, dropped = self.conversation.window(lambda some: len(self._render(some)), room)
        if dropped > self._num_dropped:
            logger.warning(
                f"the conversation no longer fits the model's context of {generator.max_context} tokens: "
                f"the oldest {dropped} turn{'s are' if dropped > 1 else ' is'} no longer sent"
            )
        self._num_dropped = dropped
        return messages

    def _show(self, prompt: list[int]) -> tuple[list[str], str, bool]:
        pieces: list[str] = []
        reason = "stopped"
        in_reasoning = opens_reasoning(self.generator.text_of(prompt[-16:]))
        parser, shown = AnswerParser(in_reasoning=in_reasoning), _Shown(self)
        with contextlib.closing(
            self.generator.stream([prompt], self.sampling, first_row=self._num_answers)
        ) as events:
            self._num_answers += 1
            try:
                for event in events:
                    pieces.append(event.text)
                    reason = event.finish_reason or reason
                    if self.sampling.stream and event.text:
                        shown.add(parser.push(event.text))
            except KeyboardInterrupt:
                reason = "stopped"
        if not self.sampling.stream:
            shown.add(parser.push("".join(pieces)))
        shown.add(parser.flush())
        self.write("\n")
        return pieces, reason, in_reasoning

    def clear(self, rest: str) -> None:
        self.conversation.clear()
        self._num_dropped = 0
        logger.info("(the conversation is forgotten)")

    def system(self, rest: str) -> None:
        if rest:
            self.conversation.system = rest
            self.clear("")
        logger.info(f"system: {self.conversation.system or '(none)'}")

    def undo(self, rest: str) -> None:
        question = self.conversation.undo()
        logger.info(f"(taken back: {question})" if question is not None else "(nothing to take back)")

    def retry(self, rest: str) -> None:
        question = self.conversation.undo()
        if question is None:
            logger.info("(nothing to answer again)")
            return
        if self.sampling.greedy:
            logger.info("(temperature is 0, so the answer will be the same)")
        self.conversation.ask(question)
        self.answer_last()

    def tool(self, rest: str) -> None:
        if not self.conversation.waiting():
            logger.info("(no call of a tool waits for its result)")
            return
        self.conversation.give_result(rest)
        if self.conversation.waiting():
            self._say_what_waits()
        else:
            self.answer_last()

    def save(self, rest: str) -> None:
        if not rest:
            logger.warning("name a file: /save chat.jsonl")
            return
        try:
            self.conversation.save(Path(rest).expanduser())
        except OSError as error:
            logger.error(f"{rest} cannot be written ({error.strerror})")
            return
        logger.info(f"(appended to {rest})")

    def adapter(self, rest: str) -> None:
        switch = self.generator.adapters
        if switch is None:
            logger.info("(no adapters; lora_path=FOLDER,FOLDER names some)")
            return
        if rest:
            switch.use(rest)
        logger.info("\n".join(switch.lines()))

    def help(self, rest: str) -> None:
        logger.info("\n".join(f"  {name:<9} {text}" for name, (_, text) in COMMANDS.items()) + f"\n{HINT}")

    def leave(self, rest: str) -> None:
        self._left = True


class _Shown:
    """Pieces of an answer on the screen: what is thought dimmed, each call on a line of its own."""

    def __init__(self, repl: Repl) -> None:
        self._write, self._dim = repl.write, repl.write_dim or repl.write
        self._kind: str | None = None

    def add(self, pieces: list[Piece]) -> None:
        """Show some more."""
        for piece in pieces:
            new_part = self._kind is not None and (piece.kind != self._kind or piece.kind == CALL)
            if new_part:
                self._write("\n")
            self._kind = piece.kind
            if piece.kind == REASONING:
                self._dim(piece.text)
            elif piece.kind in (CALL, MALFORMED):
                self._write(f"{'tool call' if piece.kind == CALL else 'unreadable tool call'}: {piece.text}")
            else:
                self._write(piece.text)
