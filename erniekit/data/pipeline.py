"""Data sets of samples, and the loader that feeds a run.

The order of an epoch, and how it is packed, follow from (seed, epoch, data, settings) alone.
Packing works on windows of `buffer_size` rows, each for itself, so any place of an epoch is
reached by preparing one window: resuming replays nothing.
"""

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from erniekit.data.formats import choose_format
from erniekit.data.mix import epoch_order, parse_shares
from erniekit.data.pack import Batch, BatchShape, Pack, collate, pack
from erniekit.data.reader import SampleReader
from erniekit.data.report import DataReport
from erniekit.data.rows import BadRow, Rows
from erniekit.data.sample import Sample
from erniekit.data.sources import open_rows
from erniekit.errors import ConfigError, DataError
from erniekit.log import logger

# Tokenised samples are kept in memory up to this many tokens (8 bytes each).
_CACHED_TOKENS = 64_000_000
_ROWS_TO_GUESS = 100


@dataclass
class DataSet:
    """One entry of a `..._dataset_path` list: its files as one sequence of rows, each file of one format."""

    name: str
    kinds: list[str]
    files: list[Rows]
    _starts: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self._starts = np.cumsum([0, *(len(rows) for rows in self.files)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def row(self, index: int) -> tuple[Any, str, str]:
        """A row, its `file:line`, and the format of its file."""
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        inside = index - int(self._starts[number])
        rows = self.files[number]
        return rows.row(inside), rows.origin(inside), self.kinds[number]


class SampleSet:
    """Data sets behind a reader: samples by (set, row), tokenised when first asked for."""

    def __init__(self, reader: SampleReader, sets: list[DataSet]) -> None:
        self.reader, self.sets = reader, sets
        self._cache: OrderedDict[tuple[int, int], list[Sample]] = OrderedDict()
        self._cached_tokens = 0

    @property
    def sizes(self) -> list[int]:
        """Rows of each set."""
        return [len(entry) for entry in self.sets]

    def samples(self, number: int, index: int, report: DataReport | None = None) -> list[Sample]:
        """Samples of a row; empty when it gives none. Raises DataError with `file:line`."""
        key = (number, index)
        if key in self._cache and report is None:
            return self._cache[key]
        row, origin, kind = self.sets[number].row(index)
        found = self.reader.read(kind, row, origin, report)
        size = sum(map(len, found))
        if self._cached_tokens + size <= _CACHED_TOKENS and key not in self._cache:
            self._cache[key] = found
            self._cached_tokens += size
        return found


class TrainSamples(SampleSet):
    """A training set with its order of epochs."""

    def __init__(
        self,
        reader: SampleReader,
        sets: list[DataSet],
        shares: list[float] | None,
        *,
        seed: int,
        mix_strategy: str,
        num_samples_each_epoch: int | None,
        random_shuffle: bool,
        max_estimate_samples: int,
    ) -> None:
        super().__init__(reader, sets)
        self._shares, self._seed, self._strategy = shares, seed, mix_strategy
        # Upstream's examples ask for six million draws an epoch; more rows than there are would only repeat.
        self._limit = min(num_samples_each_epoch, sum(self.sizes)) if num_samples_each_epoch else None
        self._shuffle, self.max_estimate_samples = random_shuffle, max_estimate_samples

    def order(self, epoch: int) -> np.ndarray:
        """Rows of an epoch, int64 [N, 2]."""
        return epoch_order(
            self.sizes,
            self._shares,
            mix_strategy=self._strategy,
            num_samples=self._limit,
            shuffle=self._shuffle,
            seed=self._seed,
            epoch=epoch,
        )

    def first_samples(self, count: int) -> list[Sample]:
        """The first samples of the first epoch."""
        found: list[Sample] = []
        for number, index in self.order(0):
            if len(found) >= count:
                break
            found += self.samples(int(number), int(index))
        return found[:count]

    @cached_property
    def report(self) -> DataReport:
        """Figures over the first epoch, up to `max_estimate_samples` rows.

        Raises:
            DataError: a row is bad (unless they are skipped), or no token at all is trained on.
        """
        report = DataReport()
        seen: set[tuple[int, int]] = set()
        for number, index in self.order(0)[: self.max_estimate_samples]:
            if (int(number), int(index)) not in seen:
                seen.add((int(number), int(index)))
                self.samples(int(number), int(index), report)
        if not report.trained_tokens:
            raise DataError("no token of the training data is trained on:\n  " + "\n  ".join(report.lines()))
        return report


def open_train_samples(
    reader: SampleReader,
    seed: int,
    *,
    train_dataset_path: str | None,
    train_dataset_type: str | None,
    train_dataset_prob: str | None,
    mix_strategy: str,
    num_samples_each_epoch: int | None,
    random_shuffle: bool,
    max_estimate_samples: int,
) -> TrainSamples:
    """The training set of a configuration; paths, types and shares may be comma lists.

    Raises:
        ConfigError: the lists do not fit each other.
        DataError: a file is missing, empty or of no known format.
    """
    if not train_dataset_path:
        raise ConfigError(
            "train_dataset_path is missing: name a file, a folder, a glob or a comma list of them"
        )
    sets = open_sets(train_dataset_path, train_dataset_type, reader.stage, "train")
    shares = parse_shares(train_dataset_prob, len(sets), "train_dataset_prob")
    return TrainSamples(
        reader,
        sets,
        shares,
        seed=seed,
        mix_strategy=mix_strategy,
        num_samples_each_epoch=num_samples_each_epoch,
        random_shuffle=random_shuffle,
        max_estimate_samples=max_estimate_samples,
    )


class EvalSamples(SampleSet):
    """A held-out set: every sample once, in the order of the files."""

    @cached_property
    def report(self) -> DataReport:
        """Figures over all rows."""
        report = DataReport()
        for number, size in enumerate(self.sizes):
            for index in range(size):
                self.samples(number, index, report)
        return report

    def all(self) -> Iterator[Sample]:
        """Every sample."""
        for number, size in enumerate(self.sizes):
            for index in range(size):
                yield from self.samples(number, index)


def open_eval_samples(
    reader: SampleReader,
    *,
    eval_dataset_path: str | None,
    eval_dataset_type: str | None,
    eval_dataset_prob: str | None,
) -> EvalSamples:
    """The held-out set of a configuration; shares have no meaning for it and are only checked."""
    if not eval_dataset_path:
        raise ConfigError(
            "eval_dataset_path is missing: name a file, a folder, a glob or a comma list of them"
        )
    sets = open_sets(eval_dataset_path, eval_dataset_type, reader.stage, "eval")
    shares = parse_shares(eval_dataset_prob, len(sets), "eval_dataset_prob")
    if shares is not None and len(set(shares)) > 1:
        logger.warning("eval_dataset_prob changes nothing: every held-out sample is evaluated once")
    return EvalSamples(reader, sets)


def open_sets(paths: str, kinds: str | None, stage: str, what: str) -> list[DataSet]:
    """The data sets of a comma list of paths and of types (one type may serve all)."""
    names = [part.strip() for part in paths.split(",") if part.strip()]
    if not names:
        raise ConfigError(f"{what}_dataset_path: {paths!r} names nothing; write a file, a folder or a glob")
    types: list[str | None] = [part.strip() for part in kinds.split(",")] if kinds else [None]
    if len(types) == 1:
        types = types * len(names)
    if len(types) != len(names):
        raise ConfigError(
            f"{what}_dataset_type has {len(types)} entries and {what}_dataset_path {len(names)}; "
            "write one each"
        )
    sets = []
    for name, kind in zip(names, types, strict=True):
        files = open_rows(name)
        sets.append(DataSet(name, [_format_of(rows, kind, stage, what) for rows in files], files))
    return sets


def _format_of(rows: Rows, kind: str | None, stage: str, what: str) -> str:
    """The format of a file, by what is named or by the first of its rows that is one."""
    place = next(
        (place for place in range(min(len(rows), _ROWS_TO_GUESS)) if isinstance(rows.row(place), Mapping)), 0
    )
    first = rows.row(place)
    if isinstance(first, BadRow) and kind is None and stage != "PT":
        raise DataError(f"{rows.origin(place)}: {first.reason}")
    key = f"{what}_dataset_type"
    return choose_format(kind, first, origin=rows.origin(place), stage=stage, key=key)


class Loader:
    """Global batches of a training set, for ever; an epoch ends with a batch of what is left.

    A step takes `per_device_train_batch_size * gradient_accumulation_steps` rows in their order;
    how they are cut into micro-batches changes nothing about which they are.
    """

    def __init__(
        self,
        samples: TrainSamples,
        shape: BatchShape,
        seed: int,
        *,
        max_seq_len: int,
        packing: bool,
        buffer_size: int,
        pad_to_max_seqlen: bool,
        dataloader_num_workers: int,
    ) -> None:
        self._samples, self._seed = samples, seed
        self._batch_size = shape.per_device_train_batch_size
        self._rows_per_step = self._batch_size * shape.gradient_accumulation_steps
        self._max_seq_len, self._packing, self._window_rows = max_seq_len, packing, buffer_size
        self._pad_to = max_seq_len if pad_to_max_seqlen else None
        self._pool = ThreadPoolExecutor(1, "loader") if dataloader_num_workers > 0 else None
        self._ahead: tuple[tuple[int, int], Future[list[Pack]]] | None = None
        self._epoch = self._window = self._position = 0
        # Replaced as a whole, never changed: the thread that works ahead may be in another epoch.
        self._orders: dict[int, np.ndarray] = {}
        self._packs_key, self._packs = (-1, -1), list[Pack]()

    @cached_property
    def steps_per_epoch(self) -> int:
        """Steps of the first epoch: exact up to `max_estimate_samples` rows, else extrapolated."""
        return max(1, -(-self._first_epoch[0] // self._rows_per_step))

    @property
    def fill_rate(self) -> float:
        """Share of the places of packed sequences that hold tokens, in the first epoch."""
        return self._first_epoch[1]

    @cached_property
    def _first_epoch(self) -> tuple[int, float]:
        """Sequences of the first epoch, and how full they are."""
        order = self._order_of(0)
        num_rows = min(len(order), self._samples.max_estimate_samples)
        windows = -(-num_rows // self._window_rows)
        num_packs = num_tokens = 0
        for window in range(windows):
            packs = self._prepare(0, window)
            num_packs += len(packs)
            num_tokens += sum(len(sample) for row in packs for sample in row)
        seen = min(len(order), windows * self._window_rows)
        whole = int(num_packs * len(order) / max(seen, 1))
        return whole, num_tokens / max(1, num_packs * self._max_seq_len)

    @property
    def epoch(self) -> float:
        """Epochs done, with the share of the present one."""
        order = self._order_of(self._epoch)
        windows = max(1, -(-len(order) // self._window_rows))
        inside = self._position / max(1, len(self._window_packs()))
        return self._epoch + (self._window + inside) / windows

    def next_step(self) -> list[Batch]:
        """The micro-batches of the next step."""
        rows: list[Pack] = []
        begun = self._epoch
        while len(rows) < self._rows_per_step:
            if self._epoch > begun + 1:
                raise DataError("a whole epoch has no sample with a trained token: there is nothing to train")
            packs = self._window_packs()
            taken = packs[self._position : self._position + self._rows_per_step - len(rows)]
            rows += taken
            self._position += len(taken)
            if self._position >= len(packs) and self._next_window() and rows:
                break
        pad_id = self._samples.reader.tokenizer.pad_id or 0
        size = self._batch_size
        return [
            collate(rows[start : start + size], pad_id=pad_id, pad_to=self._pad_to)
            for start in range(0, len(rows), size)
        ]

    def state_dict(self) -> dict[str, Any]:
        """Where the loader is, and of which data."""
        return {
            "epoch": self._epoch,
            "window": self._window,
            "position": self._position,
            "seed": self._seed,
            "rows": self._samples.sizes,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to where `state_dict` was taken.

        Raises:
            DataError: it was taken with another seed or with data of another size.
        """
        for key, ours in (("seed", self._seed), ("rows", self._samples.sizes)):
            if state.get(key, ours) != ours:
                raise DataError(
                    f"the run cannot go on where it was: its data had {key} {state[key]}, now it has {ours}; "
                    "restore the data, or start anew with resume_from_checkpoint: none"
                )
        self._epoch, self._window, self._position = state["epoch"], state["window"], state["position"]

    def close(self) -> None:
        """End the thread that works ahead."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def _next_window(self) -> bool:
        """Step to the next window; True when that began a new epoch."""
        before = self._epoch
        self._epoch, self._window = self._after(self._epoch, self._window)
        self._position = 0
        return self._epoch > before

    def _window_packs(self) -> list[Pack]:
        key = (self._epoch, self._window)
        if self._packs_key != key:
            ahead, self._ahead = self._ahead, None
            if ahead is not None and ahead[0] == key:
                self._packs = ahead[1].result()
            else:
                self._packs = self._prepare(*key)
            self._packs_key = key
            if self._pool is not None:
                following = self._after(*key)
                self._ahead = (following, self._pool.submit(self._prepare, *following))
        return self._packs

    def _after(self, epoch: int, window: int) -> tuple[int, int]:
        """The window after this one."""
        inside = (window + 1) * self._window_rows < len(self._order_of(epoch))
        return (epoch, window + 1) if inside else (epoch + 1, 0)

    def _order_of(self, epoch: int) -> np.ndarray:
        orders = self._orders
        if epoch not in orders:
            # The epoch before is kept, since the thread begins the next one while this one ends.
            kept = {number: order for number, order in orders.items() if number == epoch - 1}
            self._orders = orders = {**kept, epoch: self._samples.order(epoch)}
        return orders[epoch]

    def _prepare(self, epoch: int, window: int) -> list[Pack]:
        """The rows of one window, packed, in the order they are trained on."""
        start = window * self._window_rows
        rows = self._order_of(epoch)[start : start + self._window_rows]
        found = [
            sample for number, index in rows for sample in self._samples.samples(int(number), int(index))
        ]
        if self._packing:
            packs = pack(found, self._max_seq_len)
        else:
            packs = [(sample,) for sample in sorted(found, key=len)]
        rng = np.random.default_rng([self._seed, epoch, window])
        group = 1 if self._packing else self._rows_per_step
        groups = [packs[index : index + group] for index in range(0, len(packs), group)]
        return [row for number in rng.permutation(len(groups)) for row in groups[number]]


def build_loader(
    samples: TrainSamples,
    shape: BatchShape,
    seed: int,
    *,
    max_seq_len: int,
    packing: bool,
    buffer_size: int,
    pad_to_max_seqlen: bool,
    dataloader_num_workers: int,
) -> Loader:
    """The loader of a configuration."""
    return Loader(
        samples,
        shape,
        seed,
        max_seq_len=max_seq_len,
        packing=packing,
        buffer_size=buffer_size,
        pad_to_max_seqlen=pad_to_max_seqlen,
        dataloader_num_workers=dataloader_num_workers,
    )


def iterate_eval(
    samples: EvalSamples, shape: BatchShape, *, max_seq_len: int, packing: bool
) -> Iterator[Batch]:
    """Batches over a held-out set, every sample once, long rows first."""
    found = list(samples.all())
    if not found:
        raise DataError(
            "the held-out set has no sample with a trained token:\n  " + "\n  ".join(samples.report.lines())
        )
    packs: Sequence[Pack]
    packs = (
        pack(found, max_seq_len)
        if packing
        else [(sample,) for sample in sorted(found, key=len, reverse=True)]
    )
    pad_id = samples.reader.tokenizer.pad_id or 0
    size = shape.per_device_eval_batch_size
    for start in range(0, len(packs), size):
        yield collate(packs[start : start + size], pad_id=pad_id)
