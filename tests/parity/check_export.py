"""Does transformers read an export as we do? Run by hand: the two halves need two environments.

    PYTHONPATH=. python tests/parity/check_export.py probe FOLDER probe.npz     (ErnieKit, Paddle)
    python tests/parity/check_export.py check FOLDER probe.npz                  (torch, transformers)

`probe` writes what ErnieKit computes: logits of token ids, tokens of texts, a rendered chat and a
greedy answer. `check` loads the same folder (Hugging Face layout) with transformers and compares:
logits within 1e-4 (or `--tolerance`), everything else equal. Exit code 1 on a difference.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

TEXTS = [
    "The quick brown fox jumps over 13 lazy dogs.",
    "  two spaces,\n\ta tab, \u4f60\u597d \U0001f600 caf\u00e9",
    "User: What is the capital of France?\nAssistant: ",
]
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is the capital of France?"},
    {"role": "assistant", "content": "Paris."},
    {"role": "user", "content": "And of Italy?"},
]
NUM_TOKENS = 24
NUM_ANSWER = 16


def probe(folder: Path, out: Path) -> int:
    """Write what ErnieKit computes."""
    from erniekit.cli.launch import prepare_environment

    prepare_environment()
    from erniekit.assemble import load_for_inference
    from erniekit.data.template import load_template
    from erniekit.data.tokenizer import load_tokenizer
    from erniekit.export.proof import logits_of
    from erniekit.generate.engine import generate
    from erniekit.generate.sampler import Sampling

    built = load_for_inference(folder, compute_type="fp32")
    size = (2, NUM_TOKENS)
    ids = np.random.default_rng(1).integers(0, built.config.vocab_size, size=size, dtype=np.int64)
    arrays = {"ids": ids, "logits": logits_of(built.model, ids)}
    sampling = Sampling(max_new_tokens=NUM_ANSWER, temperature=0.0)
    context = built.config.max_position_embeddings
    answer = generate(built.model, [ids[0].tolist()], sampling=sampling, end_ids=[], max_context=context)
    arrays["answer"] = np.array([event.token_id for event in answer], dtype=np.int64)
    words = {}
    if any((folder / name).exists() for name in ("tokenizer.json", "tokenizer.model")):
        tokenizer = load_tokenizer(folder)
        words["texts"] = [tokenizer.encode(text) for text in TEXTS]
        template = load_template(tokenizer, chat_template=None)
        words["chat"] = template.render(CHAT, add_generation_prompt=True) if template else None
    np.savez(out, words=np.array(json.dumps(words)), **arrays)
    print(f"{out}: logits {arrays['logits'].shape}, largest {np.abs(arrays['logits']).max():.3f}")
    return 0


def check(folder: Path, golden: Path, tolerance: float) -> int:
    """Compare transformers with what `probe` wrote."""
    import torch
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    expected = np.load(golden, allow_pickle=False)
    model, report = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True, local_files_only=True
    )
    model.eval()
    ids = torch.from_numpy(expected["ids"])
    with torch.no_grad():
        logits = model(ids).logits.numpy()
        options = {"max_new_tokens": NUM_ANSWER, "min_new_tokens": NUM_ANSWER, "do_sample": False}
        found = model.generate(ids[:1], **options, eos_token_id=None, pad_token_id=0)
    difference = float(np.abs(logits - expected["logits"]).max())
    answer = found[0, ids.shape[1] :].tolist()
    largest = np.abs(logits).max()
    results = {
        f"logits differ by {difference:.2e} at most (largest {largest:.2f})": difference <= tolerance,
        "no tensor missing, unexpected or mis-shaped": not any(report.values()),
        f"greedy answer {answer}": answer == expected["answer"].tolist(),
    }
    words = json.loads(str(expected["words"]))
    if words:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        ours = words["texts"]
        theirs = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXTS]
        results[f"tokens of {len(TEXTS)} texts"] = ours == theirs
        if words["chat"] is not None:
            chat = tokenizer.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)
            results["rendered chat"] = chat == words["chat"]
    print(f"transformers {transformers.__version__}, torch {torch.__version__}: {folder}")
    for name, good in results.items():
        print(f"  {'ok  ' if good else 'FAIL'} {name}")
    return 0 if all(results.values()) else 1


def main() -> int:
    """Parse the command line."""
    keep_lines = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=keep_lines)
    parser.add_argument("half", choices=("probe", "check"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("golden", type=Path)
    parser.add_argument("--tolerance", type=float, default=1e-4)
    arguments = parser.parse_args()
    if arguments.half == "probe":
        return probe(arguments.folder, arguments.golden)
    return check(arguments.folder, arguments.golden, arguments.tolerance)


if __name__ == "__main__":
    sys.exit(main())
