"""Balance of experts without a loss: a bias on the choice, moved after every update.

    b_e += rate * sign(mean over experts of usage - usage_e)

(Wang et al. 2024; DeepSeek-V3, section 2.1.2). Usage is what an expert was given over the WHOLE step:
all micro-batches, and with `total` all ranks. The bias decides which experts are chosen and never
enters their weights, so it bends no gradient.
"""

from collections.abc import Callable

import paddle


@paddle.no_grad()
def balance_bias(
    bias_ME: paddle.Tensor,
    row: int,
    usage_E: paddle.Tensor,
    *,
    rate: float,
    total: Callable[[paddle.Tensor], paddle.Tensor] | None = None,
) -> None:
    """Move one modality's row of a correction bias, in place.

    Args:
        bias_ME: fp32 [modalities, at least E].
        usage_E: tokens that each of the row's experts was given since the last update.
        total: the sum over the ranks of a tensor [E].
    """
    usage_E = usage_E.astype("float64")
    if total is not None:
        usage_E = total(usage_E)
    moved_E = rate * paddle.sign(usage_E.mean() - usage_E).astype("float32")
    experts = moved_E.shape[0]
    changed = bias_ME.detach().clone()
    changed[row, :experts] = changed[row, :experts] + moved_E
    bias_ME.set_value(changed)
