"""The comparison of number types, with differences worked by hand."""

from collections.abc import Callable
from types import ModuleType

import pytest


@pytest.fixture
def convergence(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("convergence")


def test_differences_within_and_beyond_noise(convergence: ModuleType) -> None:
    # Differences 0.1, -0.1, 0.03: mean 0.01, standard deviation 0.1015, over sqrt(3) 0.0586.
    within = convergence.compare({"fp32": [2.0, 2.2, 2.1], "bf16": [2.1, 2.1, 2.13]})
    assert within["difference"] == pytest.approx(0.01)
    assert within["standard_error"] == pytest.approx(0.0586, abs=1e-4)
    assert within["mean"]["fp32"] == pytest.approx(2.1) and within["spread"]["fp32"] == pytest.approx(0.1)
    # Variances 0.01 and 0.0003, over three seeds: the root of 0.0103 / 3.
    assert within["noise"] == pytest.approx(0.0586, abs=1e-4) and within["within_noise"]
    beyond = convergence.compare({"fp32": [2.0, 2.2, 2.1], "bf16": [2.2, 2.4, 2.3]})
    # Variances of 0.01 both: noise 0.0816; a fifth is more than twice that.
    assert beyond["noise"] == pytest.approx(0.0816, abs=1e-4)
    assert beyond["difference"] == pytest.approx(0.2) and not beyond["within_noise"]


def test_table(convergence: ModuleType) -> None:
    losses = {"fp32": [2.0, 2.2], "bf16": [2.1, 2.1]}
    found = convergence.rows(losses, convergence.compare(losses))
    assert found[0] == ["seed 1", "2.0000", "2.1000", "+0.1000"]
    assert found[-1] == ["mean +- spread", "2.1000 +- 0.1414", "2.1000 +- 0.0000", "+0.0000 +- 0.1000"]
