"""A rank of a pipeline: does what a schedule says, with its stages of the model.

All ranks are given the same batches, so that every stage has positions and masks, and both sides of a
message know its shape. The last stage calls the loss of the step as a single process would; the stages
before it run the model's forward pass up to their end, and add what rides along with the loss (losses of
routers) to their own backward pass. Gradients are left where a single process would leave them.

A split backward puts the gradients of matrices off (`ops/gradients.py`) until its second half.
"""

import time
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Protocol

import paddle

from erniekit.ops import gradients
from erniekit.parallel import comm, schedule, seeds
from erniekit.parallel.parts import find
from erniekit.parallel.schedule import Action, Schedule
from erniekit.parallel.stage_model import Cut, StageView

Call = Callable[[], object]


class StepLoss(Protocol):
    """What is minimised, see `train/step_loss.py`."""

    def __call__(self, model: Any, batch: Any) -> paddle.Tensor:
        """A micro-batch's share of the loss, of the last stage."""

    def of_part(
        self, model: Any, batch: Any, forward: Callable[[], paddle.Tensor]
    ) -> tuple[paddle.Tensor, paddle.Tensor | None]:
        """What `forward` gives, and what a stage before the last adds to the loss."""

    def without_effect(self, model: Any, batch: Any) -> paddle.Tensor:
        """Zero, by the forward pass of a micro-batch that counts nothing."""


@dataclass
class _Flight:
    """A micro-batch in a stage between forward and backward: what came in, and the ends of the graph."""

    received: paddle.Tensor | None
    output: paddle.Tensor | None
    loss: paddle.Tensor | None


@dataclass
class _Step:
    """What a step keeps, by micro-batch and chunk; `arrived` also by the kind of the message."""

    batches: Sequence[Any]
    step_loss: StepLoss | None = None
    seed_of: Callable[[int], int] | None = None
    accumulate: Call | None = None
    fillers: frozenset[int] = frozenset()
    compute: Callable[[Any, Any], Any] | None = None
    companion: Any = None
    arrived: dict[tuple[str, int, int], paddle.Tensor] = field(default_factory=dict)
    outgoing: dict[tuple[str, int, int], paddle.Tensor] = field(default_factory=dict)
    flights: dict[tuple[int, int], _Flight] = field(default_factory=dict)
    put_off: dict[tuple[int, int], list[Call]] = field(default_factory=dict)
    results: dict[int, Any] = field(default_factory=dict)


