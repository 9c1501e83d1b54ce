"""One token of every row through all layers of a dense decoder in one native call.

What is decoded is a table of tensors, used where they are. The decoder is pre-norm with fused
projections in Paddle's layout, interleaved rotary positions, grouped heads and a SwiGLU; see
`kernels/src/decode.cpp`. Its matrices may be codes of few bits, all of them; then the head is codes of 8
bits too, a copy of its own where it is the embedding: see `kernels/src/decode_codes.h` and
`decode_numbers.h`.

    R rows of this step, H hidden size, X = (N + 2 K) D with N query heads, K key heads, D head
    dimension, I inner size, V vocabulary, S columns of the cache
"""

import ctypes
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TypeAlias

import numpy as np
import paddle

from erniekit.ops import ccq
from erniekit.ops.kernels.library import BF16, FP32, Library
from erniekit.ops.number_formats import FORMATS, quantise
from erniekit.ops.quantised import QuantisedMatrix
from erniekit.ops.rounding import Rounding

TYPES = {paddle.float32: FP32, paddle.bfloat16: BF16}


# Number formats whose codes the kernels read and their kinds there, and what groups of rows are multiples of.
CODED = {"int8": 0, "int4": 0, "int4_full": 0, "int2": 0, "nf4": 1, "e4m3": 2, "ccq2": 3, "ccq2.5": 4}
CODED_UNIT = 16
ROUNDED = {"int8": 1, "e4m3": 2}
HEAD_NUMBER, HEAD_PANEL = "int8", 512
Matrix: TypeAlias = paddle.Tensor | QuantisedMatrix


def reads_codes(matrix: QuantisedMatrix) -> bool:
    """Whether the kernels decode with a quantised matrix."""
    whole_groups = matrix.group % CODED_UNIT == 0 or matrix.group >= matrix.shape[-2]
    return (
        matrix.number in CODED
        and whole_groups
        and len(matrix.shape) == 2
        and matrix.shape[0] % (matrix.rotation or 1) == 0
        and (matrix.rounding is None or _reads_rounding(matrix.rounding))
    )


def _reads_rounding(rounding: Rounding) -> bool:
    if rounding.scale is not None:
        return rounding.number in ROUNDED and rounding.scale.size == 1
    return rounding.number == "e4m3" and rounding.tile is not None


def _unit(matrix: QuantisedMatrix) -> int:
    """Rows of a matrix that no task may part."""
    tile = matrix.rounding.tile if matrix.rounding is not None and matrix.rounding.scale is None else None
    group = ccq.GROUP if matrix.number in ccq.NUMBERS else CODED_UNIT
    return math.lcm(group, matrix.rotation or 1, tile or 1)


@dataclass(frozen=True)
class CodedHead:
    """Codes of an output layer, uint8 [panels, H, HEAD_PANEL], and a scale for each column."""

    panels: np.ndarray
    scales: np.ndarray

    @classmethod
    def of(cls, weight_HV: np.ndarray) -> "CodedHead":
        """Quantise a matrix in fp32, or in bf16 as uint16."""
        codes, scales = quantise(weight_HV, HEAD_NUMBER, None)
        hidden, vocab = codes.shape
        beyond = -vocab % HEAD_PANEL
        panels = np.pad(codes, [(0, 0), (0, beyond)]).reshape(hidden, -1, HEAD_PANEL).transpose(1, 0, 2)
        return cls(np.ascontiguousarray(panels), np.pad(scales[0], [(0, beyond)]))


@dataclass(frozen=True)
class LayerTable:
    """The tensors of one layer, of one type; biases may be missing.

    key_scales, value_scales: fp32 [K, D] where keys and values are rounded to int8 before they are kept.
    """

    attention_norm: paddle.Tensor  # [H]
    qkv: Matrix  # [H, X]
    qkv_bias: paddle.Tensor | None
    out: Matrix  # [N D, H]
    out_bias: paddle.Tensor | None
    mlp_norm: paddle.Tensor  # [H]
    gate_up: Matrix  # [H, 2 I]
    gate_up_bias: paddle.Tensor | None
    down: Matrix  # [I, H]
    down_bias: paddle.Tensor | None
    key_scales: paddle.Tensor | None = None
    value_scales: paddle.Tensor | None = None


