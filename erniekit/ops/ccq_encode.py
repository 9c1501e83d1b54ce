"""Finding the codes of CCQ (`ccq.py`): the nearest of all words, with error feedback. No Paddle.

A chunk is the rows that one code stands for (4; or 3, 4 and 1). For each chunk of each column the nearest
of all words is taken. What is searched beside it:

* of a column of ccq2 `code_scale`, among CODE_SCALES, by the error of the whole column;
  `code_zp` = 16383.5 - 127.5 code_scale keeps the words around the middle of 15 bits;
* of a group the local scale, around what normal numbers of its spread would have;
* of a column the super scale, which is a bf16: that by which its largest group has the largest local scale.

With inputs of second moment H the rounding is GPTQ's (`quant/gptq.py`), a chunk at a time, those with the
largest inputs first: with U upper, U^T U = H^-1 in that order, the distance of a chunk's rows d = w - w' is
|err|^2, err = U_bb^-T d, and later rows make up for it: w_j -= U_bj^T err. Scales are found beforehand.
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
# Rows after which everything behind makes up for their errors.
_UPDATED = 124


def quantise(
    weight: np.ndarray, number: str, moment: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes, kept local scales and numbers of columns of a matrix.

    Args:
        weight: fp32 [..., K, N].
        number: ccq2 or ccq2.5.
        moment: of the inputs of a single matrix [K, N], fp64 [K, K], damped; None for no feedback.
    """
    if weight.ndim > 2:
        assert moment is None, "feedback is of one matrix"
        parts = [quantise(matrix, number) for matrix in weight]
        codes, scales, columns = (np.stack(part) for part in zip(*parts, strict=True))
        return codes, scales, columns
    rows, width = weight.shape
    filled = -(-rows // ccq.GROUP) * ccq.GROUP
    current = np.zeros((filled, width), np.float32)
    current[:rows] = weight
    importance = np.zeros((filled, 1), np.float32)
    importance[:rows] = 1 if moment is None else np.diagonal(moment)[:, None] / np.diagonal(moment).mean()
    columns, kinds = _column_numbers(current, importance, rows, number)
    local = np.empty((filled // ccq.GROUP, width), np.uint16)
    for group in range(len(local)):
        place = slice(group * ccq.GROUP, (group + 1) * ccq.GROUP)
        middle = _spread(current[place][: rows - place.start])
        local[group] = _best_locals(current[place], importance[place], middle, number, columns, kinds)
    codes = np.zeros(ccq.codes_shape((filled, width), number), np.uint8 if number == "ccq2" else np.uint16)
    scales = local * columns[0]
    _encode(current, scales, number, kinds, moment, importance, codes)
    if number == "ccq2":
        kept = ccq.codes_shape((rows, width), number)
        return codes[: kept[0]], ccq.pack_local_scales(local), columns
    codes.reshape(-1, 10, width)[:, 9] |= local
    return codes, np.zeros(ccq.locals_shape((rows, width), number), np.uint8), columns


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


def _error_of(
    block: np.ndarray, importance: np.ndarray, number: str, scale: np.ndarray, code_scale: float | None
) -> np.ndarray:
    """The weighted square error of each column of a group [64, N] with scales [N]."""
    scaled = block / np.where(scale > 0, scale, 1)
    total = np.zeros(block.shape[1], np.float32)
    chunks = _chunks(number)
    for rows in sorted({rows for _, rows in chunks}):
        book = _book2(code_scale) if code_scale is not None else _book25(rows)[0]
        starts = [start for start, size in chunks if size == rows]
        given = np.stack([scaled[start : start + rows] for start in starts], axis=1)
        flat = given.reshape(rows, -1)
        gap = np.square(flat - book[_nearest(book, flat)].T).reshape(given.shape)
        counts = np.stack([importance[start : start + rows] for start in starts], axis=1)
        total += (gap * counts).sum((0, 1))
    return total * scale**2


def _spread(block: np.ndarray) -> np.ndarray:
    return np.sqrt(np.square(block).mean(0))


def _column_numbers(
    weight: np.ndarray, importance: np.ndarray, rows: int, number: str
) -> tuple[np.ndarray, np.ndarray | None]:
    """What a column has, fp32 [3 or 1, N], and of ccq2 the index of its code_scale."""
    width = weight.shape[1]
    starts = range(0, rows, ccq.GROUP)
    best = np.stack([_spread(weight[start : min(rows, start + ccq.GROUP)]) for start in starts])
    best /= np.float32(_SPREAD[number])
    super_scale = _bf16(best.max(0) * np.float32(max(_AROUND) / ccq.LARGEST_LOCAL[number]))
    if number != "ccq2":
        return super_scale[None], None
    errors = np.zeros((len(CODE_SCALES), width), np.float32)
    for group, start in enumerate(starts):
        place = slice(start, start + ccq.GROUP)
        for kind, code_scale in enumerate(CODE_SCALES):
            errors[kind] += _error_of(weight[place], importance[place], number, best[group], code_scale)
    kinds = errors.argmin(0)
    code_scale = np.array(CODE_SCALES, np.float32)[kinds]
    return np.stack([super_scale, code_scale, np.float32(16383.5) - np.float32(127.5) * code_scale]), kinds


def _best_locals(
    block: np.ndarray,
    importance: np.ndarray,
    spread: np.ndarray,
    number: str,
    columns: np.ndarray,
    kinds: np.ndarray | None,
) -> np.ndarray:
    """The local scale of each column of a group by which its error is least."""
    divisor = np.where(columns[0] > 0, columns[0], 1)
    middle = spread / np.float32(_SPREAD[number]) / divisor
    best = np.ones(block.shape[1], np.uint16)
    least = np.full(block.shape[1], np.inf, np.float32)
    tried = np.clip(np.rint(np.outer(_AROUND, middle)), 1, ccq.LARGEST_LOCAL[number]).astype(np.uint16)
    for step, local in enumerate(tried):
        # Columns whose scale is one that was tried already are left out.
        fresh = np.flatnonzero((tried[:step] != local).all(0))
        for kind, own in _by_kind(kinds, fresh):
            code_scale = None if kind is None else CODE_SCALES[kind]
            error = _error_of(block[:, own], importance, number, local[own] * columns[0, own], code_scale)
            better = error < least[own]
            best[own[better]], least[own[better]] = local[own[better]], error[better]
    return best


def _by_kind(kinds: np.ndarray | None, among: np.ndarray) -> list[tuple[int | None, np.ndarray]]:
    """Columns by their code_scale."""
    if kinds is None:
        return [(None, among)] if len(among) else []
    found = kinds[among]
    return [(int(kind), among[found == kind]) for kind in np.unique(found)]


def _encode(
    weight: np.ndarray,
    scales: np.ndarray,
    number: str,
    kinds: np.ndarray | None,
    moment: np.ndarray | None,
    importance: np.ndarray,
    codes: np.ndarray,
) -> None:
    """Write the codes of a matrix whose scales [groups, N] are known; the weights are changed on the way."""
    every = np.arange(weight.shape[1])
    chunks = [
        (start + first, rows) for start in range(0, len(weight), ccq.GROUP) for first, rows in _chunks(number)
    ]
    if moment is not None:
        chunks.sort(key=lambda chunk: -float(importance[chunk[0] : sum(chunk)].mean()))
    order = np.concatenate([np.arange(start, start + rows) for start, rows in chunks])
    weight = weight[order]
    factor = None if moment is None else _factor(moment, order)
    at = block_start = 0
    errors = np.zeros((_UPDATED + 4, weight.shape[1]), np.float32)
    for start, rows in chunks:
        place = slice(at, at + rows)
        inverse = np.eye(rows, dtype=np.float32) if factor is None else np.linalg.inv(factor[place, place])
        scale = scales[start // ccq.GROUP]
        scaled = weight[place] / np.where(scale > 0, scale, 1)
        for kind, own in _by_kind(kinds, every):
            book, words = _book25(rows) if kind is None else (_book2(CODE_SCALES[kind]), None)
            found = _nearest(book @ inverse, inverse.T @ scaled[:, own])
            error = (inverse.T @ (scaled[:, own] - book[found].T)) * scale[own]
            errors[at - block_start : at - block_start + rows, own] = error
            if words is None:
                codes[start // 4, own] = found
            else:
                codes[10 * (start // ccq.GROUP) + start % ccq.GROUP // 7, own] |= words[found]
        at += rows
        if factor is None:
            block_start = at
            continue
        # What lies within the block makes up for it at once, everything behind it at its end.
        end = min(block_start + _UPDATED + 4, len(weight))
        own_errors = errors[place.start - block_start : at - block_start]
        weight[at:end] -= factor[place, at:end].T @ own_errors
        if at - block_start >= _UPDATED:
            weight[end:] -= factor[block_start:at, end:].T @ errors[: at - block_start]
            block_start = at


def _factor(moment: np.ndarray, order: np.ndarray) -> np.ndarray:
    """U of the rows in an order, rows that nobody reads included."""
    whole = np.eye(len(order)) * np.diagonal(moment).mean()
    whole[: len(moment), : len(moment)] = moment
    inverse = np.linalg.inv(whole[np.ix_(order, order)])
    return np.ascontiguousarray(np.linalg.cholesky(inverse).T, np.float32)


def _bf16(numbers: np.ndarray) -> np.ndarray:
    """Numbers rounded up to bf16 (so that the largest local scale is enough)."""
    bits = np.ascontiguousarray(numbers, np.float32).view(np.uint32)
    return ((bits + np.uint32(0xFFFF)) & np.uint32(0xFFFF0000)).view(np.float32)
