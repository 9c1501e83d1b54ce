"""The bytes of ERNIE 4.5 dense weights from one layout to another; layouts.py says what lies where.

Everything here copies bits, a block of a source at a time, so a round trip gives the same bytes and a
tensor costs little more memory than itself. Which layout a folder is in follows from names and
shapes; config.json's dtype keys say nothing about it. No Paddle is needed.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from erniekit.checkpoint.files import Item, TensorFolder, open_tensors
from erniekit.checkpoint.header import BITS, Spec, num_bytes
from erniekit.errors import CheckpointError
from erniekit.models.ernie45.config import Ernie45Config
from erniekit.models.ernie45.fit import check_fit
from erniekit.models.ernie45.layouts import (
    Stored,
    memory_shapes,
    plain_name,
    stored_pieces,
    stored_tensors,
    stored_whole,
)
from erniekit.models.ernie45.plan import FUSED, HEAD

_BLOCK_BYTES = 1 << 20

# (name, array, dtype word it has, dtype word it shall have) -> array
Cast = Callable[[str, np.ndarray, str, str], np.ndarray]


@dataclass(frozen=True)
class Weights:
    """The checked weights of a folder: its layout, and the stored tensors behind each parameter."""

    tensors: TensorFolder
    config: Ernie45Config
    layout: str
    sources: Mapping[str, tuple[Stored, ...]]

    def memory_items(self) -> Iterator[Item]:
        """Every parameter (name, dtype word, raw bits) as it is in memory, in the order of the model."""
        for parameter, shape in memory_shapes(self.config).items():
            target = stored_whole(parameter, shape, name=parameter, turned=False)
            yield parameter, self.dtype(parameter), self._build(target, self.dtype(parameter), None)

    def layout_items(
        self, layout: str, *, dtype: str | None = None, cast: Cast | None = None
    ) -> Iterator[Item]:
        """Every tensor as the files of `layout` hold it, straight from the source.

        Args:
            dtype: the format to write; None keeps each tensor's.
            cast: converts blocks of tensors; needed with `dtype`.
        """
        for target in stored_tensors(self.config, layout):
            wanted = dtype or self.dtype(target.parameter)
            yield target.name, wanted, self._build(target, wanted, cast)

    def layout_specs(self, layout: str, *, dtype: str | None = None) -> list[Spec]:
        """Name, dtype word and shape of every item of `layout_items`."""
        return [
            (target.name, dtype or self.dtype(target.parameter), target.shape)
            for target in stored_tensors(self.config, layout)
        ]

    def dtype(self, parameter: str) -> str:
        """The dtype word that a parameter is stored in."""
        return self.tensors.info(self.sources[parameter][0].name).dtype

    def _build(self, target: Stored, dtype: str, cast: Cast | None) -> np.ndarray:
        array: np.ndarray = np.empty(target.shape, dtype=BITS[dtype])
        columns = array.T if target.turned else array
        for source in self.sources[target.parameter]:
            first, last = max(source.start, target.start), min(source.stop, target.stop)
            if first >= last:
                continue
            region = columns[..., first - target.start : last - target.start]
            for part, block in self._blocks(source, first, last):
                found = self.dtype(target.parameter)
                if cast is not None and found != dtype:
                    block = cast(source.name, block, found, dtype)
                region[part] = block
        return array

    def _blocks(
        self, source: Stored, first: int, last: int
    ) -> Iterator[tuple[tuple[slice, ...], np.ndarray]]:
        """The columns [first, last) of a parameter in blocks, each with its place among them."""
        info = self.tensors.info(source.name)
        first, last = first - source.start, last - source.start
        begin, end = (0, info.shape[0])
        if source.turned or len(info.shape) == 1:
            begin, end = first, last  # rows of the file are columns of the parameter
        rows = max(1, _BLOCK_BYTES // max(1, num_bytes(info.dtype, info.shape[1:])))
        for start in range(begin, end, rows):
            stop = min(start + rows, end)
            block = self.tensors.read_rows(source.name, start, stop)
            if source.turned:
                yield (slice(None), slice(start - begin, stop - begin)), block.T
            elif block.ndim == 1:
                yield (slice(start - begin, stop - begin),), block
            else:
                yield (slice(start, stop), slice(None)), block[:, first:last]


def open_weights(folder: Path, config: Ernie45Config) -> Weights:
    """Open and check the weights of a folder; only headers are read (and a tied model's spare head).

    Raises:
        CheckpointError: tensors are missing, unexpected, of another shape, or of a type that is no
            plain floating-point one; lists them.
    """
    tensors = open_tensors(folder)
    layout = detect_layout(tensors, config)
    actual: dict[str, str] = {}
    for name in tensors.names():
        if plain_name(name) in actual:
            raise CheckpointError(
                f"{folder}: {actual[plain_name(name)]} and {name} are the same tensor twice"
            )
        actual[plain_name(name)] = name
    expected: dict[str, tuple[Stored, ...]] = {}
    for parameter, shape in memory_shapes(config).items():
        turned = layout == "hf"
        pieces = () if parameter in actual else stored_pieces(parameter, shape, config, turned=turned)
        expected[parameter] = tuple(pieces) or (
            stored_whole(parameter, shape, name=parameter, turned=turned),
        )
    check_fit(tensors, config, layout, expected, actual)
    sources = {
        parameter: tuple(
            Stored(actual[piece.name], parameter, piece.start, piece.stop, piece.shape, piece.turned)
            for piece in pieces
        )
        for parameter, pieces in expected.items()
    }
    return Weights(tensors, config, layout, sources)


def load_weights(folder: Path, config: Ernie45Config) -> Iterator[Item]:
    """Every parameter (name, dtype word, raw bits) in memory layout, in the order of the model.

    Raises:
        CheckpointError: as `open_weights`, and before anything is yielded.
    """
    return open_weights(folder, config).memory_items()


def save_layout(items: Iterable[Item], layout: str, config: Ernie45Config) -> Iterator[Item]:
    """Tensors in memory layout as they are stored in files of a layout, one by one."""
    targets: dict[str, list[Stored]] = {}
    for target in stored_tensors(config, layout):
        targets.setdefault(target.parameter, []).append(target)
    for name, dtype, array in items:
        for target in targets[name]:
            part = array[..., target.start : target.stop]
            yield target.name, dtype, np.ascontiguousarray(part.T if target.turned else part)
        del array


def layout_specs(config: Ernie45Config, layout: str, dtypes: Mapping[str, str]) -> list[Spec]:
    """Name, dtype word and shape of every item of `save_layout`; `dtypes` maps parameter to dtype word."""
    return [
        (target.name, dtypes[target.parameter], target.shape) for target in stored_tensors(config, layout)
    ]


def detect_layout(tensors: TensorFolder, config: Ernie45Config) -> str:
    """`hf` or `paddle`, from names and shapes alone.

    Fused names exist in Paddle's layout only. With split names every linear weight that is not
    square tells: [in, out] is Paddle's, [out, in] Hugging Face's. When all are square, the prefix
    `ernie.` is Paddle's.

    Raises:
        CheckpointError: no tensor tells, or they contradict each other.
    """
    names = tensors.names()
    if any(f".{fused}." in name for name in names for fused in FUSED):
        return "paddle"
    sizes = _linear_sizes(config)
    tellers: dict[str, str] = {}
    for name in names:
        linear = name.removesuffix(".weight").rpartition(".")[2]
        if not name.endswith(".weight") or linear not in sizes:
            continue
        inputs, outputs = sizes[linear]
        shape = tensors.info(name).shape
        if inputs != outputs and shape in ((inputs, outputs), (outputs, inputs)):
            tellers.setdefault("paddle" if shape == (inputs, outputs) else "hf", name)
    if len(tellers) == 2:
        raise CheckpointError(
            f"{tensors.folder}: {tellers['hf']} is stored [out, in] and {tellers['paddle']} [in, out]; "
            "the folder mixes two layouts, or its tensors are of another model than its config.json"
        )
    if tellers:
        return next(iter(tellers))
    if any(name.startswith("ernie.") for name in names):
        return "paddle"
    if any(name.startswith("model.layers.") for name in names):
        return "hf"
    listed = ", ".join(names[:3]) or "there are none"
    raise CheckpointError(
        f"{tensors.folder}: these are no weights of an ERNIE 4.5 dense model; its tensors: {listed}"
    )


def _linear_sizes(config: Ernie45Config) -> dict[str, tuple[int, int]]:
    """Last word of a linear's name -> (inputs, outputs)."""
    hidden, query = config.hidden_size, config.num_attention_heads * config.head_dim
    sizes = {"o_proj": (query, hidden), "down_proj": (config.intermediate_size, hidden)}
    for fused, pieces in FUSED.items():
        stored = stored_pieces(f".{fused}.weight", (hidden, 0), config, turned=False)
        sizes |= {piece: (hidden, part.stop - part.start) for piece, part in zip(pieces, stored, strict=True)}
    return sizes | {HEAD: (hidden, config.vocab_size)}
