"""Factors that move size from inputs to weights, or back, before rounding (SmoothQuant, AWQ). No Paddle.

x W = (x / f)(f W) for any f > 0 of the features. 1 / f goes into what the inputs come from (a norm's weight,
the columns `up` of a gated MLP), so nothing is computed in addition.

* SmoothQuant (Xiao et al. 2023): f = max|x|^a / max|w|^(1 - a), so that inputs have fewer outliers.
* AWQ (Lin et al. 2023): f = (mean |x|)^a, which makes weights of large inputs more exact; a is searched, by
  the error of the product.
"""

from collections.abc import Callable, Sequence

import numpy as np

from erniekit.quant.rtn import Inputs, output_error, round_to_nearest

_EXPONENTS = tuple(np.linspace(0.0, 1.0, 11))


def smooth_factors(largest: np.ndarray, weights: Sequence[np.ndarray], alpha: float) -> np.ndarray:
    """SmoothQuant's factors fp32 [I] of matrices [I, O] with common inputs.

    Args:
        largest: of each feature of the inputs.
        alpha: how much of the inputs' size goes to the weights, from 0 to 1.
    """
    of_weights = np.maximum.reduce([np.abs(weight).max(1) for weight in weights])
    with np.errstate(divide="ignore", invalid="ignore"):
        found = largest**alpha / of_weights ** (1 - alpha)
    return _usable(found)


def awq_factors(
    inputs: Inputs,
    weights: Sequence[np.ndarray],
    formats: Sequence[str],
    *,
    rotations: Sequence[int],
    clip: bool,
) -> np.ndarray:
    """AWQ's factors fp32 [I]: those whose products change the least when the weights are rounded."""
    size = np.abs(inputs.sample).mean(0) if len(inputs.sample) else np.ones(len(inputs.largest), np.float32)
    best, least = np.ones(len(size), np.float32), np.inf
    for exponent in _EXPONENTS:
        factors = _usable(size**exponent)
        scaled = inputs.scaled(factors)
        error = 0.0
        for weight, format, rotation in zip(weights, formats, rotations, strict=True):
            whole, seen = turned(weight * factors[:, None], scaled, rotation)
            done = round_to_nearest(whole, format, importance=seen.importance, clip=clip, rotation=rotation)
            error += output_error(whole, done, seen.moment)
        if error < least:
            best, least = factors, error
    return best


def turned(weight: np.ndarray, inputs: Inputs, rotation: int) -> tuple[np.ndarray, Inputs]:
    """A matrix and its inputs in Hadamard blocks of a size; 0 for none."""
    from erniekit.ops.hadamard import rotate_rows

    return (rotate_rows(weight, rotation), inputs.rotated(rotation)) if rotation else (weight, inputs)


def input_scale(inputs: Inputs, weight: np.ndarray, number: str, *, clip: bool) -> np.float32:
    """The scale by which the inputs of a matrix are rounded, found on a sample of them.

    Args:
        clip: look for one that cuts the largest, if the products then change less.
    """
    rounded: Callable[[np.ndarray], np.ndarray]
    if number == "int8":
        largest, rounded = 127.0, np.rint
    else:
        from erniekit.ops.fp8 import E4M3

        largest, rounded = 448.0, lambda given: E4M3.values(E4M3.codes(given))
    whole = np.float32(max(float(inputs.largest.max(initial=0.0)), 1e-12) / largest)
    if not clip or number != "int8" or not len(inputs.sample):
        return whole
    best, least = whole, np.inf
    for ratio in (1.0, 0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3):
        scale = whole * np.float32(ratio)
        gap = rounded(np.clip(inputs.sample / scale, -largest, largest)) * scale - inputs.sample
        error = float(np.square(gap @ weight).sum())
        if error < least:
            best, least = scale, error
    return best


def _usable(factors: np.ndarray) -> np.ndarray:
    """Factors with a geometric mean of 1, and 1 where there is no input or no weight."""
    fine = np.isfinite(factors) & (factors > 0)
    logs = np.log(factors, where=fine, out=np.zeros(len(factors)))
    middle = logs[fine].mean() if fine.any() else 0.0
    return np.where(fine, np.exp(np.clip(logs - middle, -7, 7)), 1.0).astype(np.float32)
