"""Section `export`: the finished model folder."""

from dataclasses import dataclass
from typing import ClassVar

from erniekit.config.setting import setting

_VERBS = ("export",)


@dataclass(frozen=True, kw_only=True)
class Export:
    """The finished model folder."""

    configures: ClassVar[tuple[str, ...]] = ("erniekit.export.export:export_model",)

    export_layout: str = setting(
        "hf", "hf for transformers and vLLM, paddle for FastDeploy", choices=("hf", "paddle"), verbs=_VERBS
    )
    export_dtype: str = setting(
        "auto", "number format; auto keeps the source's", choices=("auto", "fp32", "bf16", "fp16"), verbs=_VERBS
    )
    max_shard_size: float | str = setting(
        5, "largest file, in GB, or with a unit (500MB)", verbs=("export", "split"), form="size"
    )
    copy_tokenizer: bool = setting(True, "write tokenizer and chat template too", verbs=_VERBS)
    export_dir: str | None = setting(None, "where to; output_dir/export when left out", verbs=_VERBS)
