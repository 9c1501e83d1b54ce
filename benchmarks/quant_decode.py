"""Times decoding in few bits: ErnieKit and llama.cpp in turns in the same run, and what both cost in quality.

    python benchmarks/quant_decode.py
    python benchmarks/quant_decode.py --ours wint4_g32 --llama-types q4_0 --quick
    python benchmarks/quant_decode.py --real-time

Both sides round the same weights to the nearest: ErnieKit by a scheme of `compute_type`, llama.cpp's file
by `erniekit export export_layout=gguf`. A scheme with `-gptq` or `-rtn` behind it is a folder that
`erniekit quantize` makes first by that method, as `examples/configs/starter/run_quantize.yaml` says.
`wint8` has 8.05 bits a weight of the starter's matrices and Q8_0 8.5, `wint4_g32` and Q4_0 have 4.5,
`wint4` 4.05; the output layer is Q8_0 in the peer's files, and int8 in ErnieKit's decoding of all schemes.
Times are those of decode.py. The perplexity is that of a text of this repository, by the same steps that
answers are made of.

With other work on the machine llama.cpp's threads wait for each other; `--real-time` runs all workers before
everything else (it needs the right to).

The last line is one JSON object: `ratio_q8` and `ratio_q4` are tokens/s of wint8 over Q8_0 and of wint4_g32
over Q4_0, `ratio_q4_gptq` and `ratio_q4_channel` those of wint4_g32-gptq and of wint4 over Q4_0,
`prefill_ratio_...` the same of prompts, `perplexity_ratio_...` the same of perplexities (below one is
better), and `prefill_ratios_bf16` the prompts of every scheme over bf16, in turns in one process.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from decode import Side, Work, bandwidth_share, make_prompt, write_for_llama
from llama_environment import find_llama
from measure import HERE, WorkerError, machine, run_worker, say, table, usable_cores

SCORED = HERE.parent / "docs" / "architecture.md"
# Name of a ratio -> our scheme and the peer's type.
PAIRS = {
    "q8": ("wint8", "q8_0"),
    "q4": ("wint4_g32", "q4_0"),
    "q4_gptq": ("wint4_g32-gptq", "q4_0"),
    "q4_channel": ("wint4", "q4_0"),
}
_GPTQ = "-gptq"
_METHODS = ("gptq", "rtn")


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; returns 1 when a side failed."""
    options = _parser().parse_args(argv)
    if options.quick:
        options.rounds, options.repeats, options.tokens, options.scored = 1, 2, 48, 128
    from erniekit.checkpoint.sources import locate_model
    from erniekit.data.tokenizer import load_tokenizer

    folder = locate_model(model_name_or_path=options.model, download_hub="huggingface")
    scored = load_tokenizer(folder).encode(SCORED.read_text(encoding="utf-8"))[: options.scored]
    prompt = make_prompt(folder, options.prompt_tokens)
    work = Work(
        *(str(folder), tuple(prompt), options.tokens, options.repeats, usable_cores()), scored=tuple(scored)
    )
    before = machine()
    if options.real_time:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    failures: list[str] = []
    with tempfile.TemporaryDirectory(prefix="erniekit-quant-decode-") as temporary:
        sides = _sides(options, folder, Path(temporary))
        for number in range(options.rounds):
            say(f"round {number + 1} of {options.rounds}")
            # The text is scored once.
            given = work if number == 0 else Work(**{**asdict(work), "scored": ()})
            for name in list(sides):
                words = ["--work", json.dumps(asdict(given)), *sides[name].words]
                try:
                    sides[name].results.append(run_worker(sides[name].python, sides[name].script, words))
                except WorkerError as error:
                    failures.append(str(error))
                    del sides[name]
    return report(work, sides, before, failures)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    schemes = ["wint8", "wint4", "wint4_g32", f"wint4_g32{_GPTQ}"]
    parser.add_argument("--model", default="starter", help="model folder, starter, or hub id")
    parser.add_argument(
        "--ours", nargs="+", default=["bf16", *schemes], help="values of compute_type (-gptq, -rtn)"
    )
    parser.add_argument("--llama", default="auto", help="as for decode.py")
    parser.add_argument("--llama-types", nargs="+", default=["q8_0", "q4_0"], help="values of export_dtype")
    parser.add_argument("--prompt-tokens", type=int, default=256, help="length of the prompt")
    parser.add_argument("--tokens", type=int, default=128, help="length of the answer")
    parser.add_argument("--scored", type=int, default=512, help="tokens of the text whose loss is told")
    parser.add_argument("--repeats", type=int, default=5, help="answers of a round")
    parser.add_argument("--rounds", type=int, default=3, help="how often the sides take turns")
    parser.add_argument("--real-time", action="store_true", help="run before everything else on the machine")
    parser.add_argument("--quick", action="store_true", help="one round of two short answers")
    return parser


