"""A quantised folder in the layout of compressed-tensors, which transformers and vLLM read.

Names and pieces are those of transformers (q, k, v and gate, up apart, matrices [out, in]); a matrix is

| form | of | tensors |
|---|---|---|
| pack-quantized | int8, int4 | weight_packed I32 [out, in bits / 32]; weight_scale F32 [out, groups];
weight_shape |
| int-quantized | w8a8 | weight I8 [out, in]; weight_scale F32 [out, 1]; input_scale F32 [1] |
| float-quantized | fp8_block | weight F8_E4M3 [out, in]; weight_scale F32 [out / 128, in / 128] |

Packed codes have their zero in the middle, and the first lies in the lowest bits.

The folder is read back, and every number compared with those of the source.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from erniekit.checkpoint.atomic import write_folder
from erniekit.checkpoint.files import Item, TensorFolder, open_tensors, write_tensors
from erniekit.errors import CheckpointError, UnsupportedError
from erniekit.export.convert import copy_companions
from erniekit.export.dtypes import CONFIG_DTYPES
from erniekit.export.export import config_content, write_json
from erniekit.models.registry import load_family, read_model_config
from erniekit.ops.fp8 import E4M3
from erniekit.ops.number_formats import FORMATS as NUMBERS
from erniekit.ops.number_formats import unpack
from erniekit.quant.folder import read_matrix, read_quantisation
from erniekit.quant.schemes import FORMATS, role_of
from erniekit.quant.stored import Quantised

PACKED, INTEGERS, FLOATS = "pack-quantized", "int-quantized", "float-quantized"
# A row of FORMATS -> its form.
FORMS = {
    **dict.fromkeys(("int8", "int4", "int4_g64", "int4_g32"), PACKED),
    **{"w8a8": INTEGERS, "fp8_block": FLOATS},
}
_BLOCK = 128


def write_compressed(
    source: Path, destination: Path, *, max_shard_bytes: int, overwrite: bool = False
) -> None:
    """Write a quantised folder in the layout of compressed-tensors.

    Raises:
        UnsupportedError: the layout has no form for a matrix of the model.
        CheckpointError: what was written reads back as other numbers.
    """
    config, quantisation = read_model_config(source), read_quantisation(source)
    assert quantisation is not None, f"{source} is not quantised"
    family = load_family(config)
    strange = sorted({*quantisation.formats.values()} - set(FORMS))
    if strange or quantisation.kv_cache is not None or quantisation.hadamard_block_size:
        raise UnsupportedError(
            f"{quantisation.scheme} ({', '.join(strange)}) has no form in compressed-tensors"
        )
    tensors = open_tensors(source)
    weights = family.weights.open_weights(source, config, set(quantisation.formats))
    dtypes = {name: weights.dtype(name) for name in weights.sources}

    def items() -> Iterator[Item]:
        yield from family.weights.save_layout(weights.memory_items(), "hf", config)
        for target, piece in _pieces(family, config, quantisation, tensors):
            yield from _tensors_of(target, piece)

    with write_folder(destination, overwrite=overwrite) as folder:
        write_tensors(folder, items(), max_shard_bytes=max_shard_bytes, metadata={"format": "pt"})
        word = max(dtypes.values(), key=list(dtypes.values()).count)
        content = config_content(config, "hf", CONFIG_DTYPES[word])
        roles = {name: role_of(name, family.plan.ROLES) or "" for name in quantisation.formats}
        content["quantization_config"] = compression_config(quantisation.formats, roles, family.plan)
        write_json(folder / "config.json", content)
        copy_companions(source, folder)
        written = open_tensors(folder)
        for target, piece in _pieces(family, config, quantisation, tensors):
            found = numbers_of(written, target.removesuffix(".weight"), piece.format)
            if found.tobytes() != np.ascontiguousarray(piece.numbers().T).tobytes():
                raise CheckpointError(f"{folder}: {target} reads back differently than it was written")


def _pieces(
    family: Any, config: Any, quantisation: Any, tensors: TensorFolder
) -> Iterator[tuple[str, Quantised]]:
    """Name in transformers and matrix [in, out] of every piece of every quantised matrix."""
    shapes = family.weights.memory_shapes(config)
    parameter, whole = "", None
    for target in family.weights.stored_tensors(config, "hf"):
        if target.parameter not in quantisation.formats:
            continue
        if target.parameter != parameter:
            parameter, format = target.parameter, quantisation.formats[target.parameter]
            names = family.weights.matrix_names(parameter, shapes[parameter], config)
            whole = read_matrix(tensors, format, shapes[parameter], names, 0)
        assert whole is not None
        yield target.name, _columns(whole.of_expert(target.expert), target.start, target.stop, target.name)


def _columns(matrix: Quantised, start: int, stop: int, name: str) -> Quantised:
    if matrix.format == "fp8_block" and (start % _BLOCK or (stop % _BLOCK and stop != matrix.shape[1])):
        raise UnsupportedError(
            f"{name}: its outputs {start} to {stop} of a fused matrix cut through blocks of {_BLOCK}, and "
            "compressed-tensors keeps them apart; write another quant_scheme, or quant_layout: fastdeploy"
        )
    part = (slice(None), slice(start, stop))
    return Quantised(
        matrix.format,
        (matrix.shape[0], stop - start),
        matrix.codes[part],
        matrix.scales[part],
        input_scale=matrix.input_scale,
    )


def _tensors_of(name: str, matrix: Quantised) -> Iterator[Item]:
    base, (rows, columns) = name.removesuffix(".weight"), matrix.shape
    form = FORMS[matrix.format]
    scales = np.ascontiguousarray(matrix.scales.T)
    if form == PACKED:
        bits = NUMBERS[matrix.row.number].bits
        codes = unpack(matrix.codes, bits, rows).T
        codes = codes ^ 0x80 if bits == 8 else codes  # int4 has its zero in the middle already
        yield f"{base}.weight_packed", "I32", pack_words(codes, bits)
        yield f"{base}.weight_scale", "F32", scales
        yield f"{base}.weight_shape", "I64", np.array([columns, rows], np.int64)
        return
    if form == INTEGERS:
        yield f"{base}.weight", "I8", np.ascontiguousarray(matrix.codes.T).view(np.int8)
        yield f"{base}.weight_scale", "F32", scales
        assert matrix.input_scale is not None
        yield f"{base}.input_scale", "F32", matrix.input_scale
        return
    yield f"{base}.weight", "F8_E4M3", np.ascontiguousarray(matrix.codes.T)
    yield f"{base}.weight_scale", "F32", np.ascontiguousarray(scales[::_BLOCK])


def pack_words(codes: np.ndarray, bits: int) -> np.ndarray:
    """Codes uint8 [out, in] as int32 [out, in bits / 32 rounded up], the first in the lowest bits."""
    each = 32 // bits
    missing = -codes.shape[1] % each
    filled = np.pad(codes, ((0, 0), (0, missing))).astype(np.uint32)
    shifts = np.arange(each, dtype=np.uint32) * np.uint32(bits)
    words = (filled.reshape(len(codes), -1, each) << shifts).sum(-1, dtype=np.uint32)
    return words.view(np.int32)


def numbers_of(tensors: TensorFolder, base: str, format: str) -> np.ndarray:
    """The numbers fp32 [out, in] of a written matrix."""
    form, row = FORMS[format], FORMATS[format]
    scales = tensors.read(f"{base}.weight_scale")
    if form == PACKED:
        bits = NUMBERS[row.number].bits
        columns, rows = tensors.read(f"{base}.weight_shape")
        words = tensors.read(f"{base}.weight_packed").view(np.uint32)
        shifts = np.arange(32 // bits, dtype=np.uint32) * np.uint32(bits)
        codes = (words[..., None] >> shifts & np.uint32((1 << bits) - 1)).reshape(columns, -1)[:, :rows]
        values = codes.astype(np.float32) - np.float32(1 << (bits - 1))
        return values * np.repeat(scales, row.group or rows, axis=1)[:, :rows]
    stored = tensors.read(f"{base}.weight")
    if form == INTEGERS:
        return stored.astype(np.float32) * scales
    wide = np.repeat(np.repeat(scales, _BLOCK, axis=0), _BLOCK, axis=1)
    return E4M3.values(stored) * wide[: stored.shape[0], : stored.shape[1]]


def compression_config(formats: Mapping[str, str], roles: Mapping[str, str], plan: Any) -> dict[str, Any]:
    """The content of `quantization_config`."""
    dense = {format for name, format in formats.items() if roles[name] != "experts"}
    experts = {format for name, format in formats.items() if roles[name] == "experts"}
    assert len(dense) <= 1 and len(experts) <= 1, "formats of a scheme"
    forms = {FORMS[format] for format in dense | experts}
    groups: dict[str, Any] = {}
    if experts and experts != dense:
        groups["group_0"] = {"targets": [r"re:.*mlp\.experts\..*"], **_arguments(next(iter(experts)))}
    if dense:
        # Experts match the first group that names them.
        groups[f"group_{len(groups)}"] = {"targets": ["Linear"], **_arguments(next(iter(dense)))}
    return {
        "quant_method": "compressed-tensors",
        "format": next(iter(forms)),
        "quantization_status": "compressed",
        "global_compression_ratio": None,
        "kv_cache_scheme": None,
        "ignore": [plan.HEAD, r"re:.*mlp\.gate$"],
        "config_groups": groups,
    }


def _arguments(format: str) -> dict[str, Any]:
    row = FORMATS[format]
    kind = "float" if row.number == "e4m3" else "int"
    common = {"num_bits": NUMBERS[row.number].bits, "type": kind, "symmetric": True}
    weights: dict[str, Any] = {**common, "strategy": row.granularity, "dynamic": False}
    if row.granularity == "group":
        weights["group_size"] = row.group
    if row.granularity == "block":
        weights["block_structure"] = [_BLOCK, _BLOCK]
    inputs: dict[str, Any] | None = None
    if row.activations is not None:
        inputs = {"num_bits": 8, "type": kind, "symmetric": True, "dynamic": not row.activations.is_static}
        inputs |= (
            {"strategy": "tensor"}
            if row.activations.is_static
            else {"strategy": "group", "group_size": _BLOCK}
        )
    return {"weights": weights, "input_activations": inputs, "output_activations": None}
