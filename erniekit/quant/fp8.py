"""Training in FP8 as ERNIE 4.5 was pre-trained: products of MLPs and experts over numbers of one byte.

Block-wise, after DeepSeek-V3 (arXiv 2412.19437, 3.3): in y = x W tiles of 1 x 128 of x and blocks of
128 x 128 of W share a scale, in dx = g W^T tiles of 1 x 128 of g, and in dW = x^T g, where the sum is over
tokens, tiles of 128 tokens of both. Scales are powers of two. Attention, router, embeddings and the output
layer stay in the type of the model; sums, main gradients and the optimizer's copy of the weights are fp32.

On a GPU that multiplies FP8 (`ops/fp8_gemm.py`, not executed in this project's CI) bytes and scales are
multiplied. On a CPU, and on every other device, this is an emulation that is exact but for the order of
sums: numbers are rounded to what FP8 holds, kept as bytes where that is asked for, and multiplied in the type
of the model.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import paddle

from erniekit.nn.linear import Linear
from erniekit.nn.moe import ExpertMatrices, MixtureOfExperts
from erniekit.ops import remake
from erniekit.ops.backend import multiplies_fp8
from erniekit.ops.low_precision import Factor, low_precision_grouped_linear, low_precision_linear
from erniekit.ops.tiles import Codes, Counts, Grid, decode, encode, rounded

TILE = 128
_ROWS = Grid("e4m3", 1, TILE, power_of_two=True)


@dataclass
class Error:
    """Sums over numbers and over how far they were moved, both squared."""

    moved: float = 0.0
    size: float = 0.0

    def add(self, before: paddle.Tensor, after: paddle.Tensor) -> None:
        """Count a matrix and what it was rounded to."""
        before, after = before.astype("float32"), after.astype("float32")
        self.moved += float((after - before).square().sum())
        self.size += float(before.square().sum())

    @property
    def relative(self) -> float:
        """Root of the mean square of the error over that of the numbers."""
        return (self.moved / self.size) ** 0.5 if self.size else 0.0


@dataclass
class BlockFp8:
    """The arithmetic of one layer (`ops/low_precision.py: Arithmetic`).

    Args:
        inputs, gradients: what was lost, of all layers together.
        gradient_format: e4m3, or e5m2 ("hybrid").
        keeps_bytes: keep x as bytes for the weight's gradient, which then sees it rounded twice.
        keeps_weight: round the weight once a step, and keep it as bytes until `forget`.
        keeps_output: have whoever keeps y until the backward pass keep its bytes.
        errors: kind (input, weight, gradient) -> what rounding moved, or None without analysis.
    """

    inputs: Counts
    gradients: Counts
    gradient_format: str
    keeps_bytes: bool
    keeps_weight: bool
    keeps_output: bool = False
    errors: dict[str, Error] | None = None
    kept: Codes | None = None

    def weight(self, weight_KN: paddle.Tensor, bounds: Any) -> Factor:
        grid = Grid("e4m3", TILE, TILE, power_of_two=True)
        if not self.keeps_weight:
            return self._analysed("weight", weight_KN, _factor(weight_KN, grid, bounds=bounds))
        if self.kept is None:
            self.kept = encode(weight_KN, grid, bounds=bounds)
            return self._analysed("weight", weight_KN, _factor_of(self.kept))
        return _factor_of(self.kept)

    def input(self, x_MK: paddle.Tensor, kept: remake.Recipe, bounds: Any) -> tuple[Factor, Any]:
        if not self.keeps_bytes:
            numbers = _factor(x_MK, _ROWS, bounds=bounds, counts=self.inputs)
            return self._analysed("input", x_MK, numbers), kept
        codes = encode(x_MK, _ROWS, bounds=bounds, counts=self.inputs)
        return self._analysed("input", x_MK, _factor_of(codes)), codes

    def input_again(self, kept: Any, bounds: Any) -> Factor:
        x = decode(kept) if isinstance(kept, Codes) else remake.restore(kept)
        return _factor(x.reshape([-1, x.shape[-1]]), Grid("e4m3", TILE, 1, power_of_two=True), bounds=bounds)

    def gradient(self, grad_MN: paddle.Tensor, bounds: Any) -> Factor:
        grid = Grid(self.gradient_format, 1, TILE, power_of_two=True)
        numbers = _factor(grad_MN, grid, bounds=bounds, counts=self.gradients)
        return self._analysed("gradient", grad_MN, numbers)

    def gradient_again(self, grad_MN: paddle.Tensor, bounds: Any) -> Factor:
        return _factor(grad_MN, Grid(self.gradient_format, TILE, 1, power_of_two=True), bounds=bounds)

    def input_gradient(self, grad_MK: paddle.Tensor) -> paddle.Tensor:
        return grad_MK

    def output(self, y: paddle.Tensor) -> paddle.Tensor:
        """y, which from now on says how it is made of bytes (`ops/remake.py`)."""
        if not self.keeps_output or y.stop_gradient:
            return y
        codes = encode(y.detach().reshape([-1, y.shape[-1]]), _ROWS)
        return remake.mark(y, _decoded, codes, y.shape)

    def forget(self) -> None:
        """The weight has changed."""
        self.kept = None

    def _analysed(self, kind: str, before: paddle.Tensor, after: Factor) -> Factor:
        if self.errors is not None:
            numbers = decode(after) if isinstance(after, Codes) else after
            self.errors.setdefault(kind, Error()).add(before, numbers)
        return after


def _factor(x_MN: paddle.Tensor, grid: Grid, **keywords: Any) -> Factor:
    """What is multiplied: bytes where the device does that, else the numbers they stand for."""
    return encode(x_MN, grid, **keywords) if multiplies_fp8() else rounded(x_MN, grid, **keywords)


def _factor_of(codes: Codes) -> Factor:
    return codes if multiplies_fp8() else decode(codes)


def _decoded(codes: Codes, shape: list[int]) -> paddle.Tensor:
    return decode(codes).reshape(shape)


class PackedRows:
    """Rows on their way to experts as these round them: bytes of tiles 1 x 128, then their scales in fp32."""

    def pack(self, x_MH: paddle.Tensor) -> paddle.Tensor:
        if x_MH.shape[0] == 0:  # nothing cannot be viewed as something else
            return paddle.zeros([0, x_MH.shape[1] + 4 * -(-x_MH.shape[1] // TILE)], dtype="uint8")
        codes = encode(x_MH, _ROWS)
        return paddle.concat([codes.codes, codes.scales.contiguous().view("uint8")], axis=1)

    def unpack(self, packed: paddle.Tensor, hidden_size: int, dtype: Any) -> paddle.Tensor:
        if packed.shape[0] == 0:
            return paddle.zeros([0, hidden_size], dtype=dtype)
        codes, scales = packed[:, :hidden_size], packed[:, hidden_size:]
        bounds = np.array([0, packed.shape[0]], np.int64)
        return decode(Codes(codes.contiguous(), scales.contiguous().view("float32"), _ROWS, bounds, dtype))


@dataclass
class Fp8Training:
    """The layers of a model that compute in FP8; rides along with the loss (`train/step_loss.py`).

    gather: the values of all processes, where there are several.
    """

    layers: dict[str, BlockFp8]
    inputs: Counts
    gradients: Counts
    analysis: bool = False
    last: dict[str, float] = field(default_factory=dict)
    gather: Callable[[Any], list[Any]] = lambda own: [own]  # noqa: E731

    def begin_step(self, num_micro_batches: int) -> None: ...

    def before_forward(self, model: Any) -> None: ...

    def after_forward(self, model: Any, batch: Any) -> tuple[()]:
        return ()

    def after_update(self) -> None:
        """Weights that are kept as bytes are to be rounded anew."""
        for layer in self.layers.values():
            layer.forget()

    def row(self) -> dict[str, Any]:
        """Shares of numbers that became zero since the last row, and with analysis the errors by layer.

        Of all processes together, which all have to ask for it.
        """
        found: dict[str, Any] = {}
        counts = self.gather((self.inputs.take(), self.gradients.take()))
        for name, all_of in zip(("inputs", "gradients"), zip(*counts, strict=True), strict=True):
            total, lost, cut = map(sum, zip(*all_of, strict=True))
            if total:
                found[f"fp8_{name}_underflow"] = lost / total
                found[f"fp8_{name}_saturated"] = cut / total
        self.last = dict(found)
        if self.analysis:
            found["fp8_errors"] = self._take_errors()
        return found

    def _take_errors(self) -> dict[str, dict[str, float]]:
        """Relative errors by layer and kind; of a layer that processes share, over all of its numbers."""
        whole: dict[str, dict[str, Error]] = {}
        for of_process in self.gather({name: layer.errors or {} for name, layer in self.layers.items()}):
            for name, errors in of_process.items():
                sums = whole.setdefault(name, {})
                for kind, error in errors.items():
                    so_far = sums.setdefault(kind, Error())
                    so_far.moved, so_far.size = so_far.moved + error.moved, so_far.size + error.size
        for layer in self.layers.values():
            layer.errors = {}
        return {
            name: {kind: error.relative for kind, error in errors.items()} for name, errors in whole.items()
        }

    def lines(self) -> list[str]:
        """What became zero, for people."""
        if not self.last:
            return []
        inputs, gradients = (self.last.get(f"fp8_{name}_underflow", 0.0) for name in ("inputs", "gradients"))
        return [f"fp8: {inputs:.2%} of inputs and {gradients:.2%} of gradients rounded to zero"]


def train_in_fp8(
    model: Any,
    roles: Mapping[str, str],
    *,
    fp8_format_type: str = "e4m3",
    fp8_dequant_input: bool = False,
    fp8_swiglu_input: bool = False,
    fp8_shared_expert: bool = False,
    fp8_dispatch: bool = False,
    fp8_offline_quant_weight: bool = False,
    enable_fp8_quantize_analysis: bool = False,
) -> Fp8Training:
    """Have the MLPs and experts of a model compute in FP8.

    Args:
        roles: end of a module's name -> its role (`models/*/plan.py: ROLES`).
        fp8_format_type: of gradients: e4m3, or hybrid for e5m2.
        fp8_dequant_input: keep the inputs of matrices as bytes.
        fp8_swiglu_input: keep what lies between gate and up and SwiGLU as bytes.
        fp8_shared_expert: shared experts too.
        fp8_dispatch: rows travel to experts of other processes as bytes; gradients of weights then see them
            rounded twice.
        fp8_offline_quant_weight: keep weights as bytes from one update to the next, in place of rounding them
            in every pass.
        enable_fp8_quantize_analysis: measure what rounding moves, layer by layer (slow).
    """
    wanted = {"dense_mlp", "experts", *(["shared_experts"] if fp8_shared_expert else [])}
    made = Fp8Training({}, Counts(), Counts(), analysis=enable_fp8_quantize_analysis)
    for name, layer in model.named_sublayers():
        if fp8_dispatch and isinstance(layer, MixtureOfExperts):
            layer.dispatcher.packing = PackedRows()
        ends = [end for end in roles if name.endswith(end)]
        role = roles[max(ends, key=len)] if ends else None
        if role not in wanted or not isinstance(layer, (Linear, ExpertMatrices)):
            continue
        arithmetic = BlockFp8(
            made.inputs,
            made.gradients,
            "e5m2" if fp8_format_type == "hybrid" else "e4m3",
            keeps_bytes=fp8_dequant_input,
            keeps_weight=fp8_offline_quant_weight,
            keeps_output=fp8_swiglu_input and name.endswith("up_gate_proj"),
            errors={} if enable_fp8_quantize_analysis else None,
        )
        made.layers[name] = arithmetic
        if isinstance(layer, ExpertMatrices):
            layer.forward = partial(_experts, layer, arithmetic)  # type: ignore[method-assign]
        else:
            # What processes exchange is around the product.
            layer.product = partial(_linear, layer, arithmetic)  # type: ignore[method-assign]
    return made


def _linear(
    layer: Linear, arithmetic: BlockFp8, x: paddle.Tensor, bias: paddle.Tensor | None
) -> paddle.Tensor:
    return arithmetic.output(low_precision_linear(x, layer.weight, bias, arithmetic))


def _experts(
    layer: ExpertMatrices, arithmetic: BlockFp8, x_MI: paddle.Tensor, offsets: paddle.Tensor
) -> paddle.Tensor:
    return arithmetic.output(low_precision_grouped_linear(x_MI, layer.weight, offsets, arithmetic))
