"""Types of GGUF: blocks that are packed here, read by `gguf`, and which tensor gets which type."""

import numpy as np
import pytest

from erniekit.export.gguf_numbers import NUMBERS, number_of, pack

gguf = pytest.importorskip("gguf")


def read(packed: np.ndarray, number: str) -> np.ndarray:
    return gguf.quants.dequantize(packed, gguf.GGMLQuantizationType[number])


def blocks(rows: int, columns: int) -> np.ndarray:
    drawn = np.random.default_rng(0).normal(size=(rows, columns)).astype(np.float32)
    drawn[0] = 0
    drawn[1] = np.abs(drawn[1]) + 1
    drawn[2, 5] = 40
    return drawn


@pytest.mark.parametrize(
    ("number", "groups", "steps"), [("Q6_K", 16, 64), ("Q4_K", 32, 15), ("Q8_0", 32, 255)]
)
def test_blocks_are_rounded_to_the_nearest(number: str, groups: int, steps: int) -> None:
    values = blocks(6, 512)
    packed = pack(values, number)
    assert packed.dtype == np.uint8
    assert packed.size == 6 * 512 * {"Q6_K": 210 / 256, "Q4_K": 144 / 256, "Q8_0": 34 / 32}[number]
    found = read(packed, number)
    by_group = values.reshape(-1, groups)
    spread = np.maximum(by_group.max(1), 0) - np.minimum(by_group.min(1), 0)
    if number != "Q4_K":
        spread = 2 * np.abs(by_group).max(1)
    # Scales are rounded too: to 1/127 or 1/63 of the largest in the block.
    largest = np.abs(values).reshape(-1, 256).max(1).repeat(256 // groups)
    bound = spread / steps / 2 * 1.05 + largest * {"Q6_K": 0.5 / 127, "Q4_K": 1 / 63, "Q8_0": 1e-3}[number]
    assert (np.abs(found - values).reshape(-1, groups).max(1) <= bound + 1e-6).all()
    assert not found[0].any()


def test_blocks_of_256_are_as_good_as_their_bits() -> None:
    values = np.random.default_rng(1).normal(size=(64, 256)).astype(np.float32)

    def error(number: str) -> float:
        return float(np.sqrt(((read(pack(values, number), number) - values) ** 2).mean()))

    assert error("Q6_K") < 0.02 < error("Q5_0") < 0.05 < error("Q4_K") < error("Q4_0") < 0.09


def test_matrices_keep_their_leading_dimensions() -> None:
    values = np.random.default_rng(0).normal(size=(3, 2, 256)).astype(np.float32)
    for number in ("Q4_K", "Q6_K", "Q4_0", "BF16"):
        packed = pack(values, number)
        assert packed.shape[:2] == (3, 2)
        assert read(packed, number).shape == values.shape
    assert np.array_equal(pack(values, "F32"), values)


def test_which_tensor_gets_which_type() -> None:
    matrix = "blk.0.ffn_up.weight"
    assert [number_of(matrix, (8, 256), word) for word in NUMBERS] == [
        *("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_K", "Q6_K"),
    ]
    assert [number_of(matrix, (8, 96), word) for word in ("q4_k", "q6_k", "q4_0")] == ["Q5_0", "Q8_0", "Q4_0"]
    assert [number_of(matrix, (8, 48), word) for word in ("q4_k", "q8_0", "q4_0")] == ["F16"] * 3
    assert number_of("token_embd.weight", (50, 256), "q4_0") == "Q6_K"
    assert number_of("output.weight", (50, 96), "q4_0") == "Q8_0"
    assert number_of("output_norm.weight", (256,), "q4_0") == "F32"
    assert number_of("blk.1.ffn_gate_inp.weight", (4, 256), "fp16") == "F32"
