"""What an exported model looks like."""

import re
from dataclasses import dataclass
from typing import ClassVar

from erniekit.config.fields import key

# Types of GGUF files that are no plain numbers: rows of `export/gguf_numbers.py`.
QUANTISED = ("q8_0", "q6_k", "q4_k", "q4_0")


def _something(size: int | float | str) -> str | None:
    """Why a size is none: nothing fits into no bytes."""
    return None if re.search("[1-9]", str(size)) else "a file must hold something; write 5, or 500MB"


@dataclass(frozen=True, kw_only=True)
class Export:
    """Layout, number type, sharding and place of an export."""

    configures: ClassVar[tuple[str, ...]] = ("erniekit.export.export:export_model",)

    export_layout: str = key(
        "hf",
        "tensor names and shapes of transformers, or of Paddle; or one GGUF file for llama.cpp",
        choices=("hf", "paddle", "gguf"),
    )
    export_dtype: str = key(
        "auto",
        "number type; auto is that of the base model, those of few bits are of GGUF files",
        choices=("auto", "fp32", "bf16", "fp16", *QUANTISED),
    )
    max_shard_size: int | float | str = key(
        5,
        "largest file: a number of GB, or a text such as 500MB",
        pattern=r"(?i)\d+(\.\d+)?\s*([kmgt]i?b)?",
        pattern_help="a number of GB, or a text such as 500MB or 2GB",
        check=_something,
    )
    copy_tokenizer: bool = key(True, "put tokenizer and chat template into the export")
    export_dir: str | None = key(None, "folder of the export; null means output_dir/export")
    merge_adapter: bool = key(True, "merge an adapter into its model; false writes it alone")
