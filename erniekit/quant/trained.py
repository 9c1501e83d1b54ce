"""What quantisation-aware training leaves in a checkpoint beside its weights. No Paddle.

The scheme that was trained for, and the scales of inputs that were found, so that `erniekit quantize` makes
of the checkpoint what was evaluated while it was trained, without data.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from erniekit.errors import CheckpointError, DataError
from erniekit.quant.schemes import SCHEMES

TRAINED_FILE = "qat.json"
_VERSION = 1


@dataclass(frozen=True)
class TrainedScales:
    """The scheme, and of every matrix with static scales of inputs those of its experts, 0 where unknown.

    step: how many steps were trained. steps: those that each matrix has seen.
    """

    scheme: str
    step: int
    hadamard_block_size: int | None
    scales: dict[str, list[float]]
    steps: dict[str, int]

    def save(self, folder: Path) -> None:
        """Write it into a checkpoint."""
        text = json.dumps({"version": _VERSION, **asdict(self)}, indent=1) + "\n"
        (folder / TRAINED_FILE).write_text(text, encoding="utf-8")

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
        trained = TrainedScales(**found)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    if version != _VERSION or trained.scheme not in SCHEMES:
        raise CheckpointError(f"{path} is of another ErnieKit")
    return trained
