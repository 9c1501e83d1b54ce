"""A mixture of experts in place of an MLP: router, experts as grouped matrix products, shared experts.

The router computes in fp32 whatever the model's type. A layer may hold two sets of experts, for text
and for vision tokens, of different number and width, each with its own router and row of the
correction bias ("modality-isolated", hard gate): a token reaches the experts of its own modality
only. Without vision tokens that half of the layer is not touched. Shared experts, one MLP, see
every token.

Between router and experts lies the dispatcher, the seam of expert parallelism: it brings rows to the
experts, sorted by expert, and their results back.

    B batch, T positions, N tokens (of one modality), H hidden size, E experts, k experts a token, I channels
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import paddle
from paddle import nn

from erniekit.nn.mlp import GatedMLP
from erniekit.ops.concat import concat
from erniekit.ops.linear import add, linear, views, widen
from erniekit.ops.moe import (
    Routing,
    SortedSlots,
    combine_rows,
    dispatch_rows,
    expert_capacity,
    grouped_linear,
    route,
    sort_slots,
)
from erniekit.ops.swiglu import swiglu

TEXT, VISION = 0, 1
# Names of their parameters.
GATE_WEIGHTS = ("weight", "weight_1")
EXPERTS = ("experts", "vision_experts")
_ZERO = nn.initializer.Constant(0.0)


@dataclass(frozen=True)
class RouterRecord:
    """What the router of one layer did with the tokens of one modality, for losses and telemetry.

    layer: index of the block. modality: TEXT or VISION.
    logits_NE, probabilities_NE: fp32, with gradients (probabilities: softmax, or sigmoid scores).
    selected_Nk: int64 expert ids. combine_weights_Nk: fp32, 0 where dropped, with gradients.
    dropped_Nk: bool, slots beyond an expert's capacity; None when nothing can be dropped.
    rows_N: int64 places of the tokens in the flattened batch [B * T]; None for all in order.
    token_types_N: int64 types of these tokens as given; None without them.
    gate_weight_HE: the router's parameter, without an adapter. correction_bias_E: its row of the bias.
    """

    layer: int
    modality: int
    logits_NE: paddle.Tensor
    probabilities_NE: paddle.Tensor
    selected_Nk: paddle.Tensor
    combine_weights_Nk: paddle.Tensor
    dropped_Nk: paddle.Tensor | None
    rows_N: paddle.Tensor | None
    token_types_N: paddle.Tensor | None
    gate_weight_HE: paddle.Tensor
    correction_bias_E: paddle.Tensor


class Packing(Protocol):
    """What rows are on their way to experts of other processes, in place of numbers of the model's type."""

    def pack(self, x_MH: paddle.Tensor) -> paddle.Tensor:
        """Rows as bytes, uint8 [M, bytes of a row]."""

    def unpack(self, packed: paddle.Tensor, hidden_size: int, dtype: Any) -> paddle.Tensor:
        """The rows that bytes stand for."""


class Dispatcher(Protocol):
    """Brings rows to experts and back; replaced by expert parallelism.

    meets: whether processes with other tokens have to make the same calls, those without tokens of a
    modality too. meanwhile: what may be called, once, while rows travel. packing: how they do.
    """

    meanwhile: Callable[[], object] | None
    packing: Packing | None

    @property
    def meets(self) -> bool: ...

    def dispatch(
        self, x_NH: paddle.Tensor, routing: Routing, num_experts: int
    ) -> tuple[paddle.Tensor, Any, Any]:
        """Rows sorted by expert [M, H], their offsets [E + 1] by local expert, and what `combine` needs."""

    def combine(self, y_MH: paddle.Tensor, routing: Routing, state: Any) -> paddle.Tensor:
        """The weighted sum of each token's results, [N, H]."""


class LocalDispatcher:
    """All experts are here."""

    meets = False
    meanwhile: Callable[[], object] | None = None
    packing: Packing | None = None

    def dispatch(
        self, x_NH: paddle.Tensor, routing: Routing, num_experts: int
    ) -> tuple[paddle.Tensor, paddle.Tensor, SortedSlots]:
        slots = sort_slots(routing.chosen_Nk, num_experts, routing.dropped_Nk)
        return dispatch_rows(x_NH, slots), slots.offsets, slots

    def combine(self, y_MH: paddle.Tensor, routing: Routing, state: SortedSlots) -> paddle.Tensor:
        return combine_rows(y_MH, routing.weights_Nk, state)


