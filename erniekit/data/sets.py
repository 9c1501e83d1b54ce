"""Data sets of samples: which rows there are, in which order an epoch takes them, what they turn into.

The order of an epoch follows from (seed, epoch, sizes, settings) alone. Rows are tokenised when
they are first asked for, and kept up to a budget.
"""

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from erniekit.data.mix import epoch_order
from erniekit.data.reader import SampleReader
from erniekit.data.report import DataReport
from erniekit.data.rows import Rows
from erniekit.data.sample import Sample
from erniekit.errors import DataError

# Tokenised samples are kept in memory up to this many tokens (8 bytes each).
_CACHED_TOKENS = 64_000_000


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