class PipelineEngine:
    """Runs steps over the ranks of `group`.

    Attributes:
        multiple: a step takes a multiple of so many micro-batches.
        peak: most activations (of a micro-batch through a chunk) that were held at once in the last step.
        observe: called after every action with it, its beginning and its end in seconds.
    """

    def __init__(
        self,
        model: Any,
        plan: Any,
        group: comm.Group,
        *,
        cut: Cut,
        name: str = "1f1b",
        virtual_pp_degree: int = 1,
        activation_cap: int | None = None,
        shape_of: Callable[[Any], Sequence[int]] | None = None,
    ) -> None:
        """For a model that was cut: what changes its layers is done before the first step.

        Args:
            plan: the family's module, see `stage_model.cut_model`.
            cut: what that gave, of `virtual_pp_degree` stages a rank.
            name: of the schedule; with `activation_cap` as of `schedule.build_schedule`.
            shape_of: shape of the activation of a batch; [rows, columns, hidden size] without it.

        Raises:
            ConfigError: the numbers do not fit the schedule.
        """
        self.group, self.stages = group, cut.stages
        self._name, self._num_chunks, self._cap = name, virtual_pp_degree, activation_cap
        self._schedules: dict[int, Schedule] = {}
        self.places = schedule.places_of(name, group.size, virtual_pp_degree)
        num_stages = len(cut.stages)
        assert num_stages == group.size * virtual_pp_degree, (num_stages, group.size, virtual_pp_degree)
        self._model, self._plan = model, plan
        self._ends = _open_ends(group, self.places, num_stages) if cut.shares_embedding else comm.Group()
        self._views: list[StageView] = []
        self._shape_of = shape_of or (lambda batch: [*batch.input_ids.shape, model.config.hidden_size])
        self.multiple = group.size if name == "interleaved" else 1
        self.peak = 0
        self.observe: Callable[[Action, float, float], None] | None = None

    def schedule_of(self, num_micro_batches: int) -> Schedule:
        """The schedule of a step of so many micro-batches.

        Raises:
            ConfigError: the number does not fit the schedule.
        """
        if num_micro_batches not in self._schedules:
            self._schedules[num_micro_batches] = schedule.build_schedule(
                self._name,
                self.group.size,
                num_micro_batches,
                virtual_pp_degree=self._num_chunks,
                activation_cap=self._cap,
            )
        return self._schedules[num_micro_batches]

    def run(
        self,
        batches: Sequence[Any],
        step_loss: StepLoss,
        *,
        seed_of: Callable[[int], int],
        accumulate: Call = lambda: None,
        fillers: Collection[int] = (),
    ) -> None:
        """Gradients of a step, of the parameters that are here.

        Args:
            batches: the micro-batches, the same on every rank.
            step_loss: has begun the step.
            seed_of: seed of the generators for a micro-batch, see `seeds.py`.
            accumulate: called after every backward pass.
            fillers: places of micro-batches that count nothing.
        """
        self.peak = 0
        step = _Step(batches, step_loss, seed_of, accumulate, frozenset(fillers))
        self._do(self.schedule_of(len(batches)), step)
        assert not (step.flights or step.put_off or step.arrived or step.outgoing), "something is left over"
        self._sum_shared()

    @paddle.no_grad()
    def forward(
        self, batches: Sequence[Any], compute: Callable[[Any, Any], Any], companion: Any = None
    ) -> list[Any]:
        """What `compute(model, batch)` gives on the last stage for each batch, on all ranks.

        Args:
            compute: its results are objects that can be pickled, no tensors.
            companion: looks at every forward pass of every stage (`train/step_loss.py`).
        """
        step = _Step(batches, compute=compute, companion=companion)
        self._do(schedule.forward_only(self.places, len(batches)), step)
        last = next(rank for rank, own in enumerate(self.places) if len(self.stages) - 1 in own)
        found = comm.broadcast_object(step.results, self.group, last)
        return [found[index] for index in range(len(batches))]

    def total(self, sums: dict[str, float]) -> dict[str, float]:
        """Sums of named numbers over the stages."""
        found: dict[str, float] = {}
        for part in comm.gather_objects(sums, self.group):
            for name, value in part.items():
                found[name] = found.get(name, 0.0) + value
        return found

    def _do(self, chosen: Schedule, step: _Step) -> None:
        if not self._views:
            own = self.places[self.group.rank]
            self._views = [StageView(self._model, self._plan, self.stages, stage) for stage in own]
        for action in chosen.programs[self.group.rank]:
            start = time.perf_counter()
            if action.kind in schedule.SENDS:
                comm.send(step.outgoing.pop(action[:3]), self.group, action.peer)
            elif action.kind in schedule.RECEIVES:
                shape = self._shape_of(step.batches[action.micro_batch])
                key = (schedule.RECEIVES[action.kind], action.micro_batch, action.chunk)
                step.arrived[key] = comm.receive(shape, self._model.cache_dtype, self.group, action.peer)
            else:
                self._compute(action, step, chosen.splits_backward)
            if self.observe is not None:
                self.observe(action, start, time.perf_counter())
        comm.flush(self.group)

    def _compute(self, action: Action, step: _Step, split: bool) -> None:
        micro_batch, chunk = action.micro_batch, action.chunk
        if step.seed_of is not None:
            seeds.begin_micro_batch(step.seed_of(micro_batch))
        calls: list[Call] = []
        with ExitStack() as stack:
            if split:
                calls = stack.enter_context(gradients.put_off())
            if action.kind == schedule.FORWARD:
                self._forward(micro_batch, chunk, step)
            elif action.kind == schedule.BACKWARD_WEIGHT:
                for call in step.put_off.pop((micro_batch, chunk)):
                    call()
            else:
                self._backward(micro_batch, chunk, step)
        if action.kind == schedule.BACKWARD_INPUT:
            step.put_off[micro_batch, chunk] = calls
        if action.kind != schedule.FORWARD and step.accumulate is not None:
            step.accumulate()

    def _forward(self, micro_batch: int, chunk: int, step: _Step) -> None:
        view, batch = self._views[chunk], step.batches[micro_batch]
        received = None
        if not view.is_first:
            received = step.arrived.pop((schedule.SEND_ACTIVATION, micro_batch, chunk))
            received.stop_gradient = step.step_loss is None
            view.received = received
        output = loss = None
        if step.step_loss is None:
            output = self._look(view, batch, step, micro_batch)
        elif view.is_last:
            run = step.step_loss.without_effect if micro_batch in step.fillers else step.step_loss
            loss = run(view.model, batch)
        elif micro_batch in step.fillers:
            output = _run(view, batch)
        else:
            output, loss = step.step_loss.of_part(view.model, batch, lambda: _run(view, batch))
        if output is not None and not view.is_last:
            stage = self.places[self.group.rank][chunk]
            self._hand_on(step, schedule.SEND_ACTIVATION, micro_batch, stage, stage + 1, output.detach())
        if step.step_loss is not None:
            step.flights[micro_batch, chunk] = _Flight(received, output, loss)
            self.peak = max(self.peak, len(step.flights) + len(step.put_off))

    def _look(self, view: StageView, batch: Any, step: _Step, micro_batch: int) -> paddle.Tensor | None:
        """A forward pass without gradients; the last stage keeps the result."""
        assert step.compute is not None
        if step.companion is not None:
            step.companion.before_forward(view.model)
        output = None
        if view.is_last:
            step.results[micro_batch] = step.compute(view.model, batch)
        else:
            output = _run(view, batch)
        if step.companion is not None:
            step.companion.after_forward(view.model, batch)
        return output

    def _backward(self, micro_batch: int, chunk: int, step: _Step) -> None:
        view, flight = self._views[chunk], step.flights.pop((micro_batch, chunk))
        pairs = [] if flight.loss is None else [(flight.loss, None)]
        if not view.is_last:
            arrived = step.arrived.pop((schedule.SEND_GRADIENT, micro_batch, chunk))
            pairs.append((flight.output, arrived))
        pairs = [pair for pair in pairs if not pair[0].stop_gradient]
        if pairs:
            paddle.autograd.backward([root for root, _ in pairs], [gradient for _, gradient in pairs])
        if flight.received is not None:
            gradient = flight.received.grad
            if gradient is None:
                gradient = paddle.zeros_like(flight.received)
            stage = self.places[self.group.rank][chunk]
            self._hand_on(step, schedule.SEND_GRADIENT, micro_batch, stage, stage - 1, gradient.detach())

    def _hand_on(
        self, step: _Step, kind: str, micro_batch: int, stage: int, to: int, tensor: paddle.Tensor
    ) -> None:
        """To a stage of this rank at once, to others with the action that sends."""
        own = self.places[self.group.rank]
        if to in own:
            step.arrived[kind, micro_batch, own.index(to)] = tensor
        else:
            step.outgoing[kind, micro_batch, own.index(stage)] = tensor

    @paddle.no_grad()
    def _sum_shared(self) -> None:
        """The gradient of an embedding that first and last stage have."""
        if self._ends.size == 1 or self._ends.rank < 0:
            return
        for parameter in find(self._model, self._plan.EMBEDDING).parameters():
            if parameter.stop_gradient:
                continue
            found = gradients.of(parameter)
            total = paddle.zeros(parameter.shape, dtype="float32") if found is None else found.clone()
            gradients.clear(parameter)
            parameter.main_grad = comm.all_reduce(total, self._ends)


def _run(view: StageView, batch: Any) -> paddle.Tensor:
    parts = (batch.input_ids, batch.position_ids, batch.attend_from)
    types = {} if batch.token_types is None else {"token_type_ids_BT": paddle.to_tensor(batch.token_types)}
    return view.model(*map(paddle.to_tensor, parts), **types)


def _open_ends(group: comm.Group, places: Sequence[Sequence[int]], num_stages: int) -> comm.Group:
    """The ranks of the first and the last stage, where they are two."""
    ends = [
        group.ranks[rank] for stage in (0, num_stages - 1) for rank, own in enumerate(places) if stage in own
    ]
    if ends[0] == ends[1] or group.ranks[group.rank] not in ends:
        return comm.Group()
    return comm.open_group(ends, "shared_embedding")
