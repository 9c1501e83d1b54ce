"""The held-out data."""

from dataclasses import dataclass
from typing import ClassVar

from erniekit.config.fields import key
from erniekit.config.train_data import DATASET_TYPES


@dataclass(frozen=True, kw_only=True)
class EvalData:
    """Files for evaluation and their formats."""

    configures: ClassVar[tuple[str, ...]] = ("erniekit.data.pipeline:open_eval_samples",)

    eval_dataset_path: str | None = key(
        None, "files, folders, globs or hub ids, separated by commas", comma_list=True, required_by=("eval",)
    )
    eval_dataset_type: str | None = key(None, "format of each: " + DATASET_TYPES, comma_list=True)
    eval_dataset_prob: str | None = key(
        None, "share of each, separated by commas; null means by size", comma_list=True
    )
