"""The header of a safetensors file, read without trust and written without chance.

A file is 8 bytes with the length of the header, the header (JSON: name -> dtype, shape, offsets),
and the bytes of the tensors without gaps. Everything the header claims is checked against the
size of the file before a byte of a tensor is read or an array is allocated.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from erniekit.errors import CheckpointError

# safetensors word -> numpy type of its bits
BITS: dict[str, str] = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",
    "F8_E4M3": "|u1",
    "F8_E5M2": "|u1",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "|i1",
    "U64": "<u8",
    "U32": "<u4",
    "U16": "<u2",
    "U8": "|u1",
    "BOOL": "|b1",
}
_MAX_HEADER = 100_000_000

# Name, dtype word, shape of a tensor that is to be written.
Spec = tuple[str, str, tuple[int, ...]]


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies: dtype word, shape, file, and the bytes [start, stop) of the file."""

    dtype: str
    shape: tuple[int, ...]
    file: Path
    start: int
    stop: int


def num_bytes(dtype: str, shape: Sequence[int]) -> int:
    """Bytes of a tensor; Python's integers, so that no claimed shape overflows."""
    return math.prod(shape) * np.dtype(BITS[dtype]).itemsize


def read_header(path: Path) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """Tensors (in the order of their bytes) and metadata of one safetensors file.

    Raises:
        CheckpointError: the file cannot be read, is truncated, or its header claims what the file
            does not hold; names the file.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, _MAX_HEADER):
                raise CheckpointError(
                    f"{path} is no safetensors file or is truncated: it has {size} bytes, "
                    f"its header would take {length}"
                )
            text = file.read(length)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=_without_duplicates)
        metadata = header.pop("__metadata__", {})
        if not all(isinstance(value, str) for value in metadata.values()):
            raise ValueError("metadata holds something else than text")
        infos = {name: _info(path, entry, 8 + length) for name, entry in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path}: the safetensors header is damaged ({error})") from error
    infos = dict(sorted(infos.items(), key=lambda item: (item[1].start, item[1].stop)))
    _check_bytes(path, infos, 8 + length, size)
    return infos, metadata


def write_header(specs: Sequence[Spec], metadata: dict[str, str]) -> tuple[bytes, list[int]]:
    """The first bytes of a file with these tensors, and the offset in the file of each.

    Wider numbers come first, so that every tensor is aligned to the size of its numbers.
    """
    order = sorted(range(len(specs)), key=lambda index: -np.dtype(BITS[specs[index][1]]).itemsize)
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    offsets, position = [0] * len(specs), 0
    for index in order:
        name, dtype, shape = specs[index]
        end = position + num_bytes(dtype, shape)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, end]}
        offsets[index], position = position, end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    first = len(text).to_bytes(8, "little") + text
    return first, [len(first) + offset for offset in offsets]


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        raise ValueError("a name occurs twice")
    return content


def _info(path: Path, entry: dict[str, Any], base: int) -> TensorInfo:
    start, stop = entry["data_offsets"]
    dtype, shape = entry["dtype"], tuple(entry["shape"])
    if not isinstance(dtype, str) or dtype not in BITS:
        raise CheckpointError(f"{path}: tensors of type {dtype} are not supported")
    if not all(type(number) is int and number >= 0 for number in (*shape, start, stop)):
        raise ValueError("sizes and offsets must be whole numbers")
    return TensorInfo(dtype, shape, path, base + start, base + stop)


def _check_bytes(path: Path, infos: dict[str, TensorInfo], begin: int, size: int) -> None:
    """Tensors must follow each other without gap or overlap, up to the end of the file."""
    position = begin
    for name, info in infos.items():
        if info.start != position:
            word = "overlaps" if info.start < position else "leaves a gap to"
            raise CheckpointError(f"{path}: the header is damaged: tensor {name} {word} the one before it")
        needed = num_bytes(info.dtype, info.shape)
        if info.stop - info.start != needed:
            raise CheckpointError(
                f"{path}: the header is damaged: tensor {name} of shape {list(info.shape)} and type "
                f"{info.dtype} takes {needed} bytes, the header gives it {info.stop - info.start}"
            )
        position = info.stop
    if position != size:
        word = "is truncated" if position > size else "is damaged"
        raise CheckpointError(f"{path} {word}: it has {size} bytes, its header describes {position}")