@dataclass(frozen=True)
class DecoderTable:
    """A whole decoder: its tensors, all of one type, and the numbers that they do not show.

    Either all matrices are quantised (as `reads_codes` wants them), and the head with them, or none is.
    """

    embedding: paddle.Tensor  # [V, H]
    layers: Sequence[LayerTable]
    final_norm: paddle.Tensor  # [H]
    head: paddle.Tensor | CodedHead  # [V, H] when tied, else [H, V]
    head_bias: paddle.Tensor | None
    tied: bool
    num_heads: int
    num_kv_heads: int
    head_dim: int
    epsilon: float


class _Codes(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("scales", "given")),
        *((name, ctypes.c_long) for name in ("group", "bits", "scale_type", "kind")),
        *((name, ctypes.c_long) for name in ("rotation", "rounding", "tile")),
        ("input_scale", ctypes.c_double),
    ]


_MATRICES = ("qkv", "out", "gate_up", "down")
_KV_SCALES = ("key_scales", "value_scales")


class _Layer(ctypes.Structure):
    _fields_ = [
        *((field.name, ctypes.c_void_p) for field in fields(LayerTable) if field.name not in _KV_SCALES),
        ("keys", ctypes.c_void_p),
        ("values", ctypes.c_void_p),
        *((name, ctypes.c_void_p) for name in _KV_SCALES),
        *((f"{name}_codes", _Codes) for name in _MATRICES),
    ]


_POINTERS = ("layers", "embedding", "final_norm", "head", "head_bias")
_ARRAYS = ("ids", "slots", "attend_from", "turns", "logits", "workspace")
_SIZES = (
    "num_layers",
    "rows",
    "hidden",
    "heads",
    "key_heads",
    "dim",
    "inner",
    "vocab",
    "column",
    "capacity",
    "panel",
    "unit",
)
_KINDS = ("type", "cache_type", "head_transposed")


class _Decode(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in _POINTERS),
        ("head_codes", _Codes),
        *((name, ctypes.c_void_p) for name in _ARRAYS),
        *((name, ctypes.c_long) for name in _SIZES),
        *((name, ctypes.c_int) for name in _KINDS),
        ("epsilon", ctypes.c_float),
    ]


class NativeDecoder:
    """A decoder over one cache.

    Args:
        keys: of each layer, [rows, K, S, D], fp32 or bf16; values alike. Columns before the first step
            have to be there; every step adds one.
        turns_SD: fp32, cosine and sine of every pair of channels by position.
        most_rows: rows of a step, at most.
    """

    def __init__(
        self,
        library: Library,
        table: DecoderTable,
        *,
        keys: Sequence[paddle.Tensor],
        values: Sequence[paddle.Tensor],
        turns_SD: np.ndarray,
        most_rows: int,
    ) -> None:
        given = [value for layer in table.layers for value in vars(layer).values() if value is not None]
        given += [table.embedding, table.final_norm, table.head, *keys, *values]
        coded = isinstance(table.head, CodedHead)
        matrices = [vars(layer)[name] for layer in table.layers for name in _MATRICES]
        codes = [matrix for matrix in matrices if isinstance(matrix, QuantisedMatrix)]
        assert len(codes) == (len(matrices) if coded else 0), "all matrices are codes, or none"
        tensors = [tensor for value in given for tensor in _tensors(value)]
        assert all(tensor.is_contiguous() for tensor in tensors), "kernels read tensors row by row"
        assert turns_SD.dtype == np.float32 and turns_SD.flags.c_contiguous
        self._kept = (table, tuple(keys), tuple(values), turns_SD)  # what the pointers point to
        rows = [
            _Layer(
                **{name: _pointer(tensor) for name, tensor in vars(layer).items()},
                **{f"{name}_codes": _codes(vars(layer)[name]) for name in _MATRICES if coded},
            )
            for layer in table.layers
        ]
        for row, key, value in zip(rows, keys, values, strict=True):
            row.keys, row.values = key.data_ptr(), value.data_ptr()
        self._layers = (_Layer * len(rows))(*rows)
        vocab_size, hidden = table.embedding.shape
        self._logits_RV = np.empty((most_rows, vocab_size), dtype=np.float32)
        self._call = _Decode(
            layers=ctypes.addressof(self._layers),
            embedding=_pointer(table.embedding),
            final_norm=_pointer(table.final_norm),
            head=_pointer(table.head),
            head_bias=_pointer(table.head_bias),
            head_codes=_codes(table.head),
            panel=HEAD_PANEL if coded else 0,
            unit=math.lcm(CODED_UNIT, *map(_unit, codes)),
            turns=turns_SD.ctypes.data,
            logits=self._logits_RV.ctypes.data,
            num_layers=len(rows),
            rows=most_rows,
            hidden=hidden,
            heads=table.num_heads,
            key_heads=table.num_kv_heads,
            dim=table.head_dim,
            inner=table.layers[0].down.shape[0],
            vocab=vocab_size,
            capacity=keys[0].shape[2],
            type=TYPES[table.embedding.dtype],
            cache_type=TYPES[keys[0].dtype],
            head_transposed=table.tied,
            epsilon=table.epsilon,
        )
        place = ctypes.POINTER(_Decode)
        size = library.declare("ek_decode_workspace", place, result=ctypes.c_long)(self._call)
        self._workspace = np.empty(size, dtype=np.uint8)
        self._call.workspace = self._workspace.ctypes.data
        self._decode = library.declare("ek_decode", place)

    def step(
        self, ids_R: np.ndarray, slots_R: np.ndarray, attend_from_R: np.ndarray, *, column: int
    ) -> np.ndarray:
        """Take in one token for each row; returns the logits [R, V] after it, valid until the next step.

        Args:
            ids_R: tokens.
            slots_R: the row of the cache that each row is.
            attend_from_R: the first column that each row sees; the position of the token is its distance.
            column: where its keys and values go; all columns from `attend_from` to here are seen.
        """
        ids_R = np.ascontiguousarray(ids_R, dtype=np.int64)
        slots_R = np.ascontiguousarray(slots_R, dtype=np.int32)
        attend_from_R = np.ascontiguousarray(attend_from_R, dtype=np.int32)
        call = self._call
        assert 0 <= column < call.capacity and len(ids_R) <= len(self._logits_RV)
        assert ids_R.min() >= 0 and ids_R.max() < call.vocab
        call.ids, call.slots = ids_R.ctypes.data, slots_R.ctypes.data
        call.attend_from, call.column, call.rows = attend_from_R.ctypes.data, column, len(ids_R)
        self._decode(call)
        return self._logits_RV[: len(ids_R)]


