"""Convolutional-code quantisation (CCQ, arXiv 2507.07145): codes that stand for several numbers. No Paddle.

A number is a window of some bits of a code word, and neighbouring windows overlap, so that each further
number takes fewer bits than it has values ("convolutional code"). A matrix W [K, N] is cut along K into
groups of 64 rows; each column of a group has a scale s.

ccq2, 2 bits. A byte b holds 4 rows of column n. It stands for a word of 15 bits, which an affine map of the
column finds (words of a column lie close together, so 256 of them do):

    c = floor(b code_scale[n] + code_zp[n] + 1/2),    w_j = ((c >> (9, 6, 3, 0)[j]) & 63) - 32,    w' = w_j s

s = local * super_scale[n], local of 4 bits. Kept are the bytes [K/4, N], the local scales of two groups in
a byte [ceil(K/128), N] (the even group in the high half), and three numbers a column.

ccq2.5, 160 bits for 64 rows: ten words of 16 bits. Words 0 to 8 hold 7 rows each,

    w_j = ((c >> (13, 11, 9, 6, 4, 2, 0)[j]) & 7) - 4,

of which the first three and the last four overlap by a bit; of word 9 the top three bits are row 63, and
the other 13 the local scale. Kept are the words [10 K/64, N], and one number a column.

A last group that is not full is filled up with rows that nobody reads.
"""

import numpy as np

GROUP = 64
SHIFTS2 = (9, 6, 3, 0)
SHIFTS25 = (13, 11, 9, 6, 4, 2, 0)
NUMBERS = ("ccq2", "ccq2.5")
# What a column has: super_scale, code_scale, code_zp; and super_scale alone.
COLUMN_NUMBERS = {"ccq2": 3, "ccq2.5": 1}
LARGEST_LOCAL = {"ccq2": 15, "ccq2.5": (1 << 13) - 1}


def codes_shape(shape: tuple[int, ...], number: str) -> tuple[int, ...]:
    """The shape of the codes of a matrix [..., K, N]."""
    *lead, rows, columns = shape
    return (*lead, -(-rows // 4) if number == "ccq2" else 10 * -(-rows // GROUP), columns)


def locals_shape(shape: tuple[int, ...], number: str) -> tuple[int, ...]:
    """The shape of the kept local scales of a matrix; those of ccq2.5 lie among the codes."""
    *lead, rows, columns = shape
    return (*lead, -(-rows // (2 * GROUP)) if number == "ccq2" else 0, columns)


def num_bytes(shape: tuple[int, ...], number: str) -> int:
    """Bytes of codes, local scales and numbers of columns (in fp32)."""
    *lead, _, columns = shape
    width = 1 if number == "ccq2" else 2
    kept = width * np.prod(codes_shape(shape, number)) + np.prod(locals_shape(shape, number))
    return int(kept + 4 * COLUMN_NUMBERS[number] * np.prod([*lead, columns]))


def words2(codes: np.ndarray, code_scale: np.ndarray, code_zp: np.ndarray) -> np.ndarray:
    """The words of bytes of ccq2, whose last axis is that of the columns."""
    found = np.floor(codes.astype(np.float32) * code_scale + code_zp + np.float32(0.5))
    return found.astype(np.int16)


def values2(words: np.ndarray) -> np.ndarray:
    """The four numbers of each word of ccq2, in a new first axis."""
    return np.stack([((words >> shift) & 63) - 32 for shift in SHIFTS2]).astype(np.float32)


def values25(words: np.ndarray) -> np.ndarray:
    """The seven numbers of each word of ccq2.5, in a new first axis."""
    return np.stack([((words >> shift) & 7).astype(np.int16) - 4 for shift in SHIFTS25]).astype(np.float32)


def local_scales(packed: np.ndarray, num_groups: int) -> np.ndarray:
    """The local scales [..., groups, N] of ccq2 from their bytes [..., ceil(groups / 2), N]."""
    both = np.stack([packed >> 4, packed & 15], axis=-2)
    return both.reshape(*packed.shape[:-2], -1, packed.shape[-1])[..., :num_groups, :]


def pack_local_scales(scales: np.ndarray) -> np.ndarray:
    """The bytes of local scales [..., groups, N] of ccq2."""
    if scales.shape[-2] % 2:
        scales = np.concatenate([scales, np.zeros_like(scales[..., :1, :])], axis=-2)
    return (scales[..., ::2, :] << 4 | scales[..., 1::2, :]).astype(np.uint8)


def dequantise(
    codes: np.ndarray, scales: np.ndarray, columns: np.ndarray, number: str, rows: int
) -> np.ndarray:
    """The numbers, fp32 [..., rows, N], of a matrix.

    Args:
        codes: uint8 [..., ceil(rows / 4), N], or uint16 [..., 10 ceil(rows / 64), N].
        scales: kept local scales, uint8.
        columns: fp32 [..., 3 or 1, N]: super_scale (, code_scale, code_zp).
    """
    groups = -(-rows // GROUP)
    lead, width = codes.shape[:-2], codes.shape[-1]
    if number == "ccq2":
        values = values2(words2(codes, columns[..., 1:2, :], columns[..., 2:3, :]))
        local = local_scales(scales, groups)
        numbers = np.moveaxis(values, 0, -2).reshape(*lead, -1, width)
    else:
        words = codes.reshape(*lead, groups, 10, width)
        values = np.moveaxis(values25(words[..., :9, :]), 0, -2).reshape(*lead, groups, 63, width)
        last = ((words[..., 9:, :] >> 13).astype(np.int16) - 4).astype(np.float32)
        local = words[..., 9, :] & LARGEST_LOCAL[number]
        numbers = np.concatenate([values, last], axis=-2).reshape(*lead, -1, width)
    scale = local.astype(np.float32) * columns[..., :1, :]
    return numbers[..., :rows, :] * np.repeat(scale, GROUP, axis=-2)[..., :rows, :]
