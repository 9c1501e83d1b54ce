"""The training data."""

from dataclasses import dataclass
from typing import ClassVar

from erniekit.config.fields import key

DATASET_TYPES = "erniekit, alpaca, chatml, messages, sharegpt, text; null guesses from the rows"


@dataclass(frozen=True, kw_only=True)
class TrainData:
    """Files, their formats, and how several sets are mixed."""

    configures: ClassVar[tuple[str, ...]] = ("erniekit.data.pipeline:open_train_samples",)

    train_dataset_path: str | None = key(
        None,
        "files, folders, globs or hub ids, separated by commas",
        comma_list=True,
        required_by=("train",),
    )
    train_dataset_type: str | None = key(None, "format of each: " + DATASET_TYPES, comma_list=True)
    train_dataset_prob: str | None = key(
        None, "share of each, separated by commas; null means by size", comma_list=True
    )
    mix_strategy: str = key(
        "random",
        "how several sets are put together",
        choices=("concat", "random", "interleave_under", "interleave_over"),
    )
    num_samples_each_epoch: int | None = key(
        None, "samples drawn for an epoch; null means all of the data once", minimum=1
    )
    random_shuffle: bool = key(True, "shuffle the samples in each epoch")
    max_estimate_samples: int = key(100000, "samples read to estimate the steps of an epoch", minimum=1)
