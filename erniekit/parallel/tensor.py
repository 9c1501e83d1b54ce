"""Tensor parallelism: every matrix of a block is split over the processes of a group.

Column-parallel matrices hold some of the outputs, row-parallel ones some of the inputs (Shoeybi et al.
2019); between the two nothing is exchanged. What goes in is the same in all processes and its gradient
is summed; what comes out is summed. Attention is split by heads, experts by their channels, embedding
and output layer by the vocabulary (`vocabulary.py`).

With sequence parallelism (Korthikanti et al. 2022) what lies between the blocks' matrices, the stream,
the norms and dropout, is split along the sequence: instead of one sum of all there is a gather before
the columns and a reduce-scatter after the rows, which exchange as much and hold less. Parameters that
act there see a part of the tokens only: their gradients are sums over the group.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import paddle

from erniekit.errors import ConfigError
from erniekit.nn.moe import Dispatcher, MixtureOfExperts, Packing
from erniekit.ops.moe import Routing
from erniekit.parallel import comm
from erniekit.parallel.differentiable import (
    all_gather_from,
    copy_to,
    gather_from,
    gathered,
    own_part,
    reduce_from,
    reduce_scatter_to,
)
from erniekit.parallel.parts import find, narrow, narrow_along
from erniekit.parallel.placement import Placement
from erniekit.parallel.records import record_whole_rows
from erniekit.parallel.vocabulary import SharedHead, shared_embedding

_SEQUENCE = 1  # axis of [B, T, H]


@dataclass(frozen=True)
class _Group:
    """How a value enters what is split, and how it leaves."""

    group: comm.Group
    sequence: bool

    def enter(self, x: paddle.Tensor) -> paddle.Tensor:
        """What all processes then use differently."""
        return all_gather_from(x, self.group, _SEQUENCE) if self.sequence else copy_to(x, self.group)

    def leave(self, x: paddle.Tensor) -> paddle.Tensor:
        """The sum of what each has."""
        return reduce_scatter_to(x, self.group, _SEQUENCE) if self.sequence else reduce_from(x, self.group)


def apply_tensor_parallel(
    model: Any,
    plan: Any,
    group: comm.Group,
    placed: Mapping[str, Placement] | None = None,
    *,
    sequence_parallel: bool = False,
    split_experts: bool = True,
) -> dict[str, Placement]:
    """Split the matrices of a model that has no weights yet; returns what each split parameter holds.

    Args:
        model: of the model contract; parameters are replaced by smaller ones.
        plan: the family's module: BLOCKS, AHEAD_BLOCKS, LINEARS, SHARED_EXPERTS, EXPERTS, FUSED, EMBEDDING,
            HEAD, WHOLE_ATTENTION, EXPERTS_LAYER, FINAL_NORM.
        placed: what is here of experts that are spread over other processes.
        split_experts: whether experts are split by channels; not when these processes have some each.

    Raises:
        ConfigError: heads, channels or the vocabulary are not divisible.
    """
    if group.size == 1:
        return {}
    how = _Group(group, sequence_parallel)
    placements: dict[str, Placement] = {}
    for root in (plan.BLOCKS, plan.AHEAD_BLOCKS):
        for index, block in enumerate(find(model, root) or ()):
            start = f"{root}.{index}."
            own = {n.removeprefix(start): p for n, p in (placed or {}).items() if n.startswith(start)}
            found = _split_block(block, plan, how, split_experts, own)
            placements |= {start + name: placement for name, placement in found.items()}
    return placements | _split_vocabulary(model, plan, how)


def _split_block(
    block: Any, plan: Any, how: _Group, split_experts: bool, placed: Mapping[str, Placement]
) -> dict[str, Placement]:
    placements: dict[str, Placement] = {}
    attention = find(block, plan.WHOLE_ATTENTION)
    pieces = [
        heads * attention.head_dim
        for heads in (attention.num_heads, attention.num_kv_heads, attention.num_kv_heads)
    ]
    for key in ("num_heads", "num_kv_heads"):
        setattr(attention, key, _divided(getattr(attention, key), how.group.size, key))
    for path, kind in {**plan.LINEARS, **plan.SHARED_EXPERTS}.items():
        layer = find(block, path)
        if layer is None:
            continue
        fused = len(plan.FUSED.get(path.rpartition(".")[2], ()))
        of_layer = pieces if fused == len(pieces) else _even(layer.weight.shape[1], max(fused, 1))
        placements |= {
            f"{path}.{name}": placement
            for name, placement in _split_linear(layer, kind, how, of_layer).items()
        }
    experts_layer = find(block, plan.EXPERTS_LAYER)
    if isinstance(experts_layer, MixtureOfExperts):
        if how.sequence:
            _split_tokens(experts_layer, how.group, split_experts)
        if split_experts:
            experts_layer.dispatcher = _SplitExperts(experts_layer.dispatcher, how.group)
            for path, kind in plan.EXPERTS.items():
                layer = find(block, path)
                if layer is not None:
                    start = f"{path}."
                    before = {n.removeprefix(start): p for n, p in placed.items() if n.startswith(start)}
                    axis, parts = (2, 2) if kind == "column" else (1, 1)
                    sizes = _even(layer.weight.shape[axis], parts)
                    found = {"weight": narrow(layer, "weight", axis, how.group, sizes, before.get("weight"))}
                    found = narrow_along(layer, kind, how.group, found, before)
                    placements |= {start + name: placement for name, placement in found.items()}
    return placements


def _split_linear(layer: Any, kind: str, how: _Group, pieces: Sequence[int]) -> dict[str, Placement]:
    if kind == "column":
        placements = {"weight": narrow(layer, "weight", 1, how.group, pieces)}
        if layer.bias is not None:
            placements["bias"] = narrow(layer, "bias", 0, how.group, pieces)
        _replace(layer, lambda forward: lambda x: forward(how.enter(x)))
        return narrow_along(layer, kind, how.group, placements)
    placements = narrow_along(layer, kind, how.group, {"weight": narrow(layer, "weight", 0, how.group)})

    def summed(x: paddle.Tensor) -> paddle.Tensor:
        # The bias is added once, to the sum.
        out = how.leave(layer.product(x, None))
        return out if layer.bias is None else out + layer.bias

    layer.forward = summed
    return placements


def _split_vocabulary(model: Any, plan: Any, how: _Group) -> dict[str, Placement]:
    group = how.group
    embed = find(model, plan.EMBEDDING)
    name = f"{plan.EMBEDDING}.weight"
    placements = {name: narrow(embed, "weight", 0, group)}
    embed.forward = shared_embedding(embed, how.leave, group)
    head = find(model, plan.HEAD)
    if head is not None and hasattr(head, "weight"):
        of_head = narrow_along(head, "column", group, {"weight": narrow(head, "weight", 1, group)})
        placements |= {f"{plan.HEAD}.{name}": placement for name, placement in of_head.items()}
    if head is not None and getattr(head, "bias", None) is not None:
        placements[f"{plan.HEAD}.bias"] = narrow(head, "bias", 0, group)

    def shared_head() -> SharedHead:
        own = original()
        return SharedHead(own.weight, own.transposed, own.bias, group)

    original = model.head
    model.head = shared_head
    if how.sequence:
        # The head enters by a copy of whole sequences, as without: so gather what all then use alike.
        norm = find(model, plan.FINAL_NORM)

        def gathering(forward: Callable[..., Any]) -> Callable[..., Any]:
            def call(*inputs: Any) -> Any:
                stream, normed = forward(*inputs)
                return stream, gather_from(normed, group, _SEQUENCE)

            return call

        _replace(norm, gathering)
    return placements


def _split_tokens(layer: MixtureOfExperts, group: comm.Group, split_experts: bool) -> None:
    """Have routers see the tokens of a part of the sequence, and record those of all of it."""

    def own(types_BT: paddle.Tensor) -> paddle.Tensor:
        return own_part(types_BT, group, _SEQUENCE)

    def gather(part_BTX: paddle.Tensor) -> paddle.Tensor:
        if part_BTX.stop_gradient:
            return gathered(part_BTX, group, _SEQUENCE)
        return gather_from(part_BTX, group, _SEQUENCE)

    refused = {"experts that are not spread over the same processes: write moe_group: mp": split_experts}
    record_whole_rows(layer, own, gather, key="sequence_parallel: true", refused=refused)


class _SplitExperts:
    """A dispatcher around experts of which every process has some channels."""

    def __init__(self, inner: Dispatcher, group: comm.Group) -> None:
        self._inner, self._group = inner, group
        self.meets = inner.meets

    @property
    def meanwhile(self) -> Callable[[], object] | None:
        return self._inner.meanwhile

    @meanwhile.setter
    def meanwhile(self, function: Callable[[], object] | None) -> None:
        self._inner.meanwhile = function

    @property
    def packing(self) -> Packing | None:
        return self._inner.packing

    @packing.setter
    def packing(self, packing: Packing | None) -> None:
        self._inner.packing = packing

    def dispatch(self, x_NH: paddle.Tensor, routing: Routing, num_experts: int) -> tuple[Any, Any, Any]:
        return self._inner.dispatch(copy_to(x_NH, self._group), routing, num_experts)

    def combine(self, y_MH: paddle.Tensor, routing: Routing, state: Any) -> paddle.Tensor:
        # Each process sees a part of every expert's result, so also of the weights' gradient.
        weights_Nk = copy_to(routing.weights_Nk, self._group)
        shared = Routing(routing.scores_NE, routing.chosen_Nk, weights_Nk, routing.dropped_Nk)
        return reduce_from(self._inner.combine(y_MH, shared, state), self._group)


def _replace(layer: Any, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    layer.forward = wrap(layer.forward)


def _even(size: int, count: int) -> list[int]:
    return [size // count] * count


def _divided(number: int, count: int, key: str) -> int:
    if number % count:
        raise ConfigError(
            f"tensor_parallel_degree: {count} does not divide the model's {key}, {number}; write a "
            "divisor of it"
        )
    return number // count
