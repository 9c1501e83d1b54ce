"""Which tokens end an answer.

Four places know something, and a model that was trained well stops at any of them: the
checkpoint's generation_config.json, its config.json, its tokenizer, and its chat template, whose
end-of-turn token is what training taught the model to write after an answer. Templates and eos
disagree often enough that asking only one of them makes models talk without end.
"""

from collections.abc import Mapping
from typing import Any

from erniekit.data.render import render_conversation
from erniekit.data.template import ChatTemplate
from erniekit.data.tokenizer import Tokenizer
from erniekit.errors import DataError


def end_token_ids(
    defaults: Mapping[str, Any], config: Any, tokenizer: Tokenizer | None, template: ChatTemplate | None
) -> list[int]:
    """All tokens that end an answer, ascending.

    Args:
        defaults: content of generation_config.json, may be empty.
        config: the model's configuration.
        tokenizer: None for a model that is used without one.
    """
    said = defaults.get("eos_token_id")
    found = set(said if isinstance(said, list) else [said])
    eos = config.eos_token_id
    found |= set(eos if isinstance(eos, list | tuple) else [eos])
    if tokenizer is not None:
        found |= {tokenizer.eos_id, end_of_turn_id(tokenizer, template)}
    return sorted(token for token in found if token is not None)


def end_of_turn_id(tokenizer: Tokenizer, template: ChatTemplate | None) -> int | None:
    """The special token that training teaches after an answer, None if there is none."""
    if template is None:
        return None
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    try:
        rendered = render_conversation(
            template, messages, tools=None, trained=[True], special_texts=tokenizer.special_texts
        )[0]
    except DataError:
        # A template whose answers cannot be told apart cannot be trained on, but can be asked.
        return None
    last = tokenizer.encode(rendered.text[: rendered.turns[0].stop])[-1]
    return last if last in tokenizer.special_ids else None
