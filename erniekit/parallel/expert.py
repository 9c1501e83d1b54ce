"""Expert parallelism: the experts of a layer are spread over the processes of a group.

The dispatcher of `nn/moe.py`, between router and experts, becomes one that sends. Tokens are sorted by
expert once; the rows for the experts of each process go there in one all-to-all with unequal splits,
are sorted there by expert, computed as one grouped product, and come back the way they went. Nothing is
dropped for it, and no expert is asked for alone: what a process has to know about the others' rows are
the counts of their experts, exchanged once a layer. Shared experts are computed while the rows travel.

Where experts compute in few bits rows travel there as bytes (`packing`); results and gradients never do.

Process r of n has the experts r E/n to (r + 1) E/n of every modality, so both stay spread evenly.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import paddle
from paddle.autograd import PyLayer

from erniekit.errors import ConfigError
from erniekit.nn.moe import MixtureOfExperts, Packing
from erniekit.ops.moe import (
    Routing,
    SortedSlots,
    combine_rows,
    dispatch_rows,
    sort_slots,
)
from erniekit.parallel import comm
from erniekit.parallel.differentiable import copy_to, reduce_from
from erniekit.parallel.parts import find, narrow, narrow_along
from erniekit.parallel.placement import Placement
from erniekit.parallel.worker import Task, Worker


@dataclass(frozen=True)
class _Sent:
    """What brings results back: the slots here, how the received rows are sorted, and the counts.

    Nothing in it is a list, which recomputation takes for one that is added to.
    """

    slots: SortedSlots
    arrived: SortedSlots
    send_counts: tuple[int, ...]
    recv_counts: tuple[int, ...]


class Trip:
    """Rows to other processes, and their gradients back in the backward pass, while something else runs."""

    def __init__(
        self,
        worker: Worker,
        group: comm.Group,
        send_counts: Sequence[int],
        recv_counts: Sequence[int],
        packing: Packing | None = None,
    ) -> None:
        self._worker, self._group, self.packing = worker, group, packing
        self.send_counts, self.recv_counts = send_counts, recv_counts
        self._task: Task | None = None

    def start(self, x_MH: paddle.Tensor) -> paddle.Tensor:
        """Send rows; returns what `arrive` takes, which has no numbers yet."""
        return _Start.apply(x_MH, self)

    def arrive(self, travelling_MH: paddle.Tensor) -> paddle.Tensor:
        """The rows from all processes."""
        return _Arrive.apply(travelling_MH, self)

    def send(self, rows_MH: paddle.Tensor, *, back: bool = False) -> None:
        """Hand rows, or gradients, to the worker."""
        counts = (self.recv_counts, self.send_counts) if back else (self.send_counts, self.recv_counts)
        self._task = self._worker.submit(lambda: comm.all_to_all(rows_MH, *counts, self._group))

    def take(self) -> paddle.Tensor:
        """What has come."""
        task, self._task = self._task, None
        assert task is not None, "nothing was sent"
        return task.result()


class _Start(PyLayer):
    @staticmethod
    def forward(ctx: Any, x_MH: paddle.Tensor, trip: Trip) -> paddle.Tensor:
        ctx.trip = trip
        trip.send(x_MH if trip.packing is None else trip.packing.pack(x_MH))
        return paddle.empty([sum(trip.recv_counts), *x_MH.shape[1:]], dtype=x_MH.dtype)

    @staticmethod
    def backward(ctx: Any, _: paddle.Tensor) -> paddle.Tensor:
        return ctx.trip.take()


class _Arrive(PyLayer):
    @staticmethod
    def forward(ctx: Any, travelling_MH: paddle.Tensor, trip: Trip) -> paddle.Tensor:
        ctx.trip, rows_MH = trip, trip.take()
        if trip.packing is None:
            return rows_MH
        return trip.packing.unpack(rows_MH, travelling_MH.shape[1], travelling_MH.dtype)

    @staticmethod
    def backward(ctx: Any, grad_MH: paddle.Tensor) -> paddle.Tensor:
        ctx.trip.send(grad_MH, back=True)
        return paddle.empty(grad_MH.shape, dtype=grad_MH.dtype)


class ExpertDispatcher:
    """Brings rows to the processes of their experts, and the results back.

    While they travel there, `meanwhile` is called. All that the group exchanges goes through one worker,
    so that it is in the same order everywhere.
    """

    meets = True
    meanwhile: Callable[[], object] | None = None
    packing: Packing | None = None

    def __init__(self, group: comm.Group, worker: Worker) -> None:
        self.group, self._worker = group, worker

    def dispatch(
        self, x_NH: paddle.Tensor, routing: Routing, num_experts: int
    ) -> tuple[paddle.Tensor, paddle.Tensor, _Sent]:
        """Rows sorted by the experts of this process, and their offsets [E / n + 1]."""
        slots = sort_slots(routing.chosen_Nk, num_experts, routing.dropped_Nk)
        own = num_experts // self.group.size
        counts_E = np.diff(slots.offsets.numpy())
        told = self._worker.submit(lambda: comm.all_gather(paddle.to_tensor(counts_E), self.group)).result()
        counts_nE = told.numpy().reshape([-1, num_experts])
        first = self.group.rank * own
        # Rows of each of our experts (columns) from each process (rows).
        incoming = counts_nE[:, first : first + own]
        send_counts = tuple(counts_E.reshape([self.group.size, own]).sum(1).tolist())
        recv_counts = tuple(incoming.sum(1).tolist())
        trip = Trip(self._worker, self.group, send_counts, recv_counts, self.packing)
        travelling_MH = trip.start(dispatch_rows(x_NH, slots))
        # They came sorted within each process; one more sort makes them so over all.
        expert_M1 = np.tile(np.arange(own), self.group.size).repeat(incoming.reshape(-1)).reshape([-1, 1])
        arrived = sort_slots(paddle.to_tensor(expert_M1), own)
        meanwhile, self.meanwhile = self.meanwhile, None
        if meanwhile is not None:
            meanwhile()
        rows_MH = trip.arrive(travelling_MH)
        return (
            dispatch_rows(rows_MH, arrived),
            arrived.offsets,
            _Sent(slots, arrived, send_counts, recv_counts),
        )

    def combine(self, y_MH: paddle.Tensor, routing: Routing, state: _Sent) -> paddle.Tensor:
        """The weighted sum of each token's results, [N, H]."""
        ordered_MH = paddle.gather(y_MH, state.arrived.places_Nk.flatten())
        trip = Trip(self._worker, self.group, state.recv_counts, state.send_counts)
        back_MH = trip.arrive(trip.start(ordered_MH))
        return combine_rows(back_MH, routing.weights_Nk, state.slots)


