"""Make the golden files of adapters from peft over transformers.

Needs an environment of its own (no Paddle):

    python -m venv parity
    parity/bin/pip install torch==2.13.0 transformers==5.23.0 peft==0.21.2 'numpy<2.4' safetensors
    PYTHONPATH=. parity/bin/python tests/golden/make_lora.py

For every case: the adapter as peft saves it, and with it logits, loss and the gradients of its
factors. Weights of the model and of the adapter are drawn from numpy's PCG64 generator, seeded by the
case, in the order of the sorted names. Everything is fp32 on a CPU. Made with exactly these versions.
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np

from tests.golden.make_ernie45 import BASE, draw_ids, draw_weights

HERE = Path(__file__).parent
LENGTH = 11
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
MODEL = BASE | dict(hidden_size=24, intermediate_size=40)
CASES = {
    "query_value": dict(lora={"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}),
    "all_rank_stabilised": dict(lora={"r": 3, "lora_alpha": 4, "use_rslora": True, "target_modules": ALL}),
    "lengths": dict(lora={"r": 2, "lora_alpha": 4, "use_dora": True, "target_modules": ALL}),
    "bias_and_patterns": dict(
        numbers={"use_bias": True},
        lora={
            "r": 4,
            "lora_alpha": 4,
            "target_modules": ["q_proj", "k_proj", "down_proj"],
            "rank_pattern": {"k_proj": 2, "model.layers.1.mlp.down_proj": 3},
            "alpha_pattern": {"down_proj": 12},
        },
    ),
    "embedding_and_head": dict(
        numbers={"tie_word_embeddings": False},
        lora={
            "r": 2,
            "lora_alpha": 6,
            "target_modules": ["o_proj"],
            "modules_to_save": ["embed_tokens", "lm_head"],
        },
    ),
}


def main() -> None:
    import peft
    import torch
    import transformers
    from peft import LoraConfig, get_peft_model
    from safetensors.numpy import load_file, save_file
    from transformers import Ernie4_5Config, Ernie4_5ForCausalLM

    found: dict[str, np.ndarray] = {}
    settings = {}
    for seed, (case, content) in enumerate(CASES.items()):
        numbers = MODEL | content.get("numbers", {})
        config = Ernie4_5Config(**{k: v for k, v in numbers.items() if k != "rope_theta"})
        config.rope_parameters = {"rope_type": "default", "rope_theta": numbers["rope_theta"]}
        base = Ernie4_5ForCausalLM(config).float().eval()
        fill(base, seed)
        model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", **content["lora"])).eval()
        fill(model, 100 + seed, trained=True)
        ids = torch.from_numpy(draw_ids(LENGTH, numbers["vocab_size"], seed))
        logits = model(ids[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        found[f"{case}.logits"] = logits.detach().numpy()
        found[f"{case}.loss"] = loss.detach().numpy().reshape(1)
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            adapter = load_file(f"{folder}/adapter_model.safetensors")
            settings[case] = json.loads(Path(folder, "adapter_config.json").read_text())
        for name, array in adapter.items():
            found[f"{case}.adapter.{name}"] = array
        for name, parameter in model.named_parameters():
            if parameter.grad is not None and "original" not in name:
                plain = name.replace(".modules_to_save.default", "").replace(".default", "")
                found[f"{case}.grad.{plain}"] = parameter.grad.numpy().copy()
    save_file(found, HERE / "lora.safetensors")
    about = {
        "made_by": "tests/golden/make_lora.py",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "peft": peft.__version__,
        "python": sys.version.split()[0],
        "length": LENGTH,
        "cases": {
            case: {"numbers": MODEL | content.get("numbers", {}), "settings": settings[case]}
            for case, content in CASES.items()
        },
    }
    (HERE / "lora.json").write_text(json.dumps(about, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def fill(model, seed: int, *, trained: bool = False) -> None:
    """Draw weights: all of a model, or those that are trained (lengths stay positive)."""
    import torch

    chosen = {n: p for n, p in model.named_parameters() if p.requires_grad or not trained}
    drawn = draw_weights({name: tuple(p.shape) for name, p in chosen.items()}, seed)
    with torch.no_grad():
        for name, parameter in chosen.items():
            value = torch.from_numpy(drawn[name])
            parameter.copy_(1.0 + value.abs() if "magnitude" in name else value)


if __name__ == "__main__":
    main()
