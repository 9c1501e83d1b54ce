"""The benchmark of decoding in few bits runs on a tiny model; its ratios are those of its figures."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from erniekit.ops.kernels.library import find_library
from erniekit.testing.tiny_checkpoint import tiny_config, write_tiny_checkpoint


@pytest.fixture(scope="module")
def benchmark(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("quant_decode")


def test_it_times_schemes_and_scores_a_text(
    benchmark: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if find_library().library is None:
        pytest.skip("the bound is measured by the native kernels")
    folder = write_tiny_checkpoint(tmp_path / "model", tiny_config(hidden_size=64))
    ours = ["bf16", "wint8", "wint4_g32"]
    words = ["--model", str(folder), "--llama", "none", "--ours", *ours, "--prompt-tokens", "20"]
    sizes = ["--tokens", "5", "--repeats", "1", "--rounds", "2", "--scored", "40"]
    assert benchmark.main([*words, *sizes]) == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    full, eight = figures["sides"]["bf16"], figures["sides"]["wint8"]
    # Weights are random: the text is unlikely, and equally so with 8 bits.
    assert full["perplexity"] > 50 and abs(eight["perplexity"] / full["perplexity"] - 1) < 0.1
    assert full["perplexity"] != eight["perplexity"]
    assert figures["ratio_q8"] is None and figures["prefill_ratios_bf16"]["wint8"] > 0


def test_ratios_by_hand(benchmark: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    def side(speed: float, prefill: float, loss: float, **more: Any) -> Any:
        result = {"tokens_per_s": [speed], "prefill_tokens_per_s": [prefill], "losses": [loss, loss]}
        return benchmark.Side("python", "script", [], [{**result, "peak_rss_bytes": 1e9, **more}])

    ours = {"bandwidth": [1e9], "bytes_per_token": 10_000_000}
    sides = {
        "bf16": side(50, 1000, 3.0, **ours),
        "wint8": side(90, 1100, 3.0, **ours, prefill_ratios=[1.2, 0.9, 1.1]),
        "wint4_g32": side(120, 900, 3.2, **ours),
        "q8_0": side(60, 500, 3.1),
        "q4_0": side(80, 600, 3.3),
    }
    work = benchmark.Work("folder", (1, 2), 3, 1, 2, scored=(1, 2, 3))
    assert benchmark.report(work, sides, benchmark.machine(), []) == 0
    told = capsys.readouterr().out
    figures = json.loads(told.splitlines()[-1])
    assert (figures["ratio_q8"], figures["ratio_q4"], figures["ratio_q4_gptq"]) == (1.5, 1.5, None)
    assert figures["perplexity_ratio_q4"] == pytest.approx(math.exp(-0.1), abs=1e-4)
    assert (figures["prefill_ratio_q8"], figures["prefill_ratios_bf16"]) == (2.2, {"wint8": 1.1})
    assert figures["sides"]["q4_0"]["perplexity"] == round(math.exp(3.3), 4)
    assert f"| llama.cpp q8_0 | 60.0 |  | 500 | {math.exp(3.1):.3f} | 1.00 |" in told
    assert benchmark.report(work, sides, benchmark.machine(), ["it broke"]) == 1
