"""From a preference pair to one sequence: prompt | chosen | rejected, the prompt only once.

The last token of the prompt predicts the first one of either answer, so it stands at the head of both:

    shared prompt without its last token | last token, chosen | last token, rejected

Positions of both answers go on from the prompt, and the second answer does not see the first
(`ops/attention.py`), so every log-probability is that of the answer behind the prompt alone.
"""

from collections.abc import Sequence

from erniekit.data.pair_formats import Pair
from erniekit.data.render import render_conversation, tokenise
from erniekit.data.sample import IGNORED, PairSample, make_pair
from erniekit.data.template import ChatTemplate, Message
from erniekit.data.tokenizer import Tokenizer
from erniekit.errors import DataError


class PairBuilder:
    """Turns pairs into samples."""

    def __init__(
        self, tokenizer: Tokenizer, template: ChatTemplate | None, *, max_seq_len: int, ignore_eos_token: bool
    ) -> None:
        """Args:
        template: None joins the texts by newlines.
        ignore_eos_token: leave the last token of each answer out of its log-probability.
        """
        self._tokenizer, self._template = tokenizer, template
        self._max_seq_len, self._ignore_eos = max_seq_len, ignore_eos_token

    def build(self, pair: Pair, origin: str) -> PairSample:
        """The sequence of a pair, whatever its length.

        Raises:
            DataError: an answer has no token of its own.
        """
        chosen, rejected = (self._ids(pair, answer) for answer in (pair.chosen, pair.rejected))
        if self._ignore_eos:
            chosen, rejected = _without_last(chosen), _without_last(rejected)
        for name, (_, targets) in (("chosen", chosen), ("rejected", rejected)):
            if all(target == IGNORED for target in targets):
                raise DataError(f"{name} has no token to train on")
        return make_pair(chosen, rejected, pair.score_difference, origin)

    def fitted(self, sample: PairSample) -> PairSample | None:
        """The sample within max_seq_len, both answers cut at their ends; None if no room is left."""
        room = self._max_seq_len - sample.chosen_start
        sizes = [sample.rejected_start - sample.chosen_start, len(sample) - sample.rejected_start]
        if sum(sizes) <= room:
            return sample
        half = room // 2
        first = min(sizes[0], max(half, room - sizes[1]))
        second = min(sizes[1], room - first)
        cut = sample.cut(first, second) if min(first, second) > 0 else None
        trained = cut is not None and all(side.num_trained for side in (cut.chosen(), cut.rejected()))
        return cut if trained else None

    def _ids(self, pair: Pair, answer: list[Message]) -> tuple[list[int], list[int]]:
        if self._template is None:
            return self._plain(pair.prompt, answer)
        messages = [*pair.prompt, *answer]
        trained = [False for message in pair.prompt if message["role"] == "assistant"]
        trained += [True for message in answer if message["role"] == "assistant"]
        rendered = render_conversation(
            self._template,
            messages,
            tools=pair.tools,
            trained=trained,
            special_texts=self._tokenizer.special_texts,
        )
        if len(rendered) > 1:
            raise DataError(
                f"the chat template of {self._template.name} rewrites earlier turns, so an answer of several "
                "turns has no one probability; give pairs whose answers are the last turn"
            )
        return tokenise(rendered[0], self._tokenizer)

    def _plain(self, prompt: Sequence[Message], answer: Sequence[Message]) -> tuple[list[int], list[int]]:
        before = self._tokenizer.encode("".join(f"{message['content']}\n" for message in prompt))
        ids = self._tokenizer.encode("\n".join(str(message["content"]) for message in answer))
        if self._tokenizer.eos_id is not None:
            ids.append(self._tokenizer.eos_id)
        return before + ids, [IGNORED] * len(before) + ids


def _without_last(side: tuple[list[int], list[int]]) -> tuple[list[int], list[int]]:
    ids, targets = side
    last = max((index for index, target in enumerate(targets) if target != IGNORED), default=None)
    if last is None:
        return side
    return ids, [IGNORED if index == last else target for index, target in enumerate(targets)]
