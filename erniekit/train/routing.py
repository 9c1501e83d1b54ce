"""Routers in training: their losses, the balance of experts, and what the log says about them.

A companion of the step's loss (`train/step_loss.py`): it has the model record what its routers do, turns
the records into losses and counts, and moves the correction biases after the update. A step's counts
are those of its whole global batch. Nothing is kept between steps but the biases, which are weights.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import paddle

from erniekit.log import logger
from erniekit.losses.router import load_balance_loss, orthogonal_gradient, orthogonal_loss, router_z_loss
from erniekit.nn.moe import GATE_WEIGHTS, MixtureOfExperts, RouterRecord
from erniekit.optim.balance import balance_bias
from erniekit.train.router_stats import RouterCount, RouterFigures, collapse_warning, line, summary
from erniekit.train.step_loss import Term


@dataclass(frozen=True)
class _Place:
    """The layer and modality that a router belongs to."""

    layer: MixtureOfExperts
    modality: int

    def gate_HE(self) -> paddle.Tensor:
        return getattr(self.layer.gate, GATE_WEIGHTS[self.modality])

    def groups(self) -> int:
        return self.layer.routing["top_k"] if self.layer.routing["grouped"] else 1


Counts = dict[tuple[int, int], RouterCount]


class RouterWatch:
    """Counts what the routers of a model do; on its own that is all (for evaluation).

    `gather` adds the counts of other processes to those of this one, where there are several, and
    `processes` are those that the experts of a layer are spread over.
    """

    gather: Callable[[Counts], Counts] | None = None
    processes = 1

    def __init__(self, model: Any) -> None:
        self._places = {
            id(getattr(layer.gate, name)): _Place(layer, modality)
            for layer in model.sublayers()
            if isinstance(layer, MixtureOfExperts)
            for modality, name in enumerate(GATE_WEIGHTS[: len(layer.num_experts)])
        }
        self._counts: Counts = {}
        # The routers that had tokens in this step: where they are counted.
        self._seen: dict[int, tuple[int, int]] = {}

    def __len__(self) -> int:
        """The number of routers."""
        return len(self._places)

    def has_modalities(self) -> bool:
        """Whether there are routers of more than one modality."""
        return any(place.modality for place in self._places.values())

    def begin_step(self, num_micro_batches: int) -> None:
        """Forget the counts."""
        self._counts, self._seen = {}, {}

    def before_forward(self, model: Any) -> None:
        """Have the routers record what they do."""
        model.router_records = []

    def after_forward(self, model: Any, batch: Any) -> list[Term]:
        """Count what they recorded."""
        for record, counted_N in self._take(model, batch):
            self._count(record, counted_N)
        return []

    def after_update(self) -> None:
        """Nothing to do."""

    def figures(self) -> list[RouterFigures]:
        """Of every router that had tokens, in the order of the layers."""
        counts = self._counts if self.gather is None else self.gather(self._counts)
        return [counts[key].figures() for key in sorted(counts)]

    def row(self) -> dict[str, Any]:
        """The step's figures for the log."""
        return summary(self.figures(), self.processes)

    def lines(self) -> list[str]:
        """The step's figures in one line."""
        figures = self.figures()
        return [line(figures, self.processes)] if figures else []

    def _take(self, model: Any, batch: Any) -> list[tuple[RouterRecord, np.ndarray | None]]:
        """The records of a forward pass, and which of their tokens are no padding (None: all)."""
        # A copy: what runs again in the backward pass may record again.
        records, model.router_records = tuple(model.router_records), None
        is_token_N = batch.is_token().reshape(-1)
        if is_token_N.all():
            return [(record, None) for record in records]
        return [
            (record, is_token_N if record.rows_N is None else is_token_N[record.rows_N.numpy()])
            for record in records
        ]

    def _count(self, record: RouterRecord, counted_N: np.ndarray | None) -> None:
        key = (record.layer, record.modality)
        self._seen[id(record.gate_weight_HE)] = key
        num_experts = record.logits_NE.shape[1]
        count = self._counts.setdefault(key, RouterCount(*key, num_experts))

        def rows(tensor: paddle.Tensor) -> np.ndarray:
            array = tensor.detach().numpy()
            return array if counted_N is None else array[counted_N]

        count.add(
            rows(record.selected_Nk),
            rows(record.probabilities_NE),
            record.correction_bias_E.detach().numpy(),
            dropped_Nk=None if record.dropped_Nk is None else rows(record.dropped_Nk),
        )


