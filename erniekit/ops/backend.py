"""Which implementation of an operator runs here.

Every operator has a plain Paddle reference. Faster ones of the same signature stand in
`IMPLEMENTATIONS` under the backend that can run them, and a test compares each with the
reference. A backend that lacks an operator uses the reference.

Paddle's CPU build has no arithmetic in bf16, only storage. Operators therefore compute in fp32
on a CPU: `to_arithmetic` at the entrance and `to_storage` at the exit of an operator are the
lines where precision changes. On a GPU, and for fp32 everywhere, both return their argument.

Most CPU versions are PyLayers with gradients by hand. Paddle 3.3.1 frees what a PyLayer saved in
its first backward pass whatever `retain_graph` says, and a second one over the same graph ends
the process: call `backward` once for each forward pass.
"""

from functools import lru_cache
from importlib import import_module
from typing import Any

import paddle

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


def current_backend() -> str:
    """`cpu` or `gpu`, whichever this process computes on; other devices use the references."""
    device = paddle.device.get_device().partition(":")[0]
    return device if device in ("cpu", "gpu") else "reference"


@lru_cache
def _load(target: str) -> Any:
    module, _, name = target.partition(":")
    return getattr(import_module(module), name)


def choose(operator: str) -> Any:
    """The implementation of `operator` for the device of this process."""
    known = IMPLEMENTATIONS[operator]
    return _load(known.get(current_backend(), known["reference"]))


def to_arithmetic(*tensors: paddle.Tensor) -> tuple[paddle.Tensor, ...]:
    """Tensors in a type that this device can compute in."""
    if tensors[0].dtype != paddle.bfloat16 or current_backend() != "cpu":
        return tensors
    return tuple(tensor.astype("float32") for tensor in tensors)


def to_storage(tensor: paddle.Tensor, dtype: paddle.dtype) -> paddle.Tensor:
    """A result in the type that it is stored in."""
    return tensor if tensor.dtype == dtype else tensor.astype(dtype)
