"""What one update of AdamW needs, in whatever way it is computed."""

from dataclasses import dataclass

import paddle


@dataclass(frozen=True)
class Entry:
    """One parameter of an update with its fp32 gradient and its moments (fp32, or all of them bf16)."""

    name: str
    parameter: paddle.Tensor
    gradient: paddle.Tensor
    exp_avg: paddle.Tensor
    exp_avg_sq: paddle.Tensor
    rate: float
    decay: float
    # Number of elements of all parameters before this one: random bits are drawn by place in the model.
    offset: int


@dataclass(frozen=True)
class Numbers:
    """What is the same for all parameters; `number` counts updates from 1."""

    number: int
    clip: float
    beta1: float
    beta2: float
    epsilon: float

    @property
    def first_correction(self) -> float:
        """1 / (1 - b1^t)."""
        return float(1.0 / (1.0 - self.beta1**self.number))

    @property
    def second_correction(self) -> float:
        """(1 - b2^t)^(-1/2)."""
        return float((1.0 - self.beta2**self.number) ** -0.5)


def random_seed(update: int, element: int) -> int:
    """Seed of the 32 random bits of an update for the 2^32 elements around one; as in adamw.cpp."""
    mask = (1 << 64) - 1
    x = (update * 0x9E3779B97F4A7C15 + (element >> 32)) & mask
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
    return x >> 32
