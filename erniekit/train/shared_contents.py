"""What a process of several writes into a checkpoint, and reads out of one: its parts of whole tensors.

The files are those of one process, whatever the plan (`checkpoint/crew.py`), so a run goes on under any
other plan, and whoever reads a model folder reads this one.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from erniekit.checkpoint.adapter_files import PEFT_BASENAME
from erniekit.checkpoint.crew import SharedTensors
from erniekit.checkpoint.header import TensorInfo
from erniekit.checkpoint.raw import to_raw, word_of
from erniekit.checkpoint.shared_files import Part
from erniekit.models.registry import load_family
from erniekit.parallel.placement import whole
from erniekit.train.team import Team

COUNT = "num_updates"


def model_tensors(model: Any, config: Any, team: Team) -> SharedTensors:
    """The weights in Hugging Face's layout: what this process is the one to save."""
    weights = load_family(config).weights
    placements, own = team.placements(), team.kept(dict(model.named_parameters()))
    targets = weights.stored_by_parameter(config, "hf")
    places = {
        stored.name: place
        for place, stored in enumerate(stored for group in targets.values() for stored in group)
    }
    specs = [
        (places[stored.name], (stored.name, word_of(parameter), stored.shape))
        for name, parameter in own.items()
        for stored in targets[name]
    ]

    def parts() -> Iterator[Part]:
        for name, parameter in own.items():
            for start, block in placements[name].give(to_raw(parameter)[1]):
                for stored, place, array in weights.parts_in_files(start, block, targets[name]):
                    yield Part(stored, place, array)

    return SharedTensors("model", {"format": "pt"}, specs, parts)


def adapter_tensors(applied: Any, team: Team) -> SharedTensors:
    """The adapter as peft's files hold it: what this process is the one to save."""
    from erniekit.adapters.shared_state import stored_names, stored_parts

    spread = team.spread
    assert spread is not None
    places = {name: place for place, name in enumerate(stored_names(applied))}

    def parts() -> Iterator[Part]:
        for part in stored_parts(applied, spread.placements):
            yield Part(part.name, part.start, part.array)

    found = {part.name: (part.word, part.shape) for part in stored_parts(applied, spread.placements)}
    specs = [(places[name], (name, *what)) for name, what in found.items()]
    return SharedTensors(PEFT_BASENAME, {"format": "pt"}, specs, parts)


def optimizer_tensors(optimizer: Any, names: Iterable[str], team: Team) -> SharedTensors:
    """The state of the optimizer: what this process is the one to save.

    Args:
        names: of all parameters of the whole model, in its order.
    """
    placements = team.placements()
    order = {name: place for place, name in enumerate(names)}
    kinds: dict[str, int] = {}

    def own() -> Iterator[tuple[int, str, str, Any, np.ndarray]]:
        for stored, word, array in optimizer.state_items():
            if stored == COUNT:
                if team.is_first:
                    yield -1, stored, word, _WHOLE_COUNT, array
                continue
            kind, _, name = stored.partition(".")
            if team.counts(name):
                place = kinds.setdefault(kind, len(kinds)) * len(order) + order[name]
                yield place, stored, word, placements[name], array

    specs = [(place, (stored, word, placed.shape)) for place, stored, word, placed, _ in own()]

    def parts() -> Iterator[Part]:
        for _, stored, _, placed, array in own():
            for start, block in placed.give(array):
                yield Part(stored, start, block)

    return SharedTensors("optimizer", {}, specs, parts)


class PlacedTensors:
    """The tensors of an optimizer's state as this process holds them, of files that hold the whole ones."""

    def __init__(self, tensors: Any, placements: Mapping[str, Any], held: frozenset[str]) -> None:
        self.folder = tensors.folder
        self._tensors, self._placements, self._held = tensors, placements, held

    def names(self) -> list[str]:
        """Those of the parameters that this process updates."""
        return [name for name in self._tensors.names() if name == COUNT or _parameter(name) in self._held]

    def info(self, name: str) -> TensorInfo:
        """As of the whole tensor, with the shape of the part."""
        found = self._tensors.info(name)
        if name == COUNT:
            return found
        shape = self._placements[_parameter(name)].part_shape
        return TensorInfo(found.dtype, shape, found.file, found.start, found.stop)

    def read(self, name: str) -> np.ndarray:
        """Raw bits of the part."""
        array = self._tensors.read(name)
        return array if name == COUNT else self._placements[_parameter(name)].take(array)


def _parameter(stored: str) -> str:
    return stored.partition(".")[2]


_WHOLE_COUNT = whole([1])
