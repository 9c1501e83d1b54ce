"""The named quantisation schemes, as data: which number format for the weights of which part of a model.

A scheme of weights alone says nothing of activations, which stay in bf16 or fp32. Parts are the roles
that a family's plan gives to its matrices (`models/*/plan.py: ROLES`). What has no role stays as it is:
embeddings, the output layer, norms, biases, routers, and what joins blocks of multi-token prediction.

A new scheme is a row here; a new number format also is a row of `ops/number_formats.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from erniekit.ops.number_formats import FORMATS, packed_shape, scales_shape

ROLES = ("attention", "dense_mlp", "shared_experts", "experts")


@dataclass(frozen=True)
class WeightFormat:
    """A number format of `ops/number_formats.py`, and how many rows (inputs) share a scale.

    group: None for all rows of a matrix, which is a scale for every output ("per channel").
    """

    number: str
    group: int | None = None

    def num_bytes(self, shape: tuple[int, ...]) -> int:
        """Bytes of codes and scales of a weight [..., in, out]."""
        codes = prod(packed_shape(shape, FORMATS[self.number].bits))
        return codes + 4 * prod(scales_shape(shape, self.group))


INT8 = WeightFormat("int8")
INT4 = WeightFormat("int4")
NF4 = WeightFormat("nf4", group=64)


@dataclass(frozen=True)
class Scheme:
    """A row: number format by role, and what it is in words."""

    weights: Mapping[str, WeightFormat]
    words: str


SCHEMES: dict[str, Scheme] = {
    "wint8": Scheme(dict.fromkeys(ROLES, INT8), "int8, a scale for every output"),
    "wint4": Scheme(dict.fromkeys(ROLES, INT4), "int4, a scale for every output"),
    "wint4/8": Scheme(
        {"attention": INT8, "dense_mlp": INT8, "shared_experts": INT8, "experts": INT4},
        "experts in int4 and the rest in int8, a scale for every output",
    ),
    "nf4": Scheme(dict.fromkeys(ROLES, NF4), "4-bit NormalFloat, a scale for every 64 inputs of an output"),
}


def format_of(parameter: str, roles: Mapping[str, str], scheme: str) -> WeightFormat | None:
    """The format of a parameter's numbers; None for one that stays as it is.

    Args:
        parameter: its name in memory.
        roles: end of a module's name -> its role.
    """
    module = parameter.removesuffix(".weight")
    if module == parameter:
        return None
    role = next((role for end, role in roles.items() if module.endswith(f".{end}")), None)
    return None if role is None else SCHEMES[scheme].weights.get(role)


def weight_bytes(
    shapes: Mapping[str, tuple[int, ...]], roles: Mapping[str, str], scheme: str, width: int
) -> int:
    """Bytes of all parameters of a model.

    Args:
        shapes: of the parameters in memory.
        width: bytes of a number that is not quantised.
    """
    total = 0
    for name, shape in shapes.items():
        chosen = format_of(name, roles, scheme)
        total += width * prod(shape) if chosen is None else chosen.num_bytes(shape)
    return total
