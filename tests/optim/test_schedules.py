"""Schedules against numbers worked by hand."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from erniekit.errors import ConfigError
from erniekit.optim.schedules import build_schedule

FIELDS = dict(
    lr_scheduler_type="linear",
    warmup_steps=0,
    warmup_ratio=0.0,
    decay_steps=None,
    min_lr=0.0,
    lr_end=1e-7,
    power=1.0,
    num_cycles=0.5,
    decay_function="half_life",
    wsd_steady_steps=None,
)


def rates(steps, total=10, base=1.0, **changes):
    schedule = build_schedule(base, total, **{**FIELDS, **changes})
    return [schedule(step) for step in steps]


def test_warm_up_starts_above_zero_and_reaches_the_peak():
    assert rates([0, 1, 2, 3, 4], warmup_steps=4) == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])
    assert rates([0, 1], total=20, warmup_ratio=0.1) == pytest.approx([0.5, 1.0])


def test_linear():
    assert rates([0, 5, 10, 12]) == pytest.approx([1.0, 0.5, 0.0, 0.0])
    assert rates([0, 5, 10], min_lr=0.2) == pytest.approx([1.0, 0.6, 0.2])


def test_cosine():
    assert rates([0, 5, 10], lr_scheduler_type="cosine", min_lr=0.1) == pytest.approx([1.0, 0.55, 0.1])
    assert rates([2], lr_scheduler_type="cosine") == pytest.approx([(1 + math.cos(math.pi * 0.2)) / 2])


def test_polynomial():
    assert rates([5], lr_scheduler_type="polynomial", power=2.0, lr_end=0.2) == pytest.approx([0.8 * 0.25 + 0.2])


def test_constants():
    assert rates([0, 9], lr_scheduler_type="constant", warmup_steps=5) == [1.0, 1.0]
    assert rates([0, 9], lr_scheduler_type="constant_with_warmup", warmup_steps=2) == [0.5, 1.0]


def test_wsd():
    half = rates([8, 9, 9.5, 10], lr_scheduler_type="wsd")
    assert half == pytest.approx([1.0, 1.0, (0.05**0.5 - 0.05) / 0.95, 0.0])
    root = rates([4, 6, 10], lr_scheduler_type="wsd", decay_function="1-sqrt", wsd_steady_steps=2, min_lr=0.1)
    assert root == pytest.approx([1 - 0.9 * math.sqrt(0.25), 1 - 0.9 * math.sqrt(0.5), 0.1])


def test_decay_steps_is_the_horizon():
    assert rates([5], total=100, decay_steps=10) == pytest.approx([0.5])


@given(
    kind=st.sampled_from(["linear", "cosine", "polynomial", "wsd", "constant_with_warmup"]),
    total=st.integers(2, 200),
    warmup=st.integers(0, 50),
    floor=st.floats(0, 1),
    decay=st.sampled_from(["half_life", "1-sqrt"]),
)
def test_stays_between_floor_and_peak(kind, total, warmup, floor, decay):
    if warmup >= total:
        return
    values = rates(
        range(total + 5), total=total, lr_scheduler_type=kind, warmup_steps=warmup, min_lr=floor, decay_function=decay
    )
    assert all(floor - 1e-12 <= value <= 1 + 1e-12 for value in values[warmup:])
    assert values[warmup] == pytest.approx(1.0) or kind == "wsd"
    assert all(a >= b - 1e-12 for a, b in zip(values[warmup:], values[warmup + 1 :], strict=False))


def test_a_warm_up_that_leaves_nothing_names_its_key():
    with pytest.raises(ConfigError, match="warmup_steps takes 10 of 10"):
        rates([0], warmup_steps=10)
    with pytest.raises(ConfigError, match="warmup_ratio"):
        rates([0], warmup_ratio=1.0)
