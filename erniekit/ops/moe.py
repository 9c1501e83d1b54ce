"""Routing of tokens to experts, and matrix products over tokens that are sorted by expert.

With scores s (a softmax over the experts, or a sigmoid of each), a correction bias b that balances
the load and gets no gradient, and k experts a token:

    chosen  = the k experts with the largest s + b
    weight  = s[chosen] / max(sum of s[chosen], norm_min)          (b is not in the weights)
    output  = sum over the chosen of weight * expert(x)

With a capacity, an expert takes its first tokens in the order of the batch; a slot beyond it gets
weight 0 BEFORE the division, so what is left of a token still sums to 1.

Grouped experts: the E experts are k groups, the softmax runs within each, and scores are divided by
the largest of their group for the choice, so that without a bias every group gives one expert.

    N tokens, E experts, k experts a token, M = N k slots less the dropped ones, H, I, O features
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle.autograd import PyLayer

from erniekit.ops import gradients, remake
from erniekit.ops.backend import choose, to_arithmetic, to_storage
from erniekit.ops.quantised import QuantisedMatrix, quantised_grouped_linear

SCORES = ("softmax", "sigmoid")


@dataclass(frozen=True)
class Routing:
    """Which experts every token goes to.

    scores_NE: softmax or sigmoid of the logits, fp32 (with grouped experts each group sums to 1).
    chosen_Nk: int64 expert ids; weights_Nk: fp32, 0 where dropped.
    dropped_Nk: whether an expert was full; None when nothing can be dropped.
    """

    scores_NE: paddle.Tensor
    chosen_Nk: paddle.Tensor
    weights_Nk: paddle.Tensor
    dropped_Nk: paddle.Tensor | None


@dataclass(frozen=True)
class SortedSlots:
    """The slots (token, choice) in the order of their experts; within an expert in that of the tokens.

    tokens_M: int64 token of each sorted slot. slots_M: int64 place of it in the flattened [N, k].
    places_Nk: int64 sorted place of each slot; -1 for a dropped one.
    offsets: int64 [E + 1], expert e has the sorted slots offsets[e] to offsets[e + 1].
    """

    tokens_M: paddle.Tensor
    slots_M: paddle.Tensor
    places_Nk: paddle.Tensor
    offsets: paddle.Tensor


def route(
    logits_NE: paddle.Tensor,
    bias_E: paddle.Tensor,
    *,
    top_k: int,
    scoring: str = "softmax",
    norm_min: float = 1e-12,
    normalise: bool = True,
    grouped: bool = False,
    capacity: int | None = None,
) -> Routing:
    """Choose experts from fp32 logits; see the module docstring.

    Args:
        norm_min: the least that weights are divided by.
        normalise: whether the weights of a token sum to 1.
        grouped: the experts are `top_k` groups.
        capacity: tokens that an expert takes; None for all.
    """
    assert scoring in SCORES, scoring
    num_tokens, num_experts = logits_NE.shape
    # Without groups nothing is reshaped: the gradient of a reshape is a copy.
    grouped_logits = logits_NE.reshape([num_tokens, top_k, num_experts // top_k]) if grouped else logits_NE
    scores = F.softmax(grouped_logits, axis=-1) if scoring == "softmax" else F.sigmoid(grouped_logits)
    compared = scores.detach()
    if grouped:
        compared = compared / compared.max(-1, keepdim=True)
        scores, compared = scores.reshape(logits_NE.shape), compared.reshape(logits_NE.shape)
    scores_NE, compared_NE = scores, compared + bias_E.detach()
    chosen_Nk = choose("top_k")(compared_NE, top_k)
    weights_Nk = paddle.take_along_axis(scores_NE, chosen_Nk, axis=1)
    dropped_Nk = None
    if capacity is not None and capacity < num_tokens:
        dropped_Nk = beyond_capacity(chosen_Nk, num_experts, capacity)
        weights_Nk = weights_Nk * (1.0 - dropped_Nk.astype("float32"))
    if normalise:
        weights_Nk = weights_Nk / paddle.clip(weights_Nk.sum(-1, keepdim=True), min=norm_min)
    return Routing(scores_NE, chosen_Nk, weights_Nk, dropped_Nk)


def top_k_reference(x_NE: paddle.Tensor, top_k: int) -> paddle.Tensor:
    """int64 places [N, k] of the k largest of every row, largest first."""
    return paddle.topk(x_NE, top_k, axis=-1)[1]


def expert_capacity(
    factors: tuple[float, float, float], num_tokens: int, num_experts: int, *, training: bool
) -> int:
    """Tokens that an expert takes: int(factor * tokens // experts).

    Args:
        factors: in training, in evaluation, and for fewer tokens than experts.
    """
    factor = factors[0] if training else factors[1]
    if num_tokens < num_experts:
        factor = factors[2]
    return int(factor * num_tokens // num_experts)


@paddle.no_grad()
def beyond_capacity(chosen_Nk: paddle.Tensor, num_experts: int, capacity: int) -> paddle.Tensor:
    """bool [N, k]: the slots that find their expert full."""
    flat = chosen_Nk.flatten()
    order = paddle.argsort(flat, stable=True)
    experts = paddle.gather(flat, order)
    first = _offsets(flat, num_experts)
    rank = paddle.arange(flat.shape[0], dtype="int64") - paddle.gather(first, experts)
    back = paddle.argsort(order)
    return (paddle.gather(rank, back) >= capacity).reshape(chosen_Nk.shape)


def sort_slots(
    chosen_Nk: paddle.Tensor, num_experts: int, dropped_Nk: paddle.Tensor | None = None
) -> SortedSlots:
    """Sort the slots by expert; dropped ones are left out."""
    return choose("sort_slots")(chosen_Nk, num_experts, dropped_Nk)


@paddle.no_grad()
def sort_slots_reference(
    chosen_Nk: paddle.Tensor, num_experts: int, dropped_Nk: paddle.Tensor | None = None
) -> SortedSlots:
    """`sort_slots` by sorting twice."""
    top_k = chosen_Nk.shape[1]
    flat = chosen_Nk.flatten()
    if dropped_Nk is not None:  # to the end, as an expert that does not exist
        flat = paddle.where(dropped_Nk.flatten(), paddle.full_like(flat, num_experts), flat)
    offsets = _offsets(flat, num_experts)
    order = paddle.argsort(flat, stable=True)
    places = paddle.argsort(order)
    if dropped_Nk is not None:
        order = order[: int(offsets[-1])]
        places = paddle.where(flat == num_experts, paddle.full_like(places, -1), places)
    return SortedSlots(order // top_k, order, places.reshape(chosen_Nk.shape), offsets)


def _offsets(experts: paddle.Tensor, num_experts: int) -> paddle.Tensor:
    counts = paddle.bincount(experts, minlength=num_experts)[:num_experts]
    return paddle.concat([paddle.zeros([1], dtype="int64"), counts.cumsum().astype("int64")])


def grouped_linear(
    x_MI: paddle.Tensor, weight: paddle.Tensor | QuantisedMatrix, offsets: paddle.Tensor
) -> paddle.Tensor:
    """Rows offsets[e] to offsets[e + 1] of x [M, I] times weight[e] of [E, I, O]; in the type of x.

    Args:
        offsets: int64 [E + 1] on the CPU, ascending from 0 to M; experts without rows get no gradient
            but zeros.
    """
    if isinstance(weight, QuantisedMatrix):
        return quantised_grouped_linear(x_MI, weight, offsets)
    return choose("grouped_linear")(x_MI, weight, offsets)


def grouped_linear_reference(
    x_MI: paddle.Tensor, weight: paddle.Tensor, offsets: paddle.Tensor
) -> paddle.Tensor:
    """`grouped_linear` as one batched product over tiles of rows, each tile of one expert.

    What does not fill its tile is computed with other rows in its place and left out; they get a gradient
    of zero. Tiles hold no more than 3 M rows or so, and the weight is copied for an uneven load only, tile
    by tile (at most 1.5 times).
    """
    dtype = x_MI.dtype
    bounds = offsets.numpy()
    assert bounds[-1] == x_MI.shape[0], (bounds, x_MI.shape)
    if gradients.are_put_off() and not weight.stop_gradient and paddle.is_grad_enabled():
        return _LaterGroups.apply(x_MI, weight, remake.keep(x_MI), bounds)
    if x_MI.shape[0] == 0:
        return _Zeros.apply(x_MI, weight, [0, weight.shape[2]], dtype)
    return to_storage(_over_tiles(x_MI, weight, bounds), dtype)


class _Zeros(PyLayer):
    """Zeros, still a function of two tensors: where rows travel, all processes meet in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, one: paddle.Tensor, other: paddle.Tensor, shape: list[int], dtype: paddle.dtype
    ) -> paddle.Tensor:
        ctx.wanted = [None if each.stop_gradient else (each.shape, each.dtype) for each in (one, other)]
        return paddle.zeros(shape, dtype=dtype)

    @staticmethod
    def backward(ctx: Any, _: paddle.Tensor) -> tuple[paddle.Tensor | None, ...]:
        return tuple(None if each is None else paddle.zeros(each[0], dtype=each[1]) for each in ctx.wanted)


