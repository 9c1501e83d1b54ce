"""Context parallelism: the processes of a group share the columns of every row.

Each has as many columns of a row, in their order, from the embedding to the loss. In between only
attention looks at other columns, and there heads are shared instead (Jacobs et al. 2023): before it
every process gives each other one the columns it has of that one's heads, after it they give back what
came out. So attention is that of one process with fewer heads: every mask, every kernel and dropout stay
what they are, and all processes have as much of the causal triangle. Keys of fewer heads than processes
go to all that have queries for them.

Parameters are the same in all processes, and their gradients are sums over the group, as of replicas.

    B rows, T columns, c of them here, n processes, N query heads, K key heads, D head dim
"""

from dataclasses import replace
from typing import Any

import numpy as np
import paddle

from erniekit.errors import ConfigError
from erniekit.losses.cross_entropy import Columns, Head
from erniekit.nn.moe import MixtureOfExperts
from erniekit.ops.concat import concat
from erniekit.parallel import comm
from erniekit.parallel.differentiable import (
    all_gather_from,
    all_to_all_rows,
    copy_to,
    gathered,
    reduce_from,
)
from erniekit.parallel.parts import find
from erniekit.parallel.records import record_whole_rows

_COLUMNS = 1  # axis of [B, T, H]


class OwnColumns(Columns):
    """The columns of rows that this process of a group has."""

    def __init__(self, group: comm.Group) -> None:
        self.group = group
        self.share = 1.0 / group.size

    def own(self, array_BT: Any) -> Any:
        """The columns that are here, of an array or tensor [B, T, ...] of whole rows."""
        columns = array_BT.shape[_COLUMNS]
        size = self.group.size
        assert columns % size == 0, f"{columns} columns over {size} processes"
        here = columns // size
        return array_BT[:, self.group.rank * here : (self.group.rank + 1) * here]

    def total(self, x: paddle.Tensor) -> paddle.Tensor:
        """The sum over the processes, of which each then takes its share; so are gradients."""
        return copy_to(reduce_from(x, self.group), self.group)


def apply_context_parallel(model: Any, plan: Any, group: comm.Group) -> None:
    """Share the columns of rows: the model takes whole rows and gives the hidden states of own columns.

    After tensor parallelism, which changes what this wraps.

    Args:
        model: of the model contract.
        plan: the family's module: BLOCKS, AHEAD_BLOCKS, EMBEDDING, WHOLE_ATTENTION, EXPERTS_LAYER.

    Raises:
        ConfigError: the heads cannot be shared evenly.
        UnsupportedError: a router would have to know of tokens elsewhere.
    """
    if group.size == 1:
        return
    columns = OwnColumns(group)
    embed = find(model, plan.EMBEDDING)
    embed.forward = _of_own(embed.forward, columns)
    for root in (plan.BLOCKS, plan.AHEAD_BLOCKS):
        for block in find(model, root) or ():
            _share_heads(find(block, plan.WHOLE_ATTENTION), group)
            layer = find(block, plan.EXPERTS_LAYER)
            if isinstance(layer, MixtureOfExperts):
                _share_tokens(layer, columns)

    def own_head() -> Head:
        return replace(whole_head(), columns=columns)

    whole_head = model.head
    model.head = own_head


def _of_own(forward: Any, columns: OwnColumns) -> Any:
    def call(ids_BT: paddle.Tensor) -> paddle.Tensor:
        return forward(columns.own(ids_BT).contiguous())

    return call


def _share_heads(attention: Any, group: comm.Group) -> None:
    """Have attention compute some heads of whole rows, for what comes as all heads of own columns."""
    size, heads, key_heads = group.size, attention.num_heads, attention.num_kv_heads
    if heads % size or (key_heads % size and size % key_heads):
        raise ConfigError(
            f"context_parallel_degree: {size} has to divide the attention heads of a process, {heads}, and "
            f"divide or be a multiple of its key heads, {key_heads}"
        )
    queries, keys = heads // size, max(1, key_heads // size)
    attention.num_heads, attention.num_kv_heads = queries, keys
    core, dim, sections = attention.core_attention, attention.head_dim, key_heads // keys
    widths = [queries * dim] * size + [keys * dim] * (2 * sections)

    def call(qkv_BcX: paddle.Tensor, turns: paddle.Tensor, visible: Any) -> paddle.Tensor:
        pieces = qkv_BcX.split(widths, axis=-1)
        parts = []
        for process in range(size):
            key = size + process * sections // size
            parts.append(concat([pieces[process], pieces[key], pieces[key + sections]], axis=-1))
        qkv_BTX = concat(_exchanged(parts, group), axis=_COLUMNS)
        out_BTX = core(qkv_BTX, turns, visible)
        return concat(_exchanged(out_BTX.split(size, axis=_COLUMNS), group), axis=-1)

    attention.core_attention = call


def _exchanged(parts: list[paddle.Tensor], group: comm.Group) -> list[paddle.Tensor]:
    """One tensor for each process for one from each, all alike in shape."""
    shape = parts[0].shape
    rows = int(np.prod(shape[:2]))
    counts = [rows] * group.size
    flat = concat([part.reshape([rows, shape[2]]) for part in parts], axis=0)
    received = all_to_all_rows(flat, counts, counts, group)
    return [part.reshape(shape) for part in received.split(group.size, axis=0)]


def _share_tokens(layer: MixtureOfExperts, columns: OwnColumns) -> None:
    """Have routers record the tokens of all columns; losses of them are to be weighted by the own share."""
    group = columns.group

    def gather(part_BcX: paddle.Tensor) -> paddle.Tensor:
        if part_BcX.stop_gradient:
            return gathered(part_BcX, group, _COLUMNS)
        return all_gather_from(part_BcX, group, _COLUMNS)

    key = f"context_parallel_degree: {group.size}"
    record_whole_rows(layer, columns.own, gather, key=key, refused={})
