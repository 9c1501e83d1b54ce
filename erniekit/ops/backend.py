"""Which implementation of an operator runs here.

Every operator has a plain Paddle reference. Faster ones of the same signature stand in
`IMPLEMENTATIONS` under the backend that can run them, and a test compares each with the
reference. A backend that lacks an operator uses the next one of `NEXT`, at last the reference.

On a CPU there are two: `native`, compiled kernels (`ops/kernels/`), and `cpu`, Paddle's own
operators. The key `kernels` chooses (`use_kernels`); without a choice they are `auto`.

Paddle's CPU build has no arithmetic in bf16, only storage. Operators therefore compute in fp32
on a CPU: `to_arithmetic` at the entrance and `to_storage` at the exit of an operator are the
lines where precision changes. On a GPU, and for fp32 everywhere, both return their argument.

Most CPU versions are PyLayers with gradients by hand. Paddle 3.3.1 frees what a PyLayer saved in
its first backward pass whatever `retain_graph` says, and a second one over the same graph ends
the process: call `backward` once for each forward pass.
"""

import os
from functools import lru_cache
from importlib import import_module
from typing import Any

import paddle

from erniekit.errors import ConfigError, UnsupportedError
from erniekit.log import logger
from erniekit.ops.kernels.library import find_library

IMPLEMENTATIONS: dict[str, dict[str, str]] = {
    "attention": {
        "reference": "erniekit.ops.attention:attention_reference",
        "cpu": "erniekit.ops.attention_cpu:attention_cpu",
        "gpu": "erniekit.ops.attention_gpu:attention_flashmask",
    },
    "self_attention": {
        "reference": "erniekit.ops.attention:self_attention_reference",
        "native": "erniekit.ops.native.attention:self_attention",
    },
    "cached_attention": {
        "reference": "erniekit.ops.cached_attention:cached_attention_reference",
        "native": "erniekit.ops.native.cached_attention:cached_attention",
    },
    "add": {
        "reference": "erniekit.ops.linear:add_reference",
        "native": "erniekit.ops.native.add:add_native",
    },
    "views": {
        "reference": "erniekit.ops.linear:views_reference",
        "native": "erniekit.ops.native.add:views_native",
    },
    "widen": {
        "reference": "erniekit.ops.linear:widen_reference",
        "native": "erniekit.ops.native.add:widen_native",
    },
    "linear": {
        "reference": "erniekit.ops.linear:linear_reference",
        "native": "erniekit.ops.native.linear:linear_native",
    },
    "linear_log_probabilities": {
        "reference": "erniekit.ops.log_probabilities:linear_log_probabilities_reference",
        "native": "erniekit.ops.native.log_probabilities:linear_log_probabilities_native",
    },
    "linear_cross_entropy": {
        "reference": "erniekit.ops.cross_entropy:linear_cross_entropy_reference",
        "native": "erniekit.ops.native.cross_entropy:linear_cross_entropy_native",
    },
    "add_rms_norm": {
        "reference": "erniekit.ops.norm:add_rms_norm_reference",
        "native": "erniekit.ops.native.norm:add_rms_norm_native",
    },
    "rms_norm": {
        "reference": "erniekit.ops.norm:rms_norm_reference",
        "cpu": "erniekit.ops.norm:rms_norm_cpu",
        "native": "erniekit.ops.native.norm:rms_norm_native",
    },
    "empty": {
        "reference": "erniekit.ops.allocation:empty_reference",
        "native": "erniekit.ops.native.memory:empty",
    },
    "embedding": {
        "reference": "erniekit.ops.embedding:embedding_reference",
        "native": "erniekit.ops.native.embedding:embedding_native",
    },
    "grouped_linear": {
        "reference": "erniekit.ops.moe:grouped_linear_reference",
        "native": "erniekit.ops.native.grouped_linear:grouped_linear_native",
    },
    "lora_linear": {
        "reference": "erniekit.ops.lora:lora_linear_reference",
        "native": "erniekit.ops.native.lora:lora_linear_native",
    },
    "top_k": {
        "reference": "erniekit.ops.moe:top_k_reference",
        "native": "erniekit.ops.native.moe:top_k_native",
    },
    "sort_slots": {
        "reference": "erniekit.ops.moe:sort_slots_reference",
        "native": "erniekit.ops.native.moe:sort_slots_native",
    },
    "dispatch_rows": {
        "reference": "erniekit.ops.moe:dispatch_rows_reference",
        "native": "erniekit.ops.native.moe:dispatch_rows_native",
    },
    "combine_rows": {
        "reference": "erniekit.ops.moe:combine_rows_reference",
        "native": "erniekit.ops.native.moe:combine_rows_native",
    },
    "gradient_of_codes": {
        "reference": "erniekit.ops.fp8_gemm:gradient_of_codes_reference",
        "gpu": "erniekit.ops.fp8_gemm:gradient_of_codes_gpu",
    },
    "product": {
        "reference": "erniekit.ops.products:product_reference",
        "native": "erniekit.ops.native.products:product_native",
    },
    "weight_gradient": {
        "reference": "erniekit.ops.products:weight_gradient_reference",
        "native": "erniekit.ops.native.products:weight_gradient_native",
    },
    "product_of_codes": {
        "reference": "erniekit.ops.fp8_gemm:product_of_codes_reference",
        "gpu": "erniekit.ops.fp8_gemm:product_of_codes_gpu",
    },
    "quantised_product": {
        "reference": "erniekit.ops.quantised:quantised_product_reference",
        "native": "erniekit.ops.native.quantised:quantised_product_native",
    },
    "rotate": {
        "reference": "erniekit.ops.rope:rotate_reference",
        "cpu": "erniekit.ops.rope:rotate_cpu",
    },
    "rounded": {
        "reference": "erniekit.ops.tiles:rounded_reference",
        "native": "erniekit.ops.native.tiles:rounded_native",
    },
    "encode": {
        "reference": "erniekit.ops.tiles:encode_reference",
        "native": "erniekit.ops.native.tiles:encode_native",
    },
    "decode": {
        "reference": "erniekit.ops.tiles:decode_reference",
        "native": "erniekit.ops.native.tiles:decode_native",
    },
    "scales_of": {
        "reference": "erniekit.ops.tiles:scales_of_reference",
        "native": "erniekit.ops.native.tiles:scales_of_native",
    },
    "swiglu": {
        "reference": "erniekit.ops.swiglu:swiglu_reference",
        "cpu": "erniekit.ops.swiglu:swiglu_fused",
        "native": "erniekit.ops.native.swiglu:swiglu_native",
        "gpu": "erniekit.ops.swiglu:swiglu_fused",
    },
}

