"""Memory of a training step by native kernels at its peak; the counterpart of `memory.training_memory`.

Native operators keep for the backward pass what cannot be made again by one pass over memory, in the
type of storage (H hidden, Q = heads x head_dim, K = key heads x head_dim, I intermediate, N heads):

| part | numbers kept a token and layer | and in fp32 |
|---|---|---|
| two norms: the residual stream they read | 2 H | 2 |
| attention: projections, result; log-sum-exp | 2 Q + 2 K | N |
| attention with dropout, by Paddle's operators, a sample of S tokens | Q | 3 N S |
| MLP: gate and up | 2 I | - |
| k experts: gate and up, results of sorted rows; scores of E experts | k (H + 2 I) | 6 E |
| shared experts | 2 I | - |

The peak is the largest of three moments: the end of the last forward pass (activations, one chunk of
logits, the gradient of the head), the first layer of the backward pass (activations, and what one layer
works with), and its last layer (all gradients, what one layer has kept, and what it works with). What is
recomputed is not held, and is there once in the second and the third. An update works in place.
Gradients of weights are fp32.
"""

from typing import Any

from erniekit.estimate.recompute import layer_kinds, rerun_bytes, rows_of_experts, spared_bytes
from erniekit.estimate.state import Held
from erniekit.parallel.recomputation import Recomputation

# Of `erniekit.ops.native.cross_entropy`, which imports Paddle.
LOGITS = 26 << 20


def moments(
    config: Any,
    *,
    num_trained: int,
    width: int,
    tokens: int,
    attended: float,
    logits_rows: int,
    micro_batches: int,
    attention_dropout: float,
    recomputation: Recomputation | None = None,
    adapter_bytes: float = 0.0,
    working_bytes: float = 0.0,
    held: Held | None = None,
) -> dict[str, float]:
    """What comes and goes, by cause, at the moment when it is most; see the module docstring.

    Args:
        width: bytes of a number in storage.
        tokens: of a micro-batch.
        adapter_bytes: what an adapter keeps a token. working_bytes: what the layer under way holds besides.
        held: what one of several processes holds, where it is not all.
        The others are those of `memory.training_memory`.
    """
    activations = tokens * adapter_bytes + kept_activations(
        config,
        width=width,
        tokens=tokens,
        attended=attended,
        attention_dropout=attention_dropout,
        recomputation=recomputation,
    )
    one_layer = activations / max(1, config.num_hidden_layers)
    working = tokens * (_working_bytes(config, width=width) + working_bytes)
    if recomputation is not None:
        working += tokens * rerun_bytes(config, recomputation, width=width, attended=attended)
    logits = 4 * min(logits_rows, max(1, LOGITS // config.vocab_size), tokens) * config.vocab_size
    head = 4 * min(config.vocab_size * config.hidden_size, num_trained)
    gradients: float = 4 * num_trained
    if held is not None:
        activations, gradients = held.activations, 4 * held.gradients
        logits, head = (logits, head) if held.head else (0, 0)
    before = gradients if micro_batches > 1 else head
    moments: tuple[dict[str, float], ...] = (
        {"activations": activations, "logits": logits, "gradients": before},
        {"activations": activations + working, "gradients": before},
        {"activations": one_layer + working, "gradients": gradients},
    )
    return max(moments, key=lambda moment: sum(moment.values()))


def kept_activations(
    config: Any,
    *,
    width: int,
    tokens: int,
    attended: float,
    attention_dropout: float,
    recomputation: Recomputation | None,
    head: bool = True,
) -> float:
    """Bytes that the forward pass of one micro-batch keeps; arguments as of `moments`.

    Args:
        head: whether the last norm and the loss follow.
    """
    kept = _kept_bytes(config, attended, width=width, attention_dropout=attention_dropout)
    if not head:
        kept -= width * 3 * config.hidden_size
    if recomputation is not None:
        kept -= spared_bytes(config, recomputation, width=width, attended=attended)
    return tokens * kept


def optimizer_bytes(*, width: int, low_precision_moments: bool) -> int:
    """Bytes a trained parameter: two moments, and the rest of a bf16 weight's fp32 master."""
    return 2 * (2 if low_precision_moments else 4) + (2 if width == 2 else 0)


def _kept_bytes(config: Any, attended: float, *, width: int, attention_dropout: float) -> float:
    """Bytes a token that all layers and what comes after them keep."""
    hidden, heads = config.hidden_size, config.num_attention_heads
    query = heads * config.head_dim
    key = config.num_key_value_heads * config.head_dim
    narrow, wide = 2 * hidden + 2 * query + 2 * key, 2 + heads
    if attention_dropout:
        narrow, wide = narrow + query, wide + 3 * heads * attended
    kinds = layer_kinds(config)
    layers, moe = len(kinds), sum(map(config.is_moe_layer, kinds))
    inner, scores = 2 * (layers - moe) * config.intermediate_size, 0
    if moe:
        experts = rows_of_experts(config) * (hidden + 2 * config.moe_intermediate_size[0])
        inner += moe * (experts + 2 * config.shared_intermediate_size())
        scores = 6 * config.moe_num_experts[0] * moe
    # Last norm, labelled rows and their gradient, of the model and of every block that predicts ahead, whose
    # two inputs are joined besides; the rotation of each position.
    depths = config.num_nextn_predict_layers
    ends = width * (3 + 5 * depths) * hidden + 4 * config.head_dim
    return layers * (width * narrow + 4 * wide) + width * inner + 4 * scores + ends


def _working_bytes(config: Any, *, width: int) -> float:
    """Bytes a token that the backward pass of one layer holds besides."""
    query = config.num_attention_heads * config.head_dim
    key = config.num_key_value_heads * config.head_dim
    inner = 3 * config.intermediate_size
    if any(map(config.is_moe_layer, range(config.num_hidden_layers))):
        # Rows sorted by expert, made again, and their gradient.
        rows = rows_of_experts(config) * (2 * config.hidden_size + 3 * config.moe_intermediate_size[0])
        inner = max(inner, rows)
    # The activation made again, gradients of gate and up, of the stream, of q, k, v; sums of attention.
    return width * (inner + 4 * config.hidden_size + 2 * query + 2 * key) + 4 * (query + 2 * key)