def _sides(options: argparse.Namespace, folder: Path, temporary: Path) -> dict[str, Side]:
    sides = {}
    for name in options.ours:
        words = ["--beside", "bf16"] if name.startswith("wint") else []
        words += (
            ["--type", "auto", "--model", str(_quantised(folder, temporary / name, *name.rsplit("-", 1)))]
            if name.endswith(_METHODS)
            else ["--type", name]
        )
        sides[name] = Side(sys.executable, "decode_ours.py", words)
    llama = find_llama(options.llama)
    for name in options.llama_types if llama else ():
        path = write_for_llama(folder, temporary, name)
        sides[name] = Side(str(llama), "decode_llama.py", ["--gguf", str(path)])
    return sides


def _quantised(folder: Path, place: Path, scheme: str, method: str) -> Path:
    """A quantised folder."""
    say(f"quantising in {scheme} by {method}")
    recipe = "examples/configs/starter/run_quantize.yaml"
    settings = {
        **{"model_name_or_path": folder, "quant_scheme": scheme, "quant_method": method, "quant_dir": place},
        **{"eval_dataset_path": "null", "max_quality_drop": "null"},
    }
    words = [f"{key}={value}" for key, value in settings.items()]
    command = [sys.executable, "-m", "erniekit", "quantize", recipe, *words]
    done = subprocess.run(command, cwd=HERE.parent, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return place


def perplexity(side: Side) -> float:
    """Of the text that was scored in the first round."""
    return math.exp(statistics.mean(side.results[0]["losses"]))


def report(work: Work, sides: dict[str, Side], where: dict[str, Any], failures: list[str]) -> int:
    """Say everything; returns 1 when a side failed."""
    say(f"machine: {where['processor']}, {where['cores']} cores, {' '.join(where['instruction_sets'])}")
    say(f"load average before: {where['load_average_before']}")
    say(f"work: prompt of {len(work.prompt)} tokens, answer of {work.tokens}, batch 1; {work.folder}")
    rows = [["side", "tokens/s", "of the bound", "prompt tokens/s", "perplexity", "peak GB"]]
    for name, side in sides.items():
        share = f"{bandwidth_share(side):.1%}" if "bandwidth" in side.results[0] else ""
        speed, prefill = side.median("tokens_per_s"), side.median("prefill_tokens_per_s")
        title = name if "bandwidth" in side.results[0] else f"llama.cpp {name}"
        rows.append(
            [title, f"{speed:.1f}", share, f"{prefill:.0f}", f"{perplexity(side):.3f}", f"{side.peak():.2f}"]
        )
    say(table(rows))
    for failure in failures:
        say(failure)
    say(json.dumps({**summarise(work, sides, where), "failed_sides": len(failures)}))
    return int(bool(failures))


def summarise(work: Work, sides: dict[str, Side], where: dict[str, Any]) -> dict[str, Any]:
    """The figures of the last line; a ratio whose sides are not both there is null."""
    figures = {
        name: {
            "tokens_per_s": round(side.median("tokens_per_s"), 2),
            "prefill_tokens_per_s": round(side.median("prefill_tokens_per_s"), 1),
            "perplexity": round(perplexity(side), 4),
            "peak_rss_gb": round(side.peak(), 3),
            **(
                {"bandwidth_share": round(bandwidth_share(side), 4)} if "bandwidth" in side.results[0] else {}
            ),
        }
        for name, side in sides.items()
    }

    def ratio(figure: str, ours: str, other: str) -> float | None:
        both = ours in figures and other in figures
        return round(figures[ours][figure] / figures[other][figure], 4) if both else None

    to_bf16 = {
        name: round(side.median("prefill_ratios"), 4)
        for name, side in sides.items()
        if "prefill_ratios" in side.results[0]
    }
    return {
        **{f"ratio_{name}": ratio("tokens_per_s", *pair) for name, pair in PAIRS.items()},
        **{f"prefill_ratio_{name}": ratio("prefill_tokens_per_s", *pair) for name, pair in PAIRS.items()},
        **{f"perplexity_ratio_{name}": ratio("perplexity", *pair) for name, pair in PAIRS.items()},
        "prefill_ratios_bf16": to_bf16,
        "sides": figures,
        "prompt_tokens": len(work.prompt),
        "tokens": work.tokens,
        "machine": where,
    }


if __name__ == "__main__":
    sys.exit(main())
