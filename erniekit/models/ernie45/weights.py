"""The bytes of ERNIE 4.5 weights from one layout to another; layouts.py says what lies where.

Everything here copies bits, a block of a source at a time, so a round trip gives the same bytes and a
tensor costs little more memory than itself. Which layout a folder is in follows from names and
shapes; config.json's dtype keys say nothing about it. No Paddle is needed.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
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
    paddle_name,
    plain_name,
    renamed,
    stored_in_memory,
    stored_pieces,
    stored_stacked,
    stored_tensors,
    stored_whole,
)
from erniekit.models.ernie45.moe_config import Ernie45MoeConfig
from erniekit.models.ernie45.plan import FUSED, stays_fp32

_BLOCK_BYTES = 1 << 20
# Last words of the names of plain weights.
_PLAIN = (".weight", ".bias", ".weight_1", ".e_score_correction_bias")

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
        for parameter in memory_shapes(self.config):
            if parameter in self.sources:
                yield parameter, self.dtype(parameter), self.parameter(parameter)

    def parameter(self, name: str) -> np.ndarray:
        """Raw bits of one parameter as it is in memory."""
        target = stored_in_memory(name, memory_shapes(self.config)[name])
        return self._build(target, self.dtype(name), None)

    def layout_items(
        self, layout: str, *, dtype: str | None = None, cast: Cast | None = None
    ) -> Iterator[Item]:
        """Every tensor as the files of `layout` hold it, straight from the source.

        Args:
            dtype: the format to write; None keeps each tensor's, and routers keep theirs in any case.
            cast: converts blocks of tensors; needed with `dtype`.
        """
        for target in stored_tensors(self.config, layout):
            wanted = self._written(target.parameter, dtype)
            yield target.name, wanted, self._build(target, wanted, cast)

    def layout_specs(self, layout: str, *, dtype: str | None = None) -> list[Spec]:
        """Name, dtype word and shape of every item of `layout_items`."""
        return [
            (target.name, self._written(target.parameter, dtype), target.shape)
            for target in stored_tensors(self.config, layout)
        ]

    def dtype(self, parameter: str) -> str:
        """The dtype word that a parameter is stored in."""
        return self.tensors.info(self.sources[parameter][0].name).dtype

    def _written(self, parameter: str, dtype: str | None) -> str:
        return self.dtype(parameter) if dtype is None or stays_fp32(parameter) else dtype

    def _build(self, target: Stored, dtype: str, cast: Cast | None) -> np.ndarray:
        array: np.ndarray = np.empty(target.shape, dtype=BITS[dtype])
        columns = array.T if target.turned else array
        for source, expert in self._sources(target):
            first, last = max(source.start, target.start), min(source.stop, target.stop)
            if first >= last:
                continue
            of_expert = columns if expert is None or target.expert is not None else columns[expert]
            region = of_expert[..., first - target.start : last - target.start]
            stacked = source.expert is None and expert is not None
            found = self._matrix(source, expert) if stacked else self._blocks(source, first, last)
            for part, block in found:
                has = self.dtype(target.parameter)
                if stacked:
                    block = block[..., first:last]
                if cast is not None and has != dtype:
                    block = cast(source.name, block, has, dtype)
                region[part] = block
        return array

    def _sources(self, target: Stored) -> Iterator[tuple[Stored, int | None]]:
        """The stored tensors behind a target, and of experts the one that is wanted of each."""
        for source in self.sources[target.parameter]:
            if source.expert is None and len(source.shape) == 3:
                experts: Iterable[int | None] = range(source.shape[0])
            else:
                experts = (source.expert,)
            for expert in experts:
                if target.expert is None or expert == target.expert:
                    yield source, expert

    def _matrix(self, source: Stored, expert: int | None) -> Iterator[tuple[tuple[slice, ...], np.ndarray]]:
        """One expert of a stacked tensor as [in, out]."""
        assert expert is not None
        matrix = self.tensors.read_rows(source.name, expert, expert + 1)[0]
        yield (slice(None), slice(None)), matrix.T if source.turned else matrix

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


def open_weights(folder: Path, config: Ernie45Config, elsewhere: Collection[str] = ()) -> Weights:
    """Open and check the weights of a folder; only headers are read (and a tied model's spare head).

    Args:
        elsewhere: parameters that are not stored in full, for somebody else to read; tensors that are no
            plain weights are then left to him.

    Raises:
        CheckpointError: tensors are missing, unexpected, of another shape, or of a type that is no
            plain floating-point one; lists them.
    """
    tensors = open_tensors(folder)
    layout = detect_layout(tensors, config)
    actual: dict[str, str] = {}
    for name in tensors.names():
        if elsewhere and not name.endswith(_PLAIN):
            continue
        if plain_name(name) in actual:
            raise CheckpointError(
                f"{folder}: {actual[plain_name(name)]} and {name} are the same tensor twice"
            )
        actual[plain_name(name)] = name
    expected = {
        parameter: tuple(_form(parameter, shape, config, actual, turned=layout == "hf"))
        for parameter, shape in memory_shapes(config).items()
        if parameter not in elsewhere
    }
    check_fit(tensors, config, layout, expected, actual)
    sources = {
        parameter: tuple(renamed(piece, actual[piece.name]) for piece in pieces)
        for parameter, pieces in expected.items()
    }
    return Weights(tensors, config, layout, sources)


def _form(
    parameter: str, shape: tuple[int, ...], config: Ernie45Config, actual: Mapping[str, str], *, turned: bool
) -> list[Stored]:
    """The stored tensors that a parameter is expected in: fused, in pieces or stacked, whichever is there."""
    whole = stored_whole(parameter, shape, config, turned=turned)
    pieces = stored_pieces(parameter, shape, config, turned=turned)
    stacked = stored_stacked(parameter, shape)
    for form in (whole, stacked):
        if form and form[0].name in actual:
            return form
    return pieces or whole


def load_weights(folder: Path, config: Ernie45Config, elsewhere: Collection[str] = ()) -> Iterator[Item]:
    """Every parameter (name, dtype word, raw bits) in memory layout, in the order of the model.

    Args:
        elsewhere: parameters that are left out, as of `open_weights`.

    Raises:
        CheckpointError: as `open_weights`, and before anything is yielded.
    """
    return open_weights(folder, config, elsewhere).memory_items()


def matrix_names(
    parameter: str, shape: tuple[int, ...], config: Ernie45Config
) -> list[tuple[str, int | None]]:
    """What a parameter's whole matrices are called in Paddle's files (without `.weight`), with the expert."""
    stored = stored_whole(parameter, shape, config, turned=False)
    return [(paddle_name(each.name).removesuffix(".weight"), each.expert) for each in stored]


def save_layout(items: Iterable[Item], layout: str, config: Ernie45Config) -> Iterator[Item]:
    """Tensors in memory layout as they are stored in files of a layout, one by one."""
    targets = stored_by_parameter(config, layout)
    for name, dtype, array in items:
        for stored, _, part in parts_in_files((0,) * array.ndim, array, targets[name]):
            yield stored, dtype, np.ascontiguousarray(part)
        del array


def stored_by_parameter(config: Ernie45Config, layout: str) -> dict[str, list[Stored]]:
    """The tensors of a layout's files that each parameter becomes."""
    targets: dict[str, list[Stored]] = {}
    for target in stored_tensors(config, layout):
        targets.setdefault(target.parameter, []).append(target)
    return targets


def parts_in_files(
    start: tuple[int, ...], array: np.ndarray, targets: Iterable[Stored]
) -> Iterator[tuple[str, tuple[int, ...], np.ndarray]]:
    """Where a block of a parameter in memory lies in the files: name, start there, and its bits.

    Args:
        start: the block's first number in the whole parameter.
        targets: the stored tensors of the parameter, of one layout.
    """
    for target in targets:
        block, begin = array, start
        if target.expert is not None:
            expert = target.expert - start[0]
            if not 0 <= expert < array.shape[0]:
                continue
            block, begin = array[expert], start[1:]
        first, last = max(target.start, begin[-1]), min(target.stop, begin[-1] + array.shape[-1])
        if first >= last:
            continue
        block = block[..., first - begin[-1] : last - begin[-1]]
        place = (*begin[:-1], first - target.start)
        yield target.name, place[::-1] if target.turned else place, block.T if target.turned else block


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
    turned = {t.name: t.shape for t in stored_tensors(config, "hf")}
    tellers: dict[str, str] = {}
    for name in names:
        shape, expected = tensors.info(name).shape, turned.get(plain_name(name), ())
        if len(shape) == 2 and shape[0] != shape[1] and shape in (expected, expected[::-1]):
            if _tells(name, config):
                tellers.setdefault("hf" if shape == expected else "paddle", name)
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
        f"{tensors.folder}: these are no weights of an ERNIE 4.5 {_kind(config)} model; its tensors: {listed}"
    )


def _tells(name: str, config: Ernie45Config) -> bool:
    """Whether a matrix is stored in another way in each layout."""
    return stored_whole(plain_name(name), (1, 2), config, turned=True)[0].turned


def _kind(config: Ernie45Config) -> str:
    return "mixture-of-experts" if isinstance(config, Ernie45MoeConfig) else "dense"
