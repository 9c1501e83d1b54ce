"""Updates of AdamW by Paddle's own operators, on any device.

Parameters in fp32 are their own master; for others the update acts on an fp32 master.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import paddle

from erniekit.optim.host import HostMemory
from erniekit.optim.update import Entry, Numbers, random_seed


class PlainUpdate:
    """Holds the fp32 masters of parameters in other types."""

    def __init__(self, parameters: dict[str, Any], host: HostMemory | None = None) -> None:
        """With `host` the masters are kept there."""
        self._parameters, self._host = parameters, host
        self._masters = {
            name: self._aside(parameter.detach().astype("float32"))
            for name, parameter in parameters.items()
            if parameter.dtype != paddle.float32
        }

    def master_names(self) -> list[str]:
        """Parameters that have a master of their own."""
        return list(self._masters)

    def num_bytes(self) -> int:
        """Bytes of the masters."""
        return sum(4 * master.size for master in self._masters.values())

    def master(self, name: str) -> np.ndarray:
        """The fp32 master of a parameter, copied."""
        return self._masters[name].numpy()

    def set_master(self, name: str, values: np.ndarray) -> None:
        """Take over a master, and what follows from it for the parameter."""
        master = paddle.to_tensor(values)
        self._round(name, master)
        self._masters[name] = self._aside(master)

    def square_sum(self, gradients: Iterable[paddle.Tensor]) -> float:
        """Sum of the squares of all numbers of all gradients."""
        squares = [(gradient * gradient).sum() for gradient in gradients]
        return float(paddle.add_n(squares)) if squares else 0.0

    def update(self, entries: list[Entry], numbers: Numbers) -> None:
        """One update of the parameters, their masters and their moments."""
        for entry in entries:
            master = self._masters.get(entry.name)
            if master is None or self._host is None:
                self._update_one(entry, numbers, master)
                continue
            with self._host.here(master) as (here,):
                self._update_one(entry, numbers, here)

    def _update_one(self, entry: Entry, numbers: Numbers, master: paddle.Tensor | None) -> None:
        gradient, wide = entry.gradient, entry.exp_avg.dtype == paddle.float32
        if numbers.clip != 1.0:
            gradient = gradient * numbers.clip
        exp_avg = entry.exp_avg if wide else entry.exp_avg.astype("float32")
        exp_avg_sq = entry.exp_avg_sq if wide else entry.exp_avg_sq.astype("float32")
        exp_avg.scale_(numbers.beta1).add_(gradient * (1.0 - numbers.beta1))
        exp_avg_sq.scale_(numbers.beta2).add_((gradient * gradient).scale_(1.0 - numbers.beta2))
        direction = exp_avg / paddle.sqrt(exp_avg_sq).scale_(numbers.second_correction, numbers.epsilon)
        target = entry.parameter if master is None else master
        if entry.decay:
            target.scale_(1.0 - entry.rate * entry.decay)
        target.subtract_(direction.scale_(entry.rate * numbers.first_correction))
        if master is not None:
            self._round(entry.name, master)
        if not wide:
            random = _random_bits(numbers.number, entry.offset, exp_avg.shape)
            low = paddle.to_tensor(0xFFFF, dtype="int64")
            paddle.assign(_rounded_at_random(exp_avg, random & low), output=entry.exp_avg)
            high = paddle.bitwise_right_shift(random, paddle.to_tensor(16, dtype="int64"))
            paddle.assign(_rounded_at_random(exp_avg_sq, high), output=entry.exp_avg_sq)

    def _aside(self, master: paddle.Tensor) -> paddle.Tensor:
        return master if self._host is None else self._host.keep(master)

    def _round(self, name: str, master: paddle.Tensor) -> None:
        parameter = self._parameters[name]
        paddle.assign(master.astype(parameter.dtype), output=parameter)


def _random_bits(update: int, offset: int, shape: list[int]) -> paddle.Tensor:
    """32 random bits for each element, a hash of update and place, as int64; the same as in adamw.cpp."""

    def number(value: int) -> paddle.Tensor:
        return paddle.to_tensor(value, dtype="int64")

    def mixed(x: paddle.Tensor, shift: int) -> paddle.Tensor:
        return x ^ paddle.bitwise_right_shift(x, number(shift))

    mask = number(0xFFFFFFFF)
    x = paddle.arange(int(np.prod(shape)), dtype="int64") + number(offset & 0xFFFFFFFF)
    # Products may leave 64 bits: the lowest 32 are right all the same.
    x = (x * number(0x9E3779B1) + number(random_seed(update, offset))) & mask
    x = (mixed(x, 16) * number(0x85EBCA6B)) & mask
    x = (mixed(x, 13) * number(0xC2B2AE35)) & mask
    return mixed(x, 16).reshape(shape)


def _rounded_at_random(x: paddle.Tensor, random: paddle.Tensor) -> paddle.Tensor:
    """fp32 to bf16, up or down with probabilities that keep the mean; `random` holds 16 bits for each."""
    bits = x.view("int32") + random.astype("int32")
    return (bits & paddle.to_tensor(-0x10000, dtype="int32")).view("float32").astype("bfloat16")
