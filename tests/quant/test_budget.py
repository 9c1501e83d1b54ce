"""Formats under a budget of bits, against all there are."""

from itertools import product

import numpy as np
import pytest

from erniekit.quant.budget import Choice, choose_formats


def test_the_matrix_that_gains_most_comes_first():
    choices = {
        "a": [Choice("two", 20, 8.0), Choice("four", 40, 1.0)],
        "b": [Choice("two", 20, 2.0), Choice("four", 40, 1.0)],
    }
    sizes = {"a": 10, "b": 10}
    assert choose_formats(choices, sizes, 3.0) == {"a": "four", "b": "two"}
    assert choose_formats(choices, sizes, 4.0) == {"a": "four", "b": "four"}
    assert choose_formats(choices, sizes, 2.0) == {"a": "two", "b": "two"}
    with pytest.raises(ValueError, match="2.00"):
        choose_formats(choices, sizes, 1.9)


def test_a_step_that_pays_late_is_not_missed():
    """Four bits hardly help here, eight do: both steps count as one."""
    choices = {
        "a": [Choice("two", 20, 9.0), Choice("four", 40, 8.9), Choice("eight", 80, 0.1)],
        "b": [Choice("two", 20, 1.0), Choice("four", 40, 0.5), Choice("eight", 80, 0.4)],
    }
    assert choose_formats(choices, {"a": 10, "b": 10}, 5.0)["a"] == "eight"


def test_it_is_near_the_best_of_all():
    rng = np.random.default_rng(0)
    for _ in range(20):
        choices, sizes = {}, {}
        for name in "abcdef":
            size, error = int(rng.integers(5, 50)), float(rng.uniform(0.1, 3))
            sizes[name] = size
            choices[name] = [
                Choice(str(bits), bits * size, error * 4.0 ** -(bits - 2) * rng.uniform(0.5, 2))
                for bits in (2, 4, 8)
            ]
        budget = 4.3 * sum(sizes.values())
        best = min(
            sum(choice.error for choice in every)
            for every in product(*choices.values())
            if sum(choice.bits for choice in every) <= budget
        )
        found = choose_formats(choices, sizes, 4.3)
        chosen = [next(c for c in choices[name] if c.format == format) for name, format in found.items()]
        assert sum(choice.bits for choice in chosen) <= budget
        start = sum(options[0].error for options in choices.values())
        assert sum(choice.error for choice in chosen) <= best + 0.1 * (start - best)
