"""Memory of a training run at its peak, by cause, in bytes.

Weights, gradients and optimizer state are exact. Activations count what each operator of the
reference path keeps for the backward pass, in numbers a token and layer (H hidden, Q = heads x
head_dim, K = key heads x head_dim, I intermediate, N heads, S tokens that attend to each other):

| part | kept |
|---|---|
| two norms | the normalised value and the result: 4 H |
| projections, rotation | qkv, its split, the rotated halves, q and k split: 4 (Q + K) + 2 K + Q |
| attention | scaled and transposed copies, the result: 3 Q + 2 K; scores and weights: 3 N S |
| MLP | gate and up, their split, silu, product: 6 I |
| two residual sums | the branch and the sum: 4 H |

On a CPU bf16 tensors are widened at every operator, so activations are kept in fp32 there too.
"""

from typing import Any

# What Paddle, the tokenizer and the Python process hold before the model is built (measured: 0.5 GiB).
PROCESS = 512 * 2**20


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
) -> dict[str, int]:
    """Bytes at the peak of a step by cause.

    Args:
        config: numbers of the model (hidden_size, ..., `num_parameters()`).
        num_trained: parameters that are trained.
        rows, seq_len: shape of a micro-batch.
        attended: tokens of a row that attend to each other: the sample's length when packed.
        logits_rows: positions whose logits are held at once.
    """
    width = 4 if compute_type == "fp32" else 2
    query = config.num_attention_heads * config.head_dim
    key = config.num_key_value_heads * config.head_dim
    token = 8 * config.hidden_size + 4 * (query + key) + 4 * query + 4 * key + 6 * config.intermediate_size
    token += 3 * config.num_attention_heads * attended
    kept = 4 if on_cpu else width
    logits = min(logits_rows, rows * seq_len) * config.vocab_size * 4
    head = config.vocab_size * config.hidden_size * 4
    return {
        "weights": config.num_parameters() * width,
        "gradients": num_trained * (width if width == 4 else width + 4),
        "optimizer": num_trained * (8 if width == 4 else 12),
        "activations": int(rows * seq_len * config.num_hidden_layers * token * kept),
        "logits": 2 * logits + 2 * head,
        "process": PROCESS,
    }
