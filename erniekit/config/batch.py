"""Section `batch`: how much a step sees, and how long a run is."""

from dataclasses import dataclass
from typing import ClassVar

from erniekit.config.setting import setting

_TRAIN = ("train",)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """How much a step sees, and how long a run is."""

    configures: ClassVar[tuple[str, ...]] = (
        "erniekit.data.pipeline:build_loader(per_device_train_batch_size, gradient_accumulation_steps)",
        "erniekit.data.pipeline:iterate_eval(per_device_eval_batch_size)",
        "erniekit.train.run:plan_steps",
    )

    per_device_train_batch_size: int = setting(
        1, "sequences of a micro-batch; batch_size sets this and the next key", verbs=("train", "data"), at_least=1
    )
    per_device_eval_batch_size: int = setting(
        1, "sequences evaluated together", verbs=("train", "eval"), at_least=1
    )
    gradient_accumulation_steps: int = setting(
        1, "micro-batches of a step; the gradient is that of one large batch", verbs=("train", "data"), at_least=1
    )
    num_train_epochs: float = setting(
        1.0, "passes over the training data, unless max_steps says more exactly", verbs=("train", "data"), above=0
    )
    max_steps: int = setting(
        -1, "optimizer steps of the run; -1 leaves it to num_train_epochs", verbs=("train", "data"), at_least=-1
    )