KERNELS = ("auto", "native", "paddle")
# Set for tests and for CI, which run everything with both; it counts before the configuration.
VARIABLE = "ERNIEKIT_KERNELS"
# The backend whose operator stands in for a missing one.
NEXT = {"native": "cpu"}

_backend: str | None = None
_warned: set[str] = set()


def use_kernels(kernels: str) -> str:
    """Choose the kernels of this process on its present device; returns the backend that runs.

    Args:
        kernels: `native` (compiled kernels), `paddle` (Paddle's own operators), or `auto`, native
            where they can be built and are the faster ones. On a GPU only `auto` and `paddle`.

    Raises:
        ConfigError: the word is none of these, or native kernels were asked for on a GPU.
        UnsupportedError: native kernels were asked for and cannot be built or loaded here.
    """
    global _backend
    given = os.environ.get(VARIABLE)
    place = f"{VARIABLE}={given}" if given else f"kernels: {kernels}"
    kernels = given or kernels
    if kernels not in KERNELS:
        raise ConfigError(f"{place}: there are no such kernels; write {', '.join(KERNELS)}")
    device = paddle.device.get_device().partition(":")[0]
    if device != "cpu":
        if kernels == "native":
            raise ConfigError(
                f"{place}: native kernels are for a CPU, and this run is on {device}; write auto"
            )
        _backend = device if device == "gpu" else "reference"
    else:
        _backend = "native" if kernels != "paddle" and _native_runs(kernels, place) else "cpu"
    return _backend


def _native_runs(kernels: str, place: str) -> bool:
    """Whether the native kernels can be used, and for `auto` whether they should be."""
    found = find_library()
    if found.library is None:
        if kernels == "native":
            raise UnsupportedError(
                f"{place}: native kernels cannot run here: {found.reason}\n"
                "Write kernels: auto (Paddle's own operators, several times slower)."
            )
        if found.reason not in _warned:
            _warned.add(found.reason)
            logger.warning(f"Paddle's own operators run, which are several times slower: {found.reason}")
        return False
    return kernels == "native" or found.library.level != "portable"


def current_backend() -> str:
    """`native` or `cpu` on a CPU, `gpu` on a GPU; other devices use the references."""
    return _backend or use_kernels("auto")


def on_cpu() -> bool:
    """Whether this process computes on a CPU, by whichever kernels."""
    return current_backend() in ("native", "cpu")


def multiplies_bf16() -> bool:
    """Whether matrix products of bf16 run at full speed: on GPUs, and by native kernels on some CPUs."""
    backend = current_backend()
    if backend != "native":
        return backend == "gpu"
    library = find_library().library
    return library is not None and library.level == "avx512bf16"


def multiplies_fp8() -> bool:
    """Whether FP8 matrices with a scale a tile are multiplied as bytes: cuBLAS does on Hopper."""
    return current_backend() == "gpu" and paddle.device.cuda.get_device_capability() == (9, 0)


def kernels_in_words() -> str:
    """What computes in this process, for people."""
    backend = current_backend()
    if backend == "native":
        library = find_library().library
        assert library is not None, "native kernels run without a library"
        return f"native kernels ({library.level}, {library.threads} threads)"
    return "Paddle's operators"


@lru_cache
def _load(target: str) -> Any:
    module, _, name = target.partition(":")
    return getattr(import_module(module), name)


def choose(operator: str) -> Any:
    """The implementation of `operator` for the device of this process."""
    known = IMPLEMENTATIONS[operator]
    backend: str | None = current_backend()
    while backend is not None and backend not in known:
        backend = NEXT.get(backend)
    return _load(known[backend or "reference"])


def to_arithmetic(*tensors: paddle.Tensor) -> tuple[paddle.Tensor, ...]:
    """Tensors in a type that Paddle's operators can compute in on this device."""
    if tensors[0].dtype != paddle.bfloat16 or not on_cpu():
        return tensors
    return tuple(tensor.astype("float32") for tensor in tensors)


def to_storage(tensor: paddle.Tensor, dtype: paddle.dtype) -> paddle.Tensor:
    """A result in the type that it is stored in."""
    return tensor if tensor.dtype == dtype else tensor.astype(dtype)
