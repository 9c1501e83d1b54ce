"""Curves of two arithmetics, with differences worked by hand."""

from collections.abc import Callable
from types import ModuleType

import pytest


@pytest.fixture
def fp8_loss(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("fp8_loss")


def test_windows_of_the_mean_of_seeds(fp8_loss: ModuleType) -> None:
    # Two seeds of two windows: means of 2 and 4 are 3, of 1 and 2 are 1.5.
    plain = [[2.0] * 50 + [1.0] * 50, [4.0] * 50 + [2.0] * 50]
    low = [[2.0] * 50 + [1.0] * 50, [4.06] * 50 + [1.94] * 50]
    held_out = {"bf16": [2.0, 2.0], "fp8": [2.0, 2.02]}
    found = fp8_loss.compare({"bf16": plain, "fp8": low}, held_out)
    assert found["bf16"]["windows"] == [3.0, 1.5] and found["bf16"]["worst_window"] == 0
    # +1 % in the first window, -2 % in the second, which is further.
    assert found["fp8"]["windows"] == pytest.approx([3.03, 1.47])
    assert found["fp8"]["worst_window"] == pytest.approx(-0.02)
    assert found["fp8"]["held_out"] == pytest.approx(0.005)
    assert fp8_loss.rows(found)[1] == ["fp8", "1.4700", "-2.00%", "+0.50%"]
