"""Whether a run can be had on the devices that are here, told before anything is downloaded or built."""

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

from erniekit.checkpoint.presets import STARTER, find_preset
from erniekit.errors import UnsupportedError
from erniekit.estimate.hardware import available_memory
from erniekit.estimate.state import gigabytes, model_bytes, training_state
from erniekit.models.registry import config_from_json, load_family, read_model_config


def known_numbers(model_name_or_path: str) -> Any | None:
    """The model's config where it is known without a download: of a model folder, or of a preset."""
    folder = Path(model_name_or_path).expanduser()
    if (folder / "config.json").is_file():
        return read_model_config(folder)
    preset = find_preset(model_name_or_path.partition("@")[0])
    if preset is None or preset.name == STARTER:
        return None
    return config_from_json(preset.model_type, preset.config, source=preset.name)


def state_of(
    numbers: Any, freeze: Sequence[str], compute_type: str, scheme: str | None = None
) -> dict[str, int]:
    """Bytes of weights, gradients and optimizer state of a model when all but `freeze` is trained.

    Args:
        scheme: what frozen weights are quantised by.
    """
    shapes = load_family(numbers).weights.memory_shapes(numbers)
    frozen = [re.compile(pattern) for pattern in freeze]
    trained = sum(
        prod(shape) for name, shape in shapes.items() if not any(pattern.search(name) for pattern in frozen)
    )
    weights = model_bytes(numbers, compute_type=compute_type, scheme=scheme)
    return training_state(weights, trained, compute_type=compute_type)


def require_devices(
    state: Callable[[], dict[str, int] | None],
    available: Callable[[], int],
    num_processes: int = 1,
    *,
    nproc_per_node: int,
    tensor_parallel_degree: int,
    sequence_parallel: bool,
    context_parallel_degree: int,
    pipeline_parallel_degree: int,
    sharding: str,
    sharding_parallel_degree: int,
    moe_group: str,
    expert_parallel_degree: int,
) -> None:
    """Refuse one process that is asked to be several, or whose memory does not do.

    Args:
        state: bytes that the run holds on one device, by cause; None when they are not known.
        available: bytes of memory that this process may take.
        num_processes: processes of the run; what several hold each is `parallel`'s to say.

    Raises:
        UnsupportedError: several devices are asked for, or the memory of one does not do; says how
            much the run needs.
    """
    if num_processes > 1:
        return
    asked = {
        "tensor_parallel_degree": tensor_parallel_degree,
        "pipeline_parallel_degree": pipeline_parallel_degree,
        "context_parallel_degree": context_parallel_degree,
        "sharding_parallel_degree": sharding_parallel_degree,
        "expert_parallel_degree": expert_parallel_degree,
    }
    # Experts are spread over devices that the other degrees count.
    devices = prod(max(1, degree) for key, degree in asked.items() if key != "expert_parallel_degree")
    devices = max(devices, expert_parallel_degree)
    held = state()
    total = sum(held.values()) if held else 0
    fits = total <= available()
    if devices == 1 and fits:
        return
    lines = []
    if devices > 1:
        words = ", ".join(f"{key}: {degree}" for key, degree in asked.items() if degree > 1)
        lines.append(f"{words} asks for {devices} devices, and this run is one process.")
    if held:
        listed = ", ".join(f"{cause} {gigabytes(size)}" for cause, size in held.items() if size)
        free = gigabytes(available())
        lines.append(
            f"On one device this run holds {gigabytes(total)} ({listed}) and activations; {free} are free "
            "here."
        )
    if devices > 1:
        lines.append(
            f"Write nproc_per_node: {devices} to start {devices} processes on this machine, or start them on "
            "several machines (docs/parallel.md); `erniekit plan` says what each holds."
        )
        if fits and held:
            lines.append("Leave the degrees out to run on one device.")
    else:
        lines.append(
            "Spread it over several devices (`erniekit plan search` names plans), take a smaller model, or "
            "train only a part of it: what freeze names needs no gradients and no optimizer state."
        )
    raise UnsupportedError("\n".join(lines))


def run_identity(settings: Mapping[str, Any]) -> dict[str, str]:
    """What has to be equal in all processes of a run, for `parallel.comm.open_world`.

    Args:
        settings: the resolved configuration.
    """
    import paddle

    from erniekit import __version__

    text = json.dumps(settings, sort_keys=True, default=str)
    return {
        "version of ErnieKit": __version__,
        "version of Paddle": str(paddle.__version__),
        "configuration": hashlib.sha256(text.encode()).hexdigest()[:12],
    }


def free_memory(device: str) -> int:
    """Bytes that this process may take on a device, by Paddle's name of it."""
    if device == "cpu":
        return available_memory()
    import paddle

    free, _ = paddle.device.cuda.mem_get_info()  # not executed in this project's CI
    return int(free)
