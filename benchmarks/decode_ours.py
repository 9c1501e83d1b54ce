"""ErnieKit's side of decode.py: answers as `generate` gives them, and how fast memory is read."""

import argparse
import json
import time
from pathlib import Path
from typing import Any

from measure import peak_rss_bytes, tell_result

STREAMED_BYTES = 256 << 20
STREAMS = 5
CHECKED_LOGITS = 256


def main() -> None:
    """Time one type and say the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", required=True)
    parser.add_argument("--type", required=True, help="as compute_type")
    parser.add_argument("--model", help="folder of the model, in place of that of the work")
    parser.add_argument("--kernels", default="auto")
    parser.add_argument("--beside", help="another type, whose prompts are timed in turns with this one's")
    options = parser.parse_args()
    from erniekit.cli.launch import require_paddle

    require_paddle()
    import paddle

    from erniekit.assemble import load_for_inference, set_device
    from erniekit.data.tokenizer import StreamDecoder, load_tokenizer
    from erniekit.generate.engine import CachedDecoder, generate
    from erniekit.generate.sampler import Sampling
    from erniekit.generate.stream import TextStream
    from erniekit.ops.backend import kernels_in_words

    work = json.loads(options.work)
    set_device(device="cpu", seed=0, kernels=options.kernels)
    built = load_for_inference(Path(options.model or work["folder"]), compute_type=options.type)
    tokenizer = load_tokenizer(Path(work["folder"]))
    sampling = Sampling(max_new_tokens=work["tokens"], temperature=0.0)

    def answer() -> tuple[list[int], float, float]:
        """Tokens, seconds to the first one, seconds from it to the last."""
        stream = TextStream(StreamDecoder(tokenizer))
        started = time.perf_counter()
        times, tokens = [], []
        settings: dict[str, Any] = {"sampling": sampling, "end_ids": (), "max_context": 1 << 20}
        for event in generate(built.model, [work["prompt"]], streams=[stream], **settings):
            times.append(time.perf_counter())
            tokens.append(event.token_id)
        return tokens, times[0] - started, times[-1] - times[0]

    result: dict[str, Any] = {"tokens_per_s": [], "prefill_tokens_per_s": [], "bandwidth": []}
    tokens, _, _ = answer()
    result["bandwidth"] += read_memory()
    for _ in range(work["repeats"]):
        _, first, rest = answer()
        result["prefill_tokens_per_s"].append(len(work["prompt"]) / first)
        result["tokens_per_s"].append((work["tokens"] - 1) / rest)
        result["bandwidth"] += read_memory()
    peak = peak_rss_bytes() - STREAMED_BYTES
    if options.beside:
        other = load_for_inference(Path(work["folder"]), compute_type=options.beside).model
        result["prefill_ratios"] = prefill_ratios(built.model, other, work["prompt"], 3 * work["repeats"])
    decoder = CachedDecoder(built.model, [work["prompt"]], num_columns=len(work["prompt"]))
    if work["scored"]:
        result["losses"] = score(built.model, work["scored"])
    tell_result(
        {
            **result,
            "name": f"ErnieKit, {kernels_in_words()}, Paddle {paddle.__version__}",
            "tokens": tokens,
            "logits": decoder.prefill()[0, :CHECKED_LOGITS].tolist(),
            "bytes_per_token": bytes_per_token(built.model, len(work["prompt"]) + work["tokens"] / 2),
            "peak_rss_bytes": peak,
        }
    )


def prefill_ratios(model: Any, other: Any, prompt: list[int], repeats: int) -> list[float]:
    """How many times as fast a prompt goes through `model` as through `other`, time after time."""
    from erniekit.generate.engine import CachedDecoder

    def seconds(chosen: Any) -> float:
        decoder = CachedDecoder(chosen, [prompt], num_columns=len(prompt))
        started = time.perf_counter()
        decoder.prefill()
        return time.perf_counter() - started

    seconds(other)
    return [seconds(other) / seconds(model) for _ in range(repeats)]


def score(model: Any, ids: list[int]) -> list[float]:
    """The loss of every token but the first, by the steps that answers are made of."""
    import numpy as np

    from erniekit.generate.engine import CachedDecoder

    decoder = CachedDecoder(model, [ids[:1]], num_columns=len(ids))
    logits, losses = decoder.prefill()[0], []
    for token, following in zip(ids[1:], [*ids[2:], None], strict=True):
        row = logits.astype(np.float64)
        losses.append(float(row.max() + np.log(np.exp(row - row.max()).sum()) - row[token]))
        if following is not None:
            logits = decoder.step([token], [0])[0]
    return losses


def bytes_per_token(model: Any, columns: float) -> int:
    """What a token has to read: all weights (of an untied embedding one row) and the cache."""
    from erniekit.generate.native import decoder_table
    from erniekit.ops.native.decode import CodedHead
    from erniekit.quant.weight_only import quantised_matrices

    config, size = model.config, next(iter(model.parameters())).element_size()
    table = decoder_table(model)
    if table is not None and isinstance(table.head, CodedHead):
        codes = sum(matrix.num_bytes for matrix in quantised_matrices(model).values())
        head = table.head.panels.nbytes + table.head.scales.nbytes
        cached = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * columns
        return int(codes + head + cached * size)
    weights = sum(parameter.size for parameter in model.parameters())
    if not config.tie_word_embeddings:
        weights -= config.vocab_size * config.hidden_size
    cache = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * columns
    return int((weights + cache) * size)


_memory: list[Any] = []


def read_memory() -> list[float]:
    """Bytes a second of several readings of memory by the threads of the kernels."""
    import numpy as np

    from erniekit.ops.kernels.library import load
    from erniekit.ops.native.decode import stream

    if not _memory:
        _memory.append(np.ones(STREAMED_BYTES, dtype=np.uint8))
    rates = []
    for _ in range(STREAMS):
        started = time.perf_counter()
        stream(load(), _memory[0])
        rates.append(STREAMED_BYTES / (time.perf_counter() - started))
    return rates


if __name__ == "__main__":
    main()
