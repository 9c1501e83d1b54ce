"""Raw bits become tensors, are cast once, and come back as they were."""

from types import SimpleNamespace

import numpy as np
import paddle
import pytest

from erniekit.checkpoint.raw import load_weights, to_raw, to_tensor

# 1.0, -2.5 and 3.140625 in bf16.
BITS = np.array([0x3F80, 0xC020, 0x4049], np.uint16)


def test_bits_of_bf16_come_back() -> None:
    tensor = to_tensor(BITS, "BF16")
    assert tensor.astype("float32").tolist() == [1.0, -2.5, 3.140625]
    word, raw = to_raw(tensor)
    assert word == "BF16"
    np.testing.assert_array_equal(raw, BITS)
    assert to_raw(paddle.ones([2]))[0] == "F32"


def model_of(**parameters):
    return SimpleNamespace(named_parameters=lambda: parameters.items())


def test_weights_are_cast_to_the_type_of_the_model() -> None:
    model = model_of(a=paddle.zeros([3]), b=paddle.zeros([2]))
    load_weights(model, [("a", "BF16", BITS)], those={"a", "elsewhere"})
    assert dict(model.named_parameters())["a"].tolist() == [1.0, -2.5, 3.140625]
    with pytest.raises(AssertionError, match="without a source: \\['b'\\]"):
        load_weights(model, [("a", "BF16", BITS)])
