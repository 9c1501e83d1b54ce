"""Finding the codes of CCQ (`ccq.py`): the nearest of all words, with error feedback. No Paddle.

A chunk is the rows that one code stands for (4; or 3, 4 and 1). For each chunk of each column the nearest
of all words is taken. What is searched beside it:

* of a column of ccq2 `code_scale`, among CODE_SCALES, by the error of the whole column;
  `code_zp` = 16383.5 - 127.5 code_scale keeps the words around the middle of 15 bits;
* of a group the local scale, around what normal numbers of its spread would have;
* of a column the super scale, which is a bf16: that by which its largest group has the largest local scale.

With a factor U (upper, U^T U the inverse of the inputs' second moment, as GPTQ has it) the distance of a
chunk's rows d = w - w' is |err|^2, err = U_bb^-T d, and later rows make up for it: w_j -= U_bj^T err. That is
the order of GPTQ, with a chunk's rows chosen at once.
"""

from collections.abc import Sequence
from functools import cache

import numpy as np

from erniekit.ops import ccq

CODE_SCALES = (115.0, 116.0, 117.0, 118.0, 119.0, 120.0, 121.0, 122.0)
# Standard deviation of normal numbers over their best scale, and where around it is searched.
_SPREAD = {"ccq2": 16.0, "ccq2.5": 1.8}
_AROUND = (0.82, 0.88, 0.94, 1.0, 1.06, 1.12, 1.18)
# Numbers looked at together: columns times words.
_BLOCK = 1 << 22


