"""Which implementation of an operator runs here.

Every operator has a plain Paddle reference. Faster ones of the same signature stand in
`IMPLEMENTATIONS` under the backend that can run them, and a test compares each with the
reference. A backend that lacks an operator uses the reference.

Paddle's CPU build has no arithmetic in bf16, only storage. Operators therefore compute in fp32
on a CPU: `to_arithmetic` at the entrance and `to_storage` at the exit of an operator are the
lines where precision changes. On a GPU, and for fp32 everywhere, both return their argument.

`native` stands for the kernels of `ops/kernels` (see `use_kernels`), which do compute on bf16.

Most CPU versions are PyLayers with gradients by hand. Paddle 3.3.1 frees what a PyLayer saved in
its first backward pass whatever `retain_graph` says, and a second one over the same graph ends
the process: call `backward` once for each forward pass.
"""

from functools import lru_cache
from importlib import import_module
from typing import Any

import paddle

from erniekit.errors import UnsupportedError
from erniekit.log import logger
from erniekit.ops.kernels import library

IMPLEMENTATIONS: dict[str, dict[str, str]] = {
    "attention": {
        "reference": "erniekit.ops.attention:attention_reference",
        "cpu": "erniekit.ops.attention_cpu:attention_cpu",
        "gpu": "erniekit.ops.attention_gpu:attention_flashmask",
    },
    "rms_norm": {
        "reference": "erniekit.ops.norm:rms_norm_reference",
        "cpu": "erniekit.ops.norm:rms_norm_cpu",
    },
    "rotate": {
        "reference": "erniekit.ops.rope:rotate_reference",
        "cpu": "erniekit.ops.rope:rotate_cpu",
    },
    "swiglu": {
        "reference": "erniekit.ops.swiglu:swiglu_reference",
        "cpu": "erniekit.ops.swiglu:swiglu_fused",
        "gpu": "erniekit.ops.swiglu:swiglu_fused",
    },
}


_kernels = "auto"


def use_kernels(kernels: str) -> None:
    """Choose what computes on a CPU: `native`, `paddle`, or `auto` (native where they can be had).

    Raises:
        UnsupportedError: `native` was asked for and the kernels cannot be built or loaded here.
    """
    global _kernels
    _kernels = kernels
    _native_runs.cache_clear()
    if kernels == "native":
        library.load()


@lru_cache
def _native_runs() -> bool:
    if _kernels == "paddle":
        return False
    try:
        library.load()
    except (UnsupportedError, OSError) as error:
        logger.warning(f"plain Paddle operators run, which are several times slower: {error}")
        return False
    return True


def current_backend() -> str:
    """What this process computes with: `gpu`, `native` or `cpu`; other devices use the references."""
    device = paddle.device.get_device().partition(":")[0]
    if device == "cpu":
        return "native" if _native_runs() else "cpu"
    return "gpu" if device == "gpu" else "reference"


@lru_cache
def _load(target: str) -> Any:
    module, _, name = target.partition(":")
    return getattr(import_module(module), name)


def choose(operator: str) -> Any:
    """The implementation of `operator` for the device of this process."""
    known = IMPLEMENTATIONS[operator]
    backend = current_backend()
    if backend == "native" and "native" not in known:
        backend = "cpu"
    return _load(known.get(backend, known["reference"]))


def to_arithmetic(*tensors: paddle.Tensor) -> tuple[paddle.Tensor, ...]:
    """Tensors in a type that Paddle's operators can compute in on this device."""
    if tensors[0].dtype != paddle.bfloat16 or not paddle.device.get_device().startswith("cpu"):
        return tensors
    return tuple(tensor.astype("float32") for tensor in tensors)


def to_storage(tensor: paddle.Tensor, dtype: paddle.dtype) -> paddle.Tensor:
    """A result in the type that it is stored in."""
    return tensor if tensor.dtype == dtype else tensor.astype(dtype)
