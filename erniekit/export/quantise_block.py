"""One block of a model in few bits: statistics of its inputs, scaling, rounding, what is written of it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from erniekit.checkpoint.files import Item
from erniekit.errors import DataError
from erniekit.export.dtypes import convert
from erniekit.export.stream import BlockStream
from erniekit.ops.hadamard import rotate_rows
from erniekit.quant.folder import KV_SUFFIXES, Quantisation
from erniekit.quant.gptq import gptq
from erniekit.quant.rtn import Inputs, output_error, round_to_nearest
from erniekit.quant.schemes import FORMATS
from erniekit.quant.smooth import awq_factors, input_scale, smooth_factors, turned
from erniekit.quant.statistics import InputWatch, KVWatch
from erniekit.quant.stored import Quantised, named_tensors, settled_input, stacked
from erniekit.quant.trained import TrainedScales


@dataclass(frozen=True, kw_only=True)
class Method:
    """How numbers are chosen; the keys of the configuration."""

    quant_scheme: str
    quant_method: str
    clip_search: bool
    smooth_alpha: float | None
    rotation_block_size: int | None
    gptq_damping: float
    gptq_block_size: int
    gptq_act_order: bool
    num_calibration_tokens: int
    min_tokens_per_expert: int
    target_bits: float | None
    max_quality_drop: float | None
    quant_layout: str
    quant_dir: str | None

    def in_words(self) -> str:
        """For a report."""
        words = [self.quant_method]
        words += ["with clipping"] if self.clip_search else []
        words += [f"smoothed by {self.smooth_alpha:g}"] if self.smooth_alpha is not None else []
        words += [f"rotated in blocks of {self.rotation_block_size}"] if self.rotation_block_size else []
        return ", ".join(words)


@dataclass
class BlockResult:
    """What became of a block.

    errors: parameter -> the error of its products, relative. rare: expert -> tokens that reached it by
    itself.
    """

    matrices: dict[str, Quantised]
    others: dict[str, np.ndarray]
    errors: dict[str, float]
    rare: dict[str, int] = field(default_factory=dict)
    largest_kv: list[np.ndarray] | None = None


def quantise_block(
    stream: BlockStream,
    index: int,
    quantisation: Quantisation,
    method: Method,
    trained: TrainedScales | None = None,
) -> BlockResult:
    """Choose the numbers of a block that has its weights; its states stay as they are.

    Args:
        trained: the scales of inputs that training has found, which need no data.

    Raises:
        DataError: a matrix whose inputs are rounded has seen none.
    """
    layers = stream.matrices(index)
    if trained is not None:
        return _as_trained(stream, index, quantisation, trained)
    kv = KVWatch() if quantisation.kv_cache is not None else None
    attention = stream.layer(index, stream.family.plan.WHOLE_ATTENTION)
    attention.kv_rounding = kv
    with InputWatch(layers) as watch:
        experts = ExpertWatch(stream, index)
        stream.run(index, keep=False)
        experts.close()
    attention.kv_rounding = None
    weights = {name: layer.weight.astype("float32").numpy() for name, layer in layers.items()}
    inputs = {name: watch.inputs(name) for name in layers}
    rare = experts.fill_up(inputs, weights, method.min_tokens_per_expert)
    others = {
        name: parameter.astype("float32").numpy()
        for name, parameter in stream.model.named_parameters()
        if name.startswith(stream.prefix(index)) and name not in weights
    }
    if method.quant_method == "awq" or method.smooth_alpha is not None:
        _Scaling(stream, index, quantisation, method).apply(weights, others, inputs)
    matrices, errors = {}, {}
    for name, format in quantisation.formats.items():
        if name in weights:
            matrices[name], errors[name] = _matrix(
                name, weights.pop(name), format, inputs[name], quantisation, method
            )
    return BlockResult(matrices, {**others, **weights}, errors, rare, kv.largest if kv else None)


def _as_trained(
    stream: BlockStream, index: int, quantisation: Quantisation, trained: TrainedScales
) -> BlockResult:
    """Every matrix rounded as `quant/qat.py` did."""
    layers = stream.matrices(index)
    matrices, errors = {}, {}
    for name, layer in layers.items():
        module = name.removesuffix(".weight")
        if name not in quantisation.formats:
            continue
        format, weight = quantisation.formats[name], layer.weight.astype("float32").numpy()
        rotation = quantisation.rotation(name, weight.shape[-2])
        learned = trained.weight_scales(module)
        parts, lost = [], []
        for expert, whole in enumerate(weight if weight.ndim == 3 else [weight]):
            whole = rotate_rows(whole, rotation) if rotation else whole
            scales = learned if learned is None or learned.ndim == 2 else learned[expert]
            part = round_to_nearest(whole, format, clip=False, rotation=rotation, scales=scales)
            activations = FORMATS[format].activations
            if activations is not None and activations.is_static:
                scale = trained.input_scales(module)[expert : expert + 1]
                part = replace(part, input_scale=settled_input(scale, format, rotation))
            parts.append(part)
            lost.append(output_error(whole, part, None))
        matrices[name] = stacked(parts) if weight.ndim == 3 else parts[0]
        errors[name] = float(np.mean(lost))
    others = {
        name: parameter.astype("float32").numpy()
        for name, parameter in stream.model.named_parameters()
        if name.startswith(stream.prefix(index)) and name not in matrices
    }
    return BlockResult(matrices, others, errors)


def _matrix(
    name: str,
    weight: np.ndarray,
    format: str,
    inputs: list[Inputs],
    quantisation: Quantisation,
    method: Method,
) -> tuple[Quantised, float]:
    rotation = quantisation.rotation(name, weight.shape[-2])
    parts, lost = [], []
    for expert, seen in enumerate(inputs):
        whole, seen = turned(weight if weight.ndim == 2 else weight[expert], seen, rotation)
        if method.quant_method == "gptq":
            part = gptq(
                *(whole, format, seen),
                clip=method.clip_search,
                rotation=rotation,
                damping=method.gptq_damping,
                block_size=method.gptq_block_size,
                act_order=method.gptq_act_order,
            )
        else:
            importance = seen.importance if seen.count else None
            part = round_to_nearest(
                whole, format, importance=importance, clip=method.clip_search, rotation=rotation
            )
        activations = FORMATS[format].activations
        if activations is not None and activations.is_static:
            if not seen.count:
                raise DataError(
                    f"{name}: no token of the calibration data reached "
                    f"{'it' if weight.ndim == 2 else f'expert {expert}'}, and its inputs are to be "
                    "rounded; give more or other train_dataset_path, a larger num_calibration_tokens, or a "
                    "scheme of weights alone"
                )
            scale = input_scale(seen, whole, activations.number, clip=method.clip_search)
            part = replace(part, input_scale=settled_input(np.array([scale]), format, rotation))
        parts.append(part)
        lost.append(output_error(whole, part, seen.moment))
    return (parts[0] if weight.ndim == 2 else stacked(parts)), float(np.mean(lost))


class _Scaling:
    """Factors of features, folded into a block's weights."""

    def __init__(self, stream: BlockStream, index: int, quantisation: Quantisation, method: Method) -> None:
        self._plan, self._prefix = stream.family.plan, stream.prefix(index)
        self._quantisation, self._method = quantisation, method

    def apply(
        self, weights: dict[str, np.ndarray], others: dict[str, np.ndarray], inputs: dict[str, list[Inputs]]
    ) -> None:
        """Change weights, and what is known of their inputs, in place."""
        for norm, readers in self._plan.NORMED.items():
            names = [f"{self._prefix}{reader}.weight" for reader in readers]
            rounded = [name for name in names if name in weights and name in self._quantisation.formats]
            if not rounded:
                continue
            # All read the same features; what was seen by the first one stands for it, of experts all
            # together.
            seen = _together(inputs[rounded[-1]])
            factors = self._factors(seen, rounded, weights)
            others[f"{self._prefix}{norm}.weight"] /= factors
            for name in names:
                for kept in (name, f"{name}_1"):
                    whole = weights if kept in weights else others
                    if kept in whole:
                        whole[kept] = whole[kept] * factors[:, None]
                if name in inputs:
                    inputs[name] = [each.scaled(factors) for each in inputs[name]]
        for first, second in self._plan.GATED.items():
            one, other = f"{self._prefix}{first}.weight", f"{self._prefix}{second}.weight"
            if other not in weights or other not in self._quantisation.formats:
                continue
            inner = weights[other].shape[-2]
            experts = len(inputs[other])
            factors = np.stack(
                [self._factors(inputs[other][expert], [other], weights, expert) for expert in range(experts)]
            )
            up = factors if weights[one].ndim == 3 else factors[0]
            weights[one][..., inner:] /= up[..., None, :]
            bias = f"{self._prefix}{first}.bias"
            if bias in others:
                others[bias][..., inner:] /= up
            weights[other] = weights[other] * up[..., :, None]
            inputs[other] = [each.scaled(own) for each, own in zip(inputs[other], factors, strict=True)]

    def _factors(
        self, seen: Inputs, names: list[str], weights: Mapping[str, np.ndarray], expert: int | None = None
    ) -> np.ndarray:
        read = []
        for name in names:
            weight = weights[name]
            if weight.ndim == 3:
                weight = weight[expert] if expert is not None else np.concatenate(list(weight), axis=-1)
            read.append(weight)
        if not seen.count:
            return np.ones(read[0].shape[0], np.float32)
        if self._method.smooth_alpha is not None:
            return smooth_factors(seen.largest, read, self._method.smooth_alpha)
        formats = [self._quantisation.formats[name] for name in names]
        rotations = [
            self._quantisation.rotation(name, len(each)) for name, each in zip(names, read, strict=True)
        ]
        return awq_factors(seen, read, formats, rotations=rotations, clip=self._method.clip_search)


