"""Training that knows it will be quantised: products over the numbers that a scheme will keep.

In the forward pass a weight is what its codes and scales will stand for (`ops/number_formats.py`), its input
what the scheme makes of it; gradients pass both roundings straight (Bengio et al. 2013): dx = g [W]^T and
dW = x^T g. So what is evaluated is the quantised model, bit by bit, and what is trained are the full weights.
Under LoRA [.] is of the merged weight, W + s A B, and A and B learn by its dW.

A static scale of inputs is found while training: for the first `online` steps of rounding every product takes
that of its own inputs, and the running mean of those is kept; then the kept one is used, and moves by
`rate` of the difference in every step. It rests once `frozen`, so that the last evaluations are those of
the finished model. An expert has a scale of its own; one that has seen no tokens takes the largest of the
others.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import paddle

from erniekit.errors import CheckpointError, ConfigError
from erniekit.nn.linear import Linear
from erniekit.nn.moe import ExpertMatrices
from erniekit.ops import ccq, remake
from erniekit.ops.hadamard import rotate_rows
from erniekit.ops.lora import merged_weight
from erniekit.ops.low_precision import low_precision_grouped_linear, low_precision_linear
from erniekit.ops.number_formats import absmax_scales, dequantise, encode
from erniekit.ops.rounding import rotate
from erniekit.ops.tiles import LARGEST, Grid, rounded, scales_of
from erniekit.quant.learned import LearnedScales
from erniekit.quant.schemes import FORMATS, SCHEMES, WeightFormat, formats_of
from erniekit.quant.stored import rotation_of, settled, settled_input
from erniekit.quant.trained import TrainedScales, filled_up

# Of gradients, where they are rounded.
_GRADIENTS = Grid("e5m2", None, None)


@dataclass
class Observer:
    """The scale of a matrix's inputs, one an expert.

    scales: fp32 [E], 0 where nothing was seen. steps: training steps that were seen.
    """

    number: str
    online: int
    rate: float
    scales: np.ndarray
    steps: int = 0
    frozen: bool = False
    _largest: np.ndarray | None = None

    def look(self, found: np.ndarray, filled: np.ndarray) -> None:
        """Take the scales of a micro-batch; `filled` are the experts that they are of."""
        if self._largest is None:
            self._largest = np.zeros_like(self.scales)
        self._largest[filled] = np.maximum(self._largest[filled], found)

    def take(self) -> np.ndarray:
        """The largest since the last call, 0 of what was not seen."""
        seen, self._largest = self._largest, None
        return np.zeros_like(self.scales) if seen is None else seen

    def move(self, seen: np.ndarray) -> None:
        """Move the kept scales by the largest of a step."""
        if self.frozen:
            return
        self.steps += 1
        rate = np.float32(max(1 / self.steps, self.rate) if self.steps <= self.online else self.rate)
        some = seen > 0
        first = some & (self.scales == 0)
        self.scales[some] += rate * (seen[some] - self.scales[some])
        self.scales[first] = seen[first]

    def of(self, found: np.ndarray, filled: np.ndarray, *, training: bool) -> np.ndarray:
        """The scales to round by; those of the moment where nothing is known."""
        if training and not self.frozen and self.steps < self.online:
            return found
        return filled_up(self.scales)[filled] if self.scales.any() else found


@dataclass
class FakeQuantised:
    """The arithmetic of one layer (`ops/low_precision.py: Arithmetic`).

    Args:
        format: a row of FORMATS. rotation: features that a Hadamard matrix mixes, 0 for none.
        observer: of static scales of inputs; None without, or where tiles have their own.
        learned: scales of the weight; None where the largest numbers are exact.
        input_gradients, weight_gradients: round gradients to e5m2 in these products, and inputs as in the
            forward pass in the second.
    """

    layer: Any
    format: str
    rotation: int
    observer: Observer | None
    input_gradients: bool = False
    weight_gradients: bool = False
    learned: LearnedScales | None = None
    active: bool = True

    @property
    def row(self) -> WeightFormat:
        """Of the table."""
        return FORMATS[self.format]

    @paddle.no_grad()
    def weight(self, weight_KN: paddle.Tensor, bounds: Any) -> paddle.Tensor:
        """What the weight's codes stand for."""
        row, dtype = self.row, weight_KN.dtype
        if self.rotation:  # in fp32, as it is before it is written
            weight_KN = rotate_rows(weight_KN.astype("float32"), self.rotation, paddle.stack).contiguous()
        learned = None if self.learned is None else self.learned.scales()
        if row.number not in LARGEST:
            return _by_table(weight_KN, row, 1 if bounds is None else len(bounds) - 1, learned).astype(dtype)
        grid = Grid(row.number, row.group, row.outputs)
        found = scales_of(weight_KN, grid, bounds=bounds).numpy() if learned is None else learned
        # Files may keep a multiple of the scale, which gives it back but for its last bit.
        scales = paddle.to_tensor(settled(found, self.format, self.rotation))
        return rounded(weight_KN, grid, bounds=bounds, scales=scales).astype(dtype)

    def input(self, x_MK: paddle.Tensor, kept: remake.Recipe, bounds: Any) -> tuple[paddle.Tensor, Any]:
        return self._rounded(x_MK, bounds, look=self.layer.training), kept

    def input_again(self, kept: Any, bounds: Any) -> paddle.Tensor:
        x_MK = remake.restore(kept)
        x_MK = x_MK.reshape([-1, x_MK.shape[-1]])
        if not self.weight_gradients:
            return x_MK
        return self.input_gradient(self._rounded(x_MK, bounds, look=False))

    def gradient(self, grad_MN: paddle.Tensor, bounds: Any) -> paddle.Tensor:
        return rounded(grad_MN, _GRADIENTS) if self.input_gradients else grad_MN

    def gradient_again(self, grad_MN: paddle.Tensor, bounds: Any) -> paddle.Tensor:
        return rounded(grad_MN, _GRADIENTS) if self.weight_gradients else grad_MN

    def input_gradient(self, grad_MK: paddle.Tensor) -> paddle.Tensor:
        return rotate(grad_MK, self.rotation) if self.rotation else grad_MK

    def begin(self) -> None:
        """Rounding begins, or goes on."""
        if self.active and self.learned is not None:
            self.learned.begin()

    def make_gradients(self) -> None:
        """The backward passes of a step are done."""
        if self.active and self.learned is not None:
            self.learned.make_gradients(self._whole)

    def _whole(self, weight: paddle.Tensor) -> paddle.Tensor:
        """What a weight in its own shape stands for."""
        *lead, rows, columns = weight.shape
        bounds = np.arange(lead[0] + 1, dtype=np.int64) * rows if lead else None
        return self.weight(weight.reshape([-1, columns]), bounds).reshape(weight.shape)

    @paddle.no_grad()
    def _rounded(self, x_MK: paddle.Tensor, bounds: Any, *, look: bool) -> paddle.Tensor:
        activations = self.row.activations
        if self.rotation:
            x_MK = rotate(x_MK, self.rotation)
        if activations is None or not x_MK.shape[0]:
            return x_MK
        if self.observer is None:
            return rounded(x_MK, Grid(activations.number, 1, activations.tile))
        filled = np.array([0]) if bounds is None else np.flatnonzero(np.diff(bounds))
        # Columns first, as tasks are many then.
        by_column = scales_of(x_MK, Grid(activations.number, None, 1), bounds=bounds)
        found = by_column.numpy().max(-1)
        if look:
            self.observer.look(found, filled)
        scales = self.observer.of(found, filled, training=self.layer.training)
        given = paddle.to_tensor(settled_input(scales.astype(np.float32), self.format, self.rotation))
        return rounded(x_MK, Grid(activations.number, None, None), bounds=bounds, scales=given.unsqueeze(-1))


