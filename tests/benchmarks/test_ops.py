"""Every operator of the benchmark runs at small sizes; rates are worked by hand."""

import json
from collections.abc import Callable
from types import ModuleType

import pytest

from erniekit.ops.kernels.library import find_library


@pytest.fixture(scope="module")
def ops(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("ops")


@pytest.mark.skipif(find_library().library is None, reason="native kernels do not run here")
def test_all_operators_run(
    ops: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ERNIEKIT_KERNELS", raising=False)
    assert ops.main(["--small", "--seconds", "0.001", "--peer", "none"]) == 0
    lines = capsys.readouterr().out.splitlines()
    operators = json.loads(lines[-1])["operators"]
    assert len(operators) == 12
    for name, found in operators.items():
        assert set(found["ms"]) == set(ops.OURS), name
        assert all(both > 0 for _, both in found["ms"].values()), name
        assert any(line.startswith(f"| {name} |") for line in lines)


def test_rates(ops: ModuleType, script: Callable[[str], ModuleType]) -> None:
    case = script("operator_cases").Case
    product = case("linear", {"tokens": 100, "inputs": 200, "outputs": 300})
    assert ops.rate_of(product, 2.0) == ("GFLOP/s", 3 * 2 * 100 * 200 * 300 / 2e-3 / 1e9)
    # Forward 2 read, 1 written for gate, up, out; backward 3 read, 2 written: 8 tensors of bf16.
    memory = case("swiglu", {"tokens": 1000, "width": 500})
    assert ops.rate_of(memory, 4.0) == ("GB/s", 8 * 1000 * 500 * 2 / 4e-3 / 1e9)
    attention = case("attention", {"rows": 1, "length": 4, "sample": 2, "heads": 3, "head_dim": 5})
    assert attention.flops() == 4 * (1 + 2 + 1 + 2) * 3 * 5  # each query sees itself and what is before


def test_chosen(script: Callable[[str], ModuleType]) -> None:
    cases = script("operator_cases")
    assert list(cases.chosen(["attention"], small=False)) == [n for n in cases.CASES if "attention" in n]
    assert all(case.numbers.get("tokens", 16) == 16 for case in cases.chosen([], small=True).values())