class RouterTraining(RouterWatch):
    """Adds the losses of routers, balances experts, and warns when a router collapses.

    `average` and `total` are the mean and the sum over the ranks of a tensor, where there are several; the
    mean is over those whose micro-batch counts (`counts`), with `of_all` alone.
    `share` is this process's of losses that several processes compute alike, each to add to one sum.
    `of_weights` is this process's share of the gradients of losses of weights alone, where several
    processes compute the same ones and their gradients are summed.
    """

    average: Callable[[paddle.Tensor], paddle.Tensor] | None = None
    total: Callable[[paddle.Tensor], paddle.Tensor] | None = None
    share = of_weights = 1.0
    counts = True

    def __init__(
        self,
        model: Any,
        *,
        aux_weight: float,
        z_weight: float,
        orthogonal_weight: float,
        decoupled: bool,
        balance_rate: float,
        of_all: bool = False,
    ) -> None:
        super().__init__(model)
        self.of_all = of_all
        self._weights = {
            "aux_loss": aux_weight,
            "z_loss": z_weight,
            "orthogonal_loss": 0.0 if decoupled else orthogonal_weight,
        }
        self._decoupled_weight = orthogonal_weight if decoupled else 0.0
        self._balance_rate = balance_rate
        self._num_micro_batches = 1
        self._warned = False

    def begin_step(self, num_micro_batches: int) -> None:
        """Forget the counts of the last step."""
        super().begin_step(num_micro_batches)
        self._num_micro_batches = num_micro_batches

    def after_forward(self, model: Any, batch: Any) -> list[Term]:
        """Count, and make the terms: sums over the routers, means over the micro-batches of the step."""
        values: dict[str, list[paddle.Tensor]] = {name: [] for name in self._weights}
        for record, counted_N in self._take(model, batch):
            self._count(record, counted_N)
            counted = None if counted_N is None else paddle.to_tensor(counted_N.astype(np.float32))
            for name, values_of in values.items():
                # What is only reported needs no graph.
                with nullcontext() if self._weights[name] else paddle.no_grad():
                    values_of.append(self._loss(name, record, counted))
        share = self.share / self._num_micro_batches
        return [
            Term(name, paddle.add_n(found) * share, self._weights[name])
            for name, found in values.items()
            if found
        ]

    def without_effect(self, model: Any, batch: Any) -> list[paddle.Tensor]:
        """Take part in the means over the ranks with a micro-batch that counts nothing; what they lead to."""
        found: list[paddle.Tensor] = []
        self.counts = False
        for record, here in self._take(model, batch):
            counted = None if here is None else paddle.to_tensor(here.astype(np.float32))
            with nullcontext() if self._weights["aux_loss"] else paddle.no_grad():
                found.append(self._loss("aux_loss", record, counted))
        self.counts = True
        return found

    def _loss(self, name: str, record: RouterRecord, counted_N: paddle.Tensor | None) -> paddle.Tensor:
        place = self._places[id(record.gate_weight_HE)]
        if name == "z_loss":
            return router_z_loss(record.logits_NE, counted_N=counted_N)
        if name == "orthogonal_loss":
            loss = orthogonal_loss(record.gate_weight_HE, groups=place.groups())
            return loss if self.of_weights == 1.0 else self._shared(loss)
        routing = place.layer.routing
        return load_balance_loss(
            record.probabilities_NE,
            top_k=routing["top_k"],
            counted_N=counted_N,
            grouped=routing["grouped"],
            normalise=routing["scoring"] != "softmax",
            average=self.average,
        )

    def _shared(self, loss: paddle.Tensor) -> paddle.Tensor:
        """The same value, with a share of its gradient."""
        return loss * self.of_weights + loss.detach() * (1.0 - self.of_weights)

    @paddle.no_grad()
    def after_update(self) -> None:
        """The decoupled orthogonal step, and the move of the biases; frozen routers keep both."""
        for place, load_E in self._loads():
            gate_HE = place.gate_HE()
            if gate_HE.stop_gradient:
                continue
            if self._decoupled_weight:
                gradient = orthogonal_gradient(gate_HE, groups=place.groups())
                gate_HE.subtract_(gradient * self._decoupled_weight)
            if self._balance_rate:
                balance_bias(
                    place.layer.moe_statics.e_score_correction_bias,
                    place.modality,
                    paddle.to_tensor(load_E),
                    rate=self._balance_rate,
                    total=self.total,
                )

    def _loads(self) -> list[tuple[_Place, np.ndarray]]:
        """The routers that had tokens in any process, and the loads of their experts here."""
        has_tokens = paddle.to_tensor([number in self._seen for number in self._places]).astype("int64")
        if self.total is not None and len(self):
            has_tokens = self.total(has_tokens)
        found = []
        for (number, place), count in zip(self._places.items(), has_tokens.tolist(), strict=True):
            if count:
                key = self._seen.get(number)
                none_E = np.zeros(place.layer.num_experts[place.modality], dtype=np.int64)
                found.append((place, none_E if key is None else self._counts[key].load))
        return found

    def row(self) -> dict[str, Any]:
        """The step's figures for the log; warns once in a run about routers that collapsed."""
        figures = self.figures()
        told = None if self._warned else collapse_warning(figures)
        if told:
            self._warned = True
            logger.warning(told)
        return summary(figures, self.processes)


