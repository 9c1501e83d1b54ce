"""Numbers of tensors without a copy, and sums over processes, in every type."""

import numpy as np
import paddle
import pytest

from erniekit.parallel.transport.memory_views import bytes_of, combine, num_bytes


@pytest.mark.parametrize(
    "dtype", ["float32", "float64", "float16", "bfloat16", "int64", "int32", "int8", "uint8"]
)
@pytest.mark.parametrize("op", ["sum", "max", "min"])
def test_combined_numbers(dtype: str, op: str) -> None:
    drawn = [np.random.default_rng(seed).integers(0, 20, 100_001) for seed in range(3)]
    tensors = [paddle.to_tensor(values).astype(dtype) for values in drawn]
    out = paddle.empty([100_001], dtype=dtype)
    combine([bytes_of(tensor) for tensor in tensors], bytes_of(out), out.dtype, op)
    expected = getattr(np.stack(drawn), op)(0)
    assert np.array_equal(out.astype("int64").numpy(), expected)
    combine([bytes_of(tensor) for tensor in tensors], bytes_of(tensors[0]), out.dtype, op)  # into a source
    assert np.array_equal(tensors[0].astype("int64").numpy(), expected)


def test_bf16_is_rounded_once_and_to_even() -> None:
    rows = np.random.default_rng(0).normal(size=(4, 5000)).astype(np.float32)
    tensors = [paddle.to_tensor(row).astype("bfloat16") for row in rows]
    out = paddle.empty([5000], dtype="bfloat16")
    combine([bytes_of(tensor) for tensor in tensors], bytes_of(out), out.dtype, "sum")
    exact = sum(tensor.astype("float32") for tensor in tensors)
    assert np.array_equal(bytes_of(out), bytes_of(exact.astype("bfloat16")))
    odd = [
        paddle.to_tensor([256.0, float("nan"), float("inf"), float("inf")]).astype("bfloat16") for _ in "ab"
    ]
    odd[1] = paddle.to_tensor([1.0, 1.0, 1.0, -float("inf")]).astype("bfloat16")
    out = paddle.empty([4], dtype="bfloat16")
    combine([bytes_of(tensor) for tensor in odd], bytes_of(out), out.dtype, "sum")
    assert str(out.astype("float32").tolist()) == "[256.0, nan, inf, nan]"


def test_bytes_are_the_tensors_own() -> None:
    x = paddle.zeros([2, 3])
    bytes_of(x)[:4] = np.frombuffer(np.float32(2.5).tobytes(), np.uint8)
    assert float(x[0, 0]) == 2.5 and num_bytes(x) == 24
    assert bytes_of(paddle.empty([0, 3])).size == 0
    narrow = paddle.ones([5]).astype("float8_e4m3fn")
    assert num_bytes(narrow) == 5 and bytes_of(narrow).tolist() == [0x38] * 5
    with pytest.raises(AssertionError, match="not in one piece"):
        bytes_of(x.transpose([1, 0]))
    with pytest.raises(TypeError, match="float8_e4m3fn has no sum"):
        combine([bytes_of(narrow)], bytes_of(narrow), narrow.dtype, "sum")
