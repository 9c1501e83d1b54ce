"""Memory that the C library holds although nothing uses it.

`cli/launch.py` tells the library to keep what is freed, since getting it again costs page faults.
What a checkpoint leaves behind when it is read lies in holes between the parameters, too small for
the tensors of a training step; given back once, before training, it saves as much as the weights take.
"""

import ctypes
import sys


def release_free_memory() -> None:
    """Give what is free back to the system, where the C library (glibc) can do so."""
    if sys.platform != "linux":
        return
    library = ctypes.CDLL(None)
    if hasattr(library, "malloc_trim"):
        library.malloc_trim(0)
