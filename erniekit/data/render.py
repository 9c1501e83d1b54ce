"""Which tokens of a rendered conversation are trained on, found from the rendering itself.

For answer i let P be the messages before it rendered with a generation prompt: exactly what a
chat or a server sends. The messages up to and with it rendered must begin with P; what follows P
is what the model has to write. Where the answer ends is found with two made-up answers: what the
template puts behind any of them is its suffix, and the first special token in the suffix ends
the turn. That token is trained on, what comes after it is not. So no template needs marks, and
one for which this fails is refused rather than trained on with a guess.

Some templates rewrite history (they drop the reasoning of earlier turns). Their conversations
become one sample per answer, each as it would have been sent at that moment.

Prompt and answer are tokenised apart, since that is how they meet at inference.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from erniekit.data.sample import IGNORED
from erniekit.data.template import ChatTemplate, Message
from erniekit.data.tokenizer import Tokenizer
from erniekit.errors import DataError

# Two answers that no template treats specially and that share no end.
_PROBES = ("Qz7 first probe Kx", "Wj4 second probe Vy")


@dataclass(frozen=True)
class Turn:
    """An answer within a text: the characters [start, stop) are trained on."""

    start: int
    stop: int


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
) -> list[Rendered]:
    """Render a conversation for training.

    Args:
        trained: for each assistant message in order, whether it is trained on.

    Raises:
        DataError: what is trained on cannot be decided for this template; says why.
    """
    answers = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    chosen = [index for index, wanted in zip(answers, trained, strict=True) if wanted]
    if not chosen:
        return [Rendered(template.render(messages, tools=tools), ())]
    parts = [_answer(template, messages, index, tools, special_texts) for index in chosen]
    full = template.render(messages[: chosen[-1] + 1], tools=tools)
    if all(full.startswith(prompt + answer) for prompt, answer in parts):
        turns = tuple(Turn(len(prompt), len(prompt) + len(answer)) for prompt, answer in parts)
        return [Rendered(full[: turns[-1].stop], turns)]
    return [
        Rendered(prompt + answer, (Turn(len(prompt), len(prompt) + len(answer)),)) for prompt, answer in parts
    ]


def written_out(template: ChatTemplate, messages: Sequence[Message]) -> tuple[list[Message], bool]:
    """Messages whose tool calls are written into the content, for templates that do not render them.

    Returns:
        The messages, and whether any was changed.
    """
    if template.renders_tool_calls or not any(message.get("tool_calls") for message in messages):
        return list(messages), False
    written = []
    for message in messages:
        if message.get("tool_calls"):
            calls = [call.get("function", call) for call in message["tool_calls"]]
            texts = [f"<tool_call>\n{json.dumps(call, ensure_ascii=False)}\n</tool_call>" for call in calls]
            content = "\n".join([message["content"], *texts] if message["content"] else texts)
            message = {"role": message["role"], "content": content}
        written.append(message)
    return written, True


def _answer(
    template: ChatTemplate,
    messages: Sequence[Message],
    index: int,
    tools: Sequence[Any] | None,
    special_texts: frozenset[str],
) -> tuple[str, str]:
    """What is sent before an answer, and the answer with the token that ends it."""
    before = list(messages[:index])
    prompt = template.render(before, tools=tools, add_generation_prompt=True)
    whole = template.render([*before, messages[index]], tools=tools)
    if not whole.startswith(prompt):
        raise DataError(
            f"the chat template of {template.name} renders an answer differently from its own generation "
            f"prompt (...{prompt[-40:]!r} is not how the answer begins), so it cannot be decided what the "
            "model has to write; name another template in chat_template"
        )
    suffix = _suffix(template, before, tools, prompt)
    if not whole.endswith(suffix) or len(whole) - len(suffix) < len(prompt):
        raise DataError(
            f"the chat template of {template.name} ends this answer with {whole[-40:]!r}, not with "
            f"{suffix!r} as other answers, so its end cannot be decided"
        )
    positions = [(suffix.find(token), -len(token), token) for token in special_texts if token in suffix]
    if not positions:
        raise DataError(
            f"the chat template of {template.name} puts {suffix!r} behind an answer, which holds no special "
            "token: the model would never learn to stop; name another template in chat_template"
        )
    position, _, token = min(positions)
    answer = whole[len(prompt) : len(whole) - len(suffix)] + suffix[: position + len(token)]
    return prompt, answer


def _suffix(template: ChatTemplate, before: list[Message], tools: Sequence[Any] | None, prompt: str) -> str:
    suffixes, leads = set(), set()
    for probe in _PROBES:
        text = template.render([*before, {"role": "assistant", "content": probe}], tools=tools)
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
    if any(lead.strip() for lead in leads) and prompt == template.render(before, tools=tools):
        raise DataError(
            f"the chat template of {template.name} ignores add_generation_prompt: {sorted(leads)[0]!r} "
            "would be "
            "trained on as if the model had to write it; name another template in chat_template"
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
        labels += [IGNORED] * len(context) + answer
        if separator is not None and eos is not None and answer[-1] == separator:
            labels[-1] = eos
        position = turn.stop
    rest = tokenizer.encode(rendered.text[position:])
    return ids + rest, labels + [IGNORED] * len(rest)
