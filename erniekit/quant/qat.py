"""Training that knows it will be quantised: products over the numbers that a scheme will keep.

In the forward pass a weight is what its codes and scales will stand for (`ops/number_formats.py`), its input
what the scheme makes of it; gradients pass both roundings straight (Bengio et al. 2013): dx = g [W]^T and
dW = x^T g. So what is evaluated is the quantised model, bit by bit, and what is trained are the full weights.

A static scale of inputs is found while training: for the first `online` steps of rounding every product takes
that of its own inputs, and the running mean of those is kept; then the kept one is used, and moves by
`rate` of the difference in every step. It rests once `frozen`, so that the last evaluations are those of
the finished model. An expert has a scale of its own; what has seen no tokens yet takes that of the moment.
"""

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import paddle

from erniekit.errors import ConfigError
from erniekit.nn.linear import Linear
from erniekit.nn.moe import ExpertMatrices
from erniekit.ops import remake
from erniekit.ops.low_precision import low_precision_grouped_linear, low_precision_linear
from erniekit.ops.number_formats import FORMATS as NUMBERS
from erniekit.ops.rounding import rotate
from erniekit.ops.tiles import LARGEST, Grid, rounded, scales_of
from erniekit.quant.schemes import SCHEMES, WeightFormat, formats_of


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

    def end_step(self) -> None:
        """Move the kept scales by the largest of the step."""
        seen, self._largest = self._largest, None
        if seen is None or self.frozen:
            return
        self.steps += 1
        rate = np.float32(max(1 / self.steps, self.rate) if self.steps <= self.online else self.rate)
        some = seen > 0
        first = some & (self.scales == 0)
        self.scales[some] += rate * (seen[some] - self.scales[some])
        self.scales[first] = seen[first]

    def of(self, found: np.ndarray, filled: np.ndarray, *, training: bool) -> np.ndarray:
        """The scales to round by."""
        if training and not self.frozen and self.steps < self.online:
            return found
        kept = self.scales[filled]
        return np.where(kept > 0, kept, found)


@dataclass
class FakeQuantised:
    """The arithmetic of one layer (`ops/low_precision.py: Arithmetic`).

    Args:
        observer: of static scales of inputs; None without, or where tiles have their own.
        input_gradients, weight_gradients: round gradients to e5m2 in these products, and inputs as in the
            forward pass in the second.
    """

    layer: Any
    format: WeightFormat
    observer: Observer | None
    input_gradients: bool = False
    weight_gradients: bool = False
    active: bool = True

    def weight(self, weight_KN: paddle.Tensor, bounds: Any) -> paddle.Tensor:
        """What the weight's codes stand for."""
        chosen = self.format
        grid = Grid(chosen.number, chosen.group, chosen.outputs)
        if chosen.rotation:
            weight_KN = _rotate_rows(weight_KN, chosen.rotation)
        return rounded(weight_KN, grid, bounds=bounds)

    def input(self, x_MK: paddle.Tensor, kept: remake.Recipe, bounds: Any) -> tuple[paddle.Tensor, Any]:
        return self._rounded(x_MK, bounds, look=self.layer.training), kept

    def input_again(self, kept: Any, bounds: Any) -> paddle.Tensor:
        x_MK = remake.restore(kept)
        x_MK = x_MK.reshape([-1, x_MK.shape[-1]])
        if not self.weight_gradients:
            return x_MK
        numbers = self._rounded(x_MK, bounds, look=False)
        return rotate(numbers, self.format.rotation) if self.format.rotation else numbers

    def gradient(self, grad_MN: paddle.Tensor, bounds: Any) -> paddle.Tensor:
        return rounded(grad_MN, Grid("e5m2", None, None)) if self.input_gradients else grad_MN

    def gradient_again(self, grad_MN: paddle.Tensor, bounds: Any) -> paddle.Tensor:
        return rounded(grad_MN, Grid("e5m2", None, None)) if self.weight_gradients else grad_MN

    def input_gradient(self, grad_MK: paddle.Tensor) -> paddle.Tensor:
        return rotate(grad_MK, self.format.rotation) if self.format.rotation else grad_MK

    def _rounded(self, x_MK: paddle.Tensor, bounds: Any, *, look: bool) -> paddle.Tensor:
        activations = self.format.activations
        if self.format.rotation:
            x_MK = rotate(x_MK, self.format.rotation)
        if activations is None or not x_MK.shape[0]:
            return x_MK
        if self.observer is None:
            return rounded(x_MK, Grid(activations.number, 1, activations.tile))
        filled = np.array([0]) if bounds is None else np.flatnonzero(np.diff(bounds))
        found = _largest_by_group(x_MK, activations.number, bounds)
        if look:
            self.observer.look(found, filled)
        scales = self.observer.of(found, filled, training=self.layer.training)
        given = paddle.to_tensor(scales.astype(np.float32)).unsqueeze(-1)
        return rounded(x_MK, Grid(activations.number, None, None), bounds=bounds, scales=given)


def _largest_by_group(x_MK: paddle.Tensor, number: str, bounds: Any) -> np.ndarray:
    """max |x| over the largest number, of each group that has rows."""
    by_column = scales_of(x_MK, Grid(number, None, 1), bounds=bounds)
    found: np.ndarray = by_column.numpy().max(-1)
    return found


def _rotate_rows(weight_KN: paddle.Tensor, size: int) -> paddle.Tensor:
    """H W, in blocks of `size` rows."""
    return rotate(weight_KN.transpose([1, 0]), size).transpose([1, 0]).contiguous()


