"""Which matrix gets which format, so that the whole stays below a number of bits a weight. No Paddle.

Every matrix begins with its smallest format. Then the step to a larger one that lowers the summed error the
most for its bits is taken, again and again, as long as it fits. Errors of one matrix are made convex in its
bits first, so a step that pays late is not missed.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Choice:
    """A format of a matrix: its bits in all, and what it costs in quality."""

    format: str
    bits: float
    error: float


def choose_formats(
    choices: Mapping[str, list[Choice]], sizes: Mapping[str, int], target_bits: float
) -> dict[str, str]:
    """Matrix -> format.

    Args:
        sizes: numbers of each matrix.
        target_bits: of a weight, on average over all matrices.

    Raises:
        ValueError: the smallest formats are too large already; says how many bits they take.
    """
    hulls = {name: _hull(found) for name, found in choices.items()}
    at = dict.fromkeys(hulls, 0)
    budget = target_bits * sum(sizes.values())
    used = sum(hull[0].bits for hull in hulls.values())
    if used > budget:
        raise ValueError(f"{used / sum(sizes.values()):.2f}")
    while True:
        steps = [
            (_gain(hull[at[name]], hull[at[name] + 1]), name)
            for name, hull in hulls.items()
            if at[name] + 1 < len(hull) and used - hull[at[name]].bits + hull[at[name] + 1].bits <= budget
        ]
        if not steps:
            return {name: hulls[name][place].format for name, place in at.items()}
        _, name = max(steps)
        used += hulls[name][at[name] + 1].bits - hulls[name][at[name]].bits
        at[name] += 1


def _gain(less: Choice, more: Choice) -> float:
    return (less.error - more.error) / (more.bits - less.bits)


def _hull(choices: list[Choice]) -> list[Choice]:
    """The choices that are best for some price of a bit, by their bits."""
    found: list[Choice] = []
    for choice in sorted(choices, key=lambda each: (each.bits, each.error)):
        if found and choice.error >= found[-1].error:
            continue
        while len(found) > 1 and _gain(found[-2], found[-1]) <= _gain(found[-2], choice):
            found.pop()
        found.append(choice)
    return found
