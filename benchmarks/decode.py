"""Times decoding: one answer to one prompt, ErnieKit and llama.cpp in turns in the same run.

    python benchmarks/decode.py
    python benchmarks/decode.py --peer /path/to/venv-with-torch-and-transformers/bin/python
    python benchmarks/decode.py --llama none --quick

Both sides get the same weights (bf16 here; llama.cpp F16, and BF16 with --llama-types), the same
prompt and as many threads as cores, and take the most likely token each time; the logits after the
prompt have to agree, otherwise they do not compute the same. ErnieKit's figures are those of its
`generate`, with the text that it streams; llama.cpp's are those of `llama_decode` with the choice of the
token. Every side runs in a process of its own for several rounds, so that a machine that slows down
slows all.

Decoding is bound by reading the weights (and the cache) once a token. How fast this machine reads
memory is measured in the same processes, between the answers, by the same threads.

The last line is one JSON object.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from llama_environment import find_llama
from measure import WorkerError, machine, run_worker, say, table, usable_cores
from peer_environment import find_peer

TEXT = (
    "The river begins as a spring below the northern ridge, where the snow of the winter melts late. "
    "It passes three villages, a mill that no longer turns, and a bridge that was built twice, because "
    "the first one was carried away in the flood of 1784. Below the bridge the valley opens, and the "
    "river becomes slow and wide; cattle stand in it up to their knees on hot days. The people say that "
    "whoever drinks from the spring will return to it. "
)
# Largest relative difference of the logits after the prompt, between two ways of rounding to 16 bits.
LOGITS_TOLERANCE = 0.15
CHECKED_LOGITS = 256


@dataclass(frozen=True)
class Work:
    """What is timed: an answer of `tokens` tokens to a prompt, `repeats` times after one to warm up.

    scored: tokens of a text whose mean loss is told too, each but the first after those before it.
    """

    folder: str
    prompt: tuple[int, ...]
    tokens: int
    repeats: int
    threads: int
    scored: tuple[int, ...] = ()


@dataclass
class Side:
    """All runs of one side."""

    python: str
    script: str
    words: list[str]
    results: list[dict[str, Any]] = field(default_factory=list)

    def median(self, figure: str) -> float:
        """Over all repeats of all rounds."""
        return statistics.median(value for result in self.results for value in result[figure])

    def peak(self) -> float:
        """Peak memory in 10^9 bytes, the largest of the rounds."""
        return max(result["peak_rss_bytes"] for result in self.results) / 1e9


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; returns 1 when the sides do not compute the same or one of them failed."""
    options = _parser().parse_args(argv)
    if options.quick:
        options.rounds, options.repeats, options.tokens = 1, 2, 48
    from erniekit.checkpoint.sources import locate_model

    folder = locate_model(model_name_or_path=options.model, download_hub="huggingface")
    prompt = make_prompt(folder, options.prompt_tokens)
    work = Work(str(folder), tuple(prompt), options.tokens, options.repeats, usable_cores())
    before = machine()
    failures: list[str] = []
    with tempfile.TemporaryDirectory(prefix="erniekit-decode-") as temporary:
        sides = _sides(options, folder, Path(temporary), failures)
        for number in range(options.rounds):
            say(f"round {number + 1} of {options.rounds}")
            for name in list(sides):
                side = sides[name]
                words = ["--work", json.dumps(asdict(work)), *side.words]
                try:
                    side.results.append(run_worker(side.python, side.script, words))
                except WorkerError as error:
                    failures.append(str(error))
                    del sides[name]
            time.sleep(options.pause)
    return report(work, sides, before, failures)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="starter", help="model folder, starter, or hub id")
    parser.add_argument("--ours", nargs="+", default=["bf16"], choices=["bf16", "fp32"], help="types of ours")
    parser.add_argument("--kernels", default="auto", help="kernels of ErnieKit")
    parser.add_argument("--prompt-tokens", type=int, default=256, help="length of the prompt")
    parser.add_argument("--tokens", type=int, default=128, help="length of the answer")
    parser.add_argument("--repeats", type=int, default=5, help="answers of a round")
    parser.add_argument("--rounds", type=int, default=3, help="how often the sides take turns")
    parser.add_argument("--pause", type=float, default=0.0, help="seconds between rounds")
    parser.add_argument(
        "--llama", default="auto", help="a Python with llama-cpp-python; auto makes one, none does without"
    )
    parser.add_argument("--llama-types", nargs="+", default=["f16"], choices=["f16", "bf16"])
    parser.add_argument(
        "--peer", default="none", help="a Python with torch and transformers too; auto makes one"
    )
    parser.add_argument("--quick", action="store_true", help="one round of two short answers")
    return parser


def make_prompt(folder: Path, length: int) -> list[int]:
    """The first `length` tokens of a text that goes on."""
    from erniekit.data.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(folder)
    text = TEXT
    while len(ids := tokenizer.encode(text)) < length:
        text += TEXT
    return ids[:length]


def _sides(
    options: argparse.Namespace, folder: Path, temporary: Path, failures: list[str]
) -> dict[str, Side]:
    """ErnieKit, then every peer that can be had here."""
    ours = [*("--kernels", options.kernels), "--type"]
    sides = {
        f"ErnieKit {dtype}": Side(sys.executable, "decode_ours.py", [*ours, dtype]) for dtype in options.ours
    }
    llama = find_llama(options.llama)
    for dtype in options.llama_types if llama else ():
        path = write_for_llama(folder, temporary, dtype)
        sides[f"llama.cpp {dtype}"] = Side(str(llama), "decode_llama.py", ["--gguf", str(path)])
    peer = find_peer(options.peer)
    for dtype in ("bf16", "fp32") if peer else ():
        sides[f"torch {dtype}"] = Side(str(peer), "decode_torch.py", ["--type", dtype])
    return sides