def _by_table(
    weight_KN: paddle.Tensor, row: WeightFormat, matrices: int, learned: np.ndarray | None
) -> paddle.Tensor:
    """What codes stand for of formats that have no kernel."""
    rows, columns = weight_KN.shape[0] // matrices, weight_KN.shape[1]
    wide = weight_KN.astype("float32").numpy().reshape(matrices, rows, columns)
    if learned is None:
        scales = absmax_scales(wide, row.number, row.group, row.outputs, row.scale_type)
    else:
        scales = learned.reshape(matrices, -1, columns)
    codes = encode(wide, scales, row.number, row.group)
    made = dequantise(codes, scales, row.number, row.group or rows, rows)
    return paddle.to_tensor(made.reshape(-1, columns))


@dataclass
class QuantisationAware:
    """The layers of a model that train for a scheme; rides along with the loss (`train/step_loss.py`).

    Args:
        hadamard_block_size: features that Hadamard matrices mix; None where the scheme has none.
        delay: steps before rounding begins. rests_from: the step from which scales of inputs rest.
        step: the step that was begun last.
        largest_of_all: gives the largest numbers over all processes, where there are several.
    """

    scheme: str
    layers: dict[str, FakeQuantised]
    hadamard_block_size: int | None = None
    delay: int = 0
    rests_from: int | None = None
    step: int = 0
    largest_of_all: Callable[[np.ndarray], np.ndarray] | None = None

    def begin_step(self, num_micro_batches: int) -> None:
        """Count a step, and begin or end what depends on it."""
        self.step += 1
        for observer in self.observers.values():
            observer.take()  # of a step that was skipped
        self._apply()

    def before_forward(self, model: Any) -> None: ...

    def after_forward(self, model: Any, batch: Any) -> tuple[()]:
        return ()

    def after_backward(self) -> None:
        """The gradients of the step are whole."""
        for layer in self.layers.values():
            layer.make_gradients()

    def after_update(self) -> None:
        """The micro-batches of the step have been seen."""
        observers = list(self.observers.values())
        if not observers or self.step <= self.delay:
            return
        seen = [observer.take() for observer in observers]
        if self.largest_of_all is not None:
            ends = np.cumsum([len(part) for part in seen])[:-1]
            seen = np.split(self.largest_of_all(np.concatenate(seen)), ends)
        for observer, found in zip(observers, seen, strict=True):
            observer.move(found)

    @property
    def observers(self) -> dict[str, Observer]:
        """Of the layers with static scales of inputs."""
        return {name: each.observer for name, each in self.layers.items() if each.observer is not None}

    @property
    def learned(self) -> dict[str, LearnedScales]:
        """Of the layers whose weights have learned scales."""
        return {name: each.learned for name, each in self.layers.items() if each.learned is not None}

    def parameters(self) -> dict[str, Any]:
        """What is trained beside the model's parameters."""
        return {f"{name}.weight_scale": each.parameter for name, each in self.learned.items()}

    def learning_rate_ratios(self) -> dict[str, float]:
        """Share of the learning rate that each of `parameters` gets."""
        return {f"{name}.weight_scale": each.learning_rate_ratio for name, each in self.learned.items()}

    def row(self) -> dict[str, Any]:
        """Whether numbers are rounded, and the range of the scales of inputs."""
        known = np.array([s for each in self.observers.values() for s in each.scales if s > 0])
        found: dict[str, Any] = {"qat": int(self.step > self.delay)}
        if known.size:
            found |= {"qat_scale_min": float(known.min()), "qat_scale_max": float(known.max())}
        return found

    def lines(self) -> list[str]:
        """Nothing for people but in the step that begins or ends something."""
        found = []
        if self.step == self.delay + 1:
            found.append(f"qat: products round to {self.scheme} from this step on")
        if self.step == self.rests_from and self.observers:
            found.append("qat: scales of inputs rest from this step on")
        return found

    @contextmanager
    def off(self) -> Iterator[None]:
        """The model in full, for a while."""
        before = {name: layer.active for name, layer in self.layers.items()}
        for layer in self.layers.values():
            layer.active = False
        try:
            yield
        finally:
            for name, active in before.items():
                self.layers[name].active = active

    def trained(self) -> TrainedScales:
        """What a checkpoint keeps."""
        return TrainedScales(
            scheme=self.scheme,
            step=self.step,
            hadamard_block_size=self.hadamard_block_size,
            scales={name: each.scales.tolist() for name, each in self.observers.items()},
            steps={name: each.steps for name, each in self.observers.items()},
            learned=bool(self.learned),
            weights={name: each.parameter.numpy() for name, each in self.learned.items() if each.begun},
        )

    def go_on_from(self, trained: TrainedScales) -> None:
        """Go on from a checkpoint.

        Raises:
            CheckpointError: it was trained for another scheme, or is of another model.
        """
        if (trained.scheme, trained.hadamard_block_size) != (self.scheme, self.hadamard_block_size):
            raise CheckpointError(f"the checkpoint was trained for {trained.scheme}, not for {self.scheme}")
        if trained.learned != bool(self.learned):
            words = "has" if trained.learned else "has no"
            raise CheckpointError(
                f"the checkpoint {words} learned scales of weights: qat_learn_scales differs"
            )
        if set(trained.scales) != set(self.observers):
            raise CheckpointError("the checkpoint has scales of inputs of other matrices than the model")
        self.step = trained.step
        for name, scales in trained.weights.items():
            self.learned[name].go_on_from(scales)
        for name, observer in self.observers.items():
            observer.scales[:] = np.array(trained.scales[name], np.float32)
            observer.steps = trained.steps[name]
        self._apply()

    def _apply(self) -> None:
        for layer in self.layers.values():
            layer.active = max(self.step, 1) > self.delay
            layer.begin()
        for observer in self.observers.values():
            observer.frozen = self.rests_from is not None and self.step >= self.rests_from


