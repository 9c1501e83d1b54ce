"""Tables of figures: every block of the page has one, and they say what the JSON says."""

import json
import re
from pathlib import Path

import pytest

from tests.house import figures
from tests.house.sources import ROOT

MACHINE = {
    "processor": "a processor",
    "cores": 2,
    "instruction_sets": ["avx2"],
    "system": "Linux",
    "load_average_before": 0.1,
}
MODE = {"tokens_per_s": 812.4, "peak_rss_gb": 3.25, "seconds_per_step": 2.521}
PART = {"calls": 30.0, "ms": 1000.0}
RATIOS = ("ratio", "prefill_ratio", "perplexity_ratio")
SAMPLES: dict[str, dict] = {
    "train_step": {
        "ours": {"bf16": MODE},
        "torch": {"fp32": MODE},
        "gemm_gflops": {"ours": 900.4},
        "gemm_peak_gflops": 900.4,
        "mfu": 0.58,
        "ratio_best": 1.62,
        "memory_ratio_same_precision": 0.49,
        "memory_ratio_chunked": 0.55,
    },
    "dpo_step": {"ours": {"bf16": MODE}, "trl": {"fp32": MODE}, "ratio_best": 2.5, "memory_ratio": 0.33},
    "lora_step": {"ours": {"bf16": MODE}, "torch": {"fp32": MODE}, "ratio_best": 1.9, "memory_ratio": 0.34},
    "methods": {
        "steps": 20,
        "methods": {
            "Full": {
                "trained": 134_515_008,
                "weight_bytes": 269_030_016,
                "peak_bytes": 2_600_400_000,
                "tokens_per_s": 370.6,
                "loss_before": 3.8941,
                "loss_after": 2.7,
            }
        },
    },
    "ops": {"operators": {"SwiGLU": {"ms": {"native bf16": [1.5, 4.0]}, "rate": 25.2, "unit": "GB/s"}}},
    "scaling": {
        "points": [{"side": "ErnieKit", "model": "m", "batch": 1, "length": 8192, "sample": 512, **MODE}],
        "packed_below_torch": {
            "tokens": 8192,
            "peak_rss_gb": 4.1,
            "torch_peak_rss_gb": 5.2,
            "torch_tokens": 2048,
            "torch_mode": "bf16_autocast",
        },
    },
    "convergence": {
        "losses": {"fp32": [2.0, 2.2], "bf16": [2.1, 2.1]},
        "mean": {"fp32": 2.1, "bf16": 2.1},
        "spread": {"fp32": 0.1414, "bf16": 0.0},
        "difference": 0.0,
        "standard_error": 0.1,
        "noise": 0.1,
    },
    "fp8_loss": {
        "seeds": 3,
        "steps": 100,
        "modes": {
            "bf16": {"windows": [2.5, 2.0], "held_out_loss": 2.0},
            "fp8": {"windows": [2.5125, 2.0], "held_out_loss": 2.01},
        },
    },
    "overhead": {
        "step_s": 2.0,
        "operators_ms": 20.0,
        "data_ms": 1.0,
        "logs_ms": 0.2,
        "share": 0.0106,
        "start_screen_s": 2.1,
        "end_of_the_first_step_s": 5.5,
    },
    "profile_native": {
        "step_s": 2.0,
        "batch": 4,
        "length": 512,
        "compute_type": "bf16",
        "parts": [{"name": "ek_gemm", **PART}, {"name": "small", "calls": 1, "ms": 1.0}],
    },
    "decode": {
        "ours": {
            "ErnieKit bf16": {"tokens_per_s": 120.04, "prefill_tokens_per_s": 2000.4, "peak_rss_gb": 1.1}
        },
        "peer": {
            "llama.cpp f16": {"tokens_per_s": 100.0, "prefill_tokens_per_s": 1000.0, "peak_rss_gb": 0.3}
        },
        "prompt_tokens": 256,
        "tokens": 128,
        "bytes_per_token": 250_000_000,
        "bandwidth_gb_s": 37.5,
        "bandwidth_share": 0.8003,
        "ratio_best": 1.2,
        "prefill_ratio_best": 2.0,
    },
    "quant_decode": {
        "sides": {
            "wint8": {
                **{"tokens_per_s": 300.4, "prefill_tokens_per_s": 2000.4, "perplexity": 39.123},
                "bandwidth_share": 0.5,
            },
            "q8_0": {"tokens_per_s": 150.0, "prefill_tokens_per_s": 1000.0, "perplexity": 39.5},
        },
        "prefill_ratios_bf16": {"wint8": 1.04},
        **{f"{kind}_q8": value for kind, value in (("ratio", 2.0), ("prefill_ratio", 2.001))},
        "perplexity_ratio_q8": 0.99,
        **{f"{kind}_{key}": None for kind in RATIOS for key in ("q4", "q4_gptq")},
        "prompt_tokens": 256,
        "tokens": 128,
    },
    "moe_step": {
        "shapes": {
            "8-of-2": {
                "ours": {"grouped": {**MODE, "mfu": 0.6}},
                "torch": {"bf16_pure_eager": {**MODE, "mfu": 0.2}},
                "ratio_best": 2.14,
                "ratio_same_states": 3.3,
                "ratio_loop": None,
                "ratio_dense_mfu": 0.881,
            }
        },
        "batch": 4,
        "length": 512,
    },
}
SAMPLES["parallel"] = {
    "plans": [
        {
            "name": "tensor 2",
            "seconds": 0.512,
            "sent": {"tensor": {"measured": 2_000_000, "predicted": 2_000_000}},
            "memory": {"measured": 100 << 20, "predicted": 105 << 20},
        }
    ],
    "schedules": [
        {
            "name": "1f1b",
            "ranks": [
                {
                    **{"bubble": 0.11, "simulated_bubble": 0.17},
                    **{"activations": 45 << 20, "simulated_activations": 44 << 20},
                }
            ],
        }
    ],
}
SAMPLES["fp8_loss_random"] = SAMPLES["fp8_loss"]
SAMPLES["profile_paddle"] = SAMPLES["profile_native"]
EXPECTED = {
    "train_step": ["| ErnieKit bf16 | 812 | 2.52 | 3.25 |", "1.62 times", "58% of 900", "0.49 of torch's"],
    "ops": ["| SwiGLU | 1.50 / 4.00 | 25 GB/s |"],
    "scaling": [
        "| ErnieKit | m | 1 x 8192 | 512 | 812.4 | 2.521 | 3.25 |",
        "8,192 tokens",
        "5.20 GB for 2,048",
    ],
    "convergence": [
        "| seed 2 | 2.2000 | 2.1000 | -0.1000 |",
        "| 2.1000 +- 0.1414 | 2.1000 +- 0.0000 | +0.0000 +- 0.1000 |",
    ],
    "fp8_loss": [
        "| loss, mean of 3 seeds | bf16 | `use_fp8` | difference |",
        "| steps 51 to 100 | 2.0000 | 2.0000 | +0.00% |",
        "| held-out, at the end | 2.0000 | 2.0100 | +0.50% |",
    ],
    "fp8_loss_random": ["| steps 1 to 50 | 2.5000 | 2.5125 | +0.50% |"],
    "overhead": ["| operators | 20.00 | 1.00% |", "| all | 21.20 | 1.06% |", "5.5 s"],
    "profile_native": ["| `ek_gemm` | 30 | 1000 | 50% |"],
    "profile_paddle": ["A step of 4 x 512 tokens, bf16: 2.00 s."],
    "decode": [
        "| ErnieKit bf16 | 120.0 | 2000 | 1.10 |",
        "at most 150 tokens/s",
        "80%",
        "1.20 times",
        "2.00",
    ],
    "quant_decode": [
        "| `wint8` | 300 | 50% | 2000 | 1.04 | 39.12 |",
        "| llama.cpp Q8_0 | 150 |  | 1000 |  | 39.50 |",
        "| `wint8` to Q8_0 | 2.00 | 2.00 | 0.99 |",
        "| `wint4_g32` to Q4_0 | - | - | - |",
    ],
    "moe_step": [
        "| 8-of-2 | torch bf16_pure_eager | 812 | 2.52 | 3.25 | 20% |",
        "| 8-of-2 | 2.14 | 3.30 | - | 0.88 |",
        "4 x 512 tokens",
    ],
    "lora_step": ["| ErnieKit bf16 | 812 | 2.52 | 3.25 |", "| peft fp32 |", "1.90 times", "0.34 of"],
    "methods": ["| Full | 134,515,008 | 269 | 2600 | 371 | 3.894 | 2.700 |", "20 steps"],
    "parallel": ["| tensor 2 | 0.51 | tensor 2.0 | 100 | 105 |", "| 1f1b | 0 | 11% | 17% | 45.0 | 44.0 |"],
    "dpo_step": ["| ErnieKit bf16 | 812 | 2.52 | 3.25 |", "| TRL fp32 |", "2.50 times", "0.33 of"],
}


