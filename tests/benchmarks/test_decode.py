"""The benchmark of decoding runs on a tiny model, and notices sides that compute something else."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from erniekit.ops.kernels.library import find_library
from erniekit.testing.tiny_checkpoint import tiny_config, write_tiny_checkpoint


@pytest.fixture(scope="module")
def benchmark(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("decode")


def test_it_times_our_answers(
    benchmark: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if find_library().library is None:
        pytest.skip("the bound is measured by the native kernels")
    folder = write_tiny_checkpoint(tmp_path / "model")
    words = ["--model", str(folder), "--llama", "none", "--ours", "bf16", "fp32", "--prompt-tokens", "20"]
    assert benchmark.main([*words, "--tokens", "5", "--repeats", "1", "--rounds", "1"]) == 0
    told = capsys.readouterr().out
    assert "| ErnieKit fp32 |" in told and "memory is read at" in told
    figures = json.loads(told.splitlines()[-1])
    assert figures["tokens_per_s"] == figures["ours"]["ErnieKit bf16"]["tokens_per_s"] > 0
    assert figures["prefill_tokens_per_s"] > 0 and figures["bandwidth_gb_s"] > 0
    # Every weight but none of the untied embedding's rows, and half of the answer's columns.
    config = tiny_config()
    columns = 2 * 2 * config.num_key_value_heads * config.head_dim * 22.5
    assert figures["bytes_per_token"] == 2 * (config.num_parameters() + columns)
    assert figures["peer"] == {} and figures["ratio_best"] is None and figures["logits_agree"]
    assert (figures["prompt_tokens"], figures["tokens"]) == (20, 5)


def sides(benchmark: ModuleType, **changes: Any) -> dict[str, Any]:
    ours = {
        **{"name": "we", "tokens": [3, 4, 5], "logits": [1.0, -2.0], "peak_rss_bytes": 2e9},
        **{"tokens_per_s": [90.0, 80.0, 100.0], "prefill_tokens_per_s": [900.0]},
        **{"bandwidth": [1e9, 3e9, 2e9], "bytes_per_token": 20_000_000},
    }
    peer = {
        **{"name": "it", "tokens": [3, 4, 6], "logits": [1.01, -2.0], "peak_rss_bytes": 1e9},
        **{"tokens_per_s": [60.0], "prefill_tokens_per_s": [1000.0], **changes},
    }
    return {
        name: benchmark.Side("python", "script", [], [result])
        for name, result in (("ErnieKit bf16", ours), ("llama.cpp f16", peer))
    }


def report(benchmark: ModuleType, capsys: pytest.CaptureFixture[str], **changes: Any) -> tuple[int, str]:
    work = benchmark.Work("folder", (1, 2), 3, 1, 2)
    where = {**benchmark.machine(), "load_average_before": 0.0}
    code = benchmark.report(work, sides(benchmark, **changes), where, [])
    return code, capsys.readouterr().out


def test_figures_by_hand(benchmark: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    code, told = report(benchmark, capsys)
    figures = json.loads(told.splitlines()[-1])
    assert code == 0
    assert figures["ratio_best"] == 1.5 and figures["prefill_ratio_best"] == 0.9
    # 2 GB/s and 20 MB a token allow 100 tokens/s.
    assert figures["bandwidth_share"] == 0.9 and figures["bandwidth_gb_s"] == 2.0
    assert "| llama.cpp f16 | 60.0 |  | 1000 | 1.00 | 2 |" in told
    assert "at most 100 tokens/s" in told


def test_another_model_is_noticed(benchmark: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    code, told = report(benchmark, capsys, logits=[1.0, 2.0])
    assert code == 1
    assert "llama.cpp f16: logits after the prompt differ by 2.000 of the largest" in told


def test_without_our_side_there_is_no_figure(
    benchmark: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    work = benchmark.Work("folder", (1, 2), 3, 1, 2)
    assert benchmark.report(work, {}, benchmark.machine(), ["it broke"]) == 1
    assert capsys.readouterr().out == "it broke\n"


def test_the_prompt_has_the_length_that_was_asked_for(benchmark: ModuleType, tmp_path: Path) -> None:
    folder = write_tiny_checkpoint(tmp_path / "model")
    long, short = benchmark.make_prompt(folder, 1200), benchmark.make_prompt(folder, 7)
    assert len(long) == 1200 and long[:7] == short


@pytest.mark.parametrize(
    ("dtype", "types"), [("f16", {"F16"}), ("bf16", {"BF16"}), ("q8_0", {"Q8_0", "F16"})]
)
def test_llama_gets_a_file_without_a_vocabulary(
    benchmark: ModuleType, tmp_path: Path, dtype: str, types: set[str]
) -> None:
    gguf = pytest.importorskip("gguf")
    path = benchmark.write_for_llama(write_tiny_checkpoint(tmp_path / "model"), tmp_path, dtype)
    reader = gguf.GGUFReader(path)
    assert {tensor.tensor_type.name for tensor in reader.tensors} == {*types, "F32"}
    assert "tokenizer.ggml.tokens" not in reader.fields


def test_an_interpreter_without_llama_is_refused(script: Callable[[str], ModuleType]) -> None:
    environment = script("llama_environment")
    assert environment.find_llama("none") is None
    with pytest.raises(SystemExit, match="no Python that imports llama_cpp"):
        environment.find_llama("/nonexistent/python")
