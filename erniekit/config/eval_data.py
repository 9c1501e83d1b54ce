"""Section `eval_data`: what is held out."""

from dataclasses import dataclass
from typing import ClassVar

from erniekit.config.setting import setting
from erniekit.config.train_data import FORMATS

_VERBS = ("train", "eval", "data")


@dataclass(frozen=True, kw_only=True)
class EvalData:
    """What is held out."""

    configures: ClassVar[tuple[str, ...]] = ("erniekit.data.pipeline:open_eval_samples",)

    eval_dataset_path: str | None = setting(
        None, "file, folder, glob, hub id, or a comma list of them", verbs=_VERBS
    )
    eval_dataset_type: str | None = setting(
        None, f"format, or one for each path: {FORMATS}; guessed from the rows when left out", verbs=_VERBS
    )
    eval_dataset_prob: str | None = setting(
        None, "accepted for symmetry: every held-out row is used once", verbs=_VERBS, form="shares"
    )
