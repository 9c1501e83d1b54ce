"""Does peft read our adapters as we do? Run by hand: the two halves need two environments.

    PYTHONPATH=. python tests/parity/check_adapter.py probe FOLDER     (ErnieKit, Paddle)
    python tests/parity/check_adapter.py check FOLDER                  (torch, transformers, peft)

`probe` writes a tiny model for every case, an adapter as a training run saves it, and the logits with
and without it. `check` loads the model with transformers, the adapter with peft, and compares the
logits, then those of peft's own merge, all within 1e-4 of the largest. Exit code 1 on a difference.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

EXPERTS = {"moe_num_experts": (4,)}
TIED = {"tie_word_embeddings": True}
CASES = {
    "lora": ("LoRA", {}, {}),
    "lora_bias": ("LoRA", {}, {"use_bias": True}),
    "some_layers": ("LoRA", {"lora_target": [r"layers\.1\..*o_proj", "v_proj", "gate_proj"]}, {}),
    "rslora": ("LoRA", {"rslora": True, "lora_rank": 3}, {}),
    "rslora_plus": ("LoRA", {"rslora_plus": True}, {}),
    "dora": ("DoRA", {"lora_rank": 2}, {}),
    "pissa": ("PiSSA", {"lora_rank": 4}, {}),
    "head": ("LoRA", {"lora_target": ["all-linear", "head"]}, {"tie_word_embeddings": False}),
    "whole_tied": ("LoRA", {"lora_modules_to_save": ["embed_tokens"]}, TIED),
    "whole_blocks": ("LoRA", {"lora_modules_to_save": [r"0\..*(qkv|o)_proj", "norm"]}, {"use_bias": True}),
    # peft over transformers 5 takes every gate_proj, up_proj and down_proj of such a model for experts'.
    "attention_of_experts": ("LoRA", {"lora_target": ["self_attn"]}, EXPERTS),
    "experts": ("LoRA", {"lora_target": ["o_proj", "experts"]}, EXPERTS),
    "whole": ("LoRA", {"lora_modules_to_save": ["embed_tokens", "lm_head"]}, {"tie_word_embeddings": False}),
}
TOLERANCE = 1e-4


def probe(folder: Path) -> int:
    """Write models, adapters and logits."""
    from erniekit.cli.launch import prepare_environment

    prepare_environment()
    from erniekit import assemble
    from erniekit.checkpoint.files import write_tensors
    from erniekit.config.config import Config
    from erniekit.data.tokenizer import load_tokenizer
    from erniekit.export.proof import logits_of
    from erniekit.testing.tiny_checkpoint import tiny_config, tiny_moe_config, write_tiny_checkpoint
    from erniekit.train.contents import checkpoint_contents
    from tests.adapters.models import disturb

    assemble.set_device(device="cpu", seed=1)
    for case, (method, changes, numbers) in CASES.items():
        numbers_of = tiny_moe_config if numbers == EXPERTS else tiny_config
        source = write_tiny_checkpoint(folder / case / "model", numbers_of(**numbers))
        keys = {key: value for key, value in vars(Config().lora).items() if key != "lora_path"}
        built = assemble.build_model(
            source,
            assemble.Adaptation(keys | changes),
            continue_training=True,
            compute_type="fp32",
            fine_tuning=method,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            freeze=(),
        )
        built.model.eval()
        ids = np.random.default_rng(1).integers(0, built.config.vocab_size, size=(2, 16), dtype=np.int64)
        plain = logits_of(built.model, ids)
        disturb(built.adapter)
        contents = checkpoint_contents(built, load_tokenizer(source), source, str(source))
        adapter = folder / case / "adapter"
        adapter.mkdir()
        write_tensors(
            adapter, contents.items(), max_shard_bytes=10**9, metadata={}, basename=contents.basename
        )
        contents.write_files(adapter)
        np.savez(folder / case / "logits.npz", ids=ids, plain=plain, adapted=logits_of(built.model, ids))
    print(f"{folder}: {len(CASES)} adapters")
    return 0


def check(folder: Path) -> int:
    """Compare peft with what `probe` wrote."""
    import peft
    import torch
    import transformers
    from transformers import AutoModelForCausalLM

    wrong = 0
    for case in CASES:
        golden = np.load(folder / case / "logits.npz", allow_pickle=False)
        base = AutoModelForCausalLM.from_pretrained(
            folder / case / "model", dtype=torch.float32, local_files_only=True
        )
        model = peft.PeftModel.from_pretrained(base, folder / case / "adapter").eval()
        ids = torch.from_numpy(golden["ids"])
        with torch.no_grad():
            adapted = model(ids).logits.numpy()
            merged = model.merge_and_unload()(ids).logits.numpy()
        scale = np.abs(golden["adapted"]).max()
        apart = np.abs(golden["adapted"] - golden["plain"]).max() / scale
        found = [float(np.abs(logits - golden["adapted"]).max() / scale) for logits in (adapted, merged)]
        good = max(found) <= TOLERANCE and apart > 0.01
        wrong += not good
        words = f"peft {found[0]:.1e}, its merge {found[1]:.1e}, without adapter {apart:.2f}"
        print(f"{'equal' if good else 'DIFFERENT'}: {case}: {words}")
    print(f"peft {peft.__version__}, transformers {transformers.__version__}, torch {torch.__version__}")
    return 1 if wrong else 0


def main() -> int:
    """Run one half; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("half", choices=("probe", "check"))
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    return probe(options.folder) if options.half == "probe" else check(options.folder)


if __name__ == "__main__":
    sys.exit(main())
