"""Joining has values and gradients in every type."""

import numpy as np
import paddle
import pytest

from erniekit.ops.concat import concat


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("axis", [0, -1])
def test_values_and_gradients(dtype, axis):
    random = np.random.default_rng(0)
    parts = [paddle.to_tensor(random.normal(size=(3, 4)).astype(np.float32)).astype(dtype) for _ in range(3)]
    for part in parts:
        part.stop_gradient = False
    joined = concat(parts, axis)
    assert joined.dtype == parts[0].dtype
    plain = [part.detach().astype("float32").numpy() for part in parts]
    assert (joined.detach().astype("float32").numpy() == np.concatenate(plain, axis)).all()
    weights = random.integers(-4, 5, joined.shape).astype(np.float32)
    (joined.astype("float32") * paddle.to_tensor(weights)).sum().backward()
    for part, expected in zip(parts, np.split(weights, 3, axis), strict=True):
        assert (part.grad.astype("float32").numpy() == expected).all()
