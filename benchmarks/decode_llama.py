"""llama.cpp's side of decode.py, by the C functions of llama-cpp-python: no wrapper in the way.

Runs in the peer's interpreter, which has nothing of ErnieKit.
"""

import argparse
import ctypes
import json
import time
from typing import Any

from measure import peak_rss_bytes, tell_result

CHECKED_LOGITS = 256


def main() -> None:
    """Time the answers to one prompt and say the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", required=True)
    parser.add_argument("--gguf", required=True)
    options = parser.parse_args()
    import llama_cpp
    from llama_cpp import llama_cpp as c

    work = json.loads(options.work)
    prompt, num_tokens = work["prompt"], work["tokens"]
    silent = c.llama_log_callback(lambda level, text, data: None)
    c.llama_log_set(silent, None)
    c.llama_backend_init()
    model = c.llama_model_load_from_file(options.gguf.encode(), c.llama_model_default_params())
    assert model, f"llama.cpp does not read {options.gguf}"
    settings = c.llama_context_default_params()
    settings.n_ctx = max(len(prompt) + num_tokens, len(work["scored"]))
    settings.n_batch = settings.n_ubatch = max(512, len(prompt))
    settings.n_threads = settings.n_threads_batch = work["threads"]
    context = c.llama_init_from_model(model, settings)
    assert context, "llama.cpp makes no context"
    greedy = c.llama_sampler_init_greedy()

    def feed(ids: list[int]) -> None:
        array = (c.llama_token * len(ids))(*ids)
        code = c.llama_decode(context, c.llama_batch_get_one(array, len(ids)))
        assert code == 0, f"llama_decode says {code}"

    def answer() -> tuple[list[int], float, float]:
        c.llama_memory_clear(c.llama_get_memory(context), True)
        started = time.perf_counter()
        feed(prompt)
        tokens = [c.llama_sampler_sample(greedy, context, -1)]
        first = time.perf_counter()
        while len(tokens) < num_tokens:
            feed(tokens[-1:])
            tokens.append(c.llama_sampler_sample(greedy, context, -1))
        return tokens, first - started, time.perf_counter() - first

    result: dict[str, Any] = {"tokens_per_s": [], "prefill_tokens_per_s": []}
    tokens, _, _ = answer()
    for _ in range(work["repeats"]):
        _, first, rest = answer()
        result["prefill_tokens_per_s"].append(len(prompt) / first)
        result["tokens_per_s"].append((num_tokens - 1) / rest)
    peak = peak_rss_bytes()
    if work["scored"]:
        result["losses"] = score(c, model, context, work["scored"], feed)
    c.llama_memory_clear(c.llama_get_memory(context), True)
    feed(prompt)
    logits = ctypes.cast(c.llama_get_logits_ith(context, -1), ctypes.POINTER(ctypes.c_float))
    tell_result(
        {
            **result,
            "name": f"llama.cpp of llama-cpp-python {llama_cpp.__version__}, {work['threads']} threads",
            "tokens": tokens,
            "logits": logits[:CHECKED_LOGITS],
            "peak_rss_bytes": peak,
        }
    )


def score(c: Any, model: Any, context: Any, ids: list[int], feed: Any) -> list[float]:
    """The loss of every token but the first, one step a token."""
    import numpy as np

    c.llama_memory_clear(c.llama_get_memory(context), True)
    size, losses = c.llama_vocab_n_tokens(c.llama_model_get_vocab(model)), []
    for token, following in zip(ids[:-1], ids[1:], strict=True):
        feed([token])
        logits = ctypes.cast(c.llama_get_logits_ith(context, -1), ctypes.POINTER(ctypes.c_float))
        row = np.ctypeslib.as_array(logits, (size,)).astype(np.float64)
        losses.append(float(row.max() + np.log(np.exp(row - row.max()).sum()) - row[following]))
    return losses


if __name__ == "__main__":
    main()
