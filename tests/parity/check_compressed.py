"""Does compressed-tensors read a quantised folder as we do? Run by hand: the halves need two environments.

    PYTHONPATH=. python tests/parity/check_compressed.py make FOLDER [SCHEME]     (ErnieKit, Paddle)
    python tests/parity/check_compressed.py check FOLDER    (torch, transformers, compressed-tensors)

`make` quantises a tiny dense model in every scheme that has a form there (or in one), and writes the logits
that ErnieKit computes. `check` loads each with transformers, whose quantiser is compressed-tensors' own, and
compares the numbers of every matrix exactly and the logits within a tolerance. Exit code 1 on a difference.
"""

import sys
from pathlib import Path

import numpy as np

TOLERANCE = 1e-4


def make(folder: Path, schemes: list[str]) -> int:
    """Quantised folders, and what ErnieKit makes of the same numbers."""
    from erniekit.assemble import load_for_inference
    from erniekit.checkpoint.files import open_tensors
    from erniekit.config.quantize import COMPRESSED
    from erniekit.export.compressed import numbers_of
    from erniekit.export.proof import logits_of
    from erniekit.testing.tiny_checkpoint import tiny_config
    from tests.quant.folders import quantised_folder

    config = tiny_config(
        hidden_size=128, intermediate_size=256, num_attention_heads=4, num_key_value_heads=4, head_dim=32
    )
    for scheme in schemes or COMPRESSED:
        place = folder / scheme.replace("/", "-")
        keys = {"quant_scheme": scheme, "quant_method": "gptq"}
        _, ours = quantised_folder(place, config, **keys)
        _, theirs = quantised_folder(
            place, config, **keys, quant_layout="compressed-tensors", quant_dir=str(place / "compressed")
        )
        built = load_for_inference(ours.folder, compute_type="fp32")
        ids = np.random.default_rng(1).integers(0, built.config.vocab_size, size=(2, 24), dtype=np.int64)
        tensors = open_tensors(theirs.folder)
        bases = [name.removesuffix("_scale") for name in tensors.names() if name.endswith("weight_scale")]
        format = next(iter(theirs.quantisation.formats.values()))
        numbers = {base: numbers_of(tensors, base.removesuffix(".weight"), format) for base in bases}
        np.savez(place / "golden.npz", ids=ids, logits=logits_of(built.model, ids), **numbers)
    return 0


def check(folder: Path) -> int:
    """Compare what transformers computes."""
    import compressed_tensors
    import torch
    import transformers
    from compressed_tensors.quantization.lifecycle import forward
    from transformers import AutoModelForCausalLM

    # The library cuts int8 inputs at -128, ErnieKit and FastDeploy at -127: the only difference there is.
    calculate = forward.calculate_range
    forward.calculate_range = lambda given, device: (
        (torch.tensor(-127.0, device=device), torch.tensor(127.0, device=device))
        if (given.num_bits, given.type) == (8, "int")
        else calculate(given, device)
    )
    print(f"transformers {transformers.__version__}, compressed-tensors {compressed_tensors.__version__}")
    good = True
    for golden in sorted(folder.glob("*/golden.npz")):
        expected = np.load(golden, allow_pickle=False)
        model = AutoModelForCausalLM.from_pretrained(
            golden.parent / "compressed",
            dtype=torch.float32,
            local_files_only=True,
        )
        model.eval()
        with torch.no_grad():
            logits = model(torch.from_numpy(expected["ids"])).logits.float().numpy()
        weights = {name: weight.float().numpy() for name, weight in model.state_dict().items()}
        named = [name for name in expected.files if name not in ("ids", "logits")]
        gaps = [float(np.abs(weights[name] - expected[name]).max()) for name in named]
        difference = float(np.abs(logits - expected["logits"]).max() / np.abs(expected["logits"]).max())
        scheme = golden.parent.name
        fine = bool(named) and max(gaps) <= 1e-6 and difference <= TOLERANCE
        good &= fine
        print(
            f"  {'ok  ' if fine else 'FAIL'} {scheme}: {len(named)} matrices differ by {max(gaps):.1e} at "
            f"most, logits by {difference:.1e} of the largest"
        )
    return 0 if good else 1


if __name__ == "__main__":
    half, place, *words = sys.argv[1:]
    sys.exit(make(Path(place), words) if half == "make" else check(Path(place)))
