"""The side of transformers on PyTorch of decode.py: `generate` with its own cache.

Runs in the peer's interpreter, which has nothing of ErnieKit.
"""

import argparse
import json
import time
from typing import Any

from measure import peak_rss_bytes, tell_result

CHECKED_LOGITS = 256


def main() -> None:
    """Time one type and say the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", required=True)
    parser.add_argument("--type", choices=["bf16", "fp32"], required=True)
    options = parser.parse_args()
    import torch
    import transformers

    work = json.loads(options.work)
    torch.set_num_threads(work["threads"])
    dtype = torch.bfloat16 if options.type == "bf16" else torch.float32
    model = transformers.AutoModelForCausalLM.from_pretrained(work["folder"], dtype=dtype).eval()
    prompt = torch.tensor([work["prompt"]])

    def answer(num_tokens: int) -> tuple[list[int], float]:
        settings = {"do_sample": False, "max_new_tokens": num_tokens, "min_new_tokens": num_tokens}
        started = time.perf_counter()
        with torch.inference_mode():
            out = model.generate(prompt, attention_mask=torch.ones_like(prompt), **settings)
        return out[0, prompt.shape[1] :].tolist(), time.perf_counter() - started

    result: dict[str, Any] = {"tokens_per_s": [], "prefill_tokens_per_s": []}
    tokens, _ = answer(work["tokens"])
    for _ in range(work["repeats"]):
        _, first = answer(1)
        _, whole = answer(work["tokens"])
        result["prefill_tokens_per_s"].append(len(work["prompt"]) / first)
        result["tokens_per_s"].append((work["tokens"] - 1) / (whole - first))
    peak = peak_rss_bytes()
    with torch.inference_mode():
        logits = model(prompt).logits[0, -1, :CHECKED_LOGITS].float().tolist()
    tell_result(
        {
            **result,
            "name": f"transformers {transformers.__version__}, torch {torch.__version__}",
            "tokens": tokens,
            "logits": logits,
            "peak_rss_bytes": peak,
        }
    )


if __name__ == "__main__":
    main()
