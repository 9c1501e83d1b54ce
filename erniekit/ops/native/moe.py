"""Choosing experts, and rows to them and back by native kernels, each in one pass, with gradients by hand.

Dispatch copies rows; its gradient sums, for every token, those of its slots. Combine is the weighted
sum of a token's slots; its gradient to a row is the token's times the weight, and to a weight the
product of row and gradient. Sums run in fp32 in the order of a token's choices.
"""

from ctypes import c_int, c_long, c_void_p
from typing import Any

import paddle
from paddle.autograd import PyLayer

from erniekit.ops import remake
from erniekit.ops.kernels import library
from erniekit.ops.moe import (
    SortedSlots,
    combine_rows_reference,
    dispatch_rows_reference,
    sort_slots_reference,
    top_k_reference,
)
from erniekit.ops.native.matmul import TYPES, contiguous, takes
from erniekit.ops.native.memory import empty


def dispatch_rows_native(x_NH: paddle.Tensor, slots: SortedSlots) -> paddle.Tensor:
    """As `dispatch_rows_reference`, which also serves other types."""
    if not takes(x_NH):
        return dispatch_rows_reference(x_NH, slots)
    if not paddle.is_grad_enabled():
        return _copies(x_NH, slots)
    return _Dispatch.apply(x_NH, slots)


def combine_rows_native(y_MH: paddle.Tensor, weights_Nk: paddle.Tensor, slots: SortedSlots) -> paddle.Tensor:
    """As `combine_rows_reference`, which also serves other types."""
    if not takes(y_MH) or weights_Nk.dtype != paddle.float32:
        return combine_rows_reference(y_MH, weights_Nk, slots)
    if not paddle.is_grad_enabled():
        return _sums(y_MH, weights_Nk, slots)
    return _Combine.apply(y_MH, weights_Nk, slots, remake.keep(y_MH))


def top_k_native(x_NE: paddle.Tensor, top_k: int) -> paddle.Tensor:
    """As `top_k_reference`; of equal numbers the first counts as the larger."""
    if x_NE.dtype != paddle.float32:
        return top_k_reference(x_NE, top_k)
    x_NE = contiguous(x_NE)
    chosen_Nk = paddle.empty([x_NE.shape[0], top_k], dtype="int64")
    library.load().declare("ek_top_k", c_long, c_long, c_long, c_void_p, c_void_p)(
        *x_NE.shape, top_k, x_NE.data_ptr(), chosen_Nk.data_ptr()
    )
    return chosen_Nk


def sort_slots_native(
    chosen_Nk: paddle.Tensor, num_experts: int, dropped_Nk: paddle.Tensor | None = None
) -> SortedSlots:
    """As `sort_slots_reference`, which also serves dropped slots."""
    if dropped_Nk is not None or chosen_Nk.dtype != paddle.int64:
        return sort_slots_reference(chosen_Nk, num_experts, dropped_Nk)
    chosen_Nk = contiguous(chosen_Nk)
    count = chosen_Nk.size
    offsets = paddle.empty([num_experts + 1], dtype="int64")
    tokens_M, slots_M = paddle.empty([count], dtype="int64"), paddle.empty([count], dtype="int64")
    places_Nk = paddle.empty(chosen_Nk.shape, dtype="int64")
    library.load().declare("ek_sort_slots", c_long, c_long, c_long, *[c_void_p] * 5)(
        *(count, chosen_Nk.shape[1], num_experts, chosen_Nk.data_ptr(), offsets.data_ptr()),
        *(tokens_M.data_ptr(), slots_M.data_ptr(), places_Nk.data_ptr()),
    )
    return SortedSlots(tokens_M, slots_M, places_Nk, offsets)


def _copies(x_NH: paddle.Tensor, slots: SortedSlots) -> paddle.Tensor:
    x_NH = contiguous(x_NH)
    num_rows, width = slots.tokens_M.shape[0], x_NH.shape[1]
    out = empty([num_rows, width], dtype=x_NH.dtype)
    library.load().declare("ek_embedding", c_int, c_long, c_long, c_void_p, c_void_p, c_void_p)(
        TYPES[x_NH.dtype], num_rows, width, slots.tokens_M.data_ptr(), x_NH.data_ptr(), out.data_ptr()
    )
    return out


def _sums(y_MH: paddle.Tensor, weights_Nk: paddle.Tensor | None, slots: SortedSlots) -> paddle.Tensor:
    y_MH = contiguous(y_MH)
    weights = None if weights_Nk is None else contiguous(weights_Nk)
    num_tokens, top_k = slots.places_Nk.shape
    out = empty([num_tokens, y_MH.shape[1]], dtype=y_MH.dtype)
    library.load().declare(
        "ek_sum_places", c_int, c_long, c_long, c_long, c_void_p, c_void_p, c_void_p, c_void_p
    )(
        *(TYPES[y_MH.dtype], num_tokens, top_k, y_MH.shape[1], slots.places_Nk.data_ptr()),
        *(y_MH.data_ptr(), None if weights is None else weights.data_ptr(), out.data_ptr()),
    )
    return out


class _Dispatch(PyLayer):
    @staticmethod
    def forward(ctx: Any, x_NH: paddle.Tensor, slots: SortedSlots) -> paddle.Tensor:
        ctx.slots = slots
        return _copies(x_NH, slots)

    @staticmethod
    def backward(ctx: Any, grad_MH: paddle.Tensor) -> paddle.Tensor:
        return _sums(grad_MH, None, ctx.slots)


class _Combine(PyLayer):
    @staticmethod
    def forward(
        ctx: Any, y_MH: paddle.Tensor, weights_Nk: paddle.Tensor, slots: SortedSlots, kept: remake.Recipe
    ) -> paddle.Tensor:
        ctx.kept = kept, contiguous(weights_Nk)
        ctx.slots, ctx.wanted = slots, (not y_MH.stop_gradient, not weights_Nk.stop_gradient)
        return _sums(y_MH, weights_Nk, slots)

    @staticmethod
    def backward(ctx: Any, grad_NH: paddle.Tensor) -> tuple[paddle.Tensor | None, paddle.Tensor | None]:
        kept, weights_Nk = ctx.kept
        ctx.kept = None
        y_MH = contiguous(remake.restore(kept))
        slots, grad_NH = ctx.slots, contiguous(grad_NH)
        num_tokens, top_k = weights_Nk.shape
        num_rows, width = y_MH.shape
        grad_y, grad_weights = empty(y_MH.shape, dtype=y_MH.dtype), paddle.empty_like(weights_Nk)
        signature = (c_int, *[c_long] * 4, *[c_void_p] * 6)
        library.load().declare("ek_sum_places_backward", *signature)(
            *(TYPES[y_MH.dtype], num_tokens, top_k, num_rows, width),
            *(slots.slots_M.data_ptr(), weights_Nk.data_ptr(), y_MH.data_ptr(), grad_NH.data_ptr()),
            *(grad_y.data_ptr(), grad_weights.data_ptr()),
        )
        return (grad_y if ctx.wanted[0] else None), (grad_weights if ctx.wanted[1] else None)
