"""The named quantisation schemes, as data: how the matrices of each part of a model are multiplied with.

Parts are the roles that a family's plan gives to its matrices (`models/*/plan.py: ROLES`). What has no role
stays as it is: embeddings, the output layer, norms, biases, routers, and what joins blocks of multi-token
prediction. A row may say something else of the MLPs of a model that has no experts.

A new scheme is a row of SCHEMES, a new way to keep a matrix one of FORMATS; a new number format also is a row
of `ops/number_formats.py`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod

from erniekit.ops import ccq
from erniekit.ops.number_formats import FORMATS as NUMBERS
from erniekit.ops.number_formats import packed_shape, scales_shape

ROLES = ("attention", "dense_mlp", "shared_experts", "experts")


@dataclass(frozen=True)
class Activations:
    """How the inputs of a matrix are rounded before they are multiplied with it.

    number: int8 or e4m3. tile: features of a row that share a scale, which is found as they come; None for
    one scale for all, which is found beforehand with calibration data.
    """

    number: str
    tile: int | None = None

    @property
    def is_static(self) -> bool:
        """Whether the scale has to be found beforehand."""
        return self.tile is None


@dataclass(frozen=True)
class WeightFormat:
    """How a matrix is kept: a number format, who shares a scale, and how its inputs are rounded.

    number: of `ops/number_formats.py` or `ops/ccq.py`. group: rows (inputs) that share a scale, None for all.
    outputs: columns (outputs) that share it, None for all. scale_type: fp32 or bf16; there is no zero point
    ("symmetric"); those of ccq are said there. rotation: features that a Hadamard matrix mixes, 0 for none.
    """

    number: str
    group: int | None = None
    outputs: int | None = 1
    scale_type: str = "fp32"
    activations: Activations | None = None
    rotation: int = 0

    @property
    def granularity(self) -> str:
        """Who shares a scale, in a word: tensor, channel, group or block."""
        if self.group is None:
            return "tensor" if self.outputs is None else "channel"
        return "group" if self.outputs == 1 else "block"

    def num_bytes(self, shape: tuple[int, ...]) -> int:
        """Bytes of codes and scales of a weight [..., in, out] in memory."""
        if self.number in ccq.NUMBERS:
            return ccq.num_bytes(shape, self.number)
        codes = prod(packed_shape(shape, NUMBERS[self.number].bits))
        return codes + (2 if self.scale_type == "bf16" else 4) * prod(scales_shape(shape, self.group))


_INT8, _E4M3 = Activations("int8"), Activations("e4m3")
FORMATS: dict[str, WeightFormat] = {
    "int8": WeightFormat("int8"),
    "int4": WeightFormat("int4"),
    "int4_g64": WeightFormat("int4", group=64),
    "int4_g32": WeightFormat("int4_full", group=32, scale_type="bf16"),
    "int2_g128": WeightFormat("int2", group=128),
    "nf4": WeightFormat("nf4", group=64),
    "w8a8": WeightFormat("int8", activations=_INT8),
    "w4a8": WeightFormat("int4", activations=_INT8),
    "fp8_tensor": WeightFormat("e4m3", outputs=None, activations=_E4M3, rotation=32),
    "fp8_block": WeightFormat("e4m3", group=128, outputs=128, activations=Activations("e4m3", tile=128)),
    "ccq2": WeightFormat("ccq2", group=ccq.GROUP),
    "ccq2.5": WeightFormat("ccq2.5", group=ccq.GROUP),
}


@dataclass(frozen=True)
class Scheme:
    """A row: format by role, and what it is in words.

    weights: role -> a row of FORMATS; a role that is not there stays as it is. without_experts: what differs
    in a model without experts. kv_cache: number format of keys and values, with a scale for every channel.
    layouts: what it can be exported as (besides ErnieKit's own folder).
    """

    weights: Mapping[str, str]
    words: str
    without_experts: Mapping[str, str] | None = None
    kv_cache: str | None = None
    layouts: tuple[str, ...] = ()

    def formats(self, *, has_experts: bool) -> dict[str, str]:
        """Role -> a row of FORMATS."""
        return {**self.weights, **({} if has_experts else self.without_experts or {})}

    def used(self) -> set[str]:
        """The rows of FORMATS that it names."""
        return {*self.weights.values(), *(self.without_experts or {}).values()}

    @property
    def is_weight_only(self) -> bool:
        """Whether activations stay as they are, so that weights can be quantised while they are read."""
        return self.kv_cache is None and not any(FORMATS[name].activations for name in self.used())

    @property
    def needs_calibration(self) -> bool:
        """Whether there are scales that only data tells."""
        given = (FORMATS[name].activations for name in self.used())
        return self.kv_cache is not None or any(each is not None and each.is_static for each in given)


def _all(name: str) -> dict[str, str]:
    return dict.fromkeys(ROLES, name)


def _experts(name: str) -> dict[str, str]:
    """Experts in a format of their own, and everything else in int8."""
    return {**_all("int8"), "experts": name}


_FASTDEPLOY, _COMPRESSED = "fastdeploy", "compressed-tensors"
SCHEMES: dict[str, Scheme] = {
    "bf16": Scheme({}, "nothing is quantised", layouts=("hf", "paddle")),
    "wint8": Scheme(_all("int8"), "int8, a scale for every output", layouts=(_FASTDEPLOY, _COMPRESSED)),
    "wint4": Scheme(_all("int4"), "int4, a scale for every output", layouts=(_FASTDEPLOY, _COMPRESSED)),
    "wint4_g64": Scheme(
        _all("int4_g64"), "int4, a scale for every 64 inputs of an output", layouts=(_COMPRESSED,)
    ),
    "wint4_g32": Scheme(
        _all("int4_g32"), "int4, a scale in bf16 for every 32 inputs of an output", layouts=(_COMPRESSED,)
    ),
    "wint4/8": Scheme(
        _experts("int4"),
        "experts in int4 and the rest in int8, a scale for every output",
        layouts=(_FASTDEPLOY, _COMPRESSED),
    ),
    "nf4": Scheme(_all("nf4"), "4-bit NormalFloat, a scale for every 64 inputs of an output"),
    "w8a8": Scheme(
        _all("w8a8"),
        "int8 weights, a scale for every output; int8 activations, a scale for every matrix",
        layouts=(_COMPRESSED,),
    ),
    "w4a8": Scheme(
        _experts("w4a8"),
        "experts (or the MLPs of a model without) in int4 with int8 activations, the rest as wint8",
        without_experts={"dense_mlp": "w4a8"},
        layouts=(_FASTDEPLOY,),
    ),
    "w4a8c8": Scheme(
        _experts("w4a8"),
        "as w4a8, and keys and values in int8, a scale for every channel",
        without_experts={"dense_mlp": "w4a8"},
        kv_cache="int8",
        layouts=(_FASTDEPLOY,),
    ),
    "fp8_tensor": Scheme(
        _all("fp8_tensor"),
        "FP8 (E4M3) weights and activations, a scale for every matrix, rotated by Hadamard matrices",
        layouts=(_FASTDEPLOY,),
    ),
    "fp8_block": Scheme(
        _all("fp8_block"),
        "FP8 (E4M3) weights, a scale for every 128 x 128; activations, a scale for every 128 as they come",
        layouts=(_FASTDEPLOY, _COMPRESSED),
    ),
    "wint2": Scheme(
        _experts("ccq2"),
        "experts (or the MLPs of a model without) in 2-bit convolutional codes, the rest as wint8",
        without_experts={"dense_mlp": "ccq2"},
        layouts=(_FASTDEPLOY,),
    ),
    "wint2.5": Scheme(
        _experts("ccq2.5"),
        "experts (or the MLPs of a model without) in 2.5-bit convolutional codes, the rest as wint8",
        without_experts={"dense_mlp": "ccq2.5"},
    ),
    "int2": Scheme(
        _experts("int2_g128"),
        "experts (or the MLPs of a model without) in int2, a scale for every 128 inputs, the rest as wint8",
        without_experts={"dense_mlp": "int2_g128"},
    ),
}
# What weights that stay frozen can be kept in while they are used, without calibration.
WHILE_READ = tuple(name for name, row in SCHEMES.items() if row.weights and row.is_weight_only)


def role_of(parameter: str, roles: Mapping[str, str]) -> str | None:
    """The role of a parameter; None for one that stays as it is.

    Args:
        parameter: its name in memory.
        roles: end of a module's name -> its role.
    """
    module = parameter.removesuffix(".weight")
    if module == parameter:
        return None
    return next((role for end, role in roles.items() if module.endswith(f".{end}")), None)


def formats_of(parameters: Iterable[str], roles: Mapping[str, str], scheme: str) -> dict[str, WeightFormat]:
    """Parameter -> format, of all parameters of a model that a scheme quantises."""
    found = {name: role_of(name, roles) for name in parameters}
    chosen = SCHEMES[scheme].formats(has_experts="experts" in found.values())
    return {
        name: FORMATS[chosen[role]] for name, role in found.items() if role is not None and role in chosen
    }


def weight_bytes(
    shapes: Mapping[str, tuple[int, ...]], roles: Mapping[str, str], scheme: str, width: int
) -> int:
    """Bytes of all parameters of a model.

    Args:
        shapes: of the parameters in memory.
        width: bytes of a number that is not quantised.
    """
    formats = formats_of(shapes, roles, scheme)
    return sum(
        formats[name].num_bytes(shape) if name in formats else width * prod(shape)
        for name, shape in shapes.items()
    )
