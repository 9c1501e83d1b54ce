"""Looking through arguments and results, and putting other tensors in their places."""

from dataclasses import dataclass
from typing import Any

import paddle

from erniekit.parallel.structure import ALL, LISTS, PARAMETERS, TENSORS, lists_of, replaced, tensors_of


@dataclass(frozen=True)
class Part:
    name: str
    tensor: Any


A, B, C = (paddle.full([1], value) for value in (1.0, 2.0, 3.0))
PARAMETER = paddle.create_parameter([1], "float32")
RECEIVER = [Part("kept", C)]
STRUCTURE = (A, {"b": Part("b", B), "number": 3}, RECEIVER, (PARAMETER, None, "word"))


def test_tensors_in_their_order() -> None:
    assert [id(t) for t in tensors_of(STRUCTURE, TENSORS)] == [id(A), id(B)]
    assert [id(t) for t in tensors_of(STRUCTURE, PARAMETERS)] == [id(PARAMETER)]
    assert [id(t) for t in tensors_of(STRUCTURE, ALL)] == [id(A), id(B), id(PARAMETER)]
    assert [id(t) for t in tensors_of(STRUCTURE, TENSORS | LISTS)] == [id(A), id(B), id(C)]
    assert tensors_of("word", ALL) == []


def test_replacing_keeps_everything_else() -> None:
    new = replaced(STRUCTURE, lambda tensor: tensor if tensor is PARAMETER else tensor * 10)
    assert float(new[0]) == 10 and float(new[1]["b"].tensor) == 20 and new[1]["number"] == 3
    assert new[3] is STRUCTURE[3]
    # A list is new and empty: it is to receive what the function appends.
    assert new[2] == [] and len(RECEIVER) == 1
    assert lists_of(STRUCTURE) == [RECEIVER] and lists_of(new)[0] is new[2]


def test_what_holds_no_tensor_is_not_copied() -> None:
    part = Part("nothing", (1, 2))
    assert replaced(part, lambda tensor: tensor) is part
