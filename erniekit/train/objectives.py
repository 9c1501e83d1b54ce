"""What an objective is, and the table of the ones that are built.

An objective is a function `(model, batch, *, scale) -> (loss, metrics)`: the loss SUMMED over the
trained tokens of a micro-batch and multiplied by `scale` (a scalar tensor), and plain numbers,
`num_tokens` and `num_correct` among them. The trainer's scale is one over the number of trained
tokens of the global batch, so that no split into micro-batches changes a gradient; None is 1.
Metrics may hold `shares`, numbers that are reported under their names, summed over the step. An
objective that counts something other than tokens has a `begin_step(batches)`, told the global batch.
With `ahead_scales`, one for each of the model's blocks of multi-token prediction, the metrics hold
`ahead_losses`: their losses, summed over their tokens and multiplied by these, to be added.
"""

from collections.abc import Sequence
from importlib import import_module
from typing import Any, Protocol

OBJECTIVES = {
    "SFT": "erniekit.train.sft:next_token_loss",
    "PT": "erniekit.train.sft:next_token_loss",
}


class Objective(Protocol):
    """A loss over a micro-batch, see the module docstring."""

    def __call__(
        self, model: Any, batch: Any, *, scale: float | None = None, ahead_scales: Sequence[float] = ()
    ) -> tuple[Any, dict[str, Any]]: ...


def inputs_of(batch: Any) -> dict[str, Any]:
    """What a model is given of a batch, by the names of its `forward`; types only where not all is text."""
    import paddle

    arrays = {
        "input_ids_BT": batch.input_ids,
        "position_ids_BT": batch.position_ids,
        "attend_from_BT": batch.attend_from,
        "token_type_ids_BT": batch.token_types,
    }
    return {name: paddle.to_tensor(array) for name, array in arrays.items() if array is not None}


def build_objective(
    stage: str,
    recompute_head: bool = False,
    *,
    loss_subbatch_seqlen: int,
    use_sparse_head_and_loss_fn: bool,
) -> Objective:
    """The objective of `stage`, bound to how the head is computed.

    `loss_subbatch_seqlen` is the number of positions per chunk of logits;
    `use_sparse_head_and_loss_fn` computes logits at trained positions only; with `recompute_head` the
    backward pass computes them again, instead of the forward pass their gradients.
    """
    module, _, name = OBJECTIVES[stage].partition(":")
    function = getattr(import_module(module), name)

    def objective(
        model: Any, batch: Any, *, scale: float | None = None, ahead_scales: Sequence[float] = ()
    ) -> tuple[Any, dict[str, Any]]:
        return function(
            model,
            batch,
            scale=scale,
            ahead_scales=ahead_scales,
            recompute_head=recompute_head,
            loss_subbatch_seqlen=loss_subbatch_seqlen,
            use_sparse_head_and_loss_fn=use_sparse_head_and_loss_fn,
        )

    return objective