def quantise(
    weight: np.ndarray, number: str, factor: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes, kept local scales and numbers of columns of a matrix.

    Args:
        weight: fp32 [..., K, N].
        number: ccq2 or ccq2.5.
        factor: fp32 [K, K] of a single matrix [K, N]; None for no feedback.
    """
    if weight.ndim > 2:
        assert factor is None, "feedback is of one matrix"
        parts = [quantise(matrix, number) for matrix in weight]
        codes, scales, columns = (np.stack(part) for part in zip(*parts, strict=True))
        return codes, scales, columns
    rows, width = weight.shape
    filled = -(-rows // ccq.GROUP) * ccq.GROUP
    current = np.zeros((filled, width), np.float32)
    current[:rows] = weight
    columns, kinds = _column_numbers(current[:rows], number)
    codes = np.zeros(ccq.codes_shape((filled, width), number), np.uint8 if number == "ccq2" else np.uint16)
    local = np.zeros((filled // ccq.GROUP, width), np.uint16)
    for group in range(filled // ccq.GROUP):
        place = slice(group * ccq.GROUP, min(rows, (group + 1) * ccq.GROUP))
        block = current[group * ccq.GROUP : (group + 1) * ccq.GROUP]
        part = None if factor is None else _filled(factor[place, place])
        local[group] = _best_locals(block, number, columns, kinds)
        errors = _encode_group(block, local[group] * columns[0], number, kinds, part, codes, group)
        if factor is not None and place.stop < rows:
            current[place.stop : rows] -= factor[place, place.stop :].T @ errors[: place.stop - place.start]
    if number == "ccq2":
        kept = ccq.codes_shape((rows, width), number)
        return codes[: kept[0]], ccq.pack_local_scales(local), columns
    codes.reshape(-1, 10, width)[:, 9] |= local
    return codes, np.zeros(ccq.locals_shape((rows, width), number), np.uint8), columns


def _filled(factor: np.ndarray) -> np.ndarray:
    """The factor of a group, with rows that nobody reads where it is not full."""
    whole = np.eye(ccq.GROUP, dtype=np.float32)
    whole[: len(factor), : len(factor)] = factor
    return whole


@cache
def _book2(code_scale: float) -> np.ndarray:
    zp = np.float32(16383.5 - 127.5 * code_scale)
    words = ccq.words2(np.arange(256, dtype=np.uint8), np.float32(code_scale), zp)
    return np.ascontiguousarray(ccq.values2(words).T)


@cache
def _book25(rows: int) -> tuple[np.ndarray, np.ndarray]:
    """The numbers [words, rows] of 3 or 4 rows (or 1) that overlap by a bit, and their bits in place."""
    words = np.arange(1 << (2 * rows + 1), dtype=np.uint16) << (9 if rows == 3 else 13 if rows == 1 else 0)
    if rows == 1:
        return (np.arange(8, dtype=np.float32) - 4)[:, None], words
    found = ccq.values25(words).T
    return np.ascontiguousarray(found[:, :3] if rows == 3 else found[:, 3:]), words


def _chunks(number: str) -> Sequence[tuple[int, int]]:
    """(first row, rows) of the chunks of a group."""
    if number == "ccq2":
        return [(row, 4) for row in range(0, ccq.GROUP, 4)]
    pairs = [chunk for row in range(0, 63, 7) for chunk in ((row, 3), (row + 3, 4))]
    return [*pairs, (63, 1)]


def _nearest(book: np.ndarray, given: np.ndarray) -> np.ndarray:
    """The index of the row of `book` [C, d] nearest to each column of `given` [d, N]."""
    half = (book * book).sum(1, keepdims=True) / 2
    found = np.empty(given.shape[1], np.int64)
    width = max(1, _BLOCK // len(book))
    for start in range(0, given.shape[1], width):
        part = slice(start, start + width)
        found[part] = np.argmax(book @ given[:, part] - half, axis=0)
    return found


def _error_of(block: np.ndarray, number: str, scale: np.ndarray, code_scale: float | None) -> np.ndarray:
    """The squared error of each column of a group [64, N] with scales [N]."""
    scaled = block / np.where(scale > 0, scale, 1)
    total = np.zeros(block.shape[1], np.float32)
    chunks = _chunks(number)
    for rows in sorted({rows for _, rows in chunks}):
        book = _book2(code_scale) if code_scale is not None else _book25(rows)[0]
        starts = [start for start, size in chunks if size == rows]
        given = np.stack([scaled[start : start + rows] for start in starts], axis=1)
        flat = given.reshape(rows, -1)
        gap = flat - book[_nearest(book, flat)].T
        total += (gap * gap).sum(0).reshape(len(starts), -1).sum(0)
    return total * scale**2


def _spread(block: np.ndarray) -> np.ndarray:
    return np.sqrt(np.square(block).mean(0))


def _column_numbers(weight: np.ndarray, number: str) -> tuple[np.ndarray, np.ndarray | None]:
    """What a column has, fp32 [3 or 1, N], and of ccq2 the index of its code_scale."""
    width = weight.shape[1]
    starts = np.arange(0, len(weight), ccq.GROUP)
    power = np.add.reduceat(np.square(weight), starts, axis=0)
    counts = np.diff([*starts, len(weight)])[:, None]
    best = np.sqrt(power / counts) / np.float32(_SPREAD[number])
    super_scale = _bf16(best.max(0) * np.float32(max(_AROUND) / ccq.LARGEST_LOCAL[number]))
    if number != "ccq2":
        return super_scale[None], None
    errors = np.zeros((len(CODE_SCALES), width), np.float32)
    for group, start in enumerate(starts):
        block = weight[start : start + ccq.GROUP]
        if len(block) < ccq.GROUP:
            block = np.concatenate([block, np.zeros((ccq.GROUP - len(block), width), np.float32)])
        for kind, code_scale in enumerate(CODE_SCALES):
            errors[kind] += _error_of(block, number, best[group], code_scale)
    kinds = errors.argmin(0)
    code_scale = np.array(CODE_SCALES, np.float32)[kinds]
    return np.stack([super_scale, code_scale, np.float32(16383.5) - np.float32(127.5) * code_scale]), kinds


def _best_locals(block: np.ndarray, number: str, columns: np.ndarray, kinds: np.ndarray | None) -> np.ndarray:
    """The local scale of each column of a group by which its error is least."""
    divisor = np.where(columns[0] > 0, columns[0], 1)
    middle = _spread(block) / np.float32(_SPREAD[number]) / divisor
    best = np.zeros(block.shape[1], np.uint16)
    least = np.full(block.shape[1], np.inf, np.float32)
    tried = np.clip(np.rint(np.outer(_AROUND, middle)), 1, ccq.LARGEST_LOCAL[number]).astype(np.uint16)
    for step, local in enumerate(tried):
        # Columns whose scale is one that was tried already are left out.
        fresh = np.flatnonzero((tried[:step] != local).all(0))
        for kind, own in _by_kind(kinds, fresh):
            error = _error_of(
                block[:, own],
                number,
                local[own] * columns[0, own],
                None if kind is None else CODE_SCALES[kind],
            )
            better = error < least[own]
            best[own[better]], least[own[better]] = local[own[better]], error[better]
    return best


def _by_kind(kinds: np.ndarray | None, among: np.ndarray) -> list[tuple[int | None, np.ndarray]]:
    """Columns by their code_scale."""
    if kinds is None:
        return [(None, among)] if len(among) else []
    found = kinds[among]
    return [(int(kind), among[found == kind]) for kind in np.unique(found)]


def _encode_group(
    block: np.ndarray,
    scale: np.ndarray,
    number: str,
    kinds: np.ndarray | None,
    factor: np.ndarray | None,
    codes: np.ndarray,
    group: int,
) -> np.ndarray:
    """Write the codes of a group [64, N], and return the errors of its rows that later rows make up for."""
    divisor = np.where(scale > 0, scale, 1)
    errors = np.zeros_like(block)
    every = np.arange(block.shape[1])
    for start, rows in _chunks(number):
        place = slice(start, start + rows)
        inverse = np.eye(rows, dtype=np.float32) if factor is None else np.linalg.inv(factor[place, place])
        scaled = block[place] / divisor
        for kind, own in _by_kind(kinds, every):
            book, words = _book25(rows) if kind is None else (_book2(CODE_SCALES[kind]), None)
            found = _nearest(book @ inverse, inverse.T @ scaled[:, own])
            errors[place, own] = (inverse.T @ (scaled[:, own] - book[found].T)) * scale[own]
            if words is None:
                codes[16 * group + start // 4, own] = found
            else:
                codes[10 * group + start // 7, own] |= words[found]
        if factor is not None:
            block[place.stop :] -= factor[place, place.stop :].T @ errors[place]
    return errors


def _bf16(numbers: np.ndarray) -> np.ndarray:
    """Numbers rounded up to bf16 (so that the largest local scale is enough)."""
    bits = np.ascontiguousarray(numbers, np.float32).view(np.uint32)
    return ((bits + np.uint32(0xFFFF)) & np.uint32(0xFFFF0000)).view(np.float32)
