"""What one process of several writes of an adapter: its parts of the tensors that peft's files hold.

The files are those that one process would have written (`state.py`), so they are read by whoever reads
an adapter, and by a run under any other plan.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from erniekit.adapters.layers import Adapted
from erniekit.adapters.lora import Applied
from erniekit.adapters.state import EMBEDDING, HEAD, TYPES, is_tied, stored_matrices, stored_ranks
from erniekit.checkpoint.adapter_files import PREFIX

_SUFFIXES = {
    "lora_A": "lora_A.weight",
    "lora_B": "lora_B.weight",
    "lora_magnitude": "lora_magnitude_vector",
}
Index = tuple[Any, ...]


@dataclass(frozen=True)
class StoredPart:
    """A block of a file's tensor: raw bits `array`, the first of them at `start` of the whole one."""

    name: str
    word: str
    shape: tuple[int, ...]
    start: tuple[int, ...]
    array: np.ndarray


def stored_names(applied: Applied) -> list[str]:
    """Names that a file may hold, of the whole adapter, in their order there."""
    names = [
        f"{PREFIX}{piece.name}.{suffix}"
        for pieces in applied.pieces.values()
        for piece in pieces
        for suffix in _SUFFIXES.values()
    ]
    for name in applied.saved:
        names += [f"{PREFIX}{each.name}" for each in _matrices(applied, name)]
        if name == EMBEDDING and is_tied(applied.model):
            names.append(f"{PREFIX}{HEAD}")
    return names


def stored_parts(applied: Applied, placements: Mapping[str, Any]) -> Iterator[StoredPart]:
    """What this process is the one to save.

    Args:
        placements: what it holds of each parameter (`parallel/placement.py`).
    """
    for module, layer in applied.layers.items():
        for factor in _SUFFIXES:
            placement = placements.get(f"{module}.{factor}")
            if placement is None or not placement.counted:
                continue
            for offset, array in layer.stored_arrays(factor):
                for start, block in placement.give(array):
                    yield from _of_pieces(layer, factor, start, block, offset, stored_ranks(applied))
    parameters = dict(applied.model.named_parameters())
    for name in applied.saved:
        if name in placements and placements[name].counted:
            word, array = TYPES[parameters[name].dtype], parameters[name].numpy()
            for start, block in placements[name].give(array):
                yield from _of_whole(applied, name, word, start, block)


def _of_pieces(
    layer: Adapted, factor: str, start: tuple[int, ...], block: np.ndarray, offset: int, ranks: int
) -> Iterator[StoredPart]:
    """A block of a factor as parts of the tensors of its pieces; `offset` is its first rank there."""
    word = TYPES[getattr(layer, factor).dtype]
    whole, rank = layer.whole_shapes[factor], layer.rank * ranks
    for piece, in_a, in_b in layer.places():
        index = {"lora_A": in_a, "lora_B": in_b, "lora_magnitude": in_b[-1:]}[factor]
        found = _common(start, block, whole, index)
        if found is None:
            continue
        place, part = found
        name, width = f"{PREFIX}{piece.name}.{_SUFFIXES[factor]}", piece.stop - piece.start
        if factor == "lora_magnitude":
            yield StoredPart(name, word, (width,), place, part)
        elif factor == "lora_A":
            yield StoredPart(name, word, (rank, whole[-2]), (place[-1] + offset, place[-2]), part.T)
        else:
            yield StoredPart(name, word, (width, rank), (place[-1], place[-2] + offset), part.T)


def _of_whole(
    applied: Applied, name: str, word: str, start: tuple[int, ...], block: np.ndarray
) -> Iterator[StoredPart]:
    """A block of a parameter that is trained whole."""
    whole = applied.shapes[name]
    for each in _matrices(applied, name):
        lead: Index = () if each.expert is None else (each.expert,)
        rows: Index = (slice(None),) * (len(whole) - len(lead) - 1)
        found = _common(start, block, whole, (*lead, *rows, slice(each.start, each.stop)))
        if found is None:
            continue
        place, part = found
        if each.turned:
            place, part = place[::-1], part.T
        yield StoredPart(f"{PREFIX}{each.name}", word, each.shape, place, part)
        if name == EMBEDDING and is_tied(applied.model):
            yield StoredPart(f"{PREFIX}{HEAD}", word, each.shape, place, part)


def _matrices(applied: Applied, name: str) -> Sequence[Any]:
    return stored_matrices(applied.layout, name, applied.shapes[name])


def _common(
    start: Sequence[int], block: np.ndarray, whole: Sequence[int], index: Index
) -> tuple[tuple[int, ...], np.ndarray] | None:
    """Of a block at `start` what lies within an index of the whole: its place there, and its bits.

    Axes that the index takes one number of are left out, as by indexing.
    """
    windows: list[Any] = []
    place: list[int] = []
    for first, size, length, chosen in zip(start, block.shape, whole, index, strict=True):
        one = not isinstance(chosen, slice)
        low, high = (chosen, chosen + 1) if one else chosen.indices(length)[:2]
        begin, end = max(low, first), min(high, first + size)
        if begin >= end:
            return None
        windows.append(begin - first if one else slice(begin - first, end - first))
        if not one:
            place.append(begin - low)
    return tuple(place), block[tuple(windows)]
