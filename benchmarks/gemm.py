"""The rate of a large bf16 matrix product by ErnieKit's kernels, PyTorch, or the oneDNN of Paddle's wheel.

    python benchmarks/gemm.py --side ours

Run by train_step.py, each side in a process of its own. A rate is that of the median call out of a
second of calls, so that it is one a machine can hold, not that of its luckiest moment.
"""

import argparse
import ctypes
import statistics
import time
from collections.abc import Callable
from typing import Any

from measure import tell_result, usable_cores

SIZES = (1024, 2048, 3072)
SECONDS = 1.0


def main() -> None:
    """Measure one side and say GFLOP/s by size."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--side", choices=SIDES, required=True)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--seconds", type=float, default=SECONDS)
    options = parser.parse_args()
    make = SIDES[options.side]()
    tell_result({str(size): rate(make(size), size, options.seconds) for size in options.sizes})


def rate(multiply: Callable[[], Any], size: int, seconds: float) -> float:
    """GFLOP/s of the median call."""
    for _ in range(3):
        multiply()
    durations: list[float] = []
    while sum(durations) < seconds or len(durations) < 3:
        started = time.perf_counter()
        multiply()
        durations.append(time.perf_counter() - started)
    return 2.0 * size**3 / statistics.median(durations) / 1e9


def _ours() -> Callable[[int], Callable[[], Any]]:
    from erniekit.cli.launch import require_paddle

    require_paddle()
    import paddle

    from erniekit.assemble import set_device
    from erniekit.ops.linear import linear

    set_device(device="cpu", seed=0)

    def make(size: int) -> Callable[[], Any]:
        a, b = (paddle.randn([size, size]).astype("bfloat16") for _ in range(2))
        return lambda: linear(a, b)

    return make


def _torch() -> Callable[[int], Callable[[], Any]]:
    import torch

    torch.set_num_threads(usable_cores())

    def make(size: int) -> Callable[[], Any]:
        a, b = (torch.randn(size, size).to(torch.bfloat16) for _ in range(2))
        return lambda: torch.mm(a, b)

    return make


class _Argument(ctypes.Structure):
    _fields_ = [("index", ctypes.c_int), ("memory", ctypes.c_void_p)]


# Numbers of oneDNN's C interface, version 3.
_CPU, _IN_ORDER, _BF16, _ANY, _AB = 1, 1, 2, 1, 3
_WEIGHTS_MD, _SRC, _DST, _WEIGHTS = 131, 1, 17, 33
_ALLOCATE = ctypes.c_void_p(-1)


class _OneDNN:
    """What a matrix product with prepacked weights needs of oneDNN."""

    def __init__(self) -> None:
        from erniekit.ops.kernels.library import onednn_path

        path = onednn_path()
        if path is None:
            raise SystemExit("there is no oneDNN in Paddle's wheel")
        self.library = ctypes.CDLL(str(path))
        self.library.dnnl_primitive_desc_query_md.restype = ctypes.c_void_p
        self.engine = self.made("engine_create", _CPU, ctypes.c_size_t(0))
        self.stream = self.made("stream_create", self.engine, _IN_ORDER)

    def made(self, function: str, *arguments: Any) -> ctypes.c_void_p:
        """The object that a function makes at its first argument."""
        out = ctypes.c_void_p()
        status = getattr(self.library, f"dnnl_{function}")(ctypes.byref(out), *arguments)
        if status:
            raise SystemExit(f"dnnl_{function} answers {status}")
        return out

    def matrix(self, size: int, dtype: int, tag: int) -> ctypes.c_void_p:
        """A description of a square matrix."""
        return self.made("memory_desc_create_with_tag", 2, (ctypes.c_int64 * 2)(size, size), dtype, tag)

    def memory(self, description: ctypes.c_void_p) -> ctypes.c_void_p:
        """Memory for a matrix, not initialised."""
        return self.made("memory_create", description, self.engine, _ALLOCATE)

    def run(self, primitive: ctypes.c_void_p, memories: dict[int, ctypes.c_void_p]) -> None:
        """Execute and wait."""
        arguments = (_Argument * len(memories))(*[_Argument(i, m.value) for i, m in memories.items()])
        status = self.library.dnnl_primitive_execute(primitive, self.stream, len(memories), arguments)
        if status or self.library.dnnl_stream_wait(self.stream):
            raise SystemExit(f"oneDNN does not execute ({status})")

    def ones(self, size: int) -> ctypes.c_void_p:
        """A matrix of ones in plain order."""
        memory = self.memory(self.matrix(size, _BF16, _AB))
        place = ctypes.c_void_p()
        self.library.dnnl_memory_get_data_handle(memory, ctypes.byref(place))
        (ctypes.c_uint16 * (size * size)).from_address(place.value or 0)[:] = [0x3F80] * (size * size)
        return memory


def _onednn() -> Callable[[int], Callable[[], Any]]:
    from erniekit.cli.launch import prepare_environment

    prepare_environment()
    dnn = _OneDNN()

    def make(size: int) -> Callable[[], Any]:
        plain, packed = dnn.matrix(size, _BF16, _AB), dnn.matrix(size, _BF16, _ANY)
        product = dnn.made("matmul_primitive_desc_create", dnn.engine, plain, packed, None, plain, None)
        weights_form = ctypes.c_void_p(dnn.library.dnnl_primitive_desc_query_md(product, _WEIGHTS_MD, 0))
        primitive = dnn.made("primitive_create", product)
        ones, weights, out = dnn.ones(size), dnn.memory(weights_form), dnn.memory(plain)
        packing = dnn.made("reorder_primitive_desc_create", plain, dnn.engine, weights_form, dnn.engine, None)
        dnn.run(dnn.made("primitive_create", packing), {_SRC: ones, _DST: weights})
        return lambda: dnn.run(primitive, {_SRC: ones, _WEIGHTS: weights, _DST: out})

    return make


SIDES = {"ours": _ours, "torch": _torch, "onednn": _onednn}

if __name__ == "__main__":
    main()
