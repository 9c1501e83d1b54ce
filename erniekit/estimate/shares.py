"""What one process of several holds of a model, and the numbers of a model that would be just that part.

Costs of a part are those of a smaller model: fewer blocks, fewer heads, narrower MLPs, fewer rows for
experts. So `Share` answers to the same names as a model's config, and what is estimated of a whole model
is estimated of a part by the same functions.

Parameters are counted name by name: `models/<family>/plan.py` says which are split, and how.

| parameters | over the tensor axis | copies, with D = data x sharding x context |
|---|---|---|
| column, row, embedding, head | split | D |
| norms, routers, biases of row | the same | D x tensor |
| experts by `moe_group` mp or world | whole ones | D x tensor / expert |
| experts by dp or dummy | split, beside the expert axis | D / expert |
"""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from erniekit.parallel.layout import Layout


@dataclass(frozen=True, kw_only=True)
class Spread(Layout):
    """A layout, and what else costs depend on.

    sharding_stage: 1 shares states of the optimizer, 2 also gradients, 3 also weights.
    sequence_parallel: ranks of the tensor axis hold different positions between the matrices.
    """

    sharding_stage: int = 1
    sequence_parallel: bool = False

    @property
    def batch(self) -> int:
        """Processes that have sequences of their own in a step, of those that hold the same part."""
        return self.data * self.sharding

    @property
    def expert_tensor(self) -> int:
        """Processes that share the matrices of one expert."""
        return 1 if self.moe_group in ("mp", "world") else self.tensor

    @property
    def expert_copies(self) -> int:
        """Processes that hold the same experts."""
        return self.batch * self.context * self.tensor // (self.expert * self.expert_tensor)

    @property
    def expert_sharding(self) -> int:
        """Processes that share the optimizer states of the same experts."""
        if self.moe_group == "mp":
            return self.sharding
        inner = self.context * self.tensor if self.moe_group == "world" else 1
        return max(1, self.sharding // max(1, self.expert // inner))

    @property
    def activation_split(self) -> int:
        """Processes of the tensor axis that hold different positions of the stream between layers."""
        return self.tensor if self.sequence_parallel else 1

    def expert_rows_per_choice(self) -> float:
        """Rows in a process's experts for each choice of one of its own tokens, load being even."""
        if self.sequence_parallel:
            # Every rank of the tensor axis needs all rows where it has a part of each matrix.
            return float(self.expert_tensor)
        return 1 / self.expert if self.moe_group == "mp" else 1.0


@dataclass(frozen=True)
class Counts:
    """Numbers of parameters by what becomes of them: split over tensor ranks, the same there, experts.

    spared: bytes that quantised weights are less than whole ones.
    kept_beside: numbers a token that adapters keep for the backward pass. fixed: those that nothing trains.
    """

    split: float = 0
    same: float = 0
    experts: float = 0
    spared: float = 0
    kept_beside: float = 0
    fixed: float = 0

    @property
    def dense(self) -> float:
        """All but the experts."""
        return self.split + self.same

    @property
    def total(self) -> float:
        """All."""
        return self.split + self.same + self.experts


@dataclass(frozen=True)
class Part:
    """What a process holds of one parameter.

    partial: its gradient is to be summed over tensor ranks. in_block: it belongs to one.
    keeps_whole: sharding never parts it.
    """

    numbers: float
    is_expert: bool
    is_trained: bool
    partial: bool
    in_block: bool
    keeps_whole: bool
    is_wide: bool


class Share:
    """The part of a model in the processes of one pipeline rank, or in one stage; see the module.

    blocks: of the whole model. first, last: whether it has the embedding, and norm, head and loss.
    weights, trained: what is held here, and what is trained of it. trains_embedding: of the whole model.
    parts: every parameter.
    """

    def __init__(
        self,
        config: Any,
        spread: Spread,
        blocks: Sequence[int],
        *,
        first: bool,
        last: bool,
        weights: Counts,
        trained: Counts,
        trains_embedding: bool = True,
        parts: Sequence[Part] = (),
    ) -> None:
        self.whole, self.spread, self.blocks = config, spread, tuple(blocks)
        self.trains_embedding, self.parts = trains_embedding, tuple(parts)
        self.first, self.last, self.weights, self.trained = first, last, weights, trained
        # With sequence parallelism the positions are split instead, by whoever counts tokens.
        split = 1 if spread.sequence_parallel else spread.tensor
        self.hidden_size, self.head_dim = config.hidden_size, config.head_dim
        self.num_hidden_layers = len(self.blocks)
        self.num_attention_heads = config.num_attention_heads / split
        self.num_key_value_heads = config.num_key_value_heads / split
        self.intermediate_size = config.intermediate_size / split
        self.vocab_size = -(-config.vocab_size // spread.tensor)
        self.num_nextn_predict_layers = config.num_nextn_predict_layers if last else 0
        if hasattr(config, "moe_k"):
            rows = spread.expert_rows_per_choice()
            self.moe_k = config.moe_k * rows
            self.moe_capacity = config.moe_capacity and [each * rows for each in config.moe_capacity]
            self.moe_num_experts = config.moe_num_experts
            self.moe_intermediate_size = [n / spread.expert_tensor for n in config.moe_intermediate_size]
            self._shared = config.shared_intermediate_size() / split

    def is_moe_layer(self, layer: int) -> bool:
        """Whether the block at this place holds experts."""
        return bool(self.whole.is_moe_layer(self.blocks[layer]))

    def shared_intermediate_size(self) -> float:
        """Width of the part of the shared experts."""
        return self._shared

    def num_ends(self) -> int:
        """Tables of the vocabulary that are here: embedding and head, which may be one."""
        return 1 if self.whole.tie_word_embeddings and self.first and self.last else self.first + self.last

    def num_parameters(self) -> float:
        """Parameters that are here."""
        return self.weights.total


def build_shares(
    config: Any,
    spread: Spread,
    stages: Sequence[Sequence[int]],
    places: Sequence[Sequence[int]],
    *,
    shapes: Mapping[str, tuple[int, ...]],
    parts: Any,
    is_trained: Mapping[str, bool] | None = None,
    beside: Mapping[str, tuple[int, ...]] | None = None,
    stored: Mapping[str, float] | None = None,
    width: int = 2,
) -> list[Share]:
    """The part of every holder of stages.

    Args:
        stages: the blocks of each.
        places: the stages of each holder.
        shapes: of every parameter by its name in memory.
        parts: the family's `plan` module.
        is_trained: by name; None for all.
        beside: an adapter's matrices, which are trained too; named after what they are beside.
        stored: bytes of a number of those that are quantised; others have `width`.
    """
    last = len(stages) - 1
    holders = {stage: holder for holder, own in enumerate(places) for stage in own}
    owners = {block: holders[stage] for stage, blocks in enumerate(stages) for block in blocks}
    weights, trained = ([defaultdict[str, float](float) for _ in places] for _ in range(2))
    found: list[list[Part]] = [[] for _ in places]
    for source in (shapes, beside or {}):
        adapter = source is not shapes
        for name, shape in source.items():
            kind, split, partial = _placed(name, spread, parts, adapter=adapter)
            changes, size = adapter or _is_trained(name, is_trained, parts), prod(shape) / split
            part = Part(
                *(size, kind == "experts", changes, partial),
                in_block=name.startswith((f"{parts.BLOCKS}.", f"{parts.AHEAD_BLOCKS}.")),
                keeps_whole=name.endswith(parts.ROUTERS) or (beside is not None and changes),
                is_wide=name.endswith(parts.ROUTERS),
            )
            for holder in _holders(name, owners, (holders[0], holders[last]), config, parts):
                found[holder].append(part)
                held = weights[holder]
                held[kind] += size
                held["fixed"] += size * name.endswith(parts.UNTRAINED)
                held["spared"] += size * (width - (stored or {}).get(name, width))
                if name.endswith(".lora_A"):
                    rows = config.moe_k * spread.expert_rows_per_choice() if kind == "experts" else 1
                    held["kept_beside"] += shape[-1] * rows
                if changes:
                    trained[holder][kind] += size
    return [
        Share(
            config,
            spread,
            [block for stage in own for block in stages[stage]],
            first=0 in own,
            last=last in own,
            weights=Counts(**weights[holder]),
            trained=Counts(**trained[holder]),
            trains_embedding=_is_trained(f"{parts.EMBEDDING}.weight", is_trained, parts),
            parts=found[holder],
        )
        for holder, own in enumerate(places)
    ]


def _is_trained(name: str, is_trained: Mapping[str, bool] | None, parts: Any) -> bool:
    return not name.endswith(parts.UNTRAINED) if is_trained is None else is_trained[name]


def _holders(
    name: str, owners: Mapping[int, int], ends: tuple[int, int], config: Any, parts: Any
) -> tuple[int, ...]:
    """Who holds a parameter."""
    block = re.match(rf"{re.escape(parts.BLOCKS)}\.(\d+)\.", name)
    if block:
        return (owners[int(block[1])],)
    first, last = ends
    if name.startswith(parts.EMBEDDING):
        needed = config.tie_word_embeddings or config.num_nextn_predict_layers
        return (first, last) if needed and first != last else (first,)
    return (last,)


def _placed(name: str, spread: Spread, parts: Any, *, adapter: bool) -> tuple[str, int, bool]:
    """The kind of a parameter, over how many processes it is split, and whether its gradient is partial."""
    module, _, own = name.rpartition(".")
    if any(module.endswith(experts) for experts in parts.EXPERTS):
        whole = adapter and not _is_split(parts.EXPERTS, module, own)
        split = 1 if whole else spread.expert_tensor
        return "experts", spread.expert * split, whole and spread.expert_tensor > 1
    for table in (parts.LINEARS, parts.SHARED_EXPERTS):
        if any(module.endswith(linear) for linear in table):
            if _is_split(table, module, own):
                return "split", spread.tensor, False
            return "same", 1, spread.tensor > 1 and (adapter or spread.sequence_parallel)
    if module in (parts.EMBEDDING, parts.HEAD) and not adapter:
        return "split", spread.tensor, False
    return "same", 1, spread.tensor > 1 and spread.sequence_parallel


def _is_split(table: Mapping[str, str], module: str, own: str) -> bool:
    """Whether a tensor of a column or row matrix is split: of an adapter, one of its two matrices."""
    way = next(way for linear, way in table.items() if module.endswith(linear))
    if own == "weight":
        return True
    return own in ({"bias", "lora_B"} if way == "column" else {"lora_A"})