def write_for_llama(folder: Path, temporary: Path, dtype: str) -> Path:
    """The same weights as a GGUF file without a vocabulary, in a word of `export_dtype`, or f16."""
    from erniekit.export.gguf_file import write_gguf
    from erniekit.export.source import open_source

    say(f"writing the same weights for llama.cpp in {dtype}")
    source, path = open_source(folder), temporary / f"model-{dtype}.gguf"
    word = dtype.replace("f16", "fp16").replace("bfp16", "bf16")
    write_gguf(path, source.config, source.items("F32"), word, name="model", speech=None)
    return path


def report(work: Work, sides: dict[str, Side], where: dict[str, Any], failures: list[str]) -> int:
    """Say everything; returns 1 when sides do not compute the same or one failed."""
    ours = next((side for name, side in sides.items() if name.startswith("ErnieKit")), None)
    if ours is None:
        say("\n".join(failures))
        return 1
    say(f"machine: {where['processor']}, {where['cores']} cores, {' '.join(where['instruction_sets'])}")
    say(f"load average before: {where['load_average_before']} (other work makes the figures worthless)")
    say(f"work: prompt of {len(work.prompt)} tokens, answer of {work.tokens}, batch 1; {work.folder}")
    rows = [["side", "tokens/s", "of the bound", "prompt tokens/s", "peak GB", "same tokens"]]
    for name, side in sides.items():
        share = f"{bandwidth_share(side):.1%}" if "bandwidth" in side.results[0] else ""
        speed, prefill = side.median("tokens_per_s"), side.median("prefill_tokens_per_s")
        same = equal_tokens(ours.results[0]["tokens"], side.results[0]["tokens"])
        rows.append([name, f"{speed:.1f}", share, f"{prefill:.0f}", f"{side.peak():.2f}", f"{same}"])
    say("\n".join(side.results[0]["name"] for side in sides.values()))
    say(table(rows))
    problems = unequal(ours, sides)
    summary = summarise(work, ours, sides, where)
    say(
        f"memory is read at {summary['bandwidth_gb_s']:.1f} GB/s, a token reads "
        f"{summary['bytes_per_token'] / 1e6:.0f} MB: at most "
        f"{summary['bandwidth_gb_s'] * 1e9 / summary['bytes_per_token']:.0f} tokens/s"
    )
    for problem in problems + failures:
        say(problem)
    say(json.dumps({**summary, "logits_agree": not problems, "failed_sides": len(failures)}))
    return 1 if problems or failures else 0


def bandwidth_share(side: Side) -> float:
    """Bytes that decoding read in a second, relative to what a process could read beside it."""
    shares = []
    for result in side.results:
        bound = statistics.median(result["bandwidth"]) / result["bytes_per_token"]
        shares.append(statistics.median(result["tokens_per_s"]) / bound)
    return statistics.median(shares)


def equal_tokens(first: list[int], second: list[int]) -> int:
    """How many tokens two answers have in common before they part."""
    same = [a == b for a, b in zip(first, second, strict=False)]
    return same.index(False) if False in same else len(same)


def unequal(ours: Side, sides: dict[str, Side]) -> list[str]:
    """Sides whose logits after the prompt are not ours."""
    problems = []
    expected = ours.results[0]["logits"]
    scale = max(map(abs, expected)) or 1.0
    for name, side in sides.items():
        found = side.results[0]["logits"]
        difference = max(abs(a - b) for a, b in zip(expected, found, strict=True)) / scale
        if not difference <= LOGITS_TOLERANCE:
            problems.append(f"{name}: logits after the prompt differ by {difference:.3f} of the largest")
    return problems


def summarise(work: Work, ours: Side, sides: dict[str, Side], where: dict[str, Any]) -> dict[str, Any]:
    """The figures of the last line; those that need a peer are null without it."""
    figures = {
        name: {
            "tokens_per_s": round(side.median("tokens_per_s"), 2),
            "prefill_tokens_per_s": round(side.median("prefill_tokens_per_s"), 1),
            "peak_rss_gb": round(side.peak(), 3),
        }
        for name, side in sides.items()
    }
    peers = {name: figure for name, figure in figures.items() if not name.startswith("ErnieKit")}
    speed = ours.median("tokens_per_s")
    best = max((figure["tokens_per_s"] for figure in peers.values()), default=None)
    best_prefill = max((figure["prefill_tokens_per_s"] for figure in peers.values()), default=None)
    prefill = ours.median("prefill_tokens_per_s")
    return {
        "tokens_per_s": round(speed, 2),
        "prefill_tokens_per_s": round(prefill, 1),
        "ours": {name: figure for name, figure in figures.items() if name.startswith("ErnieKit")},
        "peer": peers,
        "ratio_best": round(speed / best, 4) if best else None,
        "prefill_ratio_best": round(prefill / best_prefill, 4) if best_prefill else None,
        "bandwidth_gb_s": round(statistics.median(v for r in ours.results for v in r["bandwidth"]) / 1e9, 2),
        "bytes_per_token": ours.results[0]["bytes_per_token"],
        "bandwidth_share": round(bandwidth_share(ours), 4),
        "peak_rss_gb": round(ours.peak(), 3),
        "prompt_tokens": len(work.prompt),
        "tokens": work.tokens,
        "machine": where,
    }


if __name__ == "__main__":
    sys.exit(main())
