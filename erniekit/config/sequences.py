"""Section `sequences`: how rows become the sequences that a model sees."""

from dataclasses import dataclass
from typing import ClassVar

from erniekit.config.setting import setting

_VERBS = ("train", "eval", "data")


@dataclass(frozen=True, kw_only=True)
class Sequences:
    """How rows become the sequences that a model sees."""

    configures: ClassVar[tuple[str, ...]] = (
        "erniekit.data.reader:SampleReader(max_seq_len, overlong, skip_bad_rows, use_template)",
        "erniekit.data.template:load_template(chat_template)",
        "erniekit.data.pipeline:build_loader(packing, buffer_size, pad_to_max_seqlen, dataloader_num_workers)",
    )

    max_seq_len: int = setting(4096, "tokens of a sequence", verbs=_VERBS, at_least=2)
    packing: bool = setting(
        True, "put several samples into one sequence; attention never crosses them", verbs=_VERBS
    )
    buffer_size: int = setting(500, "rows that are packed together", verbs=_VERBS, at_least=1)
    pad_to_max_seqlen: bool = setting(
        False, "pad every sequence to max_seq_len instead of to the longest of its batch", verbs=("train",)
    )
    overlong: str = setting(
        "truncate",
        "what happens to a conversation longer than max_seq_len",
        choices=("truncate", "drop", "error"),
        verbs=_VERBS,
    )
    skip_bad_rows: bool = setting(
        False, "count and list malformed rows instead of stopping at the first", verbs=_VERBS
    )
    chat_template: str | None = setting(
        None,
        "a built-in template (ernie45, ernie45-thinking) or the path of a .jinja file, instead of the model's own",
    )
    use_template: bool = setting(True, "false trains on the bare texts of a conversation", verbs=_VERBS)
    dataloader_num_workers: int = setting(
        0, "above 0, the next rows are prepared while the model computes", verbs=("train",), at_least=0
    )
