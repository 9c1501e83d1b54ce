"""A model whose matrices come out of a quantised folder; everything else as it was."""

from collections.abc import Iterator, Mapping
from typing import Any

import paddle

from erniekit.checkpoint.files import Item, TensorFolder
from erniekit.ops.quantised import QuantisedMatrix
from erniekit.ops.rounding import KVRounding, Rounding
from erniekit.quant.folder import KV_SUFFIXES, Names, Quantisation, check_matrices, read_matrix
from erniekit.quant.schemes import FORMATS
from erniekit.quant.stored import Quantised
from erniekit.quant.weight_only import take_out


def apply(
    model: Any,
    quantisation: Quantisation,
    tensors: TensorFolder,
    names: Mapping[str, Names],
    *,
    attention: str,
    dtype: str,
) -> Iterator[Item]:
    """Put the matrices of a folder into a model, one after the other.

    Args:
        names: parameter -> its matrices in files.
        attention: end of the names of attention layers.
        dtype: Paddle's name of the type that is computed in.

    Returns:
        What was read, as items for a fingerprint. It has to be read to its end.

    Raises:
        CheckpointError: tensors are missing, or of another type or shape.
    """
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    check_matrices(tensors, quantisation, shapes, names)
    taken = take_out(model, {name: FORMATS[format] for name, format in quantisation.formats.items()})
    assert set(taken) == set(quantisation.formats), "a matrix that no layer has"
    for name, (layer, _) in taken.items():
        shape = shapes[name]
        rotation = quantisation.rotation(name, shape[-2])
        matrix = read_matrix(tensors, quantisation.formats[name], shape, names[name], rotation)
        layer.weight = to_matrix(matrix, dtype)
        for part in (matrix.codes, matrix.scales, matrix.columns, matrix.input_scale):
            if part is not None:
                yield name, quantisation.formats[name], part
    if quantisation.kv_cache is not None:
        yield from _round_cache(model, quantisation.kv_cache, tensors, names, attention)


def to_matrix(matrix: Quantised, dtype: Any) -> QuantisedMatrix:
    """What the operators multiply with."""
    row, rounding = matrix.row, None
    if row.activations is not None:
        scale = None if matrix.input_scale is None else paddle.to_tensor(matrix.input_scale)
        rounding = Rounding(row.activations.number, scale, row.activations.tile)
    return QuantisedMatrix.packed(
        matrix.codes,
        matrix.scales,
        matrix.columns,
        shape=matrix.shape,
        number=row.number,
        group=row.group,
        dtype=dtype,
        scale_type=row.scale_type,
        rounding=rounding,
        rotation=matrix.rotation,
    )


def _round_cache(
    model: Any, number: str, tensors: TensorFolder, names: Mapping[str, Names], attention: str
) -> Iterator[Item]:
    for module, layer in model.named_sublayers():
        if not module.endswith(f".{attention}"):
            continue
        place = names[f"{module}.qkv_proj.weight"][0][0].removesuffix(".qkv_proj")
        largest = [tensors.read(f"{place}.{suffix}") for suffix in KV_SUFFIXES]
        layer.kv_rounding = KVRounding.of(number, *largest)
        for suffix, part in zip(KV_SUFFIXES, largest, strict=True):
            yield f"{module}.{suffix}", "F32", part