def _together(inputs: list[Inputs]) -> Inputs:
    """What all experts have seen."""
    if len(inputs) == 1:
        return inputs[0]
    return Inputs(
        np.sum([each.moment for each in inputs], axis=0),
        np.max([each.largest for each in inputs], axis=0),
        sum(each.count for each in inputs),
        np.concatenate([each.sample for each in inputs]),
    )


class ExpertWatch:
    """Keeps what enters a layer of experts, for those that see too little of it by themselves."""

    def __init__(self, stream: BlockStream, index: int) -> None:
        plan = stream.family.plan
        self._name = f"{stream.prefix(index)}{plan.EXPERTS_LAYER}"
        layer = stream.layer(index, plan.EXPERTS_LAYER)
        self._experts = hasattr(layer, "gate")
        self._rows: list[np.ndarray] = []
        self._layer = layer
        self._hook = layer.register_forward_pre_hook(self._watch) if self._experts else None

    def close(self) -> None:
        """Stop watching."""
        if self._hook is not None:
            self._hook.remove()

    def fill_up(
        self, inputs: dict[str, list[Inputs]], weights: Mapping[str, np.ndarray], least: int
    ) -> dict[str, int]:
        """Add the tokens that the router scores highest to experts that saw fewer than `least`.

        Returns:
            Those experts, with the number of tokens that reached them by themselves.
        """
        first, second = (f"{self._name}.experts.{end}.weight" for end in ("up_gate_proj", "down_proj"))
        if not self._rows or first not in inputs:
            return {}
        rows = np.concatenate(self._rows)
        logits = rows @ self._layer.gate.matrix(0).numpy()
        rare = {}
        for expert, seen in enumerate(inputs[first]):
            if seen.count >= least:
                continue
            rare[f"{self._name}.experts.{expert}"] = seen.count
            added = rows[np.argsort(-logits[:, expert], kind="stable")[:least]]
            gate, up = np.split(added @ weights[first][expert], 2, axis=-1)
            inner = gate / (1 + np.exp(-np.clip(gate, -80, 80))) * up
            inputs[first][expert] = _with(seen, added)
            inputs[second][expert] = _with(inputs[second][expert], inner)
        return rare

    def _watch(self, layer: Any, given: tuple[Any, ...]) -> None:
        self._rows.append(given[0].reshape([-1, given[0].shape[-1]]).astype("float32").numpy())


def _with(inputs: Inputs, rows: np.ndarray) -> Inputs:
    return Inputs(
        inputs.moment + rows.astype(np.float64).T @ rows,
        np.maximum(inputs.largest, np.abs(rows).max(0, initial=0.0)),
        inputs.count + len(rows),
        np.concatenate([inputs.sample, rows]),
    )


def block_items(stream: BlockStream, index: int, result: BlockResult) -> Iterator[Item]:
    """The tensors of a block as files hold them."""
    weights, config = stream.family.weights, stream.config
    plain = []
    for name, array in result.others.items():
        word = stream.weights.dtype(name)
        plain.append((name, word, convert(name, array, "F32", word)))
    yield from weights.save_layout(plain, "paddle", config)
    place = ""
    for name, matrix in result.matrices.items():
        names = weights.matrix_names(name, matrix.shape, config)
        place = place or names[0][0].rpartition(".")[0]
        yield from named_tensors(matrix, names)
    if result.largest_kv is not None:
        for suffix, largest in zip(KV_SUFFIXES, result.largest_kv, strict=True):
            yield f"{place}.{suffix}", "F32", largest
