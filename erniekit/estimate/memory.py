"""Memory of a run at its peak, by cause, in bytes, known before anything is built.

Weights, gradients and optimizer state are exact. What native kernels keep is in `native_memory.py`.
Activations here are what Paddle's own operators on a CPU keep for the backward pass, in numbers a token
and layer (H hidden, Q = heads x head_dim, K = key heads x head_dim, I intermediate, N heads, S tokens of
the sample a token belongs to):

| part | kept in fp32 | with bf16 storage |
|---|---|---|
| two norms, with the residual stream they read | 4 H | 6 H |
| projections | Q + 2 K | Q + 2 K |
| rotation, one split for queries and keys | Q + K | - |
| attention: result; weights of samples up to 1024 tokens, in tiles of 128 | Q + N (S + 128) / 2 | + Q |
| attention with dropout: result; scores, weights and mask in full | Q + 3 N S | + Q |
| MLP: gate and up, their product | 3 I | 3 I |
| k experts: sorted rows, gate and up, their product, results; scores | k (2 H + 3 I) + 6 E | same |
| shared experts | 3 I | 3 I |

Paddle has no arithmetic in bf16 on a CPU, so with bf16 storage every operator widens its input, and the
matrix products keep their weights widened until the backward pass has come by. Quantised weights are
not kept: their numbers are made again.

Not everything is held at once. The peak is the larger of two moments: the end of the last forward
pass (activations, logits, the gradient of the head, and the gradients of earlier micro-batches),
and the end of the step (all gradients, and the temporaries of one update). The allocator gives
nothing back, and what it cannot use again is counted as `allocator`.

Compared with measured peaks in `benchmarks/memory.py`; on a GPU this is a formula only.
"""

from dataclasses import dataclass
from typing import Any

from erniekit.estimate import native_memory
from erniekit.estimate.low_precision import NOTHING, Added
from erniekit.estimate.recompute import layer_kinds, rerun_bytes, rows_of_experts, spared_bytes
from erniekit.estimate.state import Held, model_bytes
from erniekit.parallel.recomputation import Recomputation

MIB = 2**20
# What Python, Paddle and the data pipeline hold before the model is built; measured.
PROCESS = 350 * MIB
# Of `erniekit.losses.cross_entropy` and `erniekit.ops.attention_cpu`, which import Paddle.
MAX_LOGITS = 1 << 26
TILE = 128
KEEP_WEIGHTS_UP_TO = 1024
# Share of what comes and goes that is lost between blocks; measured.
_LOST = 0.1
# Copies of the largest tensor in one update: gradient scaled, squared, and the direction.
_UPDATE_TEMPORARIES = 3


@dataclass(frozen=True)
class AdapterSize:
    """What an adapter adds to a model.

    Args:
        num_parameters: numbers in its factors, in the type of the weights.
        kept: numbers a token that it keeps for the backward pass in the type of the weights, such as the
            products with A.
        kept_fp32: those that it keeps in fp32.
    """

    num_parameters: int
    kept: float
    kept_fp32: float = 0.0


