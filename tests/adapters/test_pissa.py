"""The beginning of PiSSA, and that its files are an adapter of the model as it was."""

import numpy as np
import paddle
import pytest

from erniekit.adapters.layers import Piece
from erniekit.adapters.pissa import PissaLinear, leading_factors
from erniekit.nn.linear import Linear


def test_leading_factors_are_the_best_of_their_rank() -> None:
    random = np.random.default_rng(0)
    matrix = random.normal(size=(40, 25)).astype(np.float32)
    a, b = leading_factors(matrix, 4)
    assert a.shape == (40, 4) and b.shape == (4, 25)
    values = np.linalg.svd(matrix, compute_uv=False)
    error = np.linalg.norm(matrix - a @ b)
    assert error == pytest.approx(np.sqrt((values[4:] ** 2).sum()), rel=1e-3)
    again = leading_factors(matrix, 4)
    np.testing.assert_array_equal(a, again[0])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_stored_factors_belong_to_the_first_weight(dtype: str) -> None:
    paddle.seed(1)
    base = Linear(12, 10, bias=False, dtype=dtype)
    base.weight.set_value(paddle.normal(0.0, 1.0, [12, 10]).astype(dtype))
    first = base.weight.astype("float32").numpy()
    layer = PissaLinear(base, [Piece("q", 0, 4), Piece("v", 4, 10)], rank=2, scale=2.0, probability=0.0)
    layer.begin()
    residual = layer.weight.astype("float32").numpy()
    assert np.linalg.norm(residual) < 0.9 * np.linalg.norm(first)
    layer.lora_B.set_value((layer.lora_B.astype("float32") * 1.5).astype(dtype))
    a, b = layer.lora_A.astype("float32").numpy(), layer.lora_B.astype("float32").numpy()
    stored = {piece.name: (x, y) for piece, x, y in layer.stored_factors()}
    merged = first.copy()
    for piece, ranks in ((layer.pieces[0], slice(0, 2)), (layer.pieces[1], slice(2, 4))):
        x, y = (paddle.to_tensor(raw).view(dtype).astype("float32").numpy() for raw in stored[piece.name])
        assert x.shape[1] == y.shape[0] == 4
        merged[:, piece.start : piece.stop] += 2.0 * x @ y
        residual[:, piece.start : piece.stop] += 2.0 * a[:, ranks] @ b[:, piece.start : piece.stop]
    tolerance = 1e-5 if dtype == "float32" else 2e-2
    np.testing.assert_allclose(residual, merged, atol=tolerance * np.abs(merged).max())
