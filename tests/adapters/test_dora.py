"""Column lengths of DoRA without the merged weight."""

import numpy as np
import paddle

from erniekit.adapters.dora import DoraLinear
from erniekit.adapters.layers import Piece
from erniekit.nn.linear import Linear


def test_by_the_definition() -> None:
    paddle.seed(1)
    base = Linear(6, 10, bias=True, dtype="float32")
    base.weight.set_value(paddle.normal(0.0, 1.0, [6, 10]))
    base.bias.set_value(paddle.normal(0.0, 1.0, [10]))
    layer = DoraLinear(base, [Piece("q", 2, 5), Piece("v", 5, 9)], rank=2, scale=1.5, probability=0.0)
    weight = base.weight.numpy()
    np.testing.assert_allclose(layer.lora_magnitude.numpy(), np.linalg.norm(weight, axis=0)[2:9], rtol=1e-5)
    layer.lora_B.set_value(paddle.normal(0.0, 1.0, [2, 7]))
    layer.lora_magnitude.set_value(paddle.uniform([7], min=0.5, max=2.0))
    a, b = layer.lora_A.numpy(), layer.lora_B.numpy()
    merged = weight.copy()
    merged[:, 2:5] += 1.5 * a[:, :2] @ b[:, :3]
    merged[:, 5:9] += 1.5 * a[:, 2:] @ b[:, 3:]
    lengths = np.linalg.norm(merged, axis=0)
    np.testing.assert_allclose(layer.lengths().numpy(), lengths[2:9], rtol=1e-5)
    expected = merged.copy()
    expected[:, 2:9] *= layer.lora_magnitude.numpy() / lengths[2:9]
    x = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
    np.testing.assert_allclose(
        layer(paddle.to_tensor(x)).numpy(), x @ expected + base.bias.numpy(), atol=1e-4
    )
    layer.fold()
    np.testing.assert_allclose(layer.weight.numpy(), expected, atol=1e-5)
