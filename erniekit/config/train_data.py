"""Section `train_data`: what is trained on."""

from dataclasses import dataclass
from typing import ClassVar

from erniekit.config.setting import setting

_VERBS = ("train", "data")
FORMATS = "erniekit, alpaca, chatml, messages, sharegpt, and text for stage PT"


@dataclass(frozen=True, kw_only=True)
class TrainData:
    """What is trained on."""

    configures: ClassVar[tuple[str, ...]] = ("erniekit.data.pipeline:open_train_samples",)

    train_dataset_path: str | None = setting(
        None, "file, folder, glob, hub id, or a comma list of them", verbs=_VERBS
    )
    train_dataset_type: str | None = setting(
        None, f"format, or one for each path: {FORMATS}; guessed from the rows when left out", verbs=_VERBS
    )
    train_dataset_prob: str | None = setting(
        None, "share of each path as a comma list; by size when left out", verbs=_VERBS, form="shares"
    )
    mix_strategy: str = setting(
        "random",
        "how several paths are mixed",
        choices=("concat", "random", "interleave_under", "interleave_over"),
        verbs=_VERBS,
    )
    num_samples_each_epoch: int | None = setting(
        None, "at most so many rows make an epoch; all rows when left out", verbs=_VERBS, at_least=1
    )
    random_shuffle: bool = setting(True, "shuffle the rows of every epoch", verbs=_VERBS)
    max_estimate_samples: int = setting(
        100000, "rows read to know the number of steps; more are extrapolated", verbs=_VERBS, at_least=1
    )
