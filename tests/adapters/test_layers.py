"""Layers with an adapter: what they take over, how factors go in and out."""

import numpy as np
import paddle

from erniekit.adapters.layers import LoraLinear, Piece
from erniekit.nn.linear import Linear


def made(pieces, *, rank: int = 2) -> LoraLinear:
    paddle.seed(3)
    base = Linear(6, 10, bias=True, dtype="float32")
    base.weight.set_value(paddle.normal(0.0, 1.0, [6, 10]))
    return LoraLinear(base, pieces, rank=rank, scale=2.0, probability=0.0)


def test_parameters_of_the_base_are_taken_over() -> None:
    base = Linear(6, 10, bias=True, dtype="float32")
    layer = LoraLinear(base, [Piece("q", 0, 10)], rank=2, scale=2.0, probability=0.0)
    assert layer.weight is base.weight and layer.bias is base.bias
    assert [name for name, _ in layer.named_parameters()] == ["weight", "bias", "lora_A", "lora_B"]
    assert layer.lora_A.shape == [6, 2] and layer.lora_B.shape == [2, 10]


def test_new_factors() -> None:
    layer = made([Piece("q", 0, 4), Piece("v", 6, 10)])
    assert layer.lora_A.shape == [6, 4] and layer.lora_B.shape == [2, 8]
    a = layer.lora_A.numpy()
    assert 0.0 < np.abs(a).max() <= 1 / np.sqrt(6)
    assert not layer.lora_B.numpy().any()


def test_factors_go_out_and_in() -> None:
    pieces = [Piece("v", 6, 10), Piece("q", 0, 4)]  # in any order
    layer = made(pieces)
    random = np.random.default_rng(0)
    given = {
        piece: (
            random.normal(size=(6, 2)).astype(np.float32),
            random.normal(size=(2, 4)).astype(np.float32),
        )
        for piece in pieces
    }
    layer.take_factors(given)
    for piece, a, b in layer.stored_factors():
        np.testing.assert_array_equal(a, given[piece][0])
        np.testing.assert_array_equal(b, given[piece][1])
    x = random.normal(size=(3, 6)).astype(np.float32)
    expected = x @ layer.weight.numpy() + layer.bias.numpy()
    for piece, (a, b) in given.items():
        expected[:, piece.start : piece.stop] += 2.0 * x @ a @ b
    np.testing.assert_allclose(layer(paddle.to_tensor(x)).numpy(), expected, atol=1e-4)


def test_a_smaller_rank_is_padded() -> None:
    layer = made([Piece("q", 0, 10)], rank=3)
    a, b = np.ones((6, 1), np.float32), np.ones((1, 10), np.float32)
    layer.take_factors({layer.pieces[0]: (a, b)})
    ((_, first, second),) = layer.stored_factors()
    np.testing.assert_array_equal(first @ second, a @ b)
    assert not first[:, 1:].any() and not second[1:].any()
