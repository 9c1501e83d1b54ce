"""The report of a quantisation, and its verdict."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from erniekit.export.quality import Quality
from erniekit.export.quantise_report import QuantisedModel, report_text, write_report
from erniekit.quant.folder import Quantisation

NAMES = [
    f"model.layers.{layer}.mlp.{end}.weight" for layer in range(3) for end in ("up_gate_proj", "down_proj")
]


def made(folder=Path("out"), **changes) -> QuantisedModel:
    formats = {name: "int8" if "0" in name else "ccq2" for name in NAMES}
    quality = Quality(2.0, 2.01, 0.005, 0.97, 900, 1000)
    errors = {name: 10.0**-place for place, name in enumerate(NAMES, start=1)}
    done = QuantisedModel(
        *(folder, "starter", Quantisation("wint2", formats, method="gptq"), 2.25, 2_000_000, 8_000_000, 4096),
        *(errors, {"model.layers.1.mlp.experts.7": 3}, quality, 0.02),
    )
    return replace(done, **changes)


def test_the_verdict():
    assert made().passed and made().verdict().startswith("PASSED: perplexity changes by +1.01%")
    worse = made(max_quality_drop=0.01)
    assert not worse.passed and worse.verdict().startswith("FAILED") and "FAILED" in worse.lines()[-1]
    assert made(max_quality_drop=None).passed
    assert not made(quality=None).passed and made(quality=None, max_quality_drop=None).passed


def test_lines_for_people():
    first, second, third, last = made().lines()
    assert "wint2 by gptq, 2.25 bits a weight, 2.0 MB (25% of the model in full)" in first
    assert "perplexity 7.463 (in full 7.389, +1.0%)" in second
    assert third == "1 experts were reached by few tokens of their own: model.layers.1.mlp.experts.7 (3)"
    assert last.startswith("PASSED")


def test_the_report_says_all_of_it():
    text = report_text(made())
    for words in (
        *("| bits a weight (matrices, with scales) | 2.250 |", "| same likeliest token | 97.00% |"),
        *(
            "0.00500 nats a token",
            "| mlp.down_proj | ccq2 | 2 |",
            "`model.layers.0.mlp.up_gate_proj.weight`: 1.000e-01",
        ),
        *(
            "![error by layer](sensitivity.svg)",
            "`model.layers.1.mlp.experts.7`: 3 tokens",
            "| verdict | PASSED",
        ),
    ):
        assert words in text, words
    assert "perplexity" not in report_text(made(quality=None, max_quality_drop=None))


def test_files(tmp_path):
    write_report(made(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "quantization.json",
        "report.md",
        "sensitivity.svg",
    ]
    found = json.loads((tmp_path / "quantization.json").read_text())
    assert found["quality"]["drop"] == pytest.approx(0.01005, rel=1e-3) and found["passed"]
    assert found["rare_experts"] == {"model.layers.1.mlp.experts.7": 3} and len(found["errors"]) == 6