class Gate(nn.Layer):
    """The routers' matrices [H, E], always fp32: `weight` for text, `weight_1` for vision."""

    def __init__(self, hidden_size: int, num_experts: Sequence[int]) -> None:
        super().__init__(dtype="float32")
        for modality, experts in enumerate(num_experts):
            matrix = self.create_parameter([hidden_size, experts], dtype="float32", default_initializer=_ZERO)
            self.add_parameter(GATE_WEIGHTS[modality], matrix)

    def forward(self, x_NH: paddle.Tensor, modality: int) -> paddle.Tensor:
        """Logits [N, E] in fp32."""
        return linear(widen(x_NH), self.matrix(modality))

    def matrix(self, modality: int) -> paddle.Tensor:
        """The router's matrix of a modality."""
        return getattr(self, GATE_WEIGHTS[modality])


class MoeStatics(nn.Layer):
    """The correction bias, fp32 [modalities, most experts of one]; never trained by gradients."""

    def __init__(self, num_experts: Sequence[int]) -> None:
        super().__init__(dtype="float32")
        self.num_experts = tuple(num_experts)
        self.e_score_correction_bias = self.create_parameter(
            [len(num_experts), max(num_experts)], dtype="float32", default_initializer=_ZERO
        )
        self.e_score_correction_bias.stop_gradient = True

    def row(self, modality: int) -> paddle.Tensor:
        """The bias of the experts of a modality, [E]."""
        return self.e_score_correction_bias[modality, : self.num_experts[modality]]


class ExpertMatrices(nn.Layer):
    """One matrix an expert, as one parameter `weight` [E, in, out]."""

    def __init__(self, num_experts: int, in_features: int, out_features: int, *, dtype: str) -> None:
        super().__init__(dtype=dtype)
        self.weight = self.create_parameter(
            [num_experts, in_features, out_features], dtype=dtype, default_initializer=_ZERO
        )

    def forward(self, x_MI: paddle.Tensor, offsets: paddle.Tensor) -> paddle.Tensor:
        return grouped_linear(x_MI, self.weight, offsets)


class Experts(nn.Layer):
    """The gated MLPs of all experts, over rows that are sorted by expert."""

    def __init__(self, num_experts: int, hidden_size: int, intermediate_size: int, *, dtype: str) -> None:
        super().__init__()
        self.up_gate_proj = ExpertMatrices(num_experts, hidden_size, 2 * intermediate_size, dtype=dtype)
        self.down_proj = ExpertMatrices(num_experts, intermediate_size, hidden_size, dtype=dtype)

    def forward(self, x_MH: paddle.Tensor, offsets: paddle.Tensor) -> paddle.Tensor:
        return self.down_proj(self.activation(self.up_gate_proj(x_MH, offsets)), offsets)

    def activation(self, gate_up: paddle.Tensor) -> paddle.Tensor:
        """Between the matrices."""
        return swiglu(gate_up)