def _over_tiles(
    x_MI: paddle.Tensor, weight: paddle.Tensor, offsets: np.ndarray, *, transposed: bool = False
) -> paddle.Tensor:
    x_MI, weight = to_arithmetic(x_MI, weight)
    if x_MI.shape[0] == 0:
        return paddle.zeros([0, weight.shape[1 if transposed else 2]], dtype=x_MI.dtype)
    experts, rows, places = _tiles(offsets)
    if _are_uneven(experts, weight):
        weight = paddle.gather(weight, paddle.to_tensor(experts))
    y = paddle.matmul(_in_tiles(x_MI, rows), weight, transpose_y=transposed)
    return paddle.gather(y.reshape([-1, y.shape[-1]]), paddle.to_tensor(places))


def _in_tiles(x_MI: paddle.Tensor, rows: np.ndarray) -> paddle.Tensor:
    return paddle.gather(x_MI, paddle.to_tensor(rows.reshape(-1))).reshape([*rows.shape, x_MI.shape[1]])


def _are_uneven(experts: np.ndarray, weight: paddle.Tensor) -> bool:
    """Whether the tiles are not one an expert."""
    return len(experts) != weight.shape[0] or bool((experts[1:] == experts[:-1]).any())


def _tiles(offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows that are sorted by expert, in tiles of equal height.

    Up to twice the mean load, every expert is one tile of the largest one's height; beyond, tiles of that
    height are as many as an expert needs.

    Returns:
        The expert of each tile [P], the row at each place of it [P, height], the place of each row [M].
    """
    counts = np.diff(offsets)
    twice_the_mean = -(-2 * int(offsets[-1]) // len(counts))
    height = min(int(counts.max()), twice_the_mean)
    even = height == counts.max()
    num_tiles = np.ones_like(counts) if even else -(-counts // height)
    experts = np.repeat(np.arange(len(counts)), num_tiles)
    within = np.arange(len(experts)) - np.repeat(np.cumsum(num_tiles) - num_tiles, num_tiles)
    rows = (offsets[experts] + within * height)[:, None] + np.arange(height)
    filled = rows < offsets[experts + 1][:, None]
    # Beyond what an expert has, the rows that follow stand in.
    return experts, np.minimum(rows, offsets[-1] - 1), np.flatnonzero(filled)


class _LaterGroups(PyLayer):
    """The products whose weight gradient may be put off, as `gradients.contribute` decides."""

    @staticmethod
    def forward(
        ctx: Any, x_MI: paddle.Tensor, weight: paddle.Tensor, kept: remake.Recipe, offsets: np.ndarray
    ) -> paddle.Tensor:
        ctx.weight, ctx.kept, ctx.offsets, ctx.to_x = weight, kept, offsets, not x_MI.stop_gradient
        return to_storage(_over_tiles(x_MI, weight, offsets), x_MI.dtype)

    @staticmethod
    def backward(ctx: Any, grad_MO: paddle.Tensor) -> tuple[paddle.Tensor | None, paddle.Tensor | None]:
        x_MI, weight, offsets = remake.restore(ctx.kept), ctx.weight, ctx.offsets
        ctx.kept = None
        to_weight = gradients.contribute(weight, partial(_groups_gradient, x_MI, grad_MO, offsets))
        if not ctx.to_x:
            return None, to_weight
        to_x = _over_tiles(grad_MO, weight, offsets, transposed=True)
        return to_storage(to_x, x_MI.dtype), to_weight


def _groups_gradient(
    x_MI: paddle.Tensor, grad_MO: paddle.Tensor, offsets: np.ndarray, weight: paddle.Tensor
) -> paddle.Tensor:
    x_MI, grad_MO = to_arithmetic(x_MI, grad_MO)
    if x_MI.shape[0] == 0:
        return gradients.add_up(weight, paddle.zeros(weight.shape))
    experts, rows, places = _tiles(offsets)
    # Rows that stand in have a gradient of zero.
    grad = paddle.zeros([rows.size, grad_MO.shape[1]])
    grad = paddle.scatter(grad, paddle.to_tensor(places), grad_MO).reshape([*rows.shape, -1])
    found = paddle.matmul(_in_tiles(x_MI, rows), grad, transpose_x=True)
    if _are_uneven(experts, weight):
        found = paddle.zeros(weight.shape).index_add_(paddle.to_tensor(experts), 0, found)
    return gradients.add_up(weight, found)


def dispatch_rows(x_NH: paddle.Tensor, slots: SortedSlots) -> paddle.Tensor:
    """The rows of x in the order of the sorted slots, [M, H]."""
    kept = remake.keep(x_NH)
    out = choose("dispatch_rows")(x_NH, slots)
    return remake.mark(out, _dispatch_again, kept, slots)


def _dispatch_again(kept: Any, slots: SortedSlots) -> paddle.Tensor:
    return choose("dispatch_rows")(remake.restore(kept), slots)


def dispatch_rows_reference(x_NH: paddle.Tensor, slots: SortedSlots) -> paddle.Tensor:
    """`dispatch_rows` by one gather."""
    dtype = x_NH.dtype
    return to_storage(paddle.gather(to_arithmetic(x_NH)[0], slots.tokens_M), dtype)


def combine_rows(y_MH: paddle.Tensor, weights_Nk: paddle.Tensor, slots: SortedSlots) -> paddle.Tensor:
    """For every token the sum of its slots' rows of y times fp32 weights, [N, H] in the type of y.

    The sum runs in fp32, in the order of a token's choices.
    """
    return choose("combine_rows")(y_MH, weights_Nk, slots)


def combine_rows_reference(
    y_MH: paddle.Tensor, weights_Nk: paddle.Tensor, slots: SortedSlots
) -> paddle.Tensor:
    """`combine_rows` choice by choice; rows of dropped slots do not enter, whatever their weight."""
    num_tokens, top_k = weights_Nk.shape
    dtype = y_MH.dtype
    if y_MH.shape[0] == 0:
        return _Zeros.apply(y_MH, weights_Nk, [num_tokens, y_MH.shape[1]], dtype)
    y32_MH = y_MH.astype("float32") if dtype != paddle.float32 else y_MH
    kept_Nk = (slots.places_Nk >= 0).astype("float32")
    out_NH = None
    for choice in range(top_k):
        rows_NH = paddle.gather(y32_MH, paddle.clip(slots.places_Nk[:, choice], min=0))
        weight_N1 = (weights_Nk * kept_Nk)[:, choice : choice + 1]
        out_NH = rows_NH * weight_N1 if out_NH is None else out_NH + rows_NH * weight_N1
    assert out_NH is not None
    return to_storage(out_NH, dtype)
