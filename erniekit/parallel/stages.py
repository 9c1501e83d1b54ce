"""Which blocks of a model make which stage of a pipeline: `pp_seg_method`.

| word | blocks of the stages |
|---|---|
| uniform | as equal in number as can be |
| layer:REGEX | the parts whose names match are counted, as equal in number as can be |
| 0,29,57 or a list | the first part of each stage, and with one number more the end, see below |
| auto | as equal in time as can be, within the memory of a rank |

The embedding goes with the first stage, the last norm, head and multi-token prediction with the last.
A list counts as upstream does: part 0 is the embedding, part 1 the first block; 0,29 gives the first
stage 28 blocks. `auto` counts costs: a head over a large vocabulary costs as much as several blocks, and
a dense block is not a block of experts. Ranks that come first hold more activations.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf

from erniekit.errors import ConfigError

# Names of the parts, as upstream's `layer:` expressions spell them.
DENSE_BLOCK, EXPERTS_BLOCK, EMPTY = "Ernie4_5_DecoderLayer", "Ernie4_5_MoeDecoderLayer", "EmptyLayer"
# The first and one past the last block of a stage.
Stages = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Cost:
    """What a part takes, in units of one's choice that are the same for all parts.

    time: forward and backward of a micro-batch. state: bytes of weights, gradients and optimizer.
    activations: bytes that one micro-batch holds from the forward to the end of the backward.
    """

    time: float = 0.0
    state: float = 0.0
    activations: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.time + other.time, self.state + other.state, self.activations + other.activations)


@dataclass(frozen=True)
class ModelCosts:
    """Costs of all parts; `last` is last norm, head, loss and multi-token prediction together."""

    blocks: tuple[Cost, ...]
    first: Cost = field(default_factory=Cost)
    last: Cost = field(default_factory=Cost)


def choose_stages(
    blocks: Sequence[str],
    num_stages: int,
    *,
    pp_seg_method: str | Sequence[int] = "uniform",
    add_tail_layers: int = 0,
    costs: ModelCosts | None = None,
    live: Sequence[float] | None = None,
    memory: float = inf,
) -> Stages:
    """The blocks of every stage.

    Args:
        blocks: name of every block, for `layer:REGEX` (`DENSE_BLOCK` or `EXPERTS_BLOCK`).
        add_tail_layers: empty blocks that are counted after the last one, so that the last stage has fewer.
        costs, live, memory: of `auto`: costs, activations that each stage holds at once, bytes of a stage.

    Raises:
        ConfigError: the word is not known, its numbers do not fit the model, or nothing fits the memory.
    """
    if num_stages > len(blocks):
        raise ConfigError(
            f"pipeline_parallel_degree times virtual_pp_degree is {num_stages}, and the model has "
            f"{len(blocks)} blocks: a stage needs one; write degrees whose product is {len(blocks)} or less"
        )
    method = pp_seg_method.strip() if isinstance(pp_seg_method, str) else list(pp_seg_method)
    if method == "auto":
        assert costs is not None, "auto without costs"
        return balance(costs, num_stages, live=live, memory=memory)
    if isinstance(method, list) or re.fullmatch(r"[\[\s]*\d+(\s*,\s*\d+)*[\]\s]*", method):
        numbers = method if isinstance(method, list) else [int(each) for each in re.findall(r"\d+", method)]
        return _listed(numbers, len(blocks), num_stages)
    names = [*blocks, *[EMPTY] * add_tail_layers]
    if method == "uniform":
        counted = [True] * len(names)
    elif method.startswith("layer:"):
        counted = _matching(method, names)
    else:
        raise ConfigError(
            f"pp_seg_method: {pp_seg_method!r} is not known; write uniform, auto, layer:REGEX, or the first "
            "part of every stage like 0,29 (the embedding is part 0)"
        )
    return _even(counted, len(blocks), num_stages, pp_seg_method)


def _matching(method: str, names: Sequence[str]) -> list[bool]:
    pattern = method.partition(":")[2]
    try:
        # Upstream has one class for both kinds of blocks.
        counted = [
            bool(re.search(pattern, name) or (name == EXPERTS_BLOCK and re.search(pattern, DENSE_BLOCK)))
            for name in names
        ]
    except re.error as error:
        raise ConfigError(f"pp_seg_method: {pattern!r} is not a regular expression ({error})") from error
    if not any(counted):
        raise ConfigError(
            f"pp_seg_method: {pattern!r} matches no block; their names are {', '.join(dict.fromkeys(names))}"
        )
    return counted


def _even(counted: list[bool], num_blocks: int, num_stages: int, method: object) -> Stages:
    """The counted parts in equal numbers, the later stages one more where it does not divide."""
    total = sum(counted)
    small, larger = divmod(total, num_stages)
    sizes = [small + (stage >= num_stages - larger) for stage in range(num_stages)]
    starts, seen, wanted = [0], 0, sizes[0]
    for place, counts in enumerate(counted):
        if counts and seen == wanted and len(starts) < num_stages:
            starts.append(place)
            wanted += sizes[len(starts) - 1]
        seen += counts
    if small == 0 or starts[-1] >= num_blocks:
        raise ConfigError(
            f"pp_seg_method: {method} counts {total} parts, and {num_stages} stages of at least one block "
            f"cannot be made of them; write auto, or fewer add_tail_layers"
        )
    return _between(starts, num_blocks)


def _listed(numbers: list[int], num_blocks: int, num_stages: int) -> Stages:
    given = numbers[:-1] if len(numbers) == num_stages + 1 else numbers
    ends = len(numbers) == len(given) or numbers[-1] > num_blocks
    starts = [0, *(number - 1 for number in given[1:])]
    rising = all(one < after for one, after in zip(starts, [*starts[1:], num_blocks], strict=True))
    if len(given) != num_stages or given[0] != 0 or not rising or not ends:
        raise ConfigError(
            f"pp_seg_method: {numbers} does not cut {num_blocks} blocks into {num_stages} stages; write "
            f"{num_stages} rising numbers, 0 first (the embedding), the others from 2 to {num_blocks} (the "
            "last block)"
        )
    return _between(starts, num_blocks)


def _between(starts: Sequence[int], num_blocks: int) -> Stages:
    return tuple(zip(starts, [*starts[1:], num_blocks], strict=True))


def balance(
    costs: ModelCosts, num_stages: int, *, live: Sequence[float] | None = None, memory: float = inf
) -> Stages:
    """Stages whose longest is as short as can be, and among those whose largest is as small as can be.

    Args:
        live: activations of micro-batches that each stage holds at once; 1f1b's without it.
        memory: bytes that a stage may take.

    Raises:
        ConfigError: no cut keeps every stage within the memory.
    """
    counts = list(live) if live is not None else [float(num_stages - stage) for stage in range(num_stages)]
    num_blocks = len(costs.blocks)
    sums = [Cost()]
    for block in costs.blocks:
        sums.append(sums[-1] + block)
    # best[end]: (longest, largest, starts) of the stages so far over the blocks before `end`.
    best: dict[int, tuple[float, float, tuple[int, ...]]] = {0: (0.0, 0.0, ())}
    for stage in range(num_stages):
        extra = [costs.first] * (stage == 0) + [costs.last] * (stage == num_stages - 1)
        ends = [num_blocks] if stage == num_stages - 1 else range(stage + 1, num_blocks)
        found: dict[int, tuple[float, float, tuple[int, ...]]] = {}
        for end in ends:
            for start, (longest, largest, starts) in best.items():
                if start >= end:
                    continue
                time = sums[end].time - sums[start].time + sum(each.time for each in extra)
                bytes_ = _bytes(sums[start], sums[end], extra, counts[stage])
                if bytes_ > memory:
                    continue
                candidate = (max(longest, time), max(largest, bytes_), (*starts, start))
                if end not in found or candidate < found[end]:
                    found[end] = candidate
        best = found
    if num_blocks not in best:
        raise ConfigError(
            f"pp_seg_method: auto finds no {num_stages} stages within the memory of a rank; raise "
            "pipeline_parallel_degree, or recompute more"
        )
    return _between(best[num_blocks][2], num_blocks)


def _bytes(start: Cost, end: Cost, extra: Sequence[Cost], live: float) -> float:
    state = end.state - start.state + sum(each.state for each in extra)
    return state + live * (end.activations - start.activations + sum(each.activations for each in extra))


def stage_costs(stages: Stages, costs: ModelCosts) -> tuple[Cost, ...]:
    """The cost of every stage."""
    found = []
    for stage, (start, end) in enumerate(stages):
        total = sum(costs.blocks[start:end], Cost())
        total = total + costs.first if stage == 0 else total
        found.append(total + costs.last if stage == len(stages) - 1 else total)
    return tuple(found)