def stream(library: Library, memory: np.ndarray) -> None:
    """Read an array once with all threads, in whole MiB: what decoding cannot be faster than."""
    out = ctypes.c_float()
    call = library.declare("ek_stream", ctypes.c_void_p, ctypes.c_long, ctypes.c_void_p)
    call(memory.ctypes.data, memory.nbytes, ctypes.addressof(out))


def _tensors(value: Matrix | CodedHead) -> Sequence[paddle.Tensor]:
    if isinstance(value, QuantisedMatrix):
        assert reads_codes(value), (value.number, value.group)
        made = value.columns if value.columns is not None else value.table
        return value.codes, value.scales, *([] if made is None else [made])
    return () if isinstance(value, CodedHead) else (value,)


def _pointer(value: Matrix | CodedHead | None) -> int | None:
    if isinstance(value, CodedHead):
        return int(value.panels.ctypes.data)
    if isinstance(value, QuantisedMatrix):
        return int(value.codes.data_ptr())
    return None if value is None else int(value.data_ptr())


def _codes(value: Matrix | CodedHead) -> _Codes:
    """How codes are to be read; of numbers nothing."""
    if isinstance(value, CodedHead):
        group, bits = value.panels.shape[1], FORMATS[HEAD_NUMBER].bits
        return _Codes(scales=value.scales.ctypes.data, group=group, bits=bits, scale_type=FP32)
    if isinstance(value, QuantisedMatrix):
        rounding = value.rounding or Rounding("")
        given = value.columns if value.columns is not None else value.table
        return _Codes(
            scales=value.scales.data_ptr(),
            given=_pointer(given),
            group=ccq.GROUP if value.number in ccq.NUMBERS else value.group,
            bits=FORMATS[value.number].bits if value.number in FORMATS else 0,
            scale_type=TYPES.get(value.scales.dtype, FP32),
            kind=CODED[value.number],
            rotation=value.rotation,
            rounding=ROUNDED.get(rounding.number, 0),
            tile=rounding.tile or value.shape[0],
            input_scale=0.0 if rounding.scale is None else float(rounding.scale),
        )
    return _Codes()
