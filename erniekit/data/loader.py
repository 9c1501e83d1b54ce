"""The loader that feeds a run.

Packing works on windows of `buffer_size` rows, each for itself and in an order that follows from
(seed, epoch, window), so any place of an epoch is reached by preparing one window: resuming
replays nothing.
"""

from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from typing import Any

import numpy as np

from erniekit.data.pack import Batch, BatchShape, Pack, collate, pack
from erniekit.data.sets import TrainSamples
from erniekit.errors import DataError


class Loader:
    """Global batches of a training set, for ever; an epoch ends with a batch of what is left.

    A step takes `per_device_train_batch_size * gradient_accumulation_steps * num_replicas` rows in their
    order; how they are cut into micro-batches changes nothing about which they are. Every process makes
    the micro-batches of all, whose columns `num_parts` of them can share.
    """

    def __init__(
        self,
        samples: TrainSamples,
        shape: BatchShape,
        seed: int,
        *,
        num_replicas: int = 1,
        num_parts: int = 1,
        max_seq_len: int,
        packing: bool,
        buffer_size: int,
        pad_to_max_seqlen: bool,
        dataloader_num_workers: int,
    ) -> None:
        self._samples, self._seed = samples, seed
        self._batch_size = shape.per_device_train_batch_size
        self.rows_per_step = self._batch_size * shape.gradient_accumulation_steps * num_replicas
        self._max_seq_len, self._packing, self._window_rows = max_seq_len, packing, buffer_size
        self._collation: dict[str, Any] = {
            "pad_id": samples.reader.tokenizer.pad_id or 0,
            "pad_to": max_seq_len if pad_to_max_seqlen else None,
            "vision": samples.reader.vision,
            "num_parts": num_parts,
        }
        self._pool = ThreadPoolExecutor(1, "loader") if dataloader_num_workers > 0 else None
        self._ahead: tuple[tuple[int, int], Future[list[Pack]]] | None = None
        self._epoch = self._window = self._position = 0
        # Replaced as a whole, never changed: the thread that works ahead may be in another epoch.
        self._orders: dict[int, np.ndarray] = {}
        self._packs_key, self._packs = (-1, -1), list[Pack]()

    @cached_property
    def steps_per_epoch(self) -> int:
        """Steps of the first epoch: exact up to `max_estimate_samples` rows, else extrapolated."""
        return max(1, -(-self._first_epoch[0] // self.rows_per_step))

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
        while len(rows) < self.rows_per_step:
            if self._epoch > begun + 1:
                raise DataError("a whole epoch has no sample with a trained token: there is nothing to train")
            packs = self._window_packs()
            taken = packs[self._position : self._position + self.rows_per_step - len(rows)]
            rows += taken
            self._position += len(taken)
            if self._position >= len(packs) and self._next_window() and rows:
                break
        size = self._batch_size
        return [collate(rows[start : start + size], **self._collation) for start in range(0, len(rows), size)]

    def state_dict(self) -> dict[str, Any]:
        """Where the loader is, and of which data."""
        return {
            "epoch": self._epoch,
            "window": self._window,
            "position": self._position,
            "rows_per_step": self.rows_per_step,
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
        group = 1 if self._packing else self.rows_per_step
        groups = [packs[index : index + group] for index in range(0, len(packs), group)]
        return [row for number in rng.permutation(len(groups)) for row in groups[number]]
