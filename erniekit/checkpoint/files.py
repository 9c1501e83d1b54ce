"""Safetensors folders by raw bits: what is read is what was written, whatever the framework.

numpy has no bfloat16 or float8, so tensors travel as (dtype word, array of the bits): BF16 as
uint16, F8 as uint8. A folder holds one `model.safetensors`, or shards and an index. Reading takes
one tensor, or some of its rows, at a time. Writing holds one tensor at a time when it is told
beforehand what is to come, else one shard.

A folder may come from anywhere: what an index names must lie inside the folder, headers are
checked against the files (see header.py), and formats that can run code when read are refused.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from erniekit.checkpoint.header import BITS, Spec, TensorInfo, num_bytes, read_header, write_header
from erniekit.errors import CheckpointError
from erniekit.log import logger

_REFUSED = (".bin", ".pt", ".pth", ".pdparams", ".pdopt", ".ckpt", ".pkl", ".npz")
_LISTED = 5

Item = tuple[str, str, np.ndarray]


class TensorFolder:
    """The tensors of a folder; nothing is read before it is asked for."""

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

    def files(self) -> list[Path]:
        """The files that hold the tensors."""
        return sorted({info.file for info in self._infos.values()})

    def read(self, name: str) -> np.ndarray:
        """The raw bits of a tensor, a copy."""
        info = self.info(name)
        return self._read(name, info.start, info.shape)

    def read_rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """The raw bits of the rows [start, stop) of a tensor, a copy; no other row is read."""
        info = self.info(name)
        assert 0 <= start <= stop <= info.shape[0], (name, start, stop, info.shape)
        row = num_bytes(info.dtype, info.shape[1:])
        return self._read(name, info.start + start * row, (stop - start, *info.shape[1:]))

    def items(self) -> Iterator[Item]:
        """Every tensor in turn."""
        for name, info in self._infos.items():
            yield name, info.dtype, self.read(name)

    def specs(self) -> list[Spec]:
        """Name, dtype word and shape of every tensor, in the order of `items`."""
        return [(name, info.dtype, info.shape) for name, info in self._infos.items()]

    def _read(self, name: str, start: int, shape: tuple[int, ...]) -> np.ndarray:
        info = self._infos[name]
        array: np.ndarray = np.empty(shape, dtype=BITS[info.dtype])
        try:
            with info.file.open("rb", buffering=0) as file:
                file.seek(start)
                _fill(file, array)
        except EOFError as error:
            raise CheckpointError(
                f"{info.file} is truncated: {name} ends beyond the end of the file"
            ) from error
        except OSError as error:
            raise CheckpointError(f"{info.file} cannot be read: {error.strerror or error}") from error
        return array


def open_tensors(folder: Path, basename: str = "model") -> TensorFolder:
    """Open the safetensors of a folder: `<basename>.safetensors`, or its shards by the index.

    Raises:
        CheckpointError: nothing is there, a file is damaged, or the index is wrong; names the file.
    """
    folder = Path(folder)
    single, index = folder / f"{basename}.safetensors", folder / f"{basename}.safetensors.index.json"
    if single.exists():
        if index.exists():
            # transformers chooses alike, so that both load the same model from such a folder.
            logger.warning(f"{folder} holds {single.name} and {index.name}; the single file is read")
        infos, metadata = read_header(single)
        return TensorFolder(folder, infos, metadata)
    if index.exists():
        return _open_sharded(folder, index)
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder" if folder.exists() else f"{folder} does not exist")
    others = sorted(path.name for path in folder.iterdir() if path.suffix in _REFUSED)
    if others:
        raise CheckpointError(
            f"{folder} holds no safetensors but {', '.join(others[:3])}: these formats can run code when "
            "read and are refused; convert them to safetensors first"
        )
    raise CheckpointError(f"{folder}: neither {single.name} nor {index.name} is there")


def write_tensors(
    folder: Path,
    items: Iterable[Item],
    *,
    max_shard_bytes: int,
    metadata: dict[str, str],
    basename: str = "model",
    specs: Sequence[Spec] | None = None,
) -> list[Path]:
    """Write tensors as they come; starts a new shard before one would exceed `max_shard_bytes`.

    The bytes depend on nothing but the arguments, and are the same with and without `specs`. Files
    are durable when this returns. A tensor larger than the limit gets a shard of its own.

    Args:
        max_shard_bytes: of the tensors; the header comes on top.
        specs: name, dtype and shape of every item in their order, when they are known beforehand:
            then one tensor is held at a time, otherwise those of one shard and the next tensor.

    Returns:
        The files, the index last when there is more than one shard.
    """
    groups = (
        _planned(specs, items, max_shard_bytes) if specs is not None else _gathered(items, max_shard_bytes)
    )
    parts: list[Path] = []
    where: dict[str, int] = {}
    total = 0
    for shard_specs, shard_items in groups:
        part = folder / f"{basename}-{len(parts) + 1:05d}.part"
        write_file(part, shard_items, metadata, specs=shard_specs)
        for name, dtype, shape in shard_specs:
            assert name not in where, f"{name} is written twice"
            where[name] = len(parts)
            total += num_bytes(dtype, shape)
        parts.append(part)
    return _name_shards(folder, basename, parts, where, total)


def write_file(
    path: Path, items: Iterable[Item], metadata: dict[str, str], *, specs: Sequence[Spec] | None = None
) -> None:
    """Write one safetensors file and make it durable; `specs` as for `write_tensors`."""
    if specs is None:
        items = list(items)
        specs = [(name, dtype, array.shape) for name, dtype, array in items]
    first, offsets = write_header(specs, metadata)
    stream = iter(items)
    with path.open("wb") as file:
        file.write(first)
        for spec, offset in zip(specs, offsets, strict=True):
            array = _next_array(stream, spec)
            file.seek(offset)
            file.write(array.reshape(-1).view(np.uint8).data)
            del array  # before the next one is made
        sync(file)


def sync(file: Any) -> None:
    """Make what was written to a file durable."""
    file.flush()
    os.fsync(file.fileno())


def _next_array(stream: Iterator[Item], spec: Spec) -> np.ndarray:
    item = next(stream, None)
    assert item is not None, f"{spec} was announced, nothing came"
    name, dtype, array = item
    assert spec == (name, dtype, array.shape), f"{spec} was announced, {name} {dtype} {array.shape} came"
    assert array.dtype.itemsize == np.dtype(BITS[dtype]).itemsize, f"{name}: {array.dtype} for {dtype}"
    return np.ascontiguousarray(array)


def _fill(file: IO[bytes], array: np.ndarray) -> None:
    """Read exactly the bytes of an array; raises EOFError when the file ends before."""
    view = array.reshape(-1).view(np.uint8).data
    while len(view):
        # A single read stops at 2 GiB on Linux.
        count = file.readinto(view)  # type: ignore[attr-defined]
        if not count:
            raise EOFError
        view = view[count:]


def _planned(
    specs: Sequence[Spec], items: Iterable[Item], max_shard_bytes: int
) -> Iterator[tuple[list[Spec], Iterator[Item]]]:
    """Shards by their specs; each takes its items from the stream while it is written."""
    stream = iter(items)
    for shard in shards_of(specs, max_shard_bytes):
        yield shard, _take(stream, len(shard))
    rest = next(stream, None)
    assert rest is None, f"{rest and rest[0]} was not announced"


def shards_of(specs: Sequence[Spec], max_shard_bytes: int) -> Iterator[list[Spec]]:
    """Which tensors, in their order, make a file; one at least, be there no tensor at all."""
    shard: list[Spec] = []
    size = 0
    for spec in specs:
        needed = num_bytes(spec[1], spec[2])
        if shard and size + needed > max_shard_bytes:
            yield shard
            shard, size = [], 0
        shard.append(spec)
        size += needed
    yield shard


def shard_name(basename: str, number: int, count: int) -> str:
    """Name of the file of a shard, counted from 0."""
    if count == 1:
        return f"{basename}.safetensors"
    return f"{basename}-{number + 1:05d}-of-{count:05d}.safetensors"


def index_text(where: Mapping[str, str], total_bytes: int) -> str:
    """Content of the index: the file of each tensor."""
    content = {"metadata": {"total_size": total_bytes}, "weight_map": dict(sorted(where.items()))}
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def _take(stream: Iterator[Item], count: int) -> Iterator[Item]:
    for _ in range(count):
        item = next(stream, None)
        if item is None:
            return
        yield item
        del item


def _gathered(items: Iterable[Item], max_shard_bytes: int) -> Iterator[tuple[list[Spec], Iterator[Item]]]:
    """Shards of a stream of unknown content: its items are held until the shard is full."""
    shard: list[Item] = []
    size = 0
    for item in items:
        needed = item[2].nbytes
        if shard and size + needed > max_shard_bytes:
            yield _specs(shard), _drain(shard)
            shard, size = [], 0
        shard.append(item)
        size += needed
    yield _specs(shard), _drain(shard)


def _specs(items: Iterable[Item]) -> list[Spec]:
    return [(name, dtype, array.shape) for name, dtype, array in items]


def _drain(shard: list[Item]) -> Iterator[Item]:
    shard.reverse()
    while shard:
        yield shard.pop()


def _name_shards(
    folder: Path, basename: str, parts: list[Path], where: dict[str, int], total: int
) -> list[Path]:
    """Give the parts their final names, and write the index when there are several."""
    names = [shard_name(basename, number, len(parts)) for number in range(len(parts))]
    paths = [part.rename(folder / name) for part, name in zip(parts, names, strict=True)]
    if len(parts) == 1:
        return paths
    index = folder / f"{basename}.safetensors.index.json"
    with index.open("w", encoding="utf-8") as file:
        file.write(index_text({name: names[shard] for name, shard in where.items()}, total))
        sync(file)
    return [*paths, index]


def _open_sharded(folder: Path, index: Path) -> TensorFolder:
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        files = sorted(set(weight_map.values()))
        if not all(isinstance(name, str) for name in files):
            raise TypeError("weight_map names something else than files")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{index} is no index of safetensors shards ({error!r})") from error
    infos: dict[str, TensorInfo] = {}
    metadata: dict[str, str] = {}
    for name in files:
        path = _inside(folder, name, index)
        found, metadata = read_header(path)
        twice = sorted(set(found) & set(infos))
        if twice:
            raise CheckpointError(f"{path}: {twice[0]} is also in {infos[twice[0]].file.name}")
        infos.update(found)
    wrong = sorted(
        name for name, file in weight_map.items() if name not in infos or infos[name].file.name != file
    )
    wrong += sorted(set(infos) - set(weight_map))
    if wrong:
        more = f" and {len(wrong) - _LISTED} more" if len(wrong) > _LISTED else ""
        raise CheckpointError(f"{index} and the shards disagree about {', '.join(wrong[:_LISTED])}{more}")
    return TensorFolder(folder, infos, metadata)


def _inside(folder: Path, name: str, index: Path) -> Path:
    """The path of a shard; an index may name files of its own folder only, also through links."""
    path = folder / name
    if name in ("", ".", "..") or "/" in name or "\\" in name or not name.endswith(".safetensors"):
        raise CheckpointError(
            f"{index}: {name!r} is refused: an index may only name safetensors files beside it"
        )
    if not path.exists():
        raise CheckpointError(f"{path} is missing, but {index.name} names it")
    allowed = {folder.resolve()}
    if folder.resolve().parent.name == "snapshots":
        # The cache of huggingface_hub: snapshots/<commit>/<file> is a link to blobs/<hash>.
        allowed.add(folder.resolve().parents[1] / "blobs")
    if path.resolve().parent not in allowed:
        raise CheckpointError(f"{path} is a link to {path.resolve()}, outside the folder, and is refused")
    return path
