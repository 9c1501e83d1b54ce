"""Records of whole rows, from what two halves of them see."""

from types import SimpleNamespace

import numpy as np
import paddle
import pytest

from erniekit.errors import UnsupportedError
from erniekit.nn.moe import MixtureOfExperts
from erniekit.parallel.records import record_whole_rows


def layer(**changes) -> MixtureOfExperts:
    paddle.seed(1)
    numbers = {"top_k": 2, "shared_intermediate_size": 0, "bias": False, "dtype": "float32"}
    made = MixtureOfExperts(8, (4,), (6,), **numbers | changes)
    for parameter in made.parameters():
        parameter.set_value(paddle.normal(0.0, 0.5, parameter.shape))
    return made


def test_the_records_of_a_half_are_those_of_both() -> None:
    whole, half = layer(), layer()
    x_BTH = paddle.to_tensor(np.random.default_rng(0).normal(size=(2, 6, 8)).astype("float32"))
    expected: list = []
    whole(x_BTH, None, expected, 5)
    others: list = []
    layer()(x_BTH[:, 3:], None, others, 5)
    names = ("logits_NE", "probabilities_NE", "selected_Nk", "combine_weights_Nk")
    rest = iter([getattr(others[0], name) for name in names])
    asked = []

    def gather(part):
        asked.append(part.shape)
        return paddle.concat([part, next(rest).reshape(part.shape)], axis=1)

    record_whole_rows(half, gather, key="x: 2", refused={"this": False})
    found: list = []
    out = half(x_BTH[:, :3], None, found, 5)
    assert out.shape == [2, 3, 8] and len(found) == 1 and found[0].layer == 5
    assert asked == [[2, 3, 4], [2, 3, 4], [2, 3, 2], [2, 3, 2]]
    for name in names:
        np.testing.assert_allclose(
            getattr(found[0], name).numpy(), getattr(expected[0], name).numpy(), rtol=1e-5, atol=1e-6
        )
    half(x_BTH[:, :3], None, None, 5)
    assert len(asked) == 4, "nothing is gathered that nobody looks at"


def test_what_depends_on_tokens_elsewhere_is_refused() -> None:
    for made, words in (
        (layer(capacity=(2.0, 2.0, 2.0)), "moe_capacity"),
        (SimpleNamespace(capacity=None, num_experts=(4, 4)), "two modalities"),
    ):
        with pytest.raises(UnsupportedError, match=f"x: 2 is not built for .*{words}"):
            record_whole_rows(made, lambda part: part, key="x: 2", refused={})
    with pytest.raises(UnsupportedError, match="x: 2 is not built for this"):
        record_whole_rows(layer(), lambda part: part, key="x: 2", refused={"this": True})
