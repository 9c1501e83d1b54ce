"""Finding the codes of CCQ (`ccq.py`): the nearest of all words, with error feedback. No Paddle.

A chunk is the rows that one code stands for (4; or 3, 4 and 1). For each chunk of each column the nearest
of all words is taken. What is searched beside it:

* of a column of ccq2 `code_scale`, among CODE_SCALES, by the error of some of its groups;
  `code_zp` = 16383.5 - 127.5 code_scale keeps the words around the middle of 15 bits;
* of a group the scale, around what normal numbers of its spread would have, and around what its largest
  number would; then the local scale next to it;
* of a column the super scale, which is a bf16: one that the largest scale of its groups fits, or one that
  most do.

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
_AROUND = (0.8, 0.9, 1.0, 1.1, 1.2, 1.35)
# Parts of what the largest number would need that are tried.
_LARGEST = {"ccq2": 31.5, "ccq2.5": 3.75}
_OF_LARGEST = (0.45, 0.65, 0.95)
# Numbers looked at together, columns times words: they stay in the cache.
_BLOCK = 1 << 17
# Groups of a column on which its code_scale is chosen, at most.
_COLUMN_GROUPS = 4
# Rows after which everything behind makes up for their errors.
_UPDATED = 124


def quantise(
    weight: np.ndarray,
    number: str,
    moment: np.ndarray | None = None,
    importance: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes, kept local scales and numbers of columns of a matrix.

    Args:
        weight: fp32 [..., K, N].
        number: ccq2 or ccq2.5.
        moment: of the inputs of a single matrix [K, N], fp64 [K, K], damped; None for no feedback.
        importance: how much an error of each input counts, fp32 [K]; a moment says so itself.
    """
    if weight.ndim > 2:
        assert moment is None and importance is None, "inputs are those of one matrix"
        parts = [quantise(matrix, number) for matrix in weight]
        codes, scales, columns = (np.stack(part) for part in zip(*parts, strict=True))
        return codes, scales, columns
    rows, width = weight.shape
    filled = -(-rows // ccq.GROUP) * ccq.GROUP
    current = np.zeros((filled, width), np.float32)
    current[:rows] = weight
    counts = np.zeros((filled, 1), np.float32)
    given = importance if moment is None else np.diagonal(moment)
    counts[:rows] = 1 if given is None else given[:, None] / max(float(given.mean()), 1e-30)
    columns, local, kinds = _scales(current, counts, rows, number)
    codes = np.zeros(ccq.codes_shape((filled, width), number), np.uint8 if number == "ccq2" else np.uint16)
    scales = local * columns[0]
    _encode(current, scales, number, kinds, moment, counts, codes)
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
    # The largest of <word, column> - <word, word> / 2. Words of a column lie side by side, in which numpy
    # looks for it ten times as fast as in words below each other.
    half = (book * book).sum(1, keepdims=True) / 2
    words = np.ascontiguousarray(np.concatenate([book, -half], 1).T, np.float32)
    columns = np.ones((given.shape[1], len(words)), np.float32)
    columns[:, :-1] = given.T
    found = np.empty(len(columns), np.int64)
    width = max(1, _BLOCK // len(book))
    room = np.empty((min(width, len(columns)), len(book)), np.float32)
    for start in range(0, len(columns), width):
        part = columns[start : start + width]
        np.matmul(part, words, out=room[: len(part)]).argmax(1, out=found[start : start + width])
    return found


def _error_of(
    block: np.ndarray, importance: np.ndarray, number: str, scale: np.ndarray, code_scale: float | None
) -> np.ndarray:
    """The weighted square error of each column of a group [64, N] with scales [N]."""
    root = np.sqrt(importance)
    scaled = block / np.where(scale > 0, scale, 1) * root
    total = np.zeros(block.shape[1], np.float32)
    even = np.ptp(importance) == 0
    chunks = _chunks(number)
    for rows in sorted({rows for _, rows in chunks}):
        book = _book2(code_scale) if code_scale is not None else _book25(rows)[0]
        starts = [start for start, size in chunks if size == rows]
        if even:  # all chunks at once
            given = np.stack([scaled[start : start + rows] for start in starts], axis=1)
            flat = given.reshape(rows, -1)
            gap = np.square(flat - root[0] * book[_nearest(root[0] * book, flat)].T)
            total += gap.reshape(given.shape).sum((0, 1))
            continue
        for start in starts:
            place = slice(start, start + rows)
            own = book * root[place].T
            total += np.square(scaled[place] - own[_nearest(own, scaled[place])].T).sum(0)
    return total * scale**2


def _spread(block: np.ndarray) -> np.ndarray:
    return np.sqrt(np.square(block).mean(0))


def _scales(
    weight: np.ndarray, importance: np.ndarray, rows: int, number: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """What a column has, fp32 [3 or 1, N], local scales [groups, N], and of ccq2 which code_scale it has."""
    width = weight.shape[1]
    places = [slice(start, start + ccq.GROUP) for start in range(0, rows, ccq.GROUP)]
    spread = np.stack([_spread(weight[place][: rows - place.start]) for place in places])
    spread /= np.float32(_SPREAD[number])
    kinds = None
    if number == "ccq2":
        errors = np.zeros((len(CODE_SCALES), width), np.float32)
        for group in range(0, len(places), -(-len(places) // _COLUMN_GROUPS)):
            for kind, code_scale in enumerate(CODE_SCALES):
                part = places[group]
                errors[kind] += _error_of(weight[part], importance[part], number, spread[group], code_scale)
        kinds = errors.argmin(0)
    # The best scale of each group by itself, then the column's super scale: one that the largest of these
    # fits, or one for the spread alone, which is finer for the other groups.
    free = np.stack(
        [
            _best_free(weight[place], importance[place], own, number, kinds)
            for place, own in zip(places, spread, strict=True)
        ]
    )
    largest = np.float32(ccq.LARGEST_LOCAL[number])
    best = np.zeros(width, np.float32)
    local = np.ones(free.shape, np.uint16)
    least = np.full(width, np.inf, np.float32)
    for wanted in (free.max(0), spread.max(0) * np.float32(max(_AROUND))):
        super_scale = _bf16(wanted / largest)
        found = np.empty(free.shape, np.uint16)
        total = np.zeros(width, np.float32)
        for group, place in enumerate(places):
            found[group], error = _best_locals(
                weight[place], importance[place], free[group], super_scale, number, kinds
            )
            total += error
        better = total < least
        best[better], local[:, better], least[better] = super_scale[better], found[:, better], total[better]
    if kinds is None:
        return best[None], local, None
    code_scale = np.array(CODE_SCALES, np.float32)[kinds]
    return np.stack([best, code_scale, np.float32(16383.5) - np.float32(127.5) * code_scale]), local, kinds


def _best_free(
    block: np.ndarray, importance: np.ndarray, spread: np.ndarray, number: str, kinds: np.ndarray | None
) -> np.ndarray:
    """The scale of each column of a group by which its error is least, fp32 [N]."""
    largest = np.abs(block).max(0) / np.float32(_LARGEST[number])
    best, least = spread.copy(), np.full(block.shape[1], np.inf, np.float32)
    for scale in (*np.outer(_AROUND, spread), *np.outer(_OF_LARGEST, largest)):
        error = _error_by_kind(block, importance, scale.astype(np.float32), number, kinds)
        better = error < least
        best[better], least[better] = scale[better], error[better]
    return best


def _best_locals(
    block: np.ndarray,
    importance: np.ndarray,
    wanted: np.ndarray,
    super_scale: np.ndarray,
    number: str,
    kinds: np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray]:
    """The local scale of each column of a group next to a wanted scale, and its error."""
    exact = wanted / np.where(super_scale > 0, super_scale, 1)
    best, least = np.ones(block.shape[1], np.uint16), np.full(block.shape[1], np.inf, np.float32)
    for side in (np.floor(exact), np.ceil(exact)) if number == "ccq2" else (np.rint(exact),):
        local = np.clip(side, 1, ccq.LARGEST_LOCAL[number]).astype(np.uint16)
        error = _error_by_kind(block, importance, local * super_scale, number, kinds)
        better = error < least
        best[better], least[better] = local[better], error[better]
    return best, least


def _error_by_kind(
    block: np.ndarray, importance: np.ndarray, scale: np.ndarray, number: str, kinds: np.ndarray | None
) -> np.ndarray:
    found = np.empty(block.shape[1], np.float32)
    for kind, own in _by_kind(kinds, np.arange(block.shape[1])):
        code_scale = None if kind is None else CODE_SCALES[kind]
        found[own] = _error_of(block[:, own], importance, number, scale[own], code_scale)
    return found


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
        if factor is None:
            inverse = np.diag(np.sqrt(importance[start : start + rows, 0]))
        else:
            inverse = np.linalg.inv(factor[place, place])
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
