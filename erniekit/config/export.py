"""What an exported model looks like."""

import re
from dataclasses import dataclass
from typing import ClassVar

from erniekit.config.fields import key


def _something(size: int | float | str) -> str | None:
    """Why a size is none: nothing fits into no bytes."""
    return None if re.search("[1-9]", str(size)) else "a file must hold something; write 5, or 500MB"


@dataclass(frozen=True, kw_only=True)
class Export:
    """Layout, number type, sharding and place of an export."""

    configures: ClassVar[tuple[str, ...]] = ("erniekit.export.export:export_model",)

    export_layout: str = key(
        "hf", "tensor names and shapes of transformers, or of Paddle", choices=("hf", "paddle")
    )
    export_dtype: str = key(
        "auto", "number type; auto is that of the base model", choices=("auto", "fp32", "bf16", "fp16")
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
