"""A model folder whose matrices are quantised: what its config.json says, and reading it. No Paddle.

`quantization_config` holds the fields that FastDeploy reads, where it has some for such a model, and under
`erniekit` what this package needs: the scheme, the format of every quantised parameter, and how inputs, keys
and values are rounded. Tensors lie as `stored.py` says, under the names of Paddle's layout; what is not
quantised lies as in any folder of that layout.
"""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from erniekit.checkpoint.files import TensorFolder
from erniekit.errors import CheckpointError, UnsupportedError
from erniekit.quant.fastdeploy import fields_of
from erniekit.quant.schemes import FORMATS, SCHEMES, role_of
from erniekit.quant.stored import Quantised, matrix_of, rotation_of, specs_of, stacked

_SECTION, _VERSION = "erniekit", 1
# Of an attention layer, under its name: the largest of each channel's keys and values.
KV_SUFFIXES = ("cachek_matmul.activation_scale", "cachev_matmul.activation_scale")
_LISTED = 6
# Name of a matrix in files, and the expert that it is of.
Names = list[tuple[str, int | None]]


@dataclass(frozen=True)
class Quantisation:
    """What a folder says of its numbers.

    formats: parameter in memory -> a row of FORMATS. hadamard_block_size: None where each format has its own.
    method: how the numbers were chosen, for people.
    """

    scheme: str
    formats: Mapping[str, str]
    hadamard_block_size: int | None = None
    kv_cache: str | None = None
    method: str = "rtn"

    def rotation(self, parameter: str, rows: int) -> int:
        """The size of the Hadamard blocks of a parameter's matrix."""
        return rotation_of(self.formats[parameter], rows, self.hadamard_block_size)

    def to_json(self, roles: Mapping[str, str]) -> dict[str, Any]:
        """The content of `quantization_config`.

        Args:
            roles: end of a module's name -> its role.
        """
        of_names = {name: role_of(name, roles) or "" for name in self.formats}
        sizes = {FORMATS[format].rotation for format in self.formats.values()}
        rotation = max(sizes) if self.hadamard_block_size is None else self.hadamard_block_size
        fields = fields_of(self.formats, of_names, kv_cache=self.kv_cache, rotation=rotation)
        own = {
            "version": _VERSION,
            "scheme": self.scheme,
            "method": self.method,
            "hadamard_block_size": self.hadamard_block_size,
            "kv_cache": self.kv_cache,
            "formats": dict(self.formats),
        }
        return {**(fields or {"quantization": "erniekit"}), _SECTION: own}


def read_quantisation(folder: Path) -> Quantisation | None:
    """What a model folder says of its quantisation; None for one in full.

    Raises:
        UnsupportedError: it was quantised by something else, or by a newer ErnieKit.
        CheckpointError: what it says is damaged.
    """
    path = Path(folder) / "config.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8")).get("quantization_config")
    except (OSError, ValueError, AttributeError):
        return None  # whoever reads the model says so
    if not found:
        return None
    own = found.get(_SECTION) if isinstance(found, dict) else None
    if not isinstance(own, dict):
        method = found.get("quant_method") or found.get("quantization") if isinstance(found, dict) else found
        raise UnsupportedError(
            f"{folder} is quantised ({method}), in a layout that is not read here yet: name the model in "
            "full, or what erniekit quantize makes of it with quant_layout: fastdeploy"
        )
    if own.get("version") != _VERSION:
        raise UnsupportedError(f"{path}: quantised by another ErnieKit (version {own.get('version')!r})")
    formats = own.get("formats")
    if not isinstance(formats, dict) or not set(formats.values()) <= set(FORMATS):
        raise CheckpointError(f"{path}: quantization_config.{_SECTION} is damaged, or of a newer ErnieKit")
    if own.get("scheme") not in SCHEMES:
        raise CheckpointError(f"{path}: quantization_config.{_SECTION} is damaged, or of a newer ErnieKit")
    return Quantisation(
        own["scheme"], formats, own.get("hadamard_block_size"), own.get("kv_cache"), own.get("method", "rtn")
    )


def check_matrices(
    tensors: TensorFolder,
    quantisation: Quantisation,
    shapes: Mapping[str, tuple[int, ...]],
    names: Mapping[str, Names],
) -> None:
    """Check that every tensor of the quantised matrices is there, and of its type and shape.

    Args:
        shapes: of the parameters in memory.
        names: parameter -> its matrices in files.

    Raises:
        CheckpointError: lists what is not.
    """
    present: Collection[str] = set(tensors.names())
    strange = [name for name in quantisation.formats if name not in names]
    problems = [f"{name} is no matrix of the model" for name in strange]
    for parameter, format in quantisation.formats.items():
        for name, _ in names.get(parameter, ()):
            for suffix, word, shape in specs_of(format, shapes[parameter][-2:]):
                full = f"{name}.{suffix}"
                if full not in present:
                    problems.append(f"{full} is missing")
                elif (tensors.info(full).dtype, tensors.info(full).shape) != (word, shape):
                    info = tensors.info(full)
                    problems.append(f"{full} is {info.dtype} {list(info.shape)}, not {word} {list(shape)}")
    if problems:
        more = f"\n  ... and {len(problems) - _LISTED} more" if len(problems) > _LISTED else ""
        listed = "\n  ".join(problems[:_LISTED])
        raise CheckpointError(
            f"{tensors.folder}: the quantised weights do not fit config.json\n  {listed}{more}"
        )


def read_matrix(
    tensors: TensorFolder, format: str, shape: tuple[int, ...], names: Names, rotation: int
) -> Quantised:
    """The matrix of a parameter, or those of all experts."""
    parts = []
    for name, _ in names:
        found: dict[str, np.ndarray] = {
            suffix: tensors.read(f"{name}.{suffix}") for suffix, _, _ in specs_of(format, shape[-2:])
        }
        parts.append(matrix_of(format, shape[-2:], found, rotation))
    return parts[0] if names[0][1] is None else stacked(parts)
