"""Make the golden files of the ERNIE 4.5 mixtures of experts from Hugging Face transformers.

Needs the environment of make_ernie45.py:

    parity/bin/python tests/golden/make_ernie45_moe.py

A folder is written in the form in which transformers stores these models (experts one by one), with
weights drawn by the names of its tensors, and transformers reads it; so the names are proved
too. Of the multimodal models it is the text side, with token types: text, image, video. Everything
is fp32 on a CPU.
"""

import json
import sys
import tempfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
BASE: dict[str, Any] = dict(
    vocab_size=61,
    hidden_size=24,
    intermediate_size=28,
    num_hidden_layers=3,
    num_attention_heads=3,
    num_key_value_heads=1,
    max_position_embeddings=128,
    rms_norm_eps=1e-5,
    tie_word_embeddings=True,
    use_bias=False,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
    moe_num_experts=6,
    moe_k=2,
    moe_intermediate_size=10,
    moe_num_shared_experts=2,
    moe_layer_start_index=1,
    moe_layer_end_index=-1,
    moe_layer_interval=1,
)
VISION: dict[str, Any] = dict(
    moe_num_experts=[6, 6],
    moe_intermediate_size=[10, 4],
    moe_layer_start_index=[1, 1],
    moe_layer_end_index=[2, 2],
)
CASES: dict[str, dict[str, Any]] = {
    "shared": BASE,
    "untied": BASE | dict(tie_word_embeddings=False, moe_num_shared_experts=0, moe_k=3),
    "bias": BASE | dict(use_bias=True, moe_layer_interval=2, num_hidden_layers=4),
    "text": BASE | VISION,
    "mixed": BASE | VISION,
}
ROPE = {"rope_type": "default", "rope_theta": 500000.0}
TOWER = dict(depth=1, hidden_size=8, intermediate_size=8, num_heads=2, patch_size=2)
LENGTHS = (1, 23)
GRADIENTS = (
    "model.embed_tokens.weight",
    "model.layers.0.mlp.up_proj.weight",
    "model.layers.1.self_attn.q_proj.weight",
    "model.layers.1.mlp.gate.weight",
    "model.layers.1.mlp.experts.gate_up_proj",
    "model.layers.1.mlp.experts.down_proj",
    "model.layers.1.mlp.shared_experts.up_proj.weight",
    "model.layers.1.mlp.shared_experts.down_proj.bias",
    "model.layers.1.mlp.text_moe.gate.weight",
    "model.layers.1.mlp.vision_moe.gate.weight",
    "model.layers.1.mlp.text_moe.experts.gate_up_proj",
    "model.layers.1.mlp.text_moe.experts.down_proj",
    "model.layers.1.mlp.vision_moe.experts.gate_up_proj",
    "model.layers.1.mlp.vision_moe.experts.down_proj",
    "model.norm.weight",
    "lm_head.weight",
    "lm_head.bias",
)


def draw_weights(shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, np.ndarray]:
    """Weights, each from its name: matrices around 0, norms around 1, corrections of routers small."""
    weights = {}
    for name in shapes:
        rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
        centre = 1.0 if "norm" in name else 0.0
        spread = 0.05 if "e_score_correction_bias" in name else 0.25
        weights[name] = (centre + spread * rng.standard_normal(shapes[name])).astype(np.float32)
    return weights


def draw_ids(length: int, seed: int) -> np.ndarray:
    """Token ids [2, length + 1]: inputs and, one further, labels."""
    return np.random.default_rng([seed, length]).integers(3, BASE["vocab_size"], (2, length + 1))


def draw_types(case: str, length: int) -> np.ndarray | None:
    """Token types [2, length]: 0 text, 1 image, 2 video; None in models of text alone."""
    if not isinstance(CASES[case]["moe_num_experts"], list):
        return None
    rng = np.random.default_rng(length)
    return rng.integers(0, 3, (2, length)) * (case == "mixed")


def make_model(case: str, numbers: dict[str, Any]) -> Any:
    """The transformers model of a case, with weights it does not matter which."""
    from transformers import (
        Ernie4_5_MoeConfig,
        Ernie4_5_MoeForCausalLM,
        Ernie4_5_VLMoeConfig,
        Ernie4_5_VLMoeForConditionalGeneration,
    )

    if not isinstance(numbers["moe_num_experts"], list):
        return Ernie4_5_MoeForCausalLM(Ernie4_5_MoeConfig(**numbers, rope_parameters=dict(ROPE)))
    text = {name: value for name, value in numbers.items() if not name.startswith("moe_layer_")}
    text |= {"moe_num_experts": 6, "mlp_layer_types": ["dense", "sparse", "sparse"]}
    text["rope_parameters"] = ROPE | {"mrope_section": [1, 1, 2]}
    config = Ernie4_5_VLMoeConfig(
        text_config=text, vision_config=dict(TOWER), tie_word_embeddings=numbers["tie_word_embeddings"]
    )
    return Ernie4_5_VLMoeForConditionalGeneration(config)


def plain_name(name: str) -> str:
    """The name of a parameter of the text side without the model around it."""
    return name.replace("model.language_model.", "model.")


def main() -> None:
    import torch
    import transformers
    from safetensors.numpy import load_file, save_file

    found: dict[str, np.ndarray] = {}
    for seed, (case, numbers) in enumerate(CASES.items()):
        with tempfile.TemporaryDirectory() as place:
            made = make_model(case, numbers)
            made.save_pretrained(place)
            file = Path(place) / "model.safetensors"
            shapes = {name: array.shape for name, array in load_file(file).items()}
            found[f"{case}.names"] = np.frombuffer("\n".join(sorted(shapes)).encode(), dtype=np.uint8)
            save_file(draw_weights(shapes, seed), file, metadata={"format": "pt"})
            model = type(made).from_pretrained(place, experts_implementation="eager").float().eval()
        parameters = {plain_name(name): parameter for name, parameter in model.named_parameters()}
        for length in LENGTHS:
            ids = torch.from_numpy(draw_ids(length, seed))
            types = draw_types(case, length)
            model.zero_grad()
            if types is None:
                logits = model(ids[:, :-1]).logits
            else:
                positions = torch.arange(length).expand(3, 2, length)
                hidden = model.model.language_model(
                    input_ids=ids[:, :-1],
                    position_ids=positions,
                    moe_mm_token_type_ids=torch.from_numpy(types).int(),
                ).last_hidden_state
                logits = model.lm_head(hidden)
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
            loss.backward()
            prefix = f"{case}.{length}"
            found[f"{prefix}.logits"] = logits.detach().numpy()
            found[f"{prefix}.loss"] = loss.detach().numpy().reshape(1)
            for name in GRADIENTS if length == LENGTHS[-1] else ():
                gradient = parameters[name].grad if name in parameters else None
                if gradient is not None:
                    found[f"{prefix}.grad.{name}"] = gradient.numpy().copy()
    save_file(found, HERE / "ernie45_moe.safetensors")
    about = {
        "made_by": "tests/golden/make_ernie45_moe.py",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": sys.version.split()[0],
        "cases": list(CASES),
        "lengths": LENGTHS,
    }
    (HERE / "ernie45_moe.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
