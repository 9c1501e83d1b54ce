"""What quantisation-aware training leaves in a checkpoint beside its weights. No Paddle.

The scheme that was trained for, the scales of inputs that were found, and those of weights that were learned,
so that `erniekit quantize` makes of the checkpoint what was evaluated while it was trained, without data.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from erniekit.checkpoint.files import open_tensors, write_tensors
from erniekit.errors import CheckpointError, DataError
from erniekit.quant.schemes import SCHEMES

TRAINED_FILE = "qat.json"
_VERSION = 1
# Learned scales of weights, `<module>.weight_scale`.
_LEARNED, _SUFFIX = "qat", ".weight_scale"
# Learned scales are no smaller than this.
_SMALLEST = np.float32(1e-8)


@dataclass(frozen=True)
class TrainedScales:
    """The scheme, and of every matrix with static scales of inputs those of its experts, 0 where unknown.

    step: how many steps were trained. steps: those that each matrix has seen.
    learned: whether scales of weights were learned, and weights: of every matrix, fp32 [..., groups, N].
    """

    scheme: str
    step: int
    hadamard_block_size: int | None
    scales: dict[str, list[float]]
    steps: dict[str, int]
    learned: bool = False
    weights: dict[str, np.ndarray] = field(default_factory=dict, compare=False)

    def save(self, folder: Path) -> None:
        """Write it into a checkpoint."""
        text = json.dumps({"version": _VERSION, **self.facts()}, indent=1) + "\n"
        (folder / TRAINED_FILE).write_text(text, encoding="utf-8")
        if self.learned:
            items = ((f"{module}{_SUFFIX}", "F32", scales) for module, scales in self.weights.items())
            write_tensors(
                folder, items, max_shard_bytes=1 << 62, metadata={"format": "np"}, basename=_LEARNED
            )

    def facts(self) -> dict[str, Any]:
        """All but the learned scales."""
        return {name: value for name, value in asdict(self).items() if name != "weights"}

    def weight_scales(self, module: str) -> np.ndarray | None:
        """fp32 [..., groups, N] to round by; None where they were not learned."""
        return usable(self.weights[module]) if module in self.weights else None

    def input_scales(self, module: str) -> np.ndarray:
        """fp32, one an expert; those that have seen no tokens take the largest of the others.

        Raises:
            DataError: nothing was seen.
        """
        known = np.array(self.scales[module], np.float32)
        if not known.any():
            raise DataError(
                f"{module}: training saw nothing that enters it, so there is no scale to round its inputs "
                "by; calibrate with quant_method: rtn, or train longer"
            )
        return filled_up(known)


def usable(scales: np.ndarray) -> np.ndarray:
    """Learned scales as numbers are divided by them: above zero."""
    return np.maximum(scales, _SMALLEST)


def filled_up(scales: np.ndarray) -> np.ndarray:
    """Scales of all experts, the largest for those without."""
    return np.where(scales > 0, scales, scales.max())


def read_trained(folder: Path) -> TrainedScales | None:
    """What a checkpoint says; None for one that was trained in full.

    Raises:
        CheckpointError: it cannot be read.
    """
    path = Path(folder) / TRAINED_FILE
    if not path.is_file():
        return None
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        version = found.pop("version")
        trained = TrainedScales(**found, weights={})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    if version != _VERSION or trained.scheme not in SCHEMES:
        raise CheckpointError(f"{path} is of another ErnieKit")
    if trained.learned:
        tensors = open_tensors(Path(folder), _LEARNED)
        trained.weights.update({name.removesuffix(_SUFFIX): tensors.read(name) for name in tensors.names()})
    return trained