def train_for(
    model: Any,
    roles: Mapping[str, str],
    total_steps: int,
    *,
    qat_scheme: str,
    qat_delay_steps: int = 0,
    qat_rest_share: float = 0.1,
    qat_learn_scales: bool = False,
    apply_hadamard: bool = True,
    hadamard_block_size: int = 32,
    apply_online_actscale_step: int = 200,
    actscale_moving_rate: float = 0.01,
    quant_input_grad: bool = False,
    quant_weight_grad: bool = False,
) -> QuantisationAware:
    """Have the matrices that a scheme quantises compute as they will.

    Args:
        roles: end of a module's name -> its role (`models/*/plan.py: ROLES`).
        qat_scheme: a row of SCHEMES.
        qat_learn_scales: learn the scales of weights (`learned.py`).
        apply_hadamard: rotate where the scheme does, in blocks of `hadamard_block_size`.

    Raises:
        ConfigError: the scheme keeps numbers in a way that is not trained for, or no step is left for it.
    """
    if qat_scheme not in trainable():
        raise ConfigError(
            f"qat_scheme: {qat_scheme} {why_not(qat_scheme)}; write one of {', '.join(trainable())}"
        )
    rests_from = total_steps - int(total_steps * qat_rest_share) + 1
    if qat_delay_steps + 1 >= rests_from:
        raise ConfigError(
            f"qat_delay_steps: {qat_delay_steps} leaves no step in which numbers are rounded and scales are "
            f"found: of {total_steps} steps they rest from {rests_from} on (qat_rest_share); write less"
        )
    formats = formats_of([name for name, _ in model.named_parameters()], roles, qat_scheme)
    names = {id(row): name for name, row in FORMATS.items()}
    rotates = any(row.rotation for row in formats.values())
    size = (hadamard_block_size if apply_hadamard else 0) if rotates else None
    made = QuantisationAware(qat_scheme, {}, size, qat_delay_steps, rests_from)
    for module, layer in model.named_sublayers():
        row = formats.get(f"{module}.weight")
        if row is None or not isinstance(layer, (Linear, ExpertMatrices)):
            continue
        observer = None
        if row.activations is not None and row.activations.is_static:
            experts = layer.weight.shape[0] if isinstance(layer, ExpertMatrices) else 1
            observer = Observer(
                *(row.activations.number, apply_online_actscale_step, actscale_moving_rate),
                np.zeros(experts, np.float32),
            )
        format = names[id(row)]
        rotation = rotation_of(format, layer.weight.shape[-2], size)
        arithmetic = FakeQuantised(layer, format, rotation, observer, quant_input_grad, quant_weight_grad)
        if qat_learn_scales:
            arithmetic.learned = LearnedScales.of(layer, format)
        made.layers[module] = arithmetic
        forward = _experts if isinstance(layer, ExpertMatrices) else _linear
        layer.forward = partial(forward, arithmetic, layer.forward)  # type: ignore[method-assign]
    assert made.layers, f"{qat_scheme} quantises nothing of this model"
    made._apply()
    return made


