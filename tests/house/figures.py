"""The tables of figures in the documents, from what the benchmarks measured (benchmarks/figures/*.json)."""

import json
import re
from collections.abc import Callable
from typing import Any

from tests.house.sources import ROOT

FIGURES = ROOT / "benchmarks" / "figures"
# Documents with tables of figures.
PAGES = ("docs/performance.md", "docs/choosing.md", "docs/fp8.md")
BLOCK = re.compile(r"(<!-- figures: (\w+)[^>]*-->\n)(.*?)(<!-- /figures -->)", re.DOTALL)
Figures = dict[str, Any]


def with_figures(text: str) -> str:
    """A page whose blocks hold the tables."""
    return BLOCK.sub(lambda block: block[1] + _block(block[2]) + block[4], text)


def _block(name: str) -> str:
    path = FIGURES / f"{name}.json"
    if not path.is_file():
        return f"Not measured yet: `python benchmarks/record.py {name}`\n"
    figures = json.loads(path.read_text(encoding="utf-8"))
    where = figures["machine"]
    source = (
        f"\n`{figures['command']}` on {where['processor']}, {where['cores']} cores "
        f"({', '.join(where['instruction_sets'])}), {where['system']}, load average before "
        f"{where['load_average_before']}.\n"
    )
    return TABLES[name](figures) + source


