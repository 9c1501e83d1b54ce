"""Safetensors folders by raw bits: what is read is what was written, whatever the framework.

numpy has no bfloat16 or float8, so tensors travel as (dtype word, array of the bits): BF16 as
uint16, F8 as uint8. A folder holds one `model.safetensors`, or shards and an index. Files are
read through a memory map, one tensor at a time; writing holds one shard.

A folder may come from anywhere: index entries must stay inside it, and headers are checked
against the file before anything is allocated.
"""

import json
import os
from collections.abc import Iterable, Iterator
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
    "U8": "|u1",
    "BOOL": "|b1",
}
_MAX_HEADER = 100_000_000
_REFUSED = (".bin", ".pt", ".pth", ".pdparams", ".pdopt", ".ckpt", ".pkl")

Item = tuple[str, str, np.ndarray]


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies: dtype word, shape, file, and the bytes [start, stop) of the file."""

    dtype: str
    shape: tuple[int, ...]
    file: Path
    start: int
    stop: int


class TensorFolder:
    """The tensors of a folder (or of one file); nothing is read before it is asked for."""

    def __init__(self, folder: Path, infos: dict[str, TensorInfo], metadata: dict[str, str]) -> None:
        self.folder = folder
        self.metadata = metadata
        self._infos = infos

    def names(self) -> list[str]:
        """Names, in the order of the files and of the bytes in them."""
        return list(self._infos)

    def info(self, name: str) -> TensorInfo:
        """Where a tensor lies.

        Raises:
            CheckpointError: there is no tensor of that name.
        """
        if name not in self._infos:
            raise CheckpointError(f"{self.folder}: there is no tensor {name!r}")
        return self._infos[name]

    def read(self, name: str) -> np.ndarray:
        """The raw bits of a tensor, a copy."""
        info = self.info(name)
        count = (info.stop - info.start) // np.dtype(BITS[info.dtype]).itemsize
        with info.file.open("rb") as file:
            file.seek(info.start)
            array = np.fromfile(file, dtype=BITS[info.dtype], count=count)
        if array.size != count:
            raise CheckpointError(f"{info.file} is truncated: {name} ends beyond the end of the file")
        return array.reshape(info.shape)

    def items(self) -> Iterator[Item]:
        """Every tensor in turn."""
        for name, info in self._infos.items():
            yield name, info.dtype, self.read(name)


def open_tensors(folder: Path, basename: str = "model") -> TensorFolder:
    """Open the safetensors of a folder: `<basename>.safetensors`, or its shards by the index.

    Raises:
        CheckpointError: nothing is there, a file is damaged, or the index is wrong; names the file.
    """
    folder = Path(folder)
    single, index = folder / f"{basename}.safetensors", folder / f"{basename}.safetensors.index.json"
    if index.exists():
        return _open_sharded(folder, index)
    if single.exists():
        infos, metadata = read_header(single)
        return TensorFolder(folder, infos, metadata)
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is no folder")
    others = sorted(path.name for path in folder.iterdir() if path.suffix in _REFUSED)
    if others:
        raise CheckpointError(
            f"{folder} holds no safetensors but {', '.join(others[:3])}: these formats can run code when read "
            "and are refused; convert them to safetensors first"
        )
    raise CheckpointError(f"{folder}: neither {single.name} nor {index.name} is there")


def read_header(path: Path) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """Tensors and metadata of one safetensors file, checked against its size.

    Raises:
        CheckpointError: the file is truncated or its header is no safetensors header.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, _MAX_HEADER):
            raise CheckpointError(f"{path} is no safetensors file or is truncated (header of {length} bytes)")
        try:
            header = json.loads(file.read(length))
            metadata = header.pop("__metadata__", {})
            infos = {name: _info(path, entry, 8 + length) for name, entry in header.items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{path}: the safetensors header is damaged ({error})") from error
    infos = dict(sorted(infos.items(), key=lambda item: item[1].start))
    position = 8 + length
    for name, info in infos.items():
        needed = int(np.prod(info.shape, dtype=np.int64)) * np.dtype(BITS[info.dtype]).itemsize
        if info.start != position or info.stop - info.start != needed:
            raise CheckpointError(f"{path}: the header is damaged at tensor {name}")
        position = info.stop
    if position != size:
        raise CheckpointError(f"{path} is truncated or damaged: it has {size} bytes, its header wants {position}")
    return infos, metadata


def write_tensors(
    folder: Path,
    items: Iterable[Item],
    *,
    max_shard_bytes: int,
    metadata: dict[str, str],
    basename: str = "model",
) -> list[Path]:
    """Write tensors as they come; starts a new shard before one would exceed `max_shard_bytes`.

    Holds the tensors of one shard. The bytes depend on nothing but the arguments. Files are
    durable when this returns.

    Returns:
        The files, the index last when there is more than one shard.
    """
    shards: list[Path] = []
    where: dict[str, int] = {}
    pending: list[Item] = []
    pending_bytes = total = 0

    def close_shard() -> None:
        path = folder / f"{basename}-{len(shards) + 1:05d}.part"
        write_file(path, pending, metadata)
        where.update({name: len(shards) for name, _, _ in pending})
        shards.append(path)
        pending.clear()

    for name, dtype, array in items:
        if pending and pending_bytes + array.nbytes > max_shard_bytes:
            close_shard()
            pending_bytes = 0
        pending.append((name, dtype, array))
        pending_bytes += array.nbytes
        total += array.nbytes
    close_shard()
    if len(shards) == 1:
        final = folder / f"{basename}.safetensors"
        shards[0].rename(final)
        return [final]
    names = [f"{basename}-{index + 1:05d}-of-{len(shards):05d}.safetensors" for index in range(len(shards))]
    paths = [part.rename(folder / name) for part, name in zip(shards, names, strict=True)]
    index = folder / f"{basename}.safetensors.index.json"
    content = {
        "metadata": {"total_size": total},
        "weight_map": {name: names[shard] for name, shard in sorted(where.items())},
    }
    with index.open("w", encoding="utf-8") as file:
        file.write(json.dumps(content, indent=2) + "\n")
        sync(file)
    return [*paths, index]


def write_file(path: Path, items: list[Item], metadata: dict[str, str]) -> None:
    """Write one safetensors file, tensors in the given order, and make it durable."""
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    position = 0
    for name, dtype, array in items:
        header[name] = {
            "dtype": dtype,
            "shape": list(array.shape),
            "data_offsets": [position, position + array.nbytes],
        }
        position += array.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for name, dtype, array in items:
            expected = np.dtype(BITS[dtype])
            assert array.dtype.itemsize == expected.itemsize, f"{name}: {array.dtype} is not the bits of {dtype}"
            file.write(memoryview(np.ascontiguousarray(array).reshape(-1)).cast("B"))
        sync(file)


def sync(file: Any) -> None:
    """Make what was written to a file durable."""
    file.flush()
    os.fsync(file.fileno())


def _info(path: Path, entry: dict[str, Any], base: int) -> TensorInfo:
    start, stop = entry["data_offsets"]
    if entry["dtype"] not in BITS:
        raise CheckpointError(f"{path}: tensors of type {entry['dtype']} are not supported")
    shape = tuple(entry["shape"])
    if not all(isinstance(n, int) and n >= 0 for n in (*shape, start, stop)):
        raise ValueError("sizes and offsets must be whole numbers")
    return TensorInfo(entry["dtype"], shape, path, base + start, base + stop)


def _open_sharded(folder: Path, index: Path) -> TensorFolder:
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        files = sorted(set(weight_map.values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index} is no index of safetensors shards ({error!r})") from error
    infos: dict[str, TensorInfo] = {}
    metadata: dict[str, str] = {}
    for name in files:
        path = folder / name
        if Path(name).name != name or path.resolve().parent != folder.resolve():
            raise CheckpointError(f"{index}: {name!r} points outside the folder")
        if not path.exists():
            raise CheckpointError(f"{path} is missing, but {index.name} names it")
        found, metadata = read_header(path)
        infos.update(found)
    wrong = sorted(name for name, file in weight_map.items() if name not in infos or infos[name].file.name != file)
    wrong += sorted(set(infos) - set(weight_map))
    if wrong:
        raise CheckpointError(f"{index} and the shards disagree about {', '.join(wrong[:5])}")
    return TensorFolder(folder, infos, metadata)