def training_memory(
    config: Any,
    *,
    num_trained: int,
    compute_type: str,
    rows: int,
    seq_len: int,
    attended: float,
    logits_rows: int,
    on_cpu: bool,
    micro_batches: int = 2,
    attention_dropout: float = 0.0,
    native: bool = False,
    low_precision_moments: bool = False,
    recomputation: Recomputation | None = None,
    adapter: AdapterSize | None = None,
    scheme: str | None = None,
    held: Held | None = None,
    depths: int | None = None,
    added: Added = NOTHING,
) -> dict[str, int]:
    """Bytes at the peak of a training step by cause; the values add up to the peak.

    Args:
        config: numbers of the model (hidden_size, ..., `num_parameters()`).
        num_trained: parameters that are trained. native: native kernels compute.
        compute_type: `fp32`, or `bf16` for bf16 storage with fp32 master weights.
        rows, seq_len: shape of a micro-batch.
        attended: tokens of the sample that a token belongs to, on average over tokens.
        logits_rows: positions whose logits may be held at once (`loss_subbatch_seqlen`).
        micro_batches: of a step; from the second on, gradients are there in the forward pass.
        low_precision_moments: moments are bf16. recomputation: what is recomputed.
        adapter: what is beside frozen weights. scheme: what those are quantised by.
        held: what one of several processes holds, where it is not all of `config`.
        depths: blocks of multi-token prediction that are trained; None for all that there are.
        added: what arithmetic in few bits keeps besides.
    """
    narrow = compute_type != "fp32"
    width, tokens = (2 if narrow else 4), rows * seq_len
    weights: float = 0 if held else model_bytes(config, compute_type=compute_type, scheme=scheme)
    weights += width * held.weights if held else 0
    num_states: float = held.states if held else num_trained
    weights += added.always + (width * adapter.num_parameters if adapter else 0)
    beside = added.token
    beside += (width if native else 4) * adapter.kept + 4 * adapter.kept_fp32 if adapter else 0.0
    at_work = config if depths is None else config.with_ahead(depths)
    if native:
        changing = native_memory.moments(
            at_work,
            num_trained=num_trained,
            width=width,
            tokens=tokens,
            attended=attended,
            logits_rows=logits_rows,
            micro_batches=micro_batches,
            attention_dropout=attention_dropout,
            recomputation=recomputation,
            adapter_bytes=beside,
            working_bytes=added.working,
            held=held,
        )
        state = native_memory.optimizer_bytes(width=width, low_precision_moments=low_precision_moments)
        return _by_cause(changing, weights, state * num_states, on_cpu=True)
    at_peak = _by_paddle(
        at_work,
        num_trained=num_trained,
        narrow=narrow,
        tokens=tokens,
        attended=attended,
        logits_rows=logits_rows,
        on_cpu=on_cpu,
        micro_batches=micro_batches,
        attention_dropout=attention_dropout,
        recomputation=recomputation,
        adapter_bytes=beside,
        quantised=scheme is not None or (held is not None and held.quantised),
        held=held,
    )
    state = (4 if low_precision_moments else 8) + (4 if narrow else 0)
    return _by_cause(at_peak, weights, num_states * state, on_cpu=on_cpu)