def trainable() -> list[str]:
    """The schemes that training emulates."""
    return [name for name in SCHEMES if not why_not(name)]


def why_not(scheme: str) -> str:
    """Why training does not emulate a scheme; empty where it does."""
    row = SCHEMES[scheme]
    if not row.weights:
        return "quantises nothing"
    if any(FORMATS[each].number in ccq.NUMBERS for each in row.used()):
        return "keeps weights in codes that take a search, which is too slow to repeat in every step"
    if row.kv_cache is not None:
        return "rounds keys and values, which training does not emulate"
    return ""


def _weight(layer: Any) -> paddle.Tensor:
    """The weight with what an adapter adds to it."""
    if not hasattr(layer, "lora_A") or not layer.active:
        return layer.weight
    return merged_weight(layer.weight, layer.lora_A, layer.lora_B, pieces=layer.columns, scale=layer.scale)


def _linear(arithmetic: FakeQuantised, plain: Any, x: paddle.Tensor) -> paddle.Tensor:
    layer = arithmetic.layer
    if not arithmetic.active:
        return plain(x)
    return low_precision_linear(x, _weight(layer), layer.bias, arithmetic)


def _experts(
    arithmetic: FakeQuantised, plain: Any, x_MI: paddle.Tensor, offsets: paddle.Tensor
) -> paddle.Tensor:
    layer = arithmetic.layer
    if not arithmetic.active:
        return plain(x_MI, offsets)
    return low_precision_grouped_linear(x_MI, _weight(layer), offsets, arithmetic)
