"""Which tokens of a rendered conversation are trained on, found from the rendering itself.

For answer i let P be the messages before it rendered with a generation prompt: exactly what a
chat or a server sends. The messages up to and with it rendered must begin with P; what follows P
is what the model has to write. Where the answer ends is found with two made-up answers: what the
template puts behind any of them, both at the end of a conversation and before a next question, is
its suffix, and the last special token in the suffix ends the turn. (The last: a suffix may close
the answer itself first, as in `</response><|im_end|>`. Both places: some templates end the whole
text with one more token, which no answer in the middle has.) That token is trained on, what comes
after it is not. So no template needs marks, and one for which this fails is refused rather than
trained on with a guess.

An answer that brings its reasoning is rendered as a chat with `enable_thinking` on renders it, any
other as one with it off; where the template's prompt does not fit the answer, the other way round.

Some templates rewrite history (they drop the reasoning of earlier turns). Their conversations
become one sample per answer, each as it would have been sent at that moment.

Prompt and answer are tokenised apart, since that is how they meet at inference.
"""

import json
import os.path
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from erniekit.data.sample import IGNORED
from erniekit.data.template import ChatTemplate, Message
from erniekit.data.tokenizer import Tokenizer
from erniekit.errors import DataError

# Two answers that no template treats specially and that share no end.
_PROBES = ("Qz7 first probe Kx", "Wj4 second probe Vy")
END_OF_THINKING = "</think>"
_NEXT_QUESTION: Message = {"role": "user", "content": "Hb2 next question Ln"}


@dataclass(frozen=True)
class Turn:
    """An answer within a text: the characters [start, stop) are trained on; the last token is `end`.

    `trained_from` is where training begins, later than `start` when the reasoning is masked.
    """

    start: int
    stop: int
    end: str
    trained_from: int = 0


@dataclass(frozen=True)
class Rendered:
    """A text and the answers in it that are trained on, in order."""

    text: str
    turns: tuple[Turn, ...]


def render_conversation(
    template: ChatTemplate,
    messages: Sequence[Message],
    *,
    tools: Sequence[Any] | None,
    trained: Sequence[bool],
    special_texts: frozenset[str],
    mask_thinking: bool = False,
    apart: bool = False,
) -> list[Rendered]:
    """Render a conversation for training.

    Args:
        trained: for each assistant message in order, whether it is trained on.
        mask_thinking: do not train on the reasoning before an answer, up to and with its `</think>`.
        apart: one text for each answer, even where one could hold them all.

    Raises:
        DataError: what is trained on cannot be decided for this template; says why.
    """
    answers = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    chosen = [index for index, wanted in zip(answers, trained, strict=True) if wanted]
    if not chosen:
        return [Rendered(template.render(messages, tools=tools), ())]
    parts = [_answer(template, messages, index, tools, special_texts) for index in chosen]
    if mask_thinking:
        parts = [part.without_thinking() for part in parts]
    if apart:
        return [Rendered(part.prompt + part.answer, (part.turn,)) for part in parts]
    full = template.render(messages[: chosen[-1] + 1], tools=tools, enable_thinking=parts[-1].thinking)
    if all(full.startswith(part.prompt + part.answer) for part in parts):
        turns = tuple(part.turn for part in parts)
        return [Rendered(full[: turns[-1].stop], turns)]
    return [Rendered(part.prompt + part.answer, (part.turn,)) for part in parts]


def written_out(template: ChatTemplate, messages: Sequence[Message]) -> tuple[list[Message], bool]:
    """Messages whose tool calls and results are written as text, for templates that do not render them.

    Calls go into the answer as `<tool_call>`, results become a question of the user as
    `<tool_response>`, several of them one question.

    Returns:
        The messages, and whether any was changed.
    """
    calls = not template.renders_tool_calls and any(message.get("tool_calls") for message in messages)
    results = not template.renders_tool_results and any(message["role"] == "tool" for message in messages)
    written: list[Message] = []
    joined = False
    for message in messages:
        if calls and message.get("tool_calls"):
            rest = {key: value for key, value in message.items() if key != "tool_calls"}
            message = {**rest, "content": _with_calls(message)}
        is_result = results and message["role"] == "tool"
        if is_result:
            message = {"role": "user", "content": f"<tool_response>\n{message['content']}\n</tool_response>"}
            if joined:
                message = {"role": "user", "content": f"{written.pop()['content']}\n{message['content']}"}
        joined = is_result
        written.append(message)
    return written, calls or results


def _with_calls(message: Message) -> str:
    calls = [call.get("function", call) for call in message["tool_calls"]]
    texts = [f"<tool_call>\n{json.dumps(call, ensure_ascii=False)}\n</tool_call>" for call in calls]
    return "\n".join([message["content"], *texts] if message["content"] else texts)


@dataclass(frozen=True)
class _Part:
    """What is sent before an answer, and the answer with the token that ends it."""

    prompt: str
    answer: str
    end: str
    thinking: bool
    masked: int = 0

    @property
    def turn(self) -> Turn:
        start = len(self.prompt)
        return Turn(start, start + len(self.answer), self.end, start + self.masked)

    def without_thinking(self) -> "_Part":
        """The same, not trained on up to and with the end of the reasoning."""
        position = self.answer.find(END_OF_THINKING)
        return replace(self, masked=position + len(END_OF_THINKING) if position >= 0 else 0)


