"""Samples and their figures as a person reads them."""

import unicodedata
from collections.abc import Sequence

from rich.text import Text

from erniekit.data.sample import IGNORED, PairSample, Sample
from erniekit.data.tokenizer import Tokenizer

_BAR = 40


def sample_text(
    sample: Sample, tokenizer: Tokenizer, *, most_tokens: int = 160, colours: bool = True
) -> Text:
    """A decoded sample; what is trained on is green and underlined, the context is dim.

    Args:
        colours: False puts what is trained on between `[[` and `]]`, for places that show no colour.
    """
    if isinstance(sample, PairSample):
        return _pair_text(sample, tokenizer, most_tokens=most_tokens, colours=colours)
    how = "green" if colours else "in [[ ]]"
    count, share = sample.num_trained, sample.num_trained / max(1, len(sample))
    text = Text(f"({sample.origin}; {len(sample)} tokens, {count} trained ({share:.0%}): {how})\n")
    ids = sample.input_ids[:most_tokens].tolist()
    trained = [False, *(label != IGNORED for label in sample.labels)]
    if len(sample) <= most_tokens and sample.labels[-1] != IGNORED:
        ids.append(int(sample.labels[-1]))
    for piece, is_trained in decoded_runs(ids, trained, tokenizer):
        shown = visible(piece)
        if is_trained and not colours:
            text.append(f"[[{shown}]]")
        else:
            text.append(shown, style="green underline" if is_trained else "dim")
    if len(sample) > most_tokens:
        text.append(f" ... and {len(sample) - most_tokens} more tokens", style="italic")
    return text


def _pair_text(sample: PairSample, tokenizer: Tokenizer, *, most_tokens: int, colours: bool) -> Text:
    """Both answers of a pair behind their prompt."""
    score = f", better by {sample.score_difference:g}" if sample.score_difference != 1 else ""
    text = Text(
        f"({sample.origin}; a pair of {len(sample)} tokens, {sample.chosen_start} of them shared{score})\n"
    )
    for name, side in (("chosen", sample.chosen()), ("rejected", sample.rejected())):
        text.append(f"{name}: ", style="bold")
        text.append(sample_text(side, tokenizer, most_tokens=most_tokens, colours=colours))
        text.append("\n")
    return text


def visible(text: str) -> str:
    """Text without the control characters that a terminal would obey; they appear as `\\x1b`."""
    return "".join(
        letter if letter in "\n\t" or unicodedata.category(letter) != "Cc" else f"\\x{ord(letter):02x}"
        for letter in text
    )


def decoded_runs(ids: Sequence[int], trained: Sequence[bool], tokenizer: Tokenizer) -> list[tuple[str, bool]]:
    """Neighbouring tokens of the same mask decoded together, so that no character is cut."""
    runs: list[tuple[list[int], bool]] = []
    for token, is_trained in zip(ids, trained, strict=False):
        if not runs or runs[-1][1] != is_trained:
            runs.append(([], is_trained))
        runs[-1][0].append(int(token))
    return [(tokenizer.decode(tokens), is_trained) for tokens, is_trained in runs]


def length_histogram(lengths: Sequence[int], *, most_bars: int = 12) -> list[str]:
    """Lines `from - to  count  bar` over equal ranges of lengths."""
    if not lengths:
        return []
    longest = max(lengths)
    width = max(1, -(-longest // most_bars))
    counts = [0] * (-(-longest // width))
    for length in lengths:
        counts[(length - 1) // width] += 1
    largest = max(counts)
    bars = ["#" * round(count / largest * _BAR) for count in counts]
    return [
        f"{number * width + 1:>6} - {(number + 1) * width:<6} {count:>6}  {bar}"
        for number, (count, bar) in enumerate(zip(counts, bars, strict=True))
    ]
