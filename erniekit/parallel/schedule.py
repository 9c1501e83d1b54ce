"""What every rank of a pipeline does, and when: schedules as data, made, checked and simulated.

The model is cut into stages; with `virtual_pp_degree` chunks a rank computes several of them. A schedule
is a list of actions for each rank: forward and backward of a micro-batch through one of its chunks, and
the messages between ranks. A backward may be split: its first half gives the gradient of the input, which
the stage before waits for, its second half those of the weights, which nobody waits for and which
therefore fill the pauses ("zero bubble", Qi et al. 2023).

| name | what it is | pause of p ranks, m micro-batches | most activations of rank r |
|---|---|---|---|
| 1f1b | a forward and a backward in turn | (p-1)/(m+p-1) | min(p-r, m) |
| interleaved | v chunks, the stages in rounds | (p-1)/(vm+p-1) | 2(p-r-1) + (v-1)p + 1 chunks |
| zero_bubble | split backward | (p-1)/(3m+p-1) | p |
| memory_capped | split backward, a bound | grows as the bound falls | the bound |

Pauses are shares of the whole time, where forward and both halves of the backward take equally long.
The stages of `memory_capped` with two chunks go forth and back over the ranks: with half of 1f1b's
activations it takes about as long ("controllable memory", Qi et al. 2024).

Messages: a send is posted and does not wait, a receive waits. What one rank sends another arrives in the
order in which it was sent, and `check_schedule` makes sure that it is received in that order.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from erniekit.errors import ConfigError

FORWARD, BACKWARD = "forward", "backward"
BACKWARD_INPUT, BACKWARD_WEIGHT = "backward_input", "backward_weight"
SEND_ACTIVATION, RECEIVE_ACTIVATION = "send_activation", "receive_activation"
SEND_GRADIENT, RECEIVE_GRADIENT = "send_gradient", "receive_gradient"
SENDS = {SEND_ACTIVATION: RECEIVE_ACTIVATION, SEND_GRADIENT: RECEIVE_GRADIENT}
RECEIVES = {receive: send for send, receive in SENDS.items()}

NAMES = ("1f1b", "interleaved", "zero_bubble", "memory_capped")


class Action(NamedTuple):
    """One thing that a rank does. `peer` is the other rank of a message, -1 for what is computed."""

    kind: str
    micro_batch: int
    chunk: int
    peer: int = -1


@dataclass(frozen=True)
class Schedule:
    """`places[rank][chunk]` is the stage that a rank computes; `programs[rank]` its actions in order."""

    name: str
    num_micro_batches: int
    places: tuple[tuple[int, ...], ...]
    programs: tuple[tuple[Action, ...], ...]

    @property
    def num_ranks(self) -> int:
        return len(self.places)

    @property
    def num_chunks(self) -> int:
        """Chunks of one rank."""
        return len(self.places[0])

    @property
    def num_stages(self) -> int:
        return self.num_ranks * self.num_chunks

    @property
    def splits_backward(self) -> bool:
        """Whether gradients of weights are computed apart from those of inputs."""
        return any(action.kind == BACKWARD_WEIGHT for action in self.programs[0])

    def owner(self, stage: int) -> tuple[int, int]:
        """Rank and chunk of a stage."""
        for rank, stages in enumerate(self.places):
            if stage in stages:
                return rank, stages.index(stage)
        raise ValueError(f"no rank computes stage {stage}")


def build_schedule(
    name: str,
    num_ranks: int,
    num_micro_batches: int,
    *,
    virtual_pp_degree: int = 1,
    activation_cap: int | None = None,
) -> Schedule:
    """The schedule of a name of `NAMES`, checked.

    Args:
        virtual_pp_degree: chunks of a rank; `interleaved` needs 2 or more, `memory_capped` takes 1 or 2.
        activation_cap: of `memory_capped`, the most activations (of a micro-batch through one chunk) that a
            rank holds; without it as many as half of those of 1f1b's first rank.

    Raises:
        ConfigError: the numbers do not fit the schedule.
    """
    _check_numbers(name, num_ranks, num_micro_batches, virtual_pp_degree, activation_cap)
    places = places_of(name, num_ranks, virtual_pp_degree)
    if name == "1f1b":
        orders = [_one_by_one(num_ranks - rank, num_micro_batches) for rank in range(num_ranks)]
    elif name == "interleaved":
        orders = [
            _interleaved(rank, num_ranks, num_micro_batches, virtual_pp_degree) for rank in range(num_ranks)
        ]
    else:
        cap = activation_cap or default_cap(num_ranks, virtual_pp_degree)
        orders = _split(places, num_micro_batches, num_ranks if name == "zero_bubble" else cap)
    schedule = Schedule(name, num_micro_batches, places, _with_messages(places, orders))
    check_schedule(schedule)
    return schedule


def default_cap(num_ranks: int, virtual_pp_degree: int) -> int:
    """Half of the activations of 1f1b's first rank, in chunks, but as many as a rank needs to go on."""
    return max(virtual_pp_degree, (num_ranks * virtual_pp_degree + 1) // 2)


def forward_only(places: Sequence[Sequence[int]], num_micro_batches: int) -> Schedule:
    """Micro-batch after micro-batch through the stages of `places`, without gradients: for evaluation."""
    orders = [
        [
            Action(FORWARD, micro_batch, stages.index(stage))
            for micro_batch in range(num_micro_batches)
            for stage in sorted(stages)
        ]
        for stages in places
    ]
    fixed = tuple(tuple(stages) for stages in places)
    return Schedule("forward_only", num_micro_batches, fixed, _with_messages(fixed, orders))


def _check_numbers(name: str, num_ranks: int, num_micro: int, num_chunks: int, cap: int | None) -> None:
    if name not in NAMES:
        raise ConfigError(f"pipeline_schedule: {name} is not known; write one of {', '.join(NAMES)}")
    if name == "interleaved":
        if num_chunks < 2 or num_ranks < 2:
            raise ConfigError(
                f"pipeline_schedule: interleaved needs virtual_pp_degree of 2 or more (given "
                f"{num_chunks}) and pipeline_parallel_degree of 2 or more (given {num_ranks})"
            )
        if num_micro % num_ranks:
            raise ConfigError(
                f"virtual_pp_degree: {num_chunks} takes a multiple of pipeline_parallel_degree ({num_ranks}) "
                f"micro-batches a step, and gradient_accumulation_steps gives {num_micro}"
            )
    elif num_chunks > (2 if name == "memory_capped" else 1):
        raise ConfigError(
            f"virtual_pp_degree: {num_chunks} is for pipeline_schedule: interleaved; {name} computes "
            f"{'1 or 2 chunks' if name == 'memory_capped' else 'one chunk'} a rank"
        )
    if cap is not None and (name != "memory_capped" or cap < num_chunks):
        raise ConfigError(
            f"pipeline_activation_cap: {cap} is for pipeline_schedule: memory_capped, and must be at least "
            f"virtual_pp_degree ({num_chunks})"
        )


def places_of(name: str, num_ranks: int, num_chunks: int) -> tuple[tuple[int, ...], ...]:
    """Stages of every rank: in rounds over the ranks, of which memory_capped goes every second one back."""

    def stage(rank: int, chunk: int) -> int:
        back = name == "memory_capped" and chunk % 2
        return chunk * num_ranks + (num_ranks - 1 - rank if back else rank)

    return tuple(tuple(stage(rank, chunk) for chunk in range(num_chunks)) for rank in range(num_ranks))


def _one_by_one(most: int, num_micro: int) -> list[Action]:
    warm = min(most - 1, num_micro)
    forwards = [Action(FORWARD, micro_batch, 0) for micro_batch in range(num_micro)]
    backwards = [Action(BACKWARD, micro_batch, 0) for micro_batch in range(num_micro)]
    return _in_turn(forwards, backwards, warm)


def _interleaved(rank: int, num_ranks: int, num_micro: int, num_chunks: int) -> list[Action]:
    """Rounds of `num_ranks` micro-batches through one chunk after the other (Narayanan et al. 2021)."""
    total = num_micro * num_chunks
    warm = min(total, 2 * (num_ranks - rank - 1) + (num_chunks - 1) * num_ranks)

    def at(place: int) -> tuple[int, int]:
        rounds, within = divmod(place, num_ranks * num_chunks)
        chunk, of_round = divmod(within, num_ranks)
        return rounds * num_ranks + of_round, chunk

    forwards = [Action(FORWARD, *at(place)) for place in range(total)]
    backwards = [
        Action(BACKWARD, micro_batch, num_chunks - 1 - chunk) for micro_batch, chunk in map(at, range(total))
    ]
    return _in_turn(forwards, backwards, warm)


def _in_turn(forwards: list[Action], backwards: list[Action], warm: int) -> list[Action]:
    """`warm` forwards, then one forward and one backward in turn, then the other backwards."""
    steady = len(forwards) - warm
    pairs = zip(forwards[warm:], backwards[:steady], strict=True)
    return [*forwards[:warm], *(action for pair in pairs for action in pair), *backwards[steady:]]


def _split(places: tuple[tuple[int, ...], ...], num_micro: int, cap: int) -> list[list[Action]]:
    """The shorter of two schedules of split backwards, which differ in what comes first."""
    found = [_greedy(places, num_micro, cap, forward_first=first) for first in (True, False)]
    return min(found, key=lambda pair: pair[0])[1]


def _greedy(
    places: tuple[tuple[int, ...], ...], num_micro: int, cap: int, *, forward_first: bool
) -> tuple[int, list[list[Action]]]:
    """In ticks of one action each: what others wait for first, weights in the pauses. With the ticks.

    A rank holds at most `cap` activations; an activation is let go with the gradients of the weights.
    One of the places is kept for a rank's last chunk, without which none would be let go. With
    `forward_first` no stage runs further ahead than it would in 1f1b.
    """
    num_ranks, num_chunks = len(places), len(places[0])
    last_stage = num_ranks * num_chunks - 1
    # Micro-batches that each stage has done, of each kind; within a kind they come in order.
    forth, back, freed = ([0] * (last_stage + 1) for _ in range(3))
    counts = {FORWARD: forth, BACKWARD_INPUT: back, BACKWARD_WEIGHT: freed}

    def forward(stages: Sequence[int]) -> Iterator[tuple[str, int]]:
        live = sum(forth[stage] - freed[stage] for stage in stages)
        for stage in sorted(stages, reverse=True):
            ready = num_micro if stage == 0 else forth[stage - 1]
            ahead = last_stage - stage if forward_first else num_micro
            bound = cap if stage == max(stages) else cap - 1
            if forth[stage] < ready and live < bound and forth[stage] - back[stage] <= ahead:
                yield FORWARD, stage

    def backward(stages: Sequence[int]) -> Iterator[tuple[str, int]]:
        for stage in sorted(stages, reverse=True):
            if back[stage] < (forth[stage] if stage == last_stage else back[stage + 1]):
                yield BACKWARD_INPUT, stage

    def weight(stages: Sequence[int]) -> Iterator[tuple[str, int]]:
        for stage in sorted(stages, key=lambda each: freed[each]):
            if freed[stage] < back[stage]:
                yield BACKWARD_WEIGHT, stage

    wishes = (forward, backward, weight) if forward_first else (backward, forward, weight)
    orders: list[list[Action]] = [[] for _ in places]
    ticks = 0
    while min(freed) < num_micro:
        ticks += 1
        chosen = [next((found for wish in wishes for found in wish(stages)), None) for stages in places]
        assert any(chosen), "no rank can go on"
        for rank, found in enumerate(chosen):
            if found is not None:
                kind, stage = found
                orders[rank].append(Action(kind, counts[kind][stage], places[rank].index(stage)))
                counts[kind][stage] += 1
    return ticks, orders


def _with_messages(
    places: tuple[tuple[int, ...], ...], orders: Sequence[Sequence[Action]]
) -> tuple[tuple[Action, ...], ...]:
    """Sends right after what is sent was computed, receives right before it is needed.

    Where a message that is needed later was sent earlier over the same way, it is received before.
    """
    owners = {stage: (rank, chunk) for rank, own in enumerate(places) for chunk, stage in enumerate(own)}
    last_stage = len(owners) - 1
    sent: dict[tuple[int, int], list[Action]] = {}
    for rank, order in enumerate(orders):
        for action in order:
            for kind, stage in _sends_of(action, places[rank][action.chunk], last_stage):
                peer, chunk = owners[stage]
                if peer != rank:
                    sent.setdefault((rank, peer), []).append(Action(kind, action.micro_batch, chunk))
    programs = []
    for rank, order in enumerate(orders):
        program: list[Action] = []
        ways = {source: iter(messages) for (source, to), messages in sent.items() if to == rank}
        received: set[Action] = set()
        for action in order:
            stage = places[rank][action.chunk]
            for kind, source_stage in _needs_of(action, stage, last_stage):
                source = owners[source_stage][0]
                wanted = Action(kind, action.micro_batch, action.chunk)
                while source != rank and wanted not in received:
                    message = next(ways[source])
                    received.add(message)
                    program.append(Action(SENDS[message.kind], message.micro_batch, message.chunk, source))
            program.append(action)
            for kind, target in _sends_of(action, stage, last_stage):
                if owners[target][0] != rank:
                    program.append(Action(kind, action.micro_batch, action.chunk, owners[target][0]))
        programs.append(tuple(program))
    return tuple(programs)


def _sends_of(action: Action, stage: int, last_stage: int) -> Iterator[tuple[str, int]]:
    """Kind and receiving stage of what follows from an action."""
    if action.kind == FORWARD and stage < last_stage:
        yield SEND_ACTIVATION, stage + 1
    if action.kind in (BACKWARD, BACKWARD_INPUT) and stage > 0:
        yield SEND_GRADIENT, stage - 1


def _needs_of(action: Action, stage: int, last_stage: int) -> Iterator[tuple[str, int]]:
    """Kind and sending stage of what an action needs."""
    if action.kind == FORWARD and stage > 0:
        yield SEND_ACTIVATION, stage - 1
    if action.kind in (BACKWARD, BACKWARD_INPUT) and stage < last_stage:
        yield SEND_GRADIENT, stage + 1


def check_schedule(schedule: Schedule) -> None:
    """Every micro-batch goes forward and back through every stage once, and the ranks never wait in a circle.

    Raises:
        ValueError: an action is missing, there twice, too early, or waits for what never comes; named.
    """
    for rank, program in enumerate(schedule.programs):
        _check_once(schedule, rank, program)
    order = list(_run(schedule))
    total = sum(map(len, schedule.programs))
    if len(order) < total:
        stuck = [
            f"rank {rank} at {_words(program[done])}"
            for rank, program in enumerate(schedule.programs)
            if (done := sum(where == rank for where, _ in order)) < len(program)
        ]
        raise ValueError(f"{schedule.name}: the ranks wait for each other: {'; '.join(stuck)}")


def _check_once(schedule: Schedule, rank: int, program: Sequence[Action]) -> None:
    counts: dict[Action, int] = {}
    for action in program:
        counts[action] = counts.get(action, 0) + 1
    for action, count in counts.items():
        if count > 1:
            raise ValueError(f"{schedule.name}: rank {rank} has {_words(action)} {count} times")
    last_stage = schedule.num_stages - 1
    forward_only = not any(action.kind.startswith(BACKWARD) for action in program)
    backwards = (BACKWARD_INPUT, BACKWARD_WEIGHT) if schedule.splits_backward else (BACKWARD,)
    expected: set[Action] = set()
    for micro_batch in range(schedule.num_micro_batches):
        for chunk, stage in enumerate(schedule.places[rank]):
            work = [Action(FORWARD, micro_batch, chunk)]
            if not forward_only:
                work += [Action(kind, micro_batch, chunk) for kind in backwards]
            for action in work:
                expected.add(action)
                for kind, other in _sends_of(action, stage, last_stage):
                    expected.add(Action(kind, micro_batch, chunk, schedule.owner(other)[0]))
                for kind, other in _needs_of(action, stage, last_stage):
                    expected.add(Action(SENDS[kind], micro_batch, chunk, schedule.owner(other)[0]))
    expected = {action for action in expected if action.peer != rank}
    for action in sorted(expected - set(counts)) + sorted(set(counts) - expected):
        word = "lacks" if action in expected else "has no use for"
        raise ValueError(f"{schedule.name}: rank {rank} {word} {_words(action)}")


def _words(action: Action) -> str:
    peer = "" if action.peer < 0 else f" (rank {action.peer})"
    return f"{action.kind} of micro-batch {action.micro_batch}, chunk {action.chunk}{peer}"


def _run(schedule: Schedule) -> Iterator[tuple[int, Action]]:
    """All actions in an order in which they can happen; ends early where the ranks wait in a circle.

    Raises:
        ValueError: a rank computes with what it does not have, or receives in another order than was sent.
    """
    places = [0] * schedule.num_ranks
    ways: dict[tuple[int, int], list[Action]] = {}
    have: list[set[Action]] = [set() for _ in places]
    halves = schedule.splits_backward
    moved = True
    while moved:
        moved = False
        for rank, program in enumerate(schedule.programs):
            while places[rank] < len(program):
                action = program[places[rank]]
                if action.kind in RECEIVES:
                    way = ways.get((action.peer, rank))
                    if not way:
                        break
                    _check_received(schedule, rank, action, way.pop(0))
                else:
                    for need in _inputs(schedule, rank, action, halves):
                        if need not in have[rank]:
                            raise ValueError(
                                f"{schedule.name}: rank {rank} does {_words(action)} before {_words(need)}"
                            )
                if action.kind in SENDS:
                    ways.setdefault((rank, action.peer), []).append(action)
                have[rank].add(action)
                places[rank] += 1
                moved = True
                yield rank, action


def _check_received(schedule: Schedule, rank: int, action: Action, message: Action) -> None:
    stage = schedule.places[action.peer][message.chunk]
    target = stage + 1 if message.kind == SEND_ACTIVATION else stage - 1
    arrived = Action(SENDS[message.kind], message.micro_batch, schedule.owner(target)[1], action.peer)
    if arrived != action:
        raise ValueError(
            f"{schedule.name}: rank {rank} awaits {_words(action)}, and {_words(arrived)} was sent before it"
        )


def _inputs(schedule: Schedule, rank: int, action: Action, halves: bool) -> list[Action]:
    """What a rank must have done before an action that is no receive, with or without split backwards."""
    _, micro_batch, chunk, _ = action
    stage = schedule.places[rank][chunk]
    if action.kind == SEND_ACTIVATION:
        return [Action(FORWARD, micro_batch, chunk)]
    if action.kind in (SEND_GRADIENT, BACKWARD_WEIGHT):
        return [Action(BACKWARD_INPUT if halves else BACKWARD, micro_batch, chunk)]
    needs = [] if action.kind == FORWARD else [Action(FORWARD, micro_batch, chunk)]
    for kind, other in _needs_of(action, stage, schedule.num_stages - 1):
        peer, other_chunk = schedule.owner(other)
        if peer != rank:
            needs.append(Action(SENDS[kind], micro_batch, chunk, peer))
        elif kind == SEND_ACTIVATION:
            needs.append(Action(FORWARD, micro_batch, other_chunk))
        else:
            needs += _inputs(schedule, rank, Action(SEND_GRADIENT, micro_batch, other_chunk), halves)
    return needs


@dataclass(frozen=True)
class Simulated:
    """makespan: until the last rank is done. busy: time each rank computes.

    peaks: most activations each rank holds at once, weighed by the stages' `activations`.
    """

    makespan: float
    busy: tuple[float, ...]
    peaks: tuple[float, ...]

    @property
    def bubbles(self) -> tuple[float, ...]:
        """Share of the time that each rank does not compute."""
        return tuple(1.0 - busy / self.makespan for busy in self.busy)

    @property
    def bubble(self) -> float:
        """The same over all ranks."""
        return sum(self.bubbles) / len(self.busy)


def simulate(
    schedule: Schedule,
    *,
    forward: float | Sequence[float] = 1.0,
    backward_input: float | Sequence[float] = 1.0,
    backward_weight: float | Sequence[float] = 1.0,
    communication: float = 0.0,
    activations: float | Sequence[float] = 1.0,
) -> Simulated:
    """Run a schedule with given times, each one number or one of every stage.

    Args:
        communication: from a send to the earliest end of its receive; computing goes on meanwhile.
        activations: what a micro-batch in a stage holds from its forward to the end of its backward.
    """
    stages = schedule.num_stages
    times = {FORWARD: _each(forward, stages)}
    times[BACKWARD_INPUT], times[BACKWARD_WEIGHT] = (
        _each(each, stages) for each in (backward_input, backward_weight)
    )
    times[BACKWARD] = [sum(pair) for pair in zip(times[BACKWARD_INPUT], times[BACKWARD_WEIGHT], strict=True)]
    held = _each(activations, stages)
    clock, busy = [0.0] * schedule.num_ranks, [0.0] * schedule.num_ranks
    live, peaks = [0.0] * schedule.num_ranks, [0.0] * schedule.num_ranks
    ways: dict[tuple[int, int], list[float]] = {}
    for rank, action in _run(schedule):
        stage = schedule.places[rank][action.chunk]
        if action.kind in SENDS:
            ways.setdefault((rank, action.peer), []).append(clock[rank] + communication)
        elif action.kind in RECEIVES:
            clock[rank] = max(clock[rank], ways[action.peer, rank].pop(0))
        else:
            clock[rank] += times[action.kind][stage]
            busy[rank] += times[action.kind][stage]
            if action.kind == FORWARD:
                live[rank] += held[stage]
                peaks[rank] = max(peaks[rank], live[rank])
            elif action.kind != BACKWARD_INPUT:
                live[rank] -= held[stage]
    return Simulated(max(clock), tuple(busy), tuple(peaks))


def _each(value: float | Sequence[float], count: int) -> list[float]:
    values = [float(value)] * count if isinstance(value, int | float) else [float(each) for each in value]
    if len(values) != count:
        raise ValueError(f"{len(values)} numbers for {count} stages")
    return values
