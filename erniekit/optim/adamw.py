"""AdamW (Loshchilov and Hutter 2019), with fp32 master weights for bf16 parameters.

For a gradient g of update t, rate lr and decay d:
    m = b1 m + (1 - b1) g        v = b2 v + (1 - b2) g^2
    w = (1 - lr d) w - lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)

Parameters in fp32 are their own master. For parameters in bf16 the update acts on an fp32
master, and the gradients of micro-batches are summed in fp32: both would be lost in 8 bits of
mantissa. The moments are fp32; with `use_lowprecision_moment` they are stored in bf16, rounded up or
down at random so that their mean stays, which costs a little noise and saves 4 bytes a parameter.

The update itself is native or Paddle's (`native.py`, `plain.py`); a checkpoint is the same for both.

Where several processes share the work (ZeRO, Rajbhandari et al. 2020), each holds the state of a range of
the numbers of each parameter and updates these alone.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from types import MappingProxyType
from typing import Any

import numpy as np
import paddle

from erniekit.errors import CheckpointError
from erniekit.log import logger
from erniekit.ops import gradients
from erniekit.ops.backend import current_backend, on_cpu
from erniekit.optim.groups import decays, learning_rate_ratios
from erniekit.optim.host import HostMemory
from erniekit.optim.native import NativeUpdate
from erniekit.optim.plain import PlainUpdate
from erniekit.optim.update import Entry, Numbers

Item = tuple[str, str, np.ndarray]


class AdamW:
    """See the module docstring. Frozen parameters (stop_gradient) have no state and never change."""

    def __init__(
        self,
        named_parameters: list[tuple[str, Any]],
        own_ratios: Mapping[str, float] = MappingProxyType({}),
        held: Mapping[str, tuple[Any, int]] | None = None,
        of_model: Sequence[str] | None = None,
        *,
        weight_decay: float,
        adam_beta1: float,
        adam_beta2: float,
        adam_epsilon: float,
        max_grad_norm: float,
        layerwise_lr_decay_bound: float,
        moe_gate_lr_ratio: float | None = None,
        use_lowprecision_moment: bool = False,
        offload_optim: bool = False,
    ) -> None:
        trained = {name: p for name, p in named_parameters if not p.stop_gradient}
        before = accumulate((parameter.size for parameter in trained.values()), initial=0)
        self._offsets = dict(zip(trained, before, strict=False))
        self._trained = self._parameters = trained
        if held is not None:
            self._parameters = {name: held[name][0] for name in trained if name in held}
            self._offsets = {name: self._offsets[name] + held[name][1] for name in self._parameters}
        # Depth is counted over the whole model.
        names = [*(of_model or ()), *(name for name, _ in named_parameters)]
        self._ratios = learning_rate_ratios(names, layerwise_lr_decay_bound, moe_gate_lr_ratio)
        for name, ratio in own_ratios.items():
            self._ratios[name] *= ratio
        self._weight_decay = weight_decay
        self._betas = (adam_beta1, adam_beta2)
        self._epsilon = adam_epsilon
        self._max_grad_norm = max_grad_norm
        self._clip = 1.0
        self.num_updates = 0
        if offload_optim and on_cpu():
            logger.info("offload_optim: on a CPU the optimizer's states are in main memory as it is")
        self._host = HostMemory() if offload_optim and not on_cpu() else None
        native = current_backend() == "native" and NativeUpdate.takes(self._parameters)
        self._update = NativeUpdate(self._parameters) if native else PlainUpdate(self._parameters, self._host)
        self._moment_type = "bfloat16" if use_lowprecision_moment else "float32"
        self._exp_avg: dict[str, paddle.Tensor] = {}
        self._exp_avg_sq: dict[str, paddle.Tensor] = {}
        for name, parameter in self._parameters.items():
            self._exp_avg[name] = self._aside(paddle.zeros(parameter.shape, dtype=self._moment_type))
            self._exp_avg_sq[name] = self._aside(paddle.zeros(parameter.shape, dtype=self._moment_type))

    @paddle.no_grad()
    def accumulate_grads(self) -> None:
        """Take in the gradients of a micro-batch; called after each backward pass.

        Operators that add to the fp32 main gradient have done so. What Paddle gave beside it, or in
        another type, joins it; the gradients of other fp32 parameters are summed where they are.
        """
        for parameter in self._trained.values():
            if parameter.grad is None:
                continue
            main = getattr(parameter, "main_grad", None)
            if main is None and parameter.dtype == paddle.float32:
                continue
            given = parameter.grad.astype("float32")
            parameter.main_grad = given if main is None else main.add_(given)
            parameter.grad = None  # clear_gradient would keep the memory

    @paddle.no_grad()
    def grad_norm_and_clip(
        self,
        counts: Callable[[str], bool] | None = None,
        total: Callable[[float], float] | None = None,
    ) -> float:
        """Global L2 norm of the gradients, before clipping; the next `step` scales them to the limit.

        Args:
            counts: which gradients this process is to count, where several processes hold some of them.
            total: the sum of a number over the processes.

        Returns inf or nan when the gradients hold them; nothing has changed then.
        """
        self.accumulate_grads()
        squares = self._update.square_sum(
            gradient for name, gradient in self._gradients() if counts is None or counts(name)
        )
        norm = math.sqrt(squares if total is None else total(squares))
        limit = self._max_grad_norm
        self._clip = limit / norm if limit > 0 and math.isfinite(norm) and norm > limit else 1.0
        return norm

    @paddle.no_grad()
    def step(self, lr: float) -> None:
        """One update at the rate `lr` of every trained parameter that has a gradient."""
        self.accumulate_grads()
        self.num_updates += 1
        entries = [
            Entry(
                name=name,
                parameter=self._parameters[name],
                gradient=gradient,
                exp_avg=self._exp_avg[name],
                exp_avg_sq=self._exp_avg_sq[name],
                rate=lr * self._ratios[name],
                decay=self._weight_decay if decays(name) else 0.0,
                offset=self._offsets[name],
            )
            for name, gradient in self._gradients()
        ]
        beta1, beta2 = self._betas
        numbers = Numbers(self.num_updates, clip=self._clip, beta1=beta1, beta2=beta2, epsilon=self._epsilon)
        if self._host is None:
            self._update.update(entries, numbers)
        else:
            for entry in entries:
                with self._host.here(entry.exp_avg, entry.exp_avg_sq) as (first, second):
                    self._update.update([replace(entry, exp_avg=first, exp_avg_sq=second)], numbers)
        self._clip = 1.0

    def names(self) -> list[str]:
        """Parameters that are updated here."""
        return list(self._parameters)

    def num_bytes(self) -> int:
        """Bytes of the state that is held here."""
        moments = [moment for _, table in self._moments() for moment in table.values()]
        return self._update.num_bytes() + sum(moment.size * moment.element_size() for moment in moments)

    def zero_grad(self) -> None:
        """Forget the gradients."""
        self._clip = 1.0
        for parameter in (*self._trained.values(), *self._parameters.values()):
            gradients.clear(parameter)

    def state_items(self) -> Iterator[Item]:
        """State as raw tensors: `exp_avg.*`, `exp_avg_sq.*`, `master.*`, and `num_updates`."""
        yield "num_updates", "I64", np.array([self.num_updates], dtype=np.int64)
        word = "F32" if self._moment_type == "float32" else "BF16"
        for prefix, table in self._moments():
            for name, moment in table.items():
                yield f"{prefix}.{name}", word, moment.numpy()
        for name in self._update.master_names():
            yield f"master.{name}", "F32", self._update.master(name)

    @paddle.no_grad()
    def load_state(self, tensors: Any) -> None:
        """Take over a state, `tensors` being a reader with `names()`, `info(name)` and `read(name)`.

        Moments may be stored in another type than they are held in.

        Raises:
            CheckpointError: the state belongs to other parameters.
        """
        self._check(tensors)
        self.num_updates = int(tensors.read("num_updates")[0])
        for prefix, table in self._moments():
            for name in table:
                moment = paddle.to_tensor(_as_fp32(tensors.read(f"{prefix}.{name}")))
                table[name] = self._aside(moment.astype(self._moment_type))
        for name in self._update.master_names():
            self._update.set_master(name, tensors.read(f"master.{name}"))

    def _aside(self, state: paddle.Tensor) -> paddle.Tensor:
        return state if self._host is None else self._host.keep(state)

    def _check(self, tensors: Any) -> None:
        shapes = {f"{prefix}.{name}": name for prefix, table in self._moments() for name in table}
        shapes |= {f"master.{name}": name for name in self._update.master_names()}
        found = set(tensors.names())
        wrong = sorted(found.symmetric_difference(["num_updates", *shapes]))
        if wrong:
            raise CheckpointError(
                f"{tensors.folder}: the optimizer state is of another model or precision; it differs in "
                f"{len(wrong)} tensors, {', '.join(wrong[:3])} among them"
            )
        for stored, name in shapes.items():
            shape = list(self._parameters[name].shape)
            found_shape = list(tensors.info(stored).shape)
            if shape != found_shape:
                raise CheckpointError(
                    f"{tensors.folder}: the optimizer state is of another model: {stored} is "
                    f"{found_shape} there, {shape} here"
                )

    def _moments(self) -> tuple[tuple[str, dict[str, paddle.Tensor]], ...]:
        return ("exp_avg", self._exp_avg), ("exp_avg_sq", self._exp_avg_sq)

    def _gradients(self) -> Iterator[tuple[str, paddle.Tensor]]:
        """Of each parameter that has one, in fp32, after `accumulate_grads`."""
        for name, parameter in self._parameters.items():
            main = getattr(parameter, "main_grad", None)
            gradient = parameter.grad if main is None else main
            if gradient is not None:
                yield name, gradient


def _as_fp32(array: np.ndarray) -> np.ndarray:
    """A stored tensor as fp32; bf16 is stored as its bits."""
    if array.dtype == np.uint16:
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array
