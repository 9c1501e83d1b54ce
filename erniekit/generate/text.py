"""Text in, text out: a model, its tokenizer and its template as one thing that answers.

This is the whole of what the commands, and later a server, need. The prompt is rendered by the
same template that rendered the training data, so a model is asked as it was taught.
"""

import json
from collections.abc import Collection, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from erniekit.data.render import written_out
from erniekit.data.template import ChatTemplate, Message
from erniekit.data.tokenizer import StreamDecoder, Tokenizer
from erniekit.errors import CheckpointError
from erniekit.generate.engine import Event, generate
from erniekit.generate.sampler import Sampling
from erniekit.generate.stream import TextStream


@dataclass(frozen=True)
class Answer:
    """A finished answer, with what it took."""

    text: str
    finish_reason: str
    num_prompt_tokens: int
    num_tokens: int


class TextGenerator:
    """Answers prompts with one model.

    Args:
        model: an assembled model in evaluation mode.
        end_ids: tokens that end an answer.
        max_context: columns that the model was made for, prompt and answer together.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Tokenizer,
        template: ChatTemplate | None,
        *,
        end_ids: Collection[int],
        max_context: int,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.template = template
        self.end_ids = frozenset(end_ids)
        self.max_context = max_context
        # What switches between the adapters of the model, where there are some.
        self.adapters: Any = None

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Any] | None = None,
        enable_thinking: bool = False,
    ) -> list[int]:
        """Tokens of the prompt that asks the model to answer these messages, as training data are rendered.

        Args:
            tools: definitions of the tools that the model may call.

        Raises:
            CheckpointError: the checkpoint has no chat template.
        """
        if self.template is None:
            raise CheckpointError(
                "the checkpoint has no chat template, so it cannot be asked questions; "
                "name one with chat_template=..., or let it continue plain text with --raw"
            )
        written, _ = written_out(self.template, messages)
        text = self.template.render(
            written, tools=tools, add_generation_prompt=True, enable_thinking=enable_thinking
        )
        return self.tokenizer.encode(text)

    def text_of(self, ids: Sequence[int]) -> str:
        """Tokens as text, special ones included."""
        return self.tokenizer.decode(list(ids))

    def stream(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, *, first_row: int = 0
    ) -> Generator[Event, None, None]:
        """Events of all answers, as they come; closing the iterator ends the work."""
        streams = [TextStream(StreamDecoder(self.tokenizer), sampling.stop) for _ in prompts]
        return generate(
            self.model,
            prompts,
            sampling=sampling,
            end_ids=self.end_ids,
            max_context=self.max_context,
            streams=streams,
            first_row=first_row,
        )

    def answer(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, *, first_row: int = 0
    ) -> list[Answer]:
        """Whole answers, in the order of the prompts."""
        pieces: list[list[str]] = [[] for _ in prompts]
        tokens = [0] * len(prompts)
        reasons = [""] * len(prompts)
        for event in self.stream(prompts, sampling, first_row=first_row):
            pieces[event.row].append(event.text)
            tokens[event.row] += 1
            reasons[event.row] = event.finish_reason or reasons[event.row]
        return [
            Answer("".join(pieces[row]), reasons[row], len(prompt), tokens[row])
            for row, prompt in enumerate(prompts)
        ]


def read_generation_defaults(folder: Path) -> dict[str, Any]:
    """Content of a checkpoint's `generation_config.json`, empty when there is none.

    Raises:
        CheckpointError: the file is not a JSON object.
    """
    path = folder / "generation_config.json"
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content