def table(rows: list[list[str]]) -> str:
    """Rows as Markdown; the first is the heading."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]]) + "\n"


def train_step(figures: Figures) -> str:
    """Modes of both sides, then what they mean."""
    rows = [["", "tokens/s", "s a step", "peak memory, GB"]]
    for side, name in (("ours", "ErnieKit"), ("torch", "torch")):
        for mode, found in figures[side].items():
            speed, seconds = f"{found['tokens_per_s']:.0f}", f"{found['seconds_per_step']:.2f}"
            rows.append([f"{name} {mode}", speed, seconds, f"{found['peak_rss_gb']:.2f}"])
    rates = ", ".join(f"{side} {rate:.0f}" for side, rate in figures["gemm_gflops"].items())
    said = (
        f"\nModel FLOPs utilisation {figures['mfu']:.0%} of {figures['gemm_peak_gflops']:.0f} GFLOP/s, "
        f"the best bf16 product of the run ({rates}).\n"
    )
    if figures["torch"]:
        said += (
            f"\nSpeed: {figures['ratio_best']:.2f} times the best mode of torch. Peak memory: "
            f"{figures['memory_ratio_same_precision']:.2f} of torch's with the same optimizer states, "
            f"{figures['memory_ratio_chunked']:.2f} where torch's logits are chunked as well.\n"
        )
    return table(rows) + said


def ops(figures: Figures) -> str:
    """Forward / forward and backward in ms, with the rate of the native operator."""
    operators = figures["operators"]
    columns = list(dict.fromkeys(column for found in operators.values() for column in found["ms"]))
    rows = [["ms, forward / both passes", *columns, "rate of native bf16"]]
    for name, found in operators.items():
        cells = [" / ".join(f"{ms:.2f}" for ms in found["ms"][column] if ms) for column in columns]
        rows.append([name, *cells, f"{found['rate']:.0f} {found['unit']}"])
    return table(rows)


def scaling(figures: Figures) -> str:
    """Every point; the comparison of a long packed row with torch below it."""
    rows = [["", "model", "rows x tokens", "samples of", "tokens/s", "s a step", "peak memory, GB"]]
    for point in figures["points"]:
        side = point["side"] if point["side"] == "ErnieKit" else f"torch {point['mode']}"
        shape = f"{point['batch']} x {point['length']}"
        measured = [str(point.get(key, "-")) for key in ("tokens_per_s", "seconds_per_step", "peak_rss_gb")]
        rows.append([side, point["model"], shape, str(point["sample"] or point["length"]), *measured])
    found = figures["packed_below_torch"]
    if not found:
        return table(rows)
    return table(rows) + (
        f"\n{found['tokens']:,} tokens packed in one row take {found['peak_rss_gb']:.2f} GB; torch takes "
        f"{found['torch_peak_rss_gb']:.2f} GB for {found['torch_tokens']:,} ({found['torch_mode']}).\n"
    )


def convergence(figures: Figures) -> str:
    """Held-out losses of both number types, seed by seed."""
    mean, spread, losses = figures["mean"], figures["spread"], figures["losses"]
    rows = [["held-out loss", "fp32", "bf16", "bf16 - fp32"]]
    for index, (one, other) in enumerate(zip(losses["fp32"], losses["bf16"], strict=True)):
        rows.append([f"seed {index + 1}", f"{one:.4f}", f"{other:.4f}", f"{other - one:+.4f}"])
    means = [f"{mean[kind]:.4f} +- {spread[kind]:.4f}" for kind in ("fp32", "bf16")]
    difference = f"{figures['difference']:+.4f} +- {figures['standard_error']:.4f}"
    return table([*rows, ["mean +- spread of the seeds", *means, difference]]) + (
        f"\nThe means differ by {figures['difference']:+.3f}; the spread of the seeds alone makes two means "
        f"differ by {figures['noise']:.3f} (one standard error).\n"
    )


def fp8_loss(figures: Figures) -> str:
    """Losses of both arithmetics, window by window, and held out."""
    plain, low = figures["modes"]["bf16"], figures["modes"]["fp8"]
    pairs = [*zip(plain["windows"], low["windows"], strict=True)]
    pairs.append((plain["held_out_loss"], low["held_out_loss"]))
    step = figures["steps"] // (len(pairs) - 1)
    names = [f"steps {step * index + 1} to {step * index + step}" for index in range(len(pairs) - 1)]
    rows = [
        [
            f"loss, mean of {figures['seeds']} seeds" if figures["seeds"] > 1 else "loss, one seed",
            "bf16",
            "`use_fp8`",
            "difference",
        ]
    ]
    for name, (one, other) in zip([*names, "held-out, at the end"], pairs, strict=True):
        rows.append([name, f"{one:.4f}", f"{other:.4f}", f"{other / one - 1:+.2%}"])
    return table(rows)


def overhead(figures: Figures) -> str:
    """Shares of a step, and the start of a run."""
    step = figures["step_s"]
    rows = [["beside the arithmetic", "ms a step", "share"]]
    for name in ("operators", "data", "logs"):
        ms = figures[f"{name}_ms"]
        rows.append([name, f"{ms:.2f}", f"{ms / step / 1e3:.2%}"])
    rows.append(["all", f"{figures['share'] * step * 1e3:.2f}", f"{figures['share']:.2%}"])
    return table(rows) + (
        f"\nA run of the starter shows its first screen {figures['start_screen_s']:.1f} s after its start, "
        f"and has done its first step after {figures['end_of_the_first_step_s']:.1f} s.\n"
    )


def profile(figures: Figures) -> str:
    """What takes over a hundredth of a step."""
    step = figures["step_s"] * 1e3
    rows = [["", "calls a step", "ms a step", "share"]]
    for part in figures["parts"]:
        if part["ms"] > 0.01 * step:
            shown = [f"{part['calls']:g}", f"{part['ms']:.0f}", f"{part['ms'] / step:.0%}"]
            rows.append([f"`{part['name']}`" if " " not in part["name"] else part["name"], *shown])
    shape = f"{figures['batch']} x {figures['length']} tokens, {figures['compute_type']}"
    return table(rows) + f"\nA step of {shape}: {figures['step_s']:.2f} s.\n"


def decode(figures: Figures) -> str:
    """Every side, the bound by the rate of memory, and the ratio to the fastest peer."""
    rows = [["", "tokens/s", "prompt tokens/s", "peak memory, GB"]]
    for name, found in {**figures["ours"], **figures["peer"]}.items():
        speeds = [f"{found['tokens_per_s']:.1f}", f"{found['prefill_tokens_per_s']:.0f}"]
        rows.append([name, *speeds, f"{found['peak_rss_gb']:.2f}"])
    bound = figures["bandwidth_gb_s"] * 1e9 / figures["bytes_per_token"]
    said = (
        f"\nA prompt of {figures['prompt_tokens']} tokens, an answer of {figures['tokens']}, batch 1. "
        f"A token reads {figures['bytes_per_token'] / 1e6:.0f} MB, and this machine "
        f"{figures['bandwidth_gb_s']:.1f} GB/s: at most {bound:.0f} tokens/s, of which ErnieKit reaches "
        f"{figures['bandwidth_share']:.0%}.\n"
    )
    if figures["ratio_best"]:
        said += (
            f"\nTo the fastest peer: {figures['ratio_best']:.2f} times its speed of answering, "
            f"{figures['prefill_ratio_best']:.2f} times that of reading the prompt.\n"
        )
    return table(rows) + said


def quant_decode(figures: Figures) -> str:
    """Every side, then the ratios to the peer at the same bits."""
    to_bf16 = figures["prefill_ratios_bf16"]
    rows = [["", "tokens/s", "of the bound", "prompt tokens/s", "prompts to bf16's", "perplexity"]]
    for name, found in figures["sides"].items():
        ours = "bandwidth_share" in found
        rows.append(
            [
                f"`{name}`" if ours else f"llama.cpp {name.upper()}",
                f"{found['tokens_per_s']:.0f}",
                f"{found['bandwidth_share']:.0%}" if ours else "",
                f"{found['prefill_tokens_per_s']:.0f}",
                f"{to_bf16[name]:.2f}" if name in to_bf16 else "",
                f"{found['perplexity']:.2f}",
            ]
        )
    ratios = [["", "speed", "prompts", "perplexity"]]
    for words, key in (
        ("`wint8` to Q8_0", "q8"),
        ("`wint4_g32` to Q4_0", "q4"),
        ("`wint4_g32` by GPTQ to Q4_0", "q4_gptq"),
    ):
        found = [figures[f"{kind}_{key}"] for kind in ("ratio", "prefill_ratio", "perplexity_ratio")]
        ratios.append([words, *("-" if each is None else f"{each:.2f}" for each in found)])
    said = f"\nA prompt of {figures['prompt_tokens']} tokens, an answer of {figures['tokens']}, batch 1.\n\n"
    return table(rows) + said + table(ratios)


def moe_step(figures: Figures) -> str:
    """Every shape and side, then the least of the ratios."""
    rows = [["shape", "", "tokens/s", "s a step", "peak memory, GB", "MFU"]]
    for name, shape in figures["shapes"].items():
        for side, words in (("ours", "ErnieKit"), ("torch", "torch")):
            for mode, found in shape[side].items():
                measured = [f"{found['tokens_per_s']:.0f}", f"{found['seconds_per_step']:.2f}"]
                measured += [f"{found['peak_rss_gb']:.2f}", f"{found['mfu']:.0%}"]
                rows.append([name, f"{words} {mode}", *measured])
    heads = [
        "to the best mode of torch",
        "to the best with fp32 states",
        "to the loop",
        "MFU to the dense one's",
    ]
    ratios = [["shape", *heads]]
    for name, shape in figures["shapes"].items():
        keys = ("ratio_best", "ratio_same_states", "ratio_loop", "ratio_dense_mfu")
        ratios.append([name, *(f"{shape[key]:.2f}" if shape[key] else "-" for key in keys)])
    said = f"\nSteps of {figures['batch']} x {figures['length']} tokens; ErnieKit grouped:\n\n"
    return table(rows) + said + table(ratios)


def dpo_step(figures: Figures) -> str:
    """Modes beside TRL."""
    return _beside(figures, "trl", "TRL")


def lora_step(figures: Figures) -> str:
    """Modes beside peft."""
    return _beside(figures, "torch", "peft")


def methods(figures: Figures) -> str:
    """Every method of fine-tuning, and the steps that were taken."""
    rows = [["", "trained", "weights, MB", "peak memory, MB", "tokens/s", "held-out loss before", "after"]]
    for name, found in figures["methods"].items():
        sizes = [f"{found[key] / 1e6:.0f}" for key in ("weight_bytes", "peak_bytes")]
        losses = [f"{found[key]:.3f}" for key in ("loss_before", "loss_after")]
        rows.append([name, f"{found['trained']:,}", *sizes, f"{found['tokens_per_s']:.0f}", *losses])
    return table(rows) + f"\n{figures['steps']} steps of each.\n"


def _beside(figures: Figures, peer: str, words: str) -> str:
    """Modes of both sides, then the ratios."""
    rows = [["", "tokens/s", "s a step", "peak memory, GB"]]
    for side, name in (("ours", "ErnieKit"), (peer, words)):
        for mode, found in figures[side].items():
            speed, seconds = f"{found['tokens_per_s']:.0f}", f"{found['seconds_per_step']:.2f}"
            rows.append([f"{name} {mode}", speed, seconds, f"{found['peak_rss_gb']:.2f}"])
    said = ""
    if figures[peer]:
        said = (
            f"\nSpeed: {figures['ratio_best']:.2f} times the best mode of {words}. Peak memory: "
            f"{figures['memory_ratio']:.2f} of that of its leanest mode.\n"
        )
    return table(rows) + said


def parallel(figures: Figures) -> str:
    """Plans, then schedules of a pipeline by rank; measured beside predicted."""
    plans = [["plan", "s a step", "a process sends a step, MB", "peak, MiB", "predicted"]]
    for plan in figures["plans"]:
        sent = ", ".join(f"{axis} {both['measured'] / 1e6:.1f}" for axis, both in plan["sent"].items())
        memory = [f"{plan['memory'][key] / 2**20:.0f}" for key in ("measured", "predicted")]
        plans.append([plan["name"], f"{plan['seconds']:.2f}", sent or "nothing", *memory])
    schedules = [["schedule", "rank", "bubble", "simulated", "activations, MiB", "simulated"]]
    for schedule in figures["schedules"]:
        for place, rank in enumerate(schedule["ranks"]):
            bubbles = [f"{rank[key]:.0%}" for key in ("bubble", "simulated_bubble")]
            held = [f"{rank[key] / 2**20:.1f}" for key in ("activations", "simulated_activations")]
            schedules.append([schedule["name"], str(place), *bubbles, *held])
    return table(plans) + "\n" + table(schedules)


TABLES: dict[str, Callable[[Figures], str]] = {
    "train_step": train_step,
    "ops": ops,
    "scaling": scaling,
    "convergence": convergence,
    "fp8_loss": fp8_loss,
    "fp8_loss_random": fp8_loss,
    "overhead": overhead,
    "profile_native": profile,
    "profile_paddle": profile,
    "decode": decode,
    "quant_decode": quant_decode,
    "moe_step": moe_step,
    "dpo_step": dpo_step,
    "lora_step": lora_step,
    "methods": methods,
    "parallel": parallel,
}