@pytest.mark.parametrize("name", figures.TABLES)
def test_a_table(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "FIGURES", tmp_path)
    block = f"before\n<!-- figures: {name}, by hand -->\nold\n<!-- /figures -->\nafter\n"
    unmeasured = figures.with_figures(block)
    assert f"python benchmarks/record.py {name}" in unmeasured and "old" not in unmeasured
    content = {"command": "python benchmarks/it.py", **SAMPLES[name], "machine": MACHINE}
    (tmp_path / f"{name}.json").write_text(json.dumps(content))
    page = figures.with_figures(block)
    assert page.startswith("before\n") and page.endswith("after\n")
    assert [
        text for text in [*EXPECTED[name], "`python benchmarks/it.py` on a processor"] if text not in page
    ] == []
    assert "small" not in page
    assert figures.with_figures(page) == page


def test_every_block_has_a_table_and_a_benchmark() -> None:
    pages = "".join((ROOT / page).read_text(encoding="utf-8") for page in figures.PAGES)
    names = [block[1] for block in figures.BLOCK.findall(pages)]
    assert sorted(names) == sorted(figures.TABLES)
    recorded = (ROOT / "benchmarks/record.py").read_text(encoding="utf-8")
    assert set(re.findall(r'^    "(\w+)": \("', recorded, re.MULTILINE)) == set(figures.TABLES)
