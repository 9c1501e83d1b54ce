"""The screen before the first step: what will run, whether it fits, and one sample with its mask.

Most wasted runs could have been seen here: the wrong model, a mask that trains on nothing, more
memory than the machine has, ten times the steps that were meant.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from erniekit.log import error_console, logger

IGNORED = -100
_SAMPLE_TOKENS = 160


def show_start_screen(
    essentials: Mapping[str, str],
    memory: Mapping[str, int],
    *,
    available_bytes: int,
    sample: Any,
    tokenizer: Any,
) -> None:
    """Print the screen to standard error.

    Args:
        essentials: what was resolved, label -> text.
        memory: estimated bytes at the peak by cause.
        available_bytes: memory this process may take.
        sample: a training sample (input_ids [T], labels [T] already shifted).
    """
    table = Table.grid(padding=(0, 2))
    for label, text in essentials.items():
        table.add_row(Text(label, style="bold"), Text(text))
    error_console.print(
        Panel(
            Group(table, Text(), _memory_line(memory, available_bytes), Text(), sample_text(sample, tokenizer)),
            title="ErnieKit",
            title_align="left",
            border_style="cyan",
        )
    )
    total = sum(memory.values())
    if total > available_bytes:
        logger.warning(
            f"the run is estimated to need {gibibytes(total)} and {gibibytes(available_bytes)} are free: "
            "lower per_device_train_batch_size or max_seq_len, or compute_type: bf16"
        )


def _memory_line(memory: Mapping[str, int], available_bytes: int) -> Text:
    causes = ", ".join(f"{cause} {gibibytes(size)}" for cause, size in memory.items() if size)
    total = sum(memory.values())
    fits = total <= available_bytes
    verdict = "fits" if fits else "DOES NOT FIT"
    text = Text(f"memory estimated at the peak {gibibytes(total)} of {gibibytes(available_bytes)} free: ")
    text.append(verdict, style="green" if fits else "bold red")
    text.append(f"\n  {causes}")
    return text


def sample_text(sample: Any, tokenizer: Any) -> Text:
    """A decoded sample; what is trained on is green and underlined, the context is dim."""
    text = Text(f"one sample ({sample.origin}; trained tokens are green)\n")
    ids = sample.input_ids[:_SAMPLE_TOKENS]
    trained = [False, *(label != IGNORED for label in sample.labels)]
    for piece, is_trained in decoded_runs(ids, trained, tokenizer):
        text.append(piece, style="green underline" if is_trained else "dim")
    if len(sample.input_ids) > _SAMPLE_TOKENS:
        text.append(f" ... and {len(sample.input_ids) - _SAMPLE_TOKENS} more tokens", style="italic")
    elif sample.labels[-1] != IGNORED:
        text.append(tokenizer.decode([int(sample.labels[-1])]), style="green underline")
    return text


def decoded_runs(ids: Sequence[int], trained: Sequence[bool], tokenizer: Any) -> list[tuple[str, bool]]:
    """Neighbouring tokens of the same mask decoded together, so that no character is cut."""
    runs: list[tuple[list[int], bool]] = []
    for token, is_trained in zip(ids, trained, strict=False):
        if not runs or runs[-1][1] != is_trained:
            runs.append(([], is_trained))
        runs[-1][0].append(int(token))
    return [(tokenizer.decode(tokens), is_trained) for tokens, is_trained in runs]


def gibibytes(size: float) -> str:
    """Bytes as people read them."""
    return f"{size / 2**30:.2f} GiB" if size >= 2**29 else f"{size / 2**20:.0f} MiB"
