"""The optimizer's states in main memory: on the device one parameter at a time, while it is updated.

On a GPU they lie in pinned memory, which copies to the device run from and to at full speed. On a CPU
states are in main memory as it is, and nothing is to be done. The way over a GPU was not executed in this
project; copies in its place are, by the tests.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import paddle


class HostMemory:
    """Keeps tensors aside, and has them where the parameters are while they are changed."""

    def keep(self, tensor: paddle.Tensor) -> paddle.Tensor:
        """The tensor in main memory; the one on the device may go."""
        return tensor.pin_memory() if tensor.place.is_gpu_place() else tensor.clone()

    @contextmanager
    def here(self, *kept: paddle.Tensor) -> Iterator[list[paddle.Tensor]]:
        """The kept tensors on the device; what they are at the end is kept."""
        tensors = [one.cuda() if one.place.is_cuda_pinned_place() else one.clone() for one in kept]
        yield tensors
        for one, tensor in zip(kept, tensors, strict=True):
            one.copy_(tensor, True)