class MixtureOfExperts(nn.Layer):
    """x [B, T, H] to [B, T, H].

    `num_experts` and `intermediate_sizes` hold one number (text) or two (text, vision). Parameters of
    the text experts lie under `experts`, of the vision experts under `vision_experts`.
    """

    def __init__(
        self,
        hidden_size: int,
        num_experts: Sequence[int],
        intermediate_sizes: Sequence[int],
        *,
        top_k: int,
        shared_intermediate_size: int,
        bias: bool,
        dtype: str,
        scoring: str = "softmax",
        norm_min: float = 1e-12,
        normalise: bool = True,
        grouped: bool = False,
        capacity: tuple[float, float, float] | None = None,
    ) -> None:
        super().__init__()
        self.num_experts = tuple(num_experts)
        self.capacity = capacity
        self.routing: dict[str, Any] = {
            "top_k": top_k,
            "scoring": scoring,
            "norm_min": norm_min,
            "normalise": normalise,
            "grouped": grouped,
        }
        self.dispatcher: Dispatcher = LocalDispatcher()
        self.gate = Gate(hidden_size, num_experts)
        self.moe_statics = MoeStatics(num_experts)
        for name, experts, inner in zip(EXPERTS, num_experts, intermediate_sizes, strict=False):
            self.add_sublayer(name, Experts(experts, hidden_size, inner, dtype=dtype))
        self.shared_experts: GatedMLP | None = None
        if shared_intermediate_size:
            self.shared_experts = GatedMLP(hidden_size, shared_intermediate_size, bias=bias, dtype=dtype)

    def forward(
        self,
        x_BTH: paddle.Tensor,
        token_types_BT: paddle.Tensor | None = None,
        records: list[RouterRecord] | None = None,
        layer: int = 0,
    ) -> paddle.Tensor:
        """Route, compute, combine.

        Args:
            token_types_BT: int64, 0 for text, anything else for vision; None for text only.
            records: receives a RouterRecord for every modality that is present.
        """
        shape = x_BTH.shape
        flat = [shape[0] * shape[1], shape[2]]
        x_NH, *to_shared = views(x_BTH, flat, *([] if self.shared_experts is None else [shape]))
        shared: list[paddle.Tensor] = []
        has_graph = paddle.is_grad_enabled()

        def meanwhile() -> None:
            # Not where dispatch alone runs a first time: what is made there has no graph.
            if self.shared_experts is not None and paddle.is_grad_enabled() == has_graph:
                shared.append(self.shared_experts(*to_shared))

        self.dispatcher.meanwhile = None if self.shared_experts is None else meanwhile
        types_N = None if token_types_BT is None else token_types_BT.flatten()
        if len(self.num_experts) == 1 or (types_N is None and not self.dispatcher.meets):
            out_NH = self._of_modality(x_NH, TEXT, records, layer, None, None)
        else:
            out_NH = self._by_modality(x_NH, types_N, records, layer)
        (out_BTH,) = views(out_NH, shape)
        self.dispatcher.meanwhile = None
        if self.shared_experts is None:
            return out_BTH
        return add(out_BTH, shared[0] if shared else self.shared_experts(*to_shared))

    def _by_modality(
        self,
        x_NH: paddle.Tensor,
        types_N: paddle.Tensor | None,
        records: list[RouterRecord] | None,
        layer: int,
    ) -> paddle.Tensor:
        total = num_text = x_NH.shape[0]
        if types_N is not None:
            num_text = int((types_N == TEXT).sum())
            order_N = paddle.argsort((types_N != TEXT).astype("int64"), stable=True)
        parts = []
        for modality, start, stop in ((TEXT, 0, num_text), (VISION, num_text, total)):
            if stop - start == total:
                parts.append(self._of_modality(x_NH, modality, records, layer, None, types_N))
            elif start == stop:
                if self.dispatcher.meets:
                    parts.append(self._of_modality(x_NH[:0], modality, None, layer, None, None))
            else:
                assert types_N is not None
                rows_N = order_N[start:stop]
                own_NH = paddle.gather(x_NH, rows_N)
                own_types_N = paddle.gather(types_N, rows_N)
                parts.append(self._of_modality(own_NH, modality, records, layer, rows_N, own_types_N))
        if num_text in (0, total):
            return parts[0] if len(parts) == 1 else concat(parts)
        return paddle.gather(concat(parts), paddle.argsort(order_N))

    def _of_modality(
        self,
        x_NH: paddle.Tensor,
        modality: int,
        records: list[RouterRecord] | None,
        layer: int,
        rows_N: paddle.Tensor | None,
        token_types_N: paddle.Tensor | None,
    ) -> paddle.Tensor:
        to_gate_NH, x_NH = views(x_NH, x_NH.shape, x_NH.shape)
        logits_NE, routing, gate_HE = self.choose_experts(to_gate_NH, modality)
        num_experts, bias_E = logits_NE.shape[1], self.moe_statics.row(modality)
        if records is not None:
            records.append(
                RouterRecord(
                    layer,
                    modality,
                    logits_NE,
                    routing.scores_NE,
                    routing.chosen_Nk,
                    routing.weights_Nk,
                    routing.dropped_Nk,
                    rows_N,
                    token_types_N,
                    gate_HE,
                    bias_E,
                )
            )
        sorted_MH, offsets, state = self.dispatcher.dispatch(x_NH, routing, num_experts)
        experts = getattr(self, EXPERTS[modality])
        return self.dispatcher.combine(experts(sorted_MH, offsets), routing, state)

    def choose_experts(
        self, x_NH: paddle.Tensor, modality: int
    ) -> tuple[paddle.Tensor, Routing, paddle.Tensor]:
        """The router: fp32 logits [N, E] of one modality's tokens, what follows from them, its matrix."""
        logits_NE = self.gate(x_NH, modality)
        capacity = None
        if self.capacity is not None:
            capacity = expert_capacity(self.capacity, *logits_NE.shape, training=self.training)
        bias_E = self.moe_statics.row(modality)
        routing = route(logits_NE, bias_E, capacity=capacity, **self.routing)
        return logits_NE, routing, getattr(self.gate, GATE_WEIGHTS[modality])