def _answer(
    template: ChatTemplate,
    messages: Sequence[Message],
    index: int,
    tools: Sequence[Any] | None,
    special_texts: frozenset[str],
) -> _Part:
    before, message = list(messages[:index]), messages[index]
    reasons = bool(message.get("reasoning_content")) or message["content"].lstrip().startswith("<think>")
    for thinking in (reasons, not reasons):
        prompt = template.render(before, tools=tools, add_generation_prompt=True, enable_thinking=thinking)
        whole = template.render([*before, message], tools=tools, enable_thinking=thinking)
        if whole.startswith(prompt):
            break
    else:
        raise DataError(
            f"the chat template of {template.name} renders an answer differently from its own generation "
            f"prompt (...{prompt[-40:]!r} is not how the answer begins), so it cannot be decided what the "
            "model has to write; name another template in chat_template"
        )
    suffix, position, end = _end_of_turn(template, before, tools, prompt, thinking, special_texts)
    # An answer may be closed in its own way (a tool call has no `</response>`), but not ended so.
    tail = suffix[position:]
    if not whole.endswith(tail) or len(whole) - len(tail) < len(prompt):
        raise DataError(
            f"the chat template of {template.name} ends this answer with {whole[-40:]!r}, not with "
            f"{tail!r} as other answers, so its end cannot be decided"
        )
    return _Part(prompt, whole[len(prompt) : len(whole) - len(tail)] + end, end, thinking)


def _end_of_turn(
    template: ChatTemplate,
    before: list[Message],
    tools: Sequence[Any] | None,
    prompt: str,
    thinking: bool,
    special_texts: frozenset[str],
) -> tuple[str, int, str]:
    """The suffix of every answer, and the place and text of the token in it that ends the turn."""
    suffix = _suffix(template, before, tools, prompt, thinking)
    middle = _suffix_before_a_question(template, before, tools, thinking)
    shared = suffix if middle is None else os.path.commonprefix([suffix, middle])
    found = _places(shared, special_texts) or _places(suffix, special_texts)[:1]
    if not found:
        raise DataError(
            f"the chat template of {template.name} puts {suffix!r} behind an answer, which holds no special "
            "token: the model would never learn to stop; name another template in chat_template"
        )
    position, end = found[-1]
    return suffix, position, end


def _places(text: str, tokens: frozenset[str]) -> list[tuple[int, str]]:
    """Where the special tokens of a text are, in order; of those that begin together the longest one."""
    places: list[tuple[int, str]] = []
    position = 0
    while True:
        following = [(text.find(token, position), -len(token), token) for token in tokens if token]
        following = [entry for entry in following if entry[0] >= 0]
        if not following:
            return places
        start, _, token = min(following)
        places.append((start, token))
        position = start + len(token)


def _suffix_before_a_question(
    template: ChatTemplate, before: list[Message], tools: Sequence[Any] | None, thinking: bool
) -> str | None:
    """What follows an answer when the user asks again; None if the template does not go on."""
    talk = [*before, {"role": "assistant", "content": _PROBES[0]}, _NEXT_QUESTION]
    try:
        text = template.render(talk, tools=tools, enable_thinking=thinking)
    except DataError:
        return None
    position = text.rfind(_PROBES[0])
    return text[position + len(_PROBES[0]) :] if position >= 0 else None


def _suffix(
    template: ChatTemplate, before: list[Message], tools: Sequence[Any] | None, prompt: str, thinking: bool
) -> str:
    suffixes, leads = set(), set()
    for probe in _PROBES:
        answer: Message = {"role": "assistant", "content": probe}
        text = template.render([*before, answer], tools=tools, enable_thinking=thinking)
        position = text.rfind(probe)
        if position < len(prompt) or not text.startswith(prompt):
            raise DataError(
                f"the chat template of {template.name} does not render the content of an answer after its "
                "generation prompt; name another template in chat_template"
            )
        suffixes.add(text[position + len(probe) :])
        leads.add(text[len(prompt) : position])
    if len(suffixes) != 1:
        raise DataError(
            f"the chat template of {template.name} ends answers in different ways: {sorted(suffixes)}"
        )
    without = template.render(before, tools=tools, enable_thinking=thinking)
    if any(lead.strip() for lead in leads) and prompt == without:
        raise DataError(
            f"the chat template of {template.name} ignores add_generation_prompt: {sorted(leads)[0]!r} "
            "would be trained on as if the model had to write it; name another template in chat_template"
        )
    return suffixes.pop()


def tokenise(rendered: Rendered, tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """Ids of a rendered text, and for each token itself where it is trained on, else -100.

    ERNIE 4.5 writes `<|end_of_sentence|>` behind the answers in a context but ends its own with the
    end-of-text token; there the label is that token.
    """
    separator, eos = tokenizer.token_id("<|end_of_sentence|>"), tokenizer.eos_id
    ids: list[int] = []
    labels: list[int] = []
    position = 0
    for turn in rendered.turns:
        context = tokenizer.encode(rendered.text[position : turn.start])
        answer = tokenizer.encode(rendered.text[turn.start : turn.stop])
        ids += context + answer
        masked = _tokens_of(answer, turn.trained_from - turn.start, tokenizer)
        labels += [IGNORED] * (len(context) + masked) + answer[masked:]
        if separator is not None and eos is not None and answer[-1] == separator:
            labels[-1] = eos
        position = turn.stop
    rest = tokenizer.encode(rendered.text[position:])
    return ids + rest, labels + [IGNORED] * len(rest)


def _tokens_of(ids: list[int], length: int, tokenizer: Tokenizer) -> int:
    """How many of the first tokens make the first `length` characters, with the one that crosses the end."""
    if length <= 0:
        return 0
    low, high = 0, len(ids)
    while low < high:
        middle = (low + high) // 2
        if len(tokenizer.decode(ids[:middle])) >= length:
            high = middle
        else:
            low = middle + 1
    return low
