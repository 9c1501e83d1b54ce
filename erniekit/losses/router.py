"""What is asked of a router beside a small loss of its tokens: an even load, small logits, experts apart.

Each function is of ONE router (a layer, a modality) and the tokens that it saw.

* load balance: with c the tokens that choose expert e by the raw scores and S the tokens counted,

      L = E sum_e (c_e / S) (sum_t p_te / S)

  which is k when the load is even, and more when tokens and probability gather at the same experts.
  Only the probabilities get a gradient. The choice is that of the scores WITHOUT the correction bias:
  it pushes the router itself, whatever the bias already evens out. Grouped experts (k groups) divide by k.

* z: the mean of logsumexp(logits)^2 (ST-MoE, Zoph et al. 2022), against logits that grow without end.

* orthogonal: with W' the router's matrix, its columns at length 1, and G = W'^T W',

      L = sum (G - I)^2 / E^2

  zero when no two experts look for the same direction. Grouped experts: the mean over the groups' own
  Gram matrices. It depends on the matrix alone, so it may also act beside the optimizer ("decoupled"),
  W -= lambda dL/dW after its update: the optimizer's moments then never see it.

Released training code adds the gradients of these losses without their values; here what is minimised
is what is reported.

    N tokens, E experts, k experts a token, H hidden size
"""

from collections.abc import Callable

import paddle
import paddle.nn.functional as F

# The least number of tokens, and the least length of a column, that is divided by.
_LEAST_TOKENS, _LEAST_LENGTH = 1e-6, 1e-12


def load_balance_loss(
    probabilities_NE: paddle.Tensor,
    *,
    top_k: int,
    counted_N: paddle.Tensor | None = None,
    grouped: bool = False,
    normalise: bool = False,
    average: Callable[[paddle.Tensor], paddle.Tensor] | None = None,
) -> paddle.Tensor:
    """The load-balancing loss of one router, see the module docstring.

    Args:
        probabilities_NE: scores without the correction bias.
        counted_N: 1 for tokens that count, 0 for padding; None counts all.
        grouped: the experts are `top_k` groups, of which each token chooses one expert each.
        normalise: divide each token's scores by their sum (sigmoid scores).
        average: mean over the ranks of a tensor [E]; with it the loss is that of all ranks' tokens.
    """
    num_tokens, num_experts = probabilities_NE.shape
    if normalise:
        probabilities_NE = probabilities_NE / probabilities_NE.sum(-1, keepdim=True)
    if counted_N is None:
        counted_N = paddle.ones([num_tokens], dtype="float32")
    counted_N1 = counted_N.astype("float32").unsqueeze(-1)
    total = paddle.clip(counted_N1.sum(), min=_LEAST_TOKENS)
    chosen_NE = _chosen(probabilities_NE.detach(), top_k, grouped=grouped)
    load_E = (chosen_NE * counted_N1).sum(0) / total
    mean_E = (probabilities_NE * counted_N1).sum(0) / total
    if average is not None:
        load_E, mean_E = average(load_E), average(mean_E)
    loss = num_experts * (load_E * mean_E).sum()
    return loss / top_k if grouped else loss


def _chosen(scores_NE: paddle.Tensor, top_k: int, *, grouped: bool) -> paddle.Tensor:
    """1 where a token chooses an expert by its raw scores, [N, E]."""
    num_tokens, num_experts = scores_NE.shape
    if grouped:
        best = scores_NE.reshape([num_tokens, top_k, num_experts // top_k]).argmax(-1)
        return F.one_hot(best, num_experts // top_k).reshape([num_tokens, num_experts])
    return F.one_hot(paddle.topk(scores_NE, top_k, axis=-1)[1], num_experts).sum(1)


def router_z_loss(logits_NE: paddle.Tensor, *, counted_N: paddle.Tensor | None = None) -> paddle.Tensor:
    """Mean over the counted tokens of logsumexp(logits)^2."""
    square_N = paddle.logsumexp(logits_NE, axis=-1).square()
    if counted_N is None:
        return square_N.mean()
    counted_N = counted_N.astype("float32")
    return (square_N * counted_N).sum() / paddle.clip(counted_N.sum(), min=_LEAST_TOKENS)


def orthogonal_loss(weight_HE: paddle.Tensor, *, groups: int = 1) -> paddle.Tensor:
    """How far the columns of a router's matrix are from orthogonal, see the module docstring."""
    columns_GHE = _by_group(weight_HE, groups)
    unit_GHE = columns_GHE / _lengths(columns_GHE)
    return (_gram_less_one(unit_GHE)).square().mean()


@paddle.no_grad()
def orthogonal_gradient(weight_HE: paddle.Tensor, *, groups: int = 1) -> paddle.Tensor:
    """The gradient of `orthogonal_loss`, [H, E].

    With u the columns at length 1 and D = G - I: dL/du = 4 u D / (entries of D), and of that what is
    at a right angle to u, divided by the column's length, is dL/dw.
    """
    columns_GHE = _by_group(weight_HE, groups)
    lengths = _lengths(columns_GHE)
    unit_GHE = columns_GHE / lengths
    difference_GEE = _gram_less_one(unit_GHE)
    to_unit = paddle.matmul(unit_GHE, difference_GEE) * (4.0 / difference_GEE.size)
    gradient = (to_unit - unit_GHE * (unit_GHE * to_unit).sum(1, keepdim=True)) / lengths
    return gradient.transpose([1, 0, 2]).reshape(weight_HE.shape)


def _by_group(weight_HE: paddle.Tensor, groups: int) -> paddle.Tensor:
    hidden, num_experts = weight_HE.shape
    return weight_HE.reshape([hidden, groups, num_experts // groups]).transpose([1, 0, 2])


def _lengths(columns_GHE: paddle.Tensor) -> paddle.Tensor:
    return paddle.clip(columns_GHE.square().sum(1, keepdim=True).sqrt(), min=_LEAST_LENGTH)


def _gram_less_one(unit_GHE: paddle.Tensor) -> paddle.Tensor:
    return paddle.matmul(unit_GHE, unit_GHE, transpose_x=True) - paddle.eye(unit_GHE.shape[-1])
