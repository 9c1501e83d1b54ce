"""Make the golden files of the dense ERNIE 4.5 model from Hugging Face transformers.

Needs an environment of its own (no Paddle):

    python -m venv parity && parity/bin/pip install torch==2.13.0 transformers==5.23.0 'numpy<2.4' safetensors
    parity/bin/python tests/golden/make_ernie45.py

Weights are drawn from numpy's PCG64 generator, seeded by the case, in the order of the sorted
names, so they need not be stored. Everything is fp32 on a CPU. Made with exactly these versions.
"""

import json
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
BASE = dict(
    vocab_size=97,
    hidden_size=32,
    intermediate_size=56,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=128,
    rms_norm_eps=1e-5,
    rope_theta=500000.0,
    tie_word_embeddings=True,
    use_bias=False,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
)
CASES = {
    "tied": dict(BASE),
    "untied": BASE | dict(tie_word_embeddings=False, num_key_value_heads=4),
    "bias_wide_heads": BASE | dict(use_bias=True, head_dim=20, rope_theta=10000.0),
    "one_kv_head": BASE | dict(num_key_value_heads=1, head_dim=16, num_hidden_layers=3),
}
LENGTHS = (1, 7, 33)
GRADIENTS = (
    "model.embed_tokens.weight",
    "model.layers.0.input_layernorm.weight",
    "model.layers.0.self_attn.q_proj.weight",
    "model.layers.0.self_attn.k_proj.weight",
    "model.layers.1.self_attn.v_proj.weight",
    "model.layers.1.self_attn.o_proj.weight",
    "model.layers.1.mlp.gate_proj.weight",
    "model.layers.0.mlp.up_proj.weight",
    "model.layers.0.mlp.down_proj.weight",
    "model.norm.weight",
    "lm_head.weight",
    "model.layers.0.self_attn.q_proj.bias",
    "model.layers.1.mlp.down_proj.bias",
)


def draw_weights(shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, np.ndarray]:
    """Weights by name: matrices around 0, norms around 1, biases around 0."""
    rng = np.random.default_rng(seed)
    weights = {}
    for name in sorted(shapes):
        centre = 1.0 if "norm" in name else 0.0
        weights[name] = (centre + 0.2 * rng.standard_normal(shapes[name])).astype(np.float32)
    return weights


def draw_ids(length: int, vocab_size: int, seed: int) -> np.ndarray:
    """Token ids [2, length + 1]: inputs and, one further, labels."""
    return np.random.default_rng([seed, length]).integers(3, vocab_size, (2, length + 1))


def main() -> None:
    import torch
    import transformers
    from safetensors.numpy import save_file
    from transformers import Ernie4_5Config, Ernie4_5ForCausalLM

    found: dict[str, np.ndarray] = {}
    for seed, (case, numbers) in enumerate(CASES.items()):
        config = Ernie4_5Config(**{k: v for k, v in numbers.items() if k != "rope_theta"})
        config.rope_parameters = {"rope_type": "default", "rope_theta": numbers["rope_theta"]}
        model = Ernie4_5ForCausalLM(config).float().eval()
        parameters = dict(model.named_parameters())
        weights = draw_weights({name: tuple(p.shape) for name, p in parameters.items()}, seed)
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(torch.from_numpy(weights[name]))
        for length in LENGTHS:
            ids = torch.from_numpy(draw_ids(length, numbers["vocab_size"], seed))
            model.zero_grad()
            logits = model(ids[:, :-1]).logits
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
            loss.backward()
            prefix = f"{case}.{length}"
            found[f"{prefix}.logits"] = logits.detach().numpy()
            found[f"{prefix}.loss"] = loss.detach().numpy().reshape(1)
            if length == LENGTHS[-1]:
                for name in GRADIENTS:
                    if name in parameters:
                        found[f"{prefix}.grad.{name}"] = parameters[name].grad.numpy().copy()
    save_file(found, HERE / "ernie45.safetensors")
    about = {
        "made_by": "tests/golden/make_ernie45.py",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": sys.version.split()[0],
        "cases": CASES,
        "lengths": LENGTHS,
    }
    (HERE / "ernie45.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
