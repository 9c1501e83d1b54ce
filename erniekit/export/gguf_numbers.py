"""Number types of GGUF files: which tensor gets which, and matrices in them.

The `gguf` package packs 16-bit numbers and blocks of 32 (`Q8_0`, `Q5_0`, `Q4_0`). Blocks of 256 it only
reads; they are packed here, rounded to the nearest as the others are, without llama.cpp's search for better
scales:

    Q6_K  w = d s_j q       16 groups of 16: q of 6 bits, s_j of 8 bits, d fp16
    Q4_K  w = d s_j q - e m_j   8 groups of 32: q of 4 bits, s_j and m_j of 6 bits, d and e fp16
"""

from typing import Any

import numpy as np

# Word of export_dtype -> (type of matrices, type of embedding and output layer, name of the file type).
NUMBERS = {
    "fp32": ("F32", "F32", "ALL_F32"),
    "fp16": ("F16", "F16", "MOSTLY_F16"),
    "bf16": ("BF16", "BF16", "MOSTLY_BF16"),
    "q8_0": ("Q8_0", "Q8_0", "MOSTLY_Q8_0"),
    "q4_0": ("Q4_0", "Q6_K", "MOSTLY_Q4_0"),
    "q4_k": ("Q4_K", "Q6_K", "MOSTLY_Q4_K_S"),
    "q6_k": ("Q6_K", "Q6_K", "MOSTLY_Q6_K"),
}
# Numbers in a block, and the type for rows that are no whole number of blocks: llama.cpp's own choices.
_BLOCKS = {"Q8_0": 32, "Q5_0": 32, "Q4_0": 32, "Q4_K": 256, "Q6_K": 256}
_INSTEAD = {"Q4_K": "Q5_0", "Q6_K": "Q8_0", "Q8_0": "F16", "Q5_0": "F16", "Q4_0": "F16"}
_OUTER = ("token_embd.weight", "output.weight")
_ROUTER = "ffn_gate_inp.weight"


def number_of(name: str, shape: tuple[int, ...], word: str) -> str:
    """The type of a tensor; vectors and routers are fp32."""
    if len(shape) == 1 or name.endswith(_ROUTER):
        return "F32"
    number = NUMBERS[word][name in _OUTER]
    while shape[-1] % _BLOCKS.get(number, 1):
        number = _INSTEAD[number]
    return number


def pack(values: np.ndarray, number: str) -> np.ndarray:
    """fp32 numbers [..., row] in a type, as raw bytes for the blocks."""
    import gguf

    values = np.ascontiguousarray(values, dtype=np.float32)
    if number in _PACKERS:
        blocks = _PACKERS[number](values.reshape(-1, 256))
        return blocks.reshape(*values.shape[:-1], -1)
    packed: Any = gguf.quants.quantize(values, gguf.GGMLQuantizationType[number])
    return packed


def _safe(divisor: np.ndarray) -> np.ndarray:
    return np.where(divisor == 0, np.float32(1), divisor)


def _as_half(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bytes of fp16, and the numbers that they are."""
    half = numbers.astype(np.float16)
    return half.view(np.uint8), half.astype(np.float32)


def _pack_q6_k(blocks_N256: np.ndarray) -> np.ndarray:
    groups = blocks_N256.reshape(-1, 16, 16)
    largest = np.take_along_axis(groups, np.abs(groups).argmax(-1, keepdims=True), -1)[..., 0]
    scales = largest / -32
    widest = np.take_along_axis(scales, np.abs(scales).argmax(-1, keepdims=True), -1)
    raw, d = _as_half(widest / -128)
    steps = np.clip(np.rint(scales / _safe(d)), -128, 127).astype(np.int8)
    codes = np.clip(np.rint(groups / _safe(d * steps)[..., None]), -32, 31).astype(np.int8) + 32
    q = codes.astype(np.uint8).reshape(-1, 2, 4, 32)  # halves, quarters of a half
    low = q[:, :, :2] & 15 | (q[:, :, 2:] & 15) << 4
    high = q[:, :, 0] >> 4 | q[:, :, 1] >> 4 << 2 | q[:, :, 2] >> 4 << 4 | q[:, :, 3] >> 4 << 6
    flat = (low.reshape(-1, 128), high.reshape(-1, 64), steps.view(np.uint8), raw.reshape(-1, 2))
    return np.concatenate(flat, axis=1)


def _pack_q4_k(blocks_N256: np.ndarray) -> np.ndarray:
    groups = blocks_N256.reshape(-1, 8, 32)
    below = np.maximum(-groups.min(-1), 0)
    scales = (groups.max(-1).clip(0) + below) / 15
    raw_d, d = _as_half(scales.max(-1, keepdims=True) / 63)
    raw_e, e = _as_half(below.max(-1, keepdims=True) / 63)
    s = np.clip(np.rint(scales / _safe(d)), 0, 63).astype(np.uint8)
    m = np.clip(np.rint(below / _safe(e)), 0, 63).astype(np.uint8)
    shifted = groups + (e * m)[..., None]
    q = np.clip(np.rint(shifted / _safe(d * s)[..., None]), 0, 15).astype(np.uint8).reshape(-1, 4, 2, 32)
    first = (
        s[:, :4] | s[:, 4:] >> 4 << 6,
        m[:, :4] | m[:, 4:] >> 4 << 6,
        s[:, 4:] & 15 | (m[:, 4:] & 15) << 4,
    )
    codes = (q[:, :, 0] | q[:, :, 1] << 4).reshape(-1, 128)
    return np.concatenate([raw_d.reshape(-1, 2), raw_e.reshape(-1, 2), *first, codes], axis=1)


_PACKERS = {"Q6_K": _pack_q6_k, "Q4_K": _pack_q4_k}
