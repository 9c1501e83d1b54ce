"""Records of whole rows, from what two halves of them see."""

from collections.abc import Callable
from typing import Any

import numpy as np
import paddle
import pytest

from erniekit.errors import UnsupportedError
from erniekit.nn.moe import MixtureOfExperts
from erniekit.parallel.records import record_whole_rows

NAMES = ("logits_NE", "probabilities_NE", "selected_Nk", "combine_weights_Nk", "rows_N", "token_types_N")
HALVES = (slice(0, 3), slice(3, 6))


def layer(num_experts: tuple[int, ...] = (4,), **changes: Any) -> MixtureOfExperts:
    paddle.seed(1)
    numbers = {"top_k": 2, "shared_intermediate_size": 0, "bias": False, "dtype": "float32"}
    made = MixtureOfExperts(8, num_experts, (6,) * len(num_experts), **numbers | changes)
    for parameter in made.parameters():
        if not parameter.stop_gradient:
            parameter.set_value(paddle.normal(0.0, 0.5, parameter.shape))
    return made


def of_half(half: slice, x_BTH: Any, types_BT: Any, gather: Callable[[Any], Any]) -> list[Any]:
    """The records of a layer that is given half of the columns."""
    made = layer((4, 3) if types_BT is not None else (4,))
    record_whole_rows(made, lambda types: types[:, half], gather, key="x: 2", refused={"this": False})
    records: list[Any] = []
    out = made(x_BTH[:, half], types_BT, records, 5)
    assert out.shape == [2, 3, 8]
    return records


@pytest.mark.parametrize("types", [None, [[0, 0, 0, 0, 1, 2], [0, 0, 0, 1, 0, 0]], [[1] * 6] * 2])
def test_the_records_of_a_half_are_those_of_both(types: Any) -> None:
    """Of the second case the first half has no vision token, and gives as many tensors all the same."""
    types_BT = None if types is None else paddle.to_tensor(types)
    x_BTH = paddle.to_tensor(np.random.default_rng(0).normal(size=(2, 6, 8)).astype("float32"))
    expected: list[Any] = []
    layer((4, 3) if types else (4,))(x_BTH, types_BT, expected, 5)
    sent: list[list[Any]] = [[], []]
    for half, own in zip(HALVES, sent, strict=True):
        of_half(half, x_BTH, types_BT, lambda part, own=own: own.append(part) or paddle.concat([part] * 2, 1))
    assert len(sent[0]) == len(sent[1]) == 4 * len(expected)
    assert all(part.stop_gradient == other.stop_gradient for part, other in zip(*sent, strict=True))
    for half in HALVES:
        both = iter([paddle.concat([one, other], axis=1) for one, other in zip(*sent, strict=True)])
        found = of_half(half, x_BTH, types_BT, lambda part, both=both: next(both))
        assert [record.modality for record in found] == [record.modality for record in expected]
        for ours, theirs in zip(found, expected, strict=True):
            assert ours.layer == 5 and ours.gate_weight_HE.shape == theirs.gate_weight_HE.shape
            for name in NAMES:
                wanted = getattr(theirs, name)
                assert (getattr(ours, name) is None) == (wanted is None), name
                if wanted is not None:
                    np.testing.assert_allclose(getattr(ours, name).numpy(), wanted.numpy(), atol=1e-6)


def test_nothing_is_gathered_that_nobody_looks_at() -> None:
    made, asked = layer(), []
    record_whole_rows(made, lambda types: types, lambda part: asked.append(part), key="x: 2", refused={})
    made(paddle.ones([2, 3, 8]), None, None, 5)
    assert not asked


def test_what_depends_on_tokens_elsewhere_is_refused() -> None:
    capped = layer(capacity=(2.0, 2.0, 2.0))
    for made, refused, words in ((capped, {}, "moe_capacity"), (layer(), {"this": True}, "this")):
        with pytest.raises(UnsupportedError, match=f"x: 2 is not built for {words}"):
            record_whole_rows(made, lambda types: types, lambda part: part, key="x: 2", refused=refused)
