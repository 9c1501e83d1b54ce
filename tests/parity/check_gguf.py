"""Does llama.cpp read a GGUF export as we compute? Run by hand: the two halves need two environments.

    PYTHONPATH=. python tests/parity/check_gguf.py probe FOLDER probe.json     (ErnieKit, Paddle)
    python tests/parity/check_gguf.py check FILE.gguf probe.json               (llama-cpp-python)

`probe` writes what ErnieKit computes of a model folder: tokens of texts, a greedy answer to a chat, and the
perplexity of a text. `check` compares llama.cpp's: tokens and answer equal (`--answer` says how many tokens
of it), perplexity within `--tolerance` (1 %). Exit code 1 on a difference.
"""

import argparse
import ctypes
import json
import math
import sys
from pathlib import Path
from typing import Any

TEXTS = [
    "The quick brown fox jumps over 13 lazy dogs.",
    "  two spaces,\n\ta tab, \u4f60\u597d \U0001f600 caf\u00e9 don't 1234567",
    "User: What is the capital of France?\nAssistant: ",
]
CHAT = [{"role": "user", "content": "What is the capital of France? Then tell me about its history."}]
SCORED = Path(__file__).parents[2] / "docs" / "architecture.md"
NUM_SCORED, NUM_ANSWER = 512, 48


def probe(folder: Path, out: Path, compute_type: str) -> int:
    """Write what ErnieKit computes."""
    from erniekit.cli.launch import prepare_environment

    prepare_environment()
    import numpy as np

    from erniekit.assemble import load_for_inference
    from erniekit.data.template import load_template
    from erniekit.data.tokenizer import load_tokenizer
    from erniekit.export.proof import logits_of
    from erniekit.generate.engine import generate
    from erniekit.generate.sampler import Sampling

    built, tokenizer = load_for_inference(folder, compute_type=compute_type), load_tokenizer(folder)
    template = load_template(tokenizer, chat_template=None)
    prompt = template.render(CHAT, add_generation_prompt=True) if template else TEXTS[2]
    sampling = Sampling(max_new_tokens=NUM_ANSWER, temperature=0.0)
    context = built.config.max_position_embeddings
    answer = generate(
        built.model, [tokenizer.encode(prompt)], sampling=sampling, end_ids=[], max_context=context
    )
    scored = tokenizer.encode(SCORED.read_text(encoding="utf-8"))[:NUM_SCORED]
    logits = logits_of(built.model, np.array([scored]))[0].astype(np.float64)
    losses = [_loss(row, token) for row, token in zip(logits[:-1], scored[1:], strict=True)]
    found = {
        "texts": {text: tokenizer.encode(text) for text in (*TEXTS, prompt)},
        "prompt": prompt,
        "answer": [event.token_id for event in answer],
        "scored": scored,
        "perplexity": math.exp(sum(losses) / len(losses)),
    }
    out.write_text(json.dumps(found), encoding="utf-8")
    print(f"{out}: perplexity {found['perplexity']:.4f} of {len(losses)} tokens")
    return 0


def _loss(row: Any, token: int) -> float:
    most = max(row)
    return float(most - row[token] + math.log(sum(math.exp(x - most) for x in row)))


def check(path: Path, out: Path, tolerance: float, num_answer: int) -> int:
    """Compare with what llama.cpp computes."""
    from llama_cpp import llama_cpp as c

    wanted = json.loads(out.read_text(encoding="utf-8"))
    silent = c.llama_log_callback(lambda level, text, data: None)
    c.llama_log_set(silent, None)
    c.llama_backend_init()
    model = c.llama_model_load_from_file(str(path).encode(), c.llama_model_default_params())
    assert model, f"llama.cpp does not read {path}"
    vocabulary = c.llama_model_get_vocab(model)
    settings = c.llama_context_default_params()
    settings.n_ctx = settings.n_batch = 1024
    context = c.llama_init_from_model(model, settings)
    size = c.llama_vocab_n_tokens(vocabulary)

    def tokens(text: str) -> list[int]:
        raw = text.encode()
        room = (c.llama_token * (len(raw) + 8))()
        number = c.llama_tokenize(vocabulary, raw, len(raw), room, len(room), True, True)
        return list(room[:number])

    def feed(ids: list[int]) -> list[float]:
        array = (c.llama_token * len(ids))(*ids)
        assert c.llama_decode(context, c.llama_batch_get_one(array, len(ids))) == 0
        logits = ctypes.cast(c.llama_get_logits_ith(context, -1), ctypes.POINTER(ctypes.c_float))
        return logits[:size]

    problems = [
        f"{text!r}: {tokens(text)} instead of {ids}"
        for text, ids in wanted["texts"].items()
        if tokens(text) != ids
    ]
    logits, answer = feed(wanted["texts"][wanted["prompt"]]), []
    while len(answer) < num_answer:
        answer.append(max(range(size), key=logits.__getitem__))
        logits = feed(answer[-1:])
    if answer != wanted["answer"][:num_answer]:
        problems.append(f"the answer is {answer} instead of {wanted['answer'][:num_answer]}")
    c.llama_memory_clear(c.llama_get_memory(context), True)
    scored = wanted["scored"]
    losses = [_loss(feed([ids]), following) for ids, following in zip(scored[:-1], scored[1:], strict=True)]
    perplexity = math.exp(sum(losses) / len(losses))
    change = perplexity / wanted["perplexity"] - 1
    if abs(change) > tolerance:
        problems.append(f"perplexity {perplexity:.4f}, {change:+.2%} of {wanted['perplexity']:.4f}")
    print("\n".join(problems) or f"{path}: equal; perplexity {perplexity:.4f} ({change:+.3%})")
    return int(bool(problems))


def main() -> int:
    """Run one half."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("half", choices=["probe", "check"])
    parser.add_argument("model", type=Path)
    parser.add_argument("probe", type=Path)
    parser.add_argument("--compute-type", default="fp32", help="of probe")
    parser.add_argument("--tolerance", type=float, default=0.01)
    parser.add_argument("--answer", type=int, default=NUM_ANSWER)
    options = parser.parse_args()
    if options.half == "probe":
        return probe(options.model, options.probe, options.compute_type)
    return check(options.model, options.probe, options.tolerance, options.answer)


if __name__ == "__main__":
    sys.exit(main())
