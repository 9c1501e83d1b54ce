"""The 8-bit floating-point formats, as bytes: E4M3 and E5M2 (Micikevicius et al. 2022). No Paddle.

| format | bits (sign, exponent, mantissa) | bias | largest | smallest normal | smallest | no number |
|---|---|---|---|---|---|---|
| e4m3 | 1, 4, 3 | 7 | 448 | 2^-6 | 2^-9 | 0x7f, 0xff |
| e5m2 | 1, 5, 2 | 15 | 57344 | 2^-14 | 2^-16 | 0x7d ... 0x7f and negative |

E4M3 is the variant without infinities ("fn"), and no infinity is ever made of E5M2 either: what is too
large becomes the largest number ("saturates"), and NaN stays NaN. Rounding is to nearest, ties to even.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Float8:
    """A format: bits of the mantissa, bias of the exponent, and the code of the largest number."""

    mantissa: int
    bias: int
    last: int

    @property
    def largest(self) -> float:
        """The largest number."""
        return float(self.values(np.array([self.last], np.uint8))[0])

    def codes(self, numbers: np.ndarray) -> np.ndarray:
        """The byte of each fp32 number."""
        wide = np.ascontiguousarray(numbers, np.float32)
        bits = wide.view(np.uint32)
        size = bits & np.uint32(0x7FFFFFFF)
        # A number is normal when the exponent of the byte is at least 1; below, the spacing stays the same.
        shift = 23 - self.mantissa
        tie = (size >> np.uint32(shift)) & np.uint32(1)
        rounded = (size + tie + np.uint32((1 << (shift - 1)) - 1)) >> np.uint32(shift)
        normal = rounded.astype(np.int64) - ((127 - self.bias) << self.mantissa)
        with np.errstate(invalid="ignore"):
            small = np.rint(
                np.minimum(np.abs(wide), 1.0) * np.float32(2.0 ** (self.bias - 1 + self.mantissa))
            )
        least = np.uint32((127 - self.bias + 1) << 23)
        code = np.where(size < least, np.nan_to_num(small).astype(np.int64), normal)
        code = np.where(size > np.uint32(0x7F800000), 0x7F, np.minimum(code, self.last))
        return (code | ((bits >> np.uint32(24)) & np.uint32(0x80))).astype(np.uint8)

    def values(self, codes: np.ndarray) -> np.ndarray:
        """The fp32 number of each byte; NaN for those that are none."""
        return self.table()[codes]

    def table(self) -> np.ndarray:
        """The numbers of the 256 bytes."""
        code = np.arange(256)
        exponent, part = (code & 0x7F) >> self.mantissa, code & ((1 << self.mantissa) - 1)
        whole = np.where(exponent > 0, part + (1 << self.mantissa), part).astype(np.float64)
        size = whole * 2.0 ** (np.maximum(exponent, 1) - self.bias - self.mantissa)
        size[(code & 0x7F) > self.last] = np.nan
        return np.where(code & 0x80, -size, size).astype(np.float32)


E4M3 = Float8(mantissa=3, bias=7, last=0x7E)
E5M2 = Float8(mantissa=2, bias=15, last=0x7B)
