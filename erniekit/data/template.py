"""Chat templates: messages to the one text that is trained on, chatted with and served.

A checkpoint's own Jinja template is used as it is, in a sandbox (templates are code from
elsewhere). Checkpoints without one get the built-in template of ERNIE 4.5 when their tokenizer
has its tokens; any other may be named by `chat_template`.
"""

import datetime
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from erniekit.data.tokenizer import Tokenizer
from erniekit.errors import ConfigError, DataError

FOLDER = Path(__file__).parent / "templates"
BUILT_IN = ("ernie45", "ernie45-thinking")
_PROBE = "probe_qzx"
_ERNIE_TOKENS = ("<|begin_of_sentence|>", "<|end_of_sentence|>")

# What the expressions of a template can raise, beside Jinja's own errors.
_FAILURES = (
    jinja2.TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)

Message = dict[str, Any]


class _Generation(Extension):
    """`{% generation %}` marks answers for other trainers; here it renders its body."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class ChatTemplate:
    """A template bound to the special tokens of a tokenizer.

    Attributes:
        source: the Jinja text.
        name: where it comes from, for messages.
    """

    def __init__(self, source: str, name: str, special_tokens: dict[str, str]) -> None:
        self.source, self.name = source, name
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise
        environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise ConfigError(f"chat template of {name}, line {error.lineno}: {error.message}") from error
        self._special_tokens = special_tokens

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Any] | None = None,
        add_generation_prompt: bool = False,
        enable_thinking: bool = False,
    ) -> str:
        """The text of a conversation; with the beginning of an answer when `add_generation_prompt`.

        Raises:
            DataError: the template refuses the messages, or fails on them.
        """
        try:
            return self._template.render(
                **self._special_tokens,
                messages=[_with_thinking(message) for message in messages],
                tools=tools,
                add_generation_prompt=add_generation_prompt,
                enable_thinking=enable_thinking,
            )
        except _FAILURES as error:
            raise DataError(f"the chat template of {self.name} fails on these messages: {error}") from error

    @cached_property
    def renders_tool_calls(self) -> bool:
        """Whether the calls of an assistant message show in the text."""
        call = {"type": "function", "id": "probe0001", "function": {"name": _PROBE, "arguments": {}}}
        answer = {"role": "assistant", "content": "", "tool_calls": [call]}
        return self._shows([{"role": "user", "content": "a"}, answer], None)

    @cached_property
    def renders_tool_results(self) -> bool:
        """Whether the result of a tool shows in the text."""
        call = {"type": "function", "id": "probe0001", "function": {"name": "f", "arguments": {}}}
        answer: Message = {"role": "assistant", "content": "" if self.renders_tool_calls else "b"}
        if self.renders_tool_calls:
            answer["tool_calls"] = [call]
        result = {"role": "tool", "content": _PROBE, "name": "f", "tool_call_id": "probe0001"}
        return self._shows([{"role": "user", "content": "a"}, answer, result], None)

    @cached_property
    def renders_reasoning(self) -> bool:
        """Whether the reasoning of the last answer shows in the text."""
        answer = {"role": "assistant", "content": "b", "reasoning_content": _PROBE}
        try:
            return _PROBE in self.render([{"role": "user", "content": "a"}, answer], enable_thinking=True)
        except DataError:
            return False

    @cached_property
    def renders_tools(self) -> bool:
        """Whether the definitions of tools show in the text."""
        tool = {"type": "function", "function": {"name": _PROBE, "description": "", "parameters": {}}}
        return self._shows([{"role": "user", "content": "a"}], [tool])

    def _shows(self, messages: list[Message], tools: list[Any] | None) -> bool:
        try:
            return _PROBE in self.render(messages, tools=tools)
        except DataError:
            return False


def load_template(tokenizer: Tokenizer, *, chat_template: str | None) -> ChatTemplate | None:
    """The template to use: the one named, else the checkpoint's own, else ERNIE 4.5's if it fits.

    Args:
        chat_template: a built-in name (`ernie45`, `ernie45-thinking`) or the path of a .jinja file.

    Returns:
        None when there is no template: only plain text can be trained on then.

    Raises:
        ConfigError: the named one does not exist or is no template.
    """
    tokens = tokenizer.special_tokens
    if chat_template is not None:
        if chat_template in BUILT_IN:
            return built_in(chat_template, tokens)
        path = Path(chat_template).expanduser()
        if not path.is_file():
            raise ConfigError(
                f"chat_template: {chat_template!r} is neither a file nor one of {', '.join(BUILT_IN)}"
            )
        return ChatTemplate(path.read_text(encoding="utf-8"), str(path), tokens)
    if tokenizer.chat_template:
        return ChatTemplate(tokenizer.chat_template, str(tokenizer.folder), tokens)
    if all(tokenizer.token_id(token) is not None for token in _ERNIE_TOKENS):
        return built_in("ernie45", tokens)
    return None


def built_in(name: str, special_tokens: dict[str, str]) -> ChatTemplate:
    """A built-in template by its name."""
    source = (FOLDER / f"{name}.jinja").read_text(encoding="utf-8")
    return ChatTemplate(source, f"built-in {name}", special_tokens)


def _with_thinking(message: Message) -> Message:
    """Some templates (gpt-oss) read the reasoning under another name; transformers gives both as well."""
    reasoning = message.get("reasoning_content")
    return message if reasoning is None else {"thinking": reasoning, **message}


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)
