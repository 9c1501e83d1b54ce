"""How rows become token sequences and batches."""

from dataclasses import dataclass
from typing import ClassVar

from erniekit.config.fields import key


@dataclass(frozen=True, kw_only=True)
class Sequences:
    """Length, packing, template, and what happens to rows that do not fit."""

    configures: ClassVar[tuple[str, ...]] = (
        "erniekit.data.template:load_template",
        "erniekit.data.reader:SampleReader",
        "erniekit.data.pipeline:build_loader",
    )

    max_seq_len: int = key(4096, "tokens of a sequence", minimum=2)
    packing: bool = key(True, "put several samples into a sequence; attention never crosses them")
    buffer_size: int = key(500, "samples looked at together for packing or for sorting by length", minimum=1)
    pad_to_max_seqlen: bool = key(False, "pad every batch to max_seq_len")
    skip_bad_rows: bool = key(False, "count and list malformed rows instead of stopping")
    overlong: str = key(
        "truncate", "what to do with samples over max_seq_len", choices=("truncate", "drop", "error")
    )
    chat_template: str | None = key(
        None, "name of a built-in template or a .jinja file; null means the checkpoint's"
    )
    use_template: bool = key(True, "render through the chat template; false concatenates the texts")
    train_on: str = key(
        "all_turns",
        "answers of a conversation that are trained on: all with label 1, or the last one only",
        choices=("all_turns", "last_turn"),
    )
    mask_thinking: bool = key(False, "do not train on the reasoning before an answer (up to </think>)")
    encode_one_turn: bool = key(
        False, "a sample for each trained answer, rendered as it was when it was given"
    )
    ignore_eos_token: bool = key(False, "DPO: leave the last token of an answer out of its log-probability")
    dataloader_num_workers: int = key(0, "threads that prepare batches ahead", minimum=0)
