"""Convolutional codes: bytes made by hand, and what is kept of them."""

import numpy as np

from erniekit.ops import ccq


def test_a_byte_of_two_bits_by_hand():
    """Of b = 100: c = floor(100 * 120.5 + 1019.25 + 0.5) = 13069 = 0b011001100001101."""
    columns = np.array([[0.5], [120.5], [1019.25]], np.float32)
    values = [(13069 >> 9) % 64 - 32, (13069 >> 6) % 64 - 32, (13069 >> 3) % 64 - 32, 13069 % 64 - 32]
    assert values == [25 - 32, 12 - 32, 33 - 32, 13 - 32]
    found = ccq.dequantise(np.array([[100]], np.uint8), np.array([[0x30]], np.uint8), columns, "ccq2", 4)
    np.testing.assert_array_equal(found[:, 0], np.array(values) * 3 * 0.5)


def test_the_even_group_is_in_the_high_half():
    columns = np.array([[2.0], [0.0], [32 + 1]], np.float32)  # the word 33 = 0b100001 whatever the byte
    codes = np.zeros((3 * 16, 1), np.uint8)
    found = ccq.dequantise(codes, np.array([[0x5A], [0x70]], np.uint8), columns, "ccq2", 192)[:, 0]
    word = np.array([0 - 32, 0 - 32, 4 - 32, 33 - 32])
    for group, local in enumerate((5, 10, 7)):
        np.testing.assert_array_equal(found[64 * group : 64 * group + 4], word * local * 2)


def test_a_group_of_two_and_a_half_bits_by_hand():
    """Windows at 13, 11 and 9 share the bits 13 and 11; those at 6, 4, 2 and 0 the bits 6, 4 and 2."""
    word = 0b1100110101001100
    windows = [word >> shift & 7 for shift in (13, 11, 9, 6, 4, 2, 0)]
    assert windows == [0b110, 0b001, 0b110, 0b101, 0b100, 0b011, 0b100]
    codes = np.full((10, 1), word, np.uint16)
    codes[9] = 5 << 13 | 300
    found = ccq.dequantise(codes, np.zeros((0, 1), np.uint8), np.array([[0.25]], np.float32), "ccq2.5", 64)
    expected = [*(np.array(windows * 9) - 4), 5 - 4]
    np.testing.assert_array_equal(found[:, 0], np.array(expected) * 300 * 0.25)


def test_local_scales_come_back():
    scales = np.random.default_rng(0).integers(0, 16, (2, 5, 3)).astype(np.uint8)
    packed = ccq.pack_local_scales(scales)
    assert packed.shape == (2, 3, 3)
    np.testing.assert_array_equal(ccq.local_scales(packed, 5), scales)


def test_bytes_of_a_matrix():
    """2 bits and half a byte for two groups; 160 bits for 64 rows."""
    assert ccq.num_bytes((3, 128, 7), "ccq2") == 3 * (32 * 7 + 7 + 12 * 7)
    assert ccq.num_bytes((128, 7), "ccq2.5") == 2 * 20 * 7 + 4 * 7
    assert ccq.codes_shape((100, 7), "ccq2.5") == (20, 7)