def _by_paddle(
    config: Any,
    *,
    num_trained: int,
    narrow: bool,
    tokens: int,
    attended: float,
    logits_rows: int,
    on_cpu: bool,
    micro_batches: int,
    attention_dropout: float,
    recomputation: Recomputation | None,
    adapter_bytes: float,
    quantised: bool,
    held: Held | None,
) -> dict[str, float]:
    """What comes and goes with Paddle's operators, by cause, at the moment when it is most."""
    width = 2 if narrow else 4
    head = config.vocab_size * config.hidden_size
    activations = kept_activations(
        config,
        narrow=narrow,
        tokens=tokens,
        attended=attended,
        on_cpu=on_cpu,
        attention_dropout=attention_dropout,
        recomputation=recomputation,
    )
    activations += tokens * adapter_bytes
    again = 0.0
    if recomputation is not None:
        kept = 4 if on_cpu else width
        again = tokens * rerun_bytes(config, recomputation, width=kept, attended=attended, native=False)
    logits = 4 * min(logits_rows, max(1, MAX_LOGITS // config.vocab_size), tokens) * config.vocab_size
    # Logits and what the products make beside them; the gradient of the head, also narrow; the head, wide.
    logits_and_head: float = 2 * logits + head * (4 + 4 + 2 if narrow else 4)
    gradients: float = 4 * num_trained
    if held is not None:
        activations, gradients = held.activations, 4 * held.gradients
        logits_and_head = logits_and_head if held.head else 0
    activations += again
    if narrow and on_cpu and not quantised:
        activations += 4 * (config.num_parameters() - head)
    forward = {"activations": activations, "logits": logits_and_head}
    if micro_batches > 1:
        forward["gradients"] = gradients
    update = {
        # The last micro-batch leaves gradients in the type of the weights before they are added up.
        "gradients": gradients + (width * num_trained if narrow else 0),
        "update": 4 * head * _UPDATE_TEMPORARIES,
    }
    return max(forward, update, key=lambda moment: sum(moment.values()))


def kept_activations(
    config: Any,
    *,
    narrow: bool,
    tokens: float,
    attended: float,
    on_cpu: bool,
    attention_dropout: float,
    recomputation: Recomputation | None,
    head: bool = True,
) -> float:
    """Bytes that the forward pass of one micro-batch keeps with Paddle's operators.

    Args:
        narrow: weights are bf16.
        head: whether the last norm and the loss follow.
        The others are those of `training_memory`.
    """
    width = 4 if on_cpu or not narrow else 2
    kept = width * _kept_numbers(
        config,
        attended,
        wide_copies=narrow and on_cpu,
        on_cpu=on_cpu,
        attention_dropout=attention_dropout,
    )
    if not head:
        kept -= width * 4 * config.hidden_size
    if recomputation is not None:
        kept -= spared_bytes(config, recomputation, width=width, attended=attended, native=False)
    return tokens * kept


def _by_cause(at_peak: dict[str, float], weights: float, optimizer: float, *, on_cpu: bool) -> dict[str, int]:
    """All causes in one order: what is held throughout, and what is there at the peak."""
    held: dict[str, float] = {
        "weights": weights,
        "gradients": 0,
        "optimizer": optimizer,
        "activations": 0,
        "logits": 0,
        "update": 0,
        "allocator": _LOST * sum(at_peak.values()) if on_cpu else 0,
        "process": PROCESS,
    }
    return {cause: int(size) for cause, size in (held | at_peak).items() if size}


def inference_memory(
    config: Any,
    *,
    compute_type: str,
    rows: int,
    columns: int,
    prompt: int,
    on_cpu: bool,
    scheme: str | None = None,
) -> dict[str, int]:
    """Bytes of generation by cause.

    Args:
        rows, columns: of the key-value cache: answers at once, and tokens of prompt and answer.
        prompt: tokens of the longest prompt, which goes through the model at once.
        scheme: what the weights are quantised by.
    """
    width = 4 if compute_type == "fp32" else 2
    key = config.num_key_value_heads * config.head_dim
    query = config.num_attention_heads * config.head_dim
    wide = 4 if on_cpu else width
    # The widest operator of a layer, its input and its output; the scores of all heads.
    widest = 4 * config.intermediate_size
    if config.is_moe_layer(config.num_hidden_layers - 1):
        widest = max(widest, config.moe_k * (config.hidden_size + 4 * config.moe_intermediate_size[0]))
    one_layer = max(widest, 2 * (query + 2 * key)) + 2 * config.hidden_size
    scores = 2 * config.num_attention_heads * prompt
    widened = 4 * config.vocab_size * config.hidden_size if width == 2 and on_cpu else 0
    return {
        "weights": model_bytes(config, compute_type=compute_type, scheme=scheme),
        "cache": 2 * config.num_hidden_layers * rows * columns * key * width,
        "activations": rows * prompt * (one_layer + scores) * wide + widened,
        "logits": 2 * rows * config.vocab_size * 4,
        "process": PROCESS,
    }


def _kept_numbers(
    config: Any, attended: float, *, wide_copies: bool, on_cpu: bool, attention_dropout: float
) -> float:
    """Numbers a token that all layers and what comes after them keep, see the module docstring."""
    hidden = config.hidden_size
    query = config.num_attention_heads * config.head_dim
    key = config.num_key_value_heads * config.head_dim
    weights = 0.0
    if attention_dropout:
        weights = 3 * config.num_attention_heads * attended
    elif on_cpu and attended <= KEEP_WEIGHTS_UP_TO:
        weights = config.num_attention_heads * (attended + TILE) / 2
    if wide_copies:
        layer = 6 * hidden + (query + 2 * key) + 2 * query
    else:
        layer = 4 * hidden + (query + 2 * key) + (query + key) + query
    # Last norm and its input, labelled rows of it and their gradient, of the model and of every block that
    # predicts ahead, whose two inputs are joined besides; and the rotation of each position.
    ends = (4 + 6 * config.num_nextn_predict_layers) * hidden + query + key
    return len(layer_kinds(config)) * (layer + weights) + inner_numbers(config) + ends


def inner_numbers(config: Any) -> float:
    """Numbers a text token that the MLPs and experts of all layers keep."""
    kinds = layer_kinds(config)
    moe = sum(map(config.is_moe_layer, kinds))
    dense = (len(kinds) - moe) * 3 * config.intermediate_size
    if not moe:
        return dense
    experts = rows_of_experts(config) * (2 * config.hidden_size + 3 * config.moe_intermediate_size[0])
    scores = 6 * config.moe_num_experts[0]
    return dense + moe * (experts + 3 * config.shared_intermediate_size() + scores)
