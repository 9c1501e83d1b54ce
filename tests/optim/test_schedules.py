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


def test_warm_up():
    assert rates([0, 1, 2, 3, 4], warmup_steps=4) == pytest.approx([0.0, 0.25, 0.5, 0.75, 1.0])
    assert rates([0, 1, 2], total=20, warmup_ratio=0.1) == pytest.approx([0.0, 0.5, 1.0])
    # The ratio is of all steps, rounded up; steps win over the ratio.
    assert rates([2, 3], total=21, warmup_ratio=0.1) == pytest.approx([2 / 3, 1.0])
    assert rates([1], total=20, warmup_ratio=0.1, warmup_steps=4) == pytest.approx([0.25])


def test_linear():
    assert rates([0, 5, 10, 12]) == pytest.approx([1.0, 0.5, 0.0, 0.0])
    assert rates([0, 5, 10], min_lr=0.2) == pytest.approx([1.0, 0.6, 0.2])


def test_cosine():
    assert rates([0, 5, 10], lr_scheduler_type="cosine", min_lr=0.1) == pytest.approx([1.0, 0.55, 0.1])
    # cos(pi / 3) = 1/2 a third of the way after a warm-up of 4 steps.
    assert rates([6], lr_scheduler_type="cosine", warmup_steps=4) == pytest.approx([0.75])
    assert rates([2], lr_scheduler_type="cosine") == pytest.approx([(1 + math.cos(math.pi * 0.2)) / 2])


def test_polynomial():
    assert rates([5], lr_scheduler_type="polynomial", power=2.0, lr_end=0.2) == pytest.approx(
        [0.8 * 0.25 + 0.2]
    )


def test_constants():
    assert rates([0, 9], lr_scheduler_type="constant", warmup_steps=5) == [1.0, 1.0]
    assert rates([0, 1, 2, 9], lr_scheduler_type="constant_with_warmup", warmup_steps=2) == [
        0.0,
        0.5,
        1.0,
        1.0,
    ]


def test_wsd():
    half = rates([8, 9, 9.5, 10], lr_scheduler_type="wsd")
    assert half == pytest.approx([1.0, 1.0, (0.05**0.5 - 0.05) / 0.95, 0.0])
    root = rates([4, 6, 10], lr_scheduler_type="wsd", decay_function="1-sqrt", wsd_steady_steps=2, min_lr=0.1)
    assert root == pytest.approx([1 - 0.9 * math.sqrt(0.25), 1 - 0.9 * math.sqrt(0.5), 0.1])
    # L 1e-4, floor 1e-5, from step 90 of 100: a third of the decay is 0.05^(1/3) = 0.368403.
    third = rates(
        [92, 93, 96], total=99, base=1e-4, lr_scheduler_type="wsd", min_lr=1e-5, wsd_steady_steps=90
    )
    assert third[1] == pytest.approx(1e-5 + 9e-5 * (0.368403 - 0.05) / 0.95, rel=1e-5)
    # Warmed up to 6, told to be steady until 2: the decay begins at 6, from the peak.
    late = rates(
        [5, 6, 8], lr_scheduler_type="wsd", decay_function="1-sqrt", warmup_steps=6, wsd_steady_steps=2
    )
    assert late == pytest.approx([5 / 6, 1.0, 1 - math.sqrt(0.5)])


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
    values = rates(
        range(total + 5),
        total=total,
        lr_scheduler_type=kind,
        warmup_steps=warmup,
        min_lr=floor,
        decay_function=decay,
    )
    assert all(0 <= value <= 1 + 1e-12 for value in values)
    rising, falling = values[: warmup + 1], values[warmup:]
    assert all(a <= b for a, b in zip(rising, rising[1:], strict=False))
    assert all(value >= floor - 1e-12 for value in falling)
    assert all(a >= b - 1e-12 for a, b in zip(falling, falling[1:], strict=False))
    if warmup < total:
        assert values[warmup] == pytest.approx(1.0)  # continuous where the warm-up ends
        assert kind == "constant_with_warmup" or values[total + 4] == values[total]


@given(
    kind=st.sampled_from(["linear", "cosine", "polynomial", "wsd"]),
    warmup=st.integers(0, 500),
    decay=st.sampled_from(["half_life", "1-sqrt"]),
)
def test_joins_are_continuous(kind, warmup, decay):
    """No jump above the steepest slope: that of 1 - sqrt(q) at its beginning."""
    total = 10_000
    values = rates(
        range(total + 2), total=total, lr_scheduler_type=kind, warmup_steps=warmup, decay_function=decay
    )
    largest = max(abs(a - b) for a, b in zip(values[warmup:], values[warmup + 1 :], strict=False))
    assert largest <= math.sqrt(1 / (0.1 * total)) + 1e-9
    if decay == "half_life" or kind != "wsd":
        assert largest < 0.005


def test_a_warm_up_longer_than_the_run_is_told(caplog):
    assert rates([0, 4, 9], warmup_steps=20) == pytest.approx([0.0, 0.2, 0.45])
    assert "warmup_steps: the warm-up takes 20 steps and the run has 10" in caplog.text
    assert "0.45 of 1" in caplog.text
    with pytest.raises(ConfigError, match="decay_steps: 5 is not above the 8 steps of the warm-up"):
        rates([0], warmup_steps=8, decay_steps=5)


def test_an_unknown_schedule():
    with pytest.raises(ConfigError, match="'step' is not one of constant, linear"):
        rates([0], lr_scheduler_type="step")