@dataclass
class QuantisationAware:
    """The layers of a model that train for a scheme; rides along with the loss (`train/step_loss.py`).

    Args:
        delay: steps before rounding begins. freeze_at: the step from which scales of inputs rest.
    """

    scheme: str
    layers: dict[str, FakeQuantised]
    delay: int = 0
    freeze_at: int | None = None
    step: int = 0
    last: dict[str, Any] = field(default_factory=dict)

    def begin_step(self, num_micro_batches: int) -> None:
        """Count a step, and begin or end what depends on it."""
        self.step += 1
        self._apply()

    def before_forward(self, model: Any) -> None: ...

    def after_forward(self, model: Any, batch: Any) -> tuple[()]:
        return ()

    def after_update(self) -> None: ...

    def end_step(self) -> None:
        """The micro-batches of the step have been seen."""
        for layer in self.layers.values():
            if layer.observer is not None and layer.active:
                layer.observer.end_step()

    def row(self) -> dict[str, Any]:
        """Whether weights are rounded, and the range of the scales of inputs."""
        scales = [layer.observer.scales for layer in self.layers.values() if layer.observer is not None]
        known = np.concatenate([s[s > 0] for s in scales]) if scales else np.zeros(0)
        found: dict[str, Any] = {"qat": int(self.step > self.delay)}
        if known.size:
            found |= {"qat_scale_min": float(known.min()), "qat_scale_max": float(known.max())}
        return found

    def lines(self) -> list[str]:
        """Nothing for people but in the step that begins or ends something."""
        found = []
        if self.step == self.delay + 1 and self.delay:
            found.append(f"qat: weights are rounded to {self.scheme} from this step on")
        if self.step == self.freeze_at:
            found.append("qat: scales of activations rest from this step on")
        return found

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps: the step, and by layer the scales of inputs and the steps seen."""
        observers = {n: layer.observer for n, layer in self.layers.items() if layer.observer is not None}
        return {
            "scheme": self.scheme,
            "step": self.step,
            "scales": {name: each.scales.tolist() for name, each in observers.items()},
            "steps": {name: each.steps for name, each in observers.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint.

        Raises:
            ConfigError: it was trained for another scheme.
        """
        if state["scheme"] != self.scheme:
            raise ConfigError(
                f"qat_scheme: {self.scheme}: the checkpoint was trained for {state['scheme']}; write "
                f"qat_scheme: {state['scheme']}, or begin in another output_dir"
            )
        self.step = state["step"]
        for name, layer in self.layers.items():
            if layer.observer is not None:
                layer.observer.scales[:] = np.array(state["scales"][name], np.float32)
                layer.observer.steps = state["steps"][name]
        self._apply()

    def _apply(self) -> None:
        for layer in self.layers.values():
            layer.active = self.step > self.delay
            if layer.observer is not None:
                layer.observer.frozen = self.freeze_at is not None and self.step >= self.freeze_at


def train_for(
    model: Any,
    roles: dict[str, str],
    scheme: str,
    *,
    online: int = 200,
    rate: float = 0.01,
    delay: int = 0,
    freeze_at: int | None = None,
    quant_input_grad: bool = False,
    quant_weight_grad: bool = False,
    rotation: int | None = None,
) -> QuantisationAware:
    """Have the matrices that a scheme quantises compute as they will.

    Args:
        roles: end of a module's name -> its role (`models/*/plan.py: ROLES`).
        scheme: a row of SCHEMES.
        rotation: features that a Hadamard matrix mixes, in place of the scheme's; 0 for none.

    Raises:
        ConfigError: the scheme keeps weights in a way that is not trained for.
    """
    formats = formats_of([name for name, _ in model.named_parameters()], roles, scheme)
    row = SCHEMES[scheme]
    untrained = sorted(
        {f.number for f in formats.values() if f.number not in NUMBERS or f.number not in LARGEST}
    )
    if untrained or not formats:
        raise ConfigError(
            f"qat_scheme: {scheme} keeps weights as {', '.join(untrained) or 'they are'}, which training "
            f"does not emulate; schemes that it does: {', '.join(trainable())}"
        )
    made = QuantisationAware(scheme, {}, delay=delay, freeze_at=freeze_at)
    for module, layer in model.named_sublayers():
        found = formats.get(f"{module}.weight")
        if found is None or not isinstance(layer, (Linear, ExpertMatrices)):
            continue
        if rotation is not None:
            found = WeightFormat(found.number, found.group, found.outputs, found.activations, rotation)
        observer = None
        if found.activations is not None and found.activations.is_static:
            experts = layer.weight.shape[0] if isinstance(layer, ExpertMatrices) else 1
            observer = Observer(found.activations.number, online, rate, np.zeros(experts, np.float32))
        arithmetic = FakeQuantised(layer, found, observer, quant_input_grad, quant_weight_grad)
        made.layers[module] = arithmetic
        forward = _experts if isinstance(layer, ExpertMatrices) else _linear
        layer.forward = partial(forward, arithmetic, layer.forward)  # type: ignore[method-assign]
    assert row.weights and made.layers
    return made


def trainable() -> list[str]:
    """The schemes that training emulates."""
    from erniekit.quant.schemes import FORMATS

    return [
        name
        for name, row in SCHEMES.items()
        if row.weights and all(FORMATS[each].number in LARGEST for each in row.used())
    ]


def _linear(arithmetic: FakeQuantised, plain: Any, x: paddle.Tensor) -> paddle.Tensor:
    if not arithmetic.active:
        return plain(x)
    layer = arithmetic.layer
    return low_precision_linear(x, layer.weight, layer.bias, arithmetic)


def _experts(
    arithmetic: FakeQuantised, plain: Any, x_MI: paddle.Tensor, offsets: paddle.Tensor
) -> paddle.Tensor:
    if not arithmetic.active:
        return plain(x_MI, offsets)
    return low_precision_grouped_linear(x_MI, arithmetic.layer.weight, offsets, arithmetic)