class OwnExpertsDispatcher:
    """For processes that hold the same tokens: each brings them to its own experts; results are summed."""

    meets = False
    meanwhile: Callable[[], object] | None = None
    packing: Packing | None = None

    def __init__(self, group: comm.Group) -> None:
        self.group = group

    def dispatch(
        self, x_NH: paddle.Tensor, routing: Routing, num_experts: int
    ) -> tuple[paddle.Tensor, paddle.Tensor, SortedSlots]:
        """Rows sorted by the experts of this process, and their offsets [E / n + 1]."""
        own = num_experts // self.group.size
        first = self.group.rank * own
        elsewhere_Nk = (routing.chosen_Nk < first) | (routing.chosen_Nk >= first + own)
        if routing.dropped_Nk is not None:
            elsewhere_Nk = elsewhere_Nk | routing.dropped_Nk
        slots = sort_slots(routing.chosen_Nk, num_experts, elsewhere_Nk)
        return dispatch_rows(copy_to(x_NH, self.group), slots), slots.offsets[first : first + own + 1], slots

    def combine(self, y_MH: paddle.Tensor, routing: Routing, state: SortedSlots) -> paddle.Tensor:
        """The weighted sum of each token's results, [N, H]."""
        # Each process sees the results of its experts, so a part of the weights' gradient.
        weights_Nk = copy_to(routing.weights_Nk, self.group)
        return reduce_from(combine_rows(y_MH, weights_Nk, state), self.group)


def apply_expert_parallel(
    model: Any, plan: Any, group: comm.Group, *, same_tokens: bool = False
) -> dict[str, Placement]:
    """Spread the experts of a model that has no weights yet; returns what each process holds of them.

    Args:
        model: of the model contract; parameters of experts are replaced by those of some experts.
        plan: the family's module: BLOCKS, AHEAD_BLOCKS, EXPERTS, EXPERTS_LAYER.
        same_tokens: whether the processes of the group hold the same tokens.

    Raises:
        ConfigError: the number of experts is not divisible, or the model has none.
    """
    if group.size == 1:
        return {}
    # Where exchanges wait for each other, a thread does.
    worker = Worker(apart=group.links is not None)
    placements: dict[str, Placement] = {}
    for root in (plan.BLOCKS, plan.AHEAD_BLOCKS):
        for index, block in enumerate(find(model, root) or ()):
            layer = find(block, plan.EXPERTS_LAYER)
            if not isinstance(layer, MixtureOfExperts):
                continue
            for number in layer.num_experts:
                if number % group.size:
                    raise ConfigError(
                        f"expert_parallel_degree: {group.size} does not divide the {number} experts of a "
                        f"layer; write a divisor of {number}"
                    )
            layer.dispatcher = OwnExpertsDispatcher(group) if same_tokens else ExpertDispatcher(group, worker)
            for path in plan.EXPERTS:
                matrices = find(block, path)
                if matrices is not None:
                    found = {"weight": narrow(matrices, "weight", 0, group)}
                    found = narrow_along(matrices, "experts", group, found)
                    placements |= {f"{root}.{index}.{path}.{name}": placed for name, placed in found.items()}
    if not placements:
        raise ConfigError(
            f"expert_parallel_degree: {group.size} spreads experts, and this model has none; leave it out"
        )
    return placements