def watch_routers(
    model: Any,
    stage: str,
    has_routers: bool | None = None,
    *,
    moe_aux_loss_lambda: float,
    global_aux_loss: bool,
    moe_z_loss_lambda: float,
    moe_orthogonal_loss_lambda: float,
    use_ortho_loss_callback: bool,
    moe_use_aux_free: bool | None,
    moe_use_aux_free_update_coef: float,
) -> Sequence[RouterTraining]:
    """The companion that trains the routers of `model`; none for a model without routers.

    `moe_use_aux_free=None` balances in pre-training and leaves the biases alone in fine-tuning.
    `has_routers` says of a model of which only a part is here whether it has any.
    """
    balances = stage == "PT" if moe_use_aux_free is None else moe_use_aux_free
    training = RouterTraining(
        model,
        aux_weight=moe_aux_loss_lambda,
        z_weight=moe_z_loss_lambda,
        orthogonal_weight=moe_orthogonal_loss_lambda,
        decoupled=use_ortho_loss_callback,
        balance_rate=moe_use_aux_free_update_coef if balances else 0.0,
        of_all=global_aux_loss,
    )
    asked = {
        "moe_z_loss_lambda": moe_z_loss_lambda,
        "moe_orthogonal_loss_lambda": moe_orthogonal_loss_lambda,
        "moe_use_aux_free": moe_use_aux_free,
    }
    named = ", ".join(key for key, value in asked.items() if value)
    has_routers = len(training) > 0 if has_routers is None else has_routers
    if named and not has_routers:
        logger.warning(f"{named}: without effect, since this model has no experts")
    if use_ortho_loss_callback and not moe_orthogonal_loss_lambda and has_routers:
        logger.warning("use_ortho_loss_callback: without effect, since moe_orthogonal_loss_lambda is 0")
    return (training,) if has_routers else ()
