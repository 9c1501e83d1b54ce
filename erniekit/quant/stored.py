"""A matrix of few bits as tensors of files, under FastDeploy's names where it has some. No Paddle.

Of a matrix [I, O], one of each expert, under `<its name>.`:

| format | quant_weight | weight_scale | else |
|---|---|---|---|
| int8 | I8 [O, I] | F32 [O], s | |
| w8a8 | I8 [O, I] | F32 [O], 127 s | activation_scale F32 [1], 127 a |
| int4 | I8 [O/2, I], outputs 2o and 2o + 1 in a byte | F32 [O], s | |
| w4a8 | I8 [I/2, O], inputs 2i and 2i + 1 in a byte | F32 [O], 7 s | activation_scale F32 [1], 127 a |
| fp8_tensor | I8 [I, O], bytes of E4M3 | F32 [1], s / sqrt(b) | activation_scale F32 [1], a sqrt(b) |
| fp8_block | I8 [I, O], bytes of E4M3 | F32 [I/128, O/128], s | |
| ccq2 | U8 [I/4, O] | U8 [I/128, O] | super_scales BF16 [O]; code_scale, code_zp F32 [O] |
| ccq2.5 | U16 [10 I/64, O] | | super_scales BF16 [O] |
| int4_g32 | U8 [I/2, O], inputs 2i and 2i + 1 in a byte, zero at 8 | BF16 [groups, O], s | |
| others | U8, as in memory | F32 [groups, O], s | |

s and a are the scales of weights and inputs; b is the size of the Hadamard blocks, whose matrices FastDeploy
takes of +1 and -1. Halves of bytes are in two's complement, the first one low. Scales are chosen so that what
is written gives back the same bits (`settled`).
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import sqrt

import numpy as np

from erniekit.checkpoint.header import Spec
from erniekit.ops import ccq
from erniekit.ops.hadamard import fitting_block
from erniekit.ops.number_formats import FORMATS as NUMBERS
from erniekit.ops.number_formats import (
    dequantise,
    narrowed,
    pack,
    packed_shape,
    scales_shape,
    unpack,
    widened,
)
from erniekit.quant.schemes import FORMATS, WeightFormat

# Last words of the names.
SUFFIXES = (
    *("quant_weight", "weight_scale", "activation_scale"),
    *("super_scales", "code_scale", "code_zp"),
)
Tensors = dict[str, tuple[str, np.ndarray]]


@dataclass(frozen=True)
class Quantised:
    """A matrix [I, O], or one an expert [E, I, O], in few bits; arrays as of `ops/quantised.py`.

    format: a row of FORMATS. input_scale: fp32 [1] or [E], where inputs are rounded by a scale found before.
    rotation: size of the Hadamard blocks that it is the rotated matrix of; 0 for none.
    """

    format: str
    shape: tuple[int, ...]
    codes: np.ndarray
    scales: np.ndarray
    columns: np.ndarray | None = None
    input_scale: np.ndarray | None = None
    rotation: int = 0

    @property
    def row(self) -> WeightFormat:
        """Of the table."""
        return FORMATS[self.format]

    def numbers(self) -> np.ndarray:
        """The numbers, fp32 [..., I, O], of the rotated matrix where it is one."""
        if self.columns is not None:
            return ccq.dequantise(self.codes, self.scales, self.columns, self.row.number, self.shape[-2])
        return dequantise(self.codes, self.scales, self.row.number, self.row.group, self.shape[-2])

    def of_expert(self, expert: int | None) -> "Quantised":
        """The matrix of one expert; itself for None."""
        if expert is None:
            return self
        scale = None if self.input_scale is None else self.input_scale[expert : expert + 1]
        columns = None if self.columns is None else self.columns[expert]
        return replace(
            self,
            shape=self.shape[1:],
            codes=self.codes[expert],
            scales=self.scales[expert],
            columns=columns,
            input_scale=scale,
        )


def stacked(parts: list[Quantised]) -> Quantised:
    """One matrix an expert of the matrices of all."""
    first = parts[0]
    kept = [part.columns for part in parts if part.columns is not None]
    scales = [part.input_scale for part in parts if part.input_scale is not None]
    return replace(
        first,
        shape=(len(parts), *first.shape),
        codes=np.stack([part.codes for part in parts]),
        scales=np.stack([part.scales for part in parts]),
        columns=np.stack(kept) if kept else None,
        input_scale=np.concatenate(scales) if scales else None,
    )


def rotation_of(format: str, rows: int, hadamard_block_size: int | None) -> int:
    """The size of the Hadamard blocks of a matrix; `hadamard_block_size` None is that of the format."""
    wanted = FORMATS[format].rotation if hadamard_block_size is None else hadamard_block_size
    size = fitting_block(rows, wanted) if wanted else 0
    return size if size > 1 else 0


def settled(scales: np.ndarray, format: str, rotation: int) -> np.ndarray:
    """Scales of weights that the files give back bit for bit, at most a bit from those given."""
    return _settled(scales, lambda given: _to_file(given, format, rotation), format, rotation)


def settled_input(scale: np.ndarray, format: str, rotation: int) -> np.ndarray:
    """The same of scales of inputs."""
    factor = _input_factor(format, rotation)
    return _there_and_back(scale, lambda given: given * factor, lambda kept: kept / factor)


def _settled(
    scales: np.ndarray, write: Callable[[np.ndarray], np.ndarray], format: str, rotation: int
) -> np.ndarray:
    return _there_and_back(scales, write, lambda kept: _from_file(kept, format, rotation))


def _there_and_back(
    scales: np.ndarray,
    write: Callable[[np.ndarray], np.ndarray],
    read: Callable[[np.ndarray], np.ndarray],
) -> np.ndarray:
    for _ in range(8):
        again = read(write(scales))
        if np.array_equal(again, scales):
            return scales
        scales = again
    raise AssertionError("scales do not settle")


def _weight_factor(format: str, rotation: int) -> np.float32:
    """What a scale of weights is multiplied with in files."""
    if format == "fp8_tensor":
        return np.float32(1 / sqrt(rotation or 1))
    return np.float32({"w8a8": 127, "w4a8": 7}.get(format, 1))


def _to_file(scales: np.ndarray, format: str, rotation: int) -> np.ndarray:
    if FORMATS[format].scale_type == "bf16":
        return narrowed(scales)
    return scales * _weight_factor(format, rotation)


def _from_file(scales: np.ndarray, format: str, rotation: int) -> np.ndarray:
    return widened(scales) / _weight_factor(format, rotation)


def _input_factor(format: str, rotation: int) -> np.float32:
    return np.float32(sqrt(rotation or 1) if format == "fp8_tensor" else 127)


def specs_of(format: str, shape: tuple[int, ...]) -> list[Spec]:
    """Last word, number type and shape of the tensors of a matrix [I, O]."""
    rows, columns = shape
    row = FORMATS[format]
    found: list[Spec]
    if format == "ccq2":
        found = [("quant_weight", "U8", ccq.codes_shape(shape, format))]
        found += [
            ("weight_scale", "U8", ccq.locals_shape(shape, format)),
            ("super_scales", "BF16", (columns,)),
        ]
        found += [("code_scale", "F32", (columns,)), ("code_zp", "F32", (columns,))]
    elif format == "ccq2.5":
        found = [
            ("quant_weight", "U16", ccq.codes_shape(shape, format)),
            ("super_scales", "BF16", (columns,)),
        ]
    elif format in ("int8", "w8a8"):
        found = [("quant_weight", "I8", (columns, rows)), ("weight_scale", "F32", (columns,))]
    elif format == "int4":
        found = [("quant_weight", "I8", (-(-columns // 2), rows)), ("weight_scale", "F32", (columns,))]
    elif format == "w4a8":
        found = [("quant_weight", "I8", (-(-rows // 2), columns)), ("weight_scale", "F32", (columns,))]
    elif format == "fp8_tensor":
        found = [("quant_weight", "I8", shape), ("weight_scale", "F32", (1,))]
    elif format == "fp8_block":
        found = [
            ("quant_weight", "I8", shape),
            ("weight_scale", "F32", (-(-rows // 128), -(-columns // 128))),
        ]
    else:
        found = [("quant_weight", "U8", packed_shape(shape, NUMBERS[row.number].bits))]
        found += [("weight_scale", row.scale_type.replace("fp", "f").upper(), scales_shape(shape, row.group))]
    if row.activations is not None and row.activations.is_static:
        found.append(("activation_scale", "F32", (1,)))
    return found


def tensors_of(matrix: Quantised) -> Tensors:
    """The tensors of a matrix [I, O] by the last word of their names."""
    format, codes, (rows, columns) = matrix.format, matrix.codes, matrix.shape
    found: dict[str, np.ndarray] = {}
    if matrix.columns is not None:
        found["quant_weight"] = codes
        found["super_scales"] = (matrix.columns[0].view(np.uint32) >> 16).astype(np.uint16)
        if format == "ccq2":
            found["weight_scale"] = matrix.scales
            found["code_scale"], found["code_zp"] = matrix.columns[1], matrix.columns[2]
    else:
        scales = _to_file(matrix.scales, format, matrix.rotation)
        if format in ("int8", "w8a8"):
            found["quant_weight"], found["weight_scale"] = codes.view(np.int8).T, scales[0]
        elif format == "int4":
            halves = unpack(codes, 4, rows) ^ 8
            found["quant_weight"] = pack(halves.T, 4).view(np.int8)
            found["weight_scale"] = scales[0]
        elif format == "w4a8":
            halves = codes ^ 0x88
            if rows % 2:
                halves[-1] &= 15
            found["quant_weight"], found["weight_scale"] = halves.view(np.int8), scales[0]
        elif format == "fp8_tensor":
            found["quant_weight"], found["weight_scale"] = codes.view(np.int8), scales[0, :1]
        elif format == "fp8_block":
            found["quant_weight"], found["weight_scale"] = codes.view(np.int8), scales[:, ::128]
        else:
            found["quant_weight"], found["weight_scale"] = codes, scales
    if matrix.input_scale is not None:
        found["activation_scale"] = matrix.input_scale * _input_factor(format, matrix.rotation)
    words = {name: (word, shape) for name, word, shape in specs_of(format, (rows, columns))}
    assert set(words) == set(found), (format, set(words), set(found))
    return {name: (words[name][0], np.ascontiguousarray(array)) for name, array in found.items()}


def matrix_of(
    format: str, shape: tuple[int, ...], tensors: Mapping[str, np.ndarray], rotation: int
) -> Quantised:
    """The matrix [I, O] of its tensors; they have the types and shapes of `specs_of`."""
    rows, columns = shape
    given = tensors["quant_weight"]
    kept: np.ndarray | None = None
    scales = tensors.get("weight_scale", np.zeros((0, columns), np.uint8))
    if format in ("ccq2", "ccq2.5"):
        wide = (tensors["super_scales"].astype(np.uint32) << 16).view(np.float32)
        kept = np.stack([wide, *(tensors[name] for name in ("code_scale", "code_zp") if format == "ccq2")])
        codes = given
    else:
        scales = _from_file(scales, format, rotation)
        if format in ("int8", "w8a8"):
            codes = np.ascontiguousarray(given.T).view(np.uint8)
        elif format == "int4":
            codes = pack(np.ascontiguousarray(unpack(given.view(np.uint8), 4, columns).T ^ 8), 4)
        elif format == "w4a8":
            codes = given.view(np.uint8) ^ 0x88
            if rows % 2:
                codes[-1] &= 15
        else:
            codes = given.view(np.uint8)
        if format == "fp8_tensor":
            scales = np.repeat(scales, columns)
        elif format == "fp8_block":
            scales = np.repeat(scales, 128, axis=1)[:, :columns]
        scales = scales.reshape(-1, columns)
    input_scale = tensors.get("activation_scale")
    if input_scale is not None:
        input_scale = input_scale / _input_factor(format, rotation)
    return Quantised(format, shape, codes, np.ascontiguousarray(scales), kept, input_scale, rotation)


def named_tensors(
    matrix: Quantised, names: list[tuple[str, int | None]]
) -> Iterator[tuple[str, str, np.ndarray]]:
    """Everything that files hold of a matrix, or of the matrices of all experts.

    Args:
        names: of each matrix in files, with the expert that it is of.
    """
    for name, expert in names:
        for suffix, (word, array) in tensors_of(matrix.of_expert(expert)).items():
            yield f"{name}.{suffix}", word, array
