"""The only place that writes the process environment, before Paddle is imported.

Three settings are worth a factor of two and more on CPUs (measured on Paddle 3.3.1):

* glibc returns every large tensor to the kernel when it is freed, so that the next one starts
  with page faults; three `mallopt` parameters keep the memory in the process.
* Paddle's wheel carries an Intel MKL that takes its slowest path on AMD processors unless
  `MKL_DEBUG_CPU_TYPE=5` is set. The last bits of a matrix product change with it, so every
  process of a run has to set it alike: it is set here or by the user, nowhere else.
* Paddle sets `OMP_NUM_THREADS` to 1 when it is missing: one core computes and the others wait.
  The last bits depend on the number of threads too; a run that is to be continued bit by bit on a
  machine with another number of cores needs the variable set to what it was.
"""

import contextlib
import ctypes
import io
import os
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path

from erniekit.errors import UnsupportedError
from erniekit.estimate.hardware import usable_cores

# glibc's malloc.h: parameter number -> value in bytes.
_MALLOPT = {-3: 2_000_000_000, -1: 2_147_483_647, -2: 67_108_864}  # MMAP_THRESHOLD, TRIM_THRESHOLD, TOP_PAD


def prepare_environment() -> None:
    """Set allocation, math library, threads and warning filters; safe to call more than once."""
    if _is_amd():
        os.environ.setdefault("MKL_DEBUG_CPU_TYPE", "5")
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, int(usable_cores()))))
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):
            for parameter, value in _MALLOPT.items():
                libc.mallopt(parameter, value)
    warnings.filterwarnings("ignore", message="No ccache found")


def require_paddle() -> None:
    """Prepare the environment and make sure that Paddle can be imported.

    Raises:
        UnsupportedError: Paddle is not installed; names the extra to install.
    """
    prepare_environment()
    if find_spec("paddle") is None:
        raise UnsupportedError(
            "this command needs PaddlePaddle, which is not installed. On a CPU: "
            "pip install 'erniekit[cpu]'. On a GPU: install paddlepaddle-gpu 3.3.x from Paddle's own "
            "package index (see docs/getting-started.md)."
        )
    _import_paddle()


def _import_paddle() -> None:
    """Import Paddle without its remark on the number of threads, which is meant for data parallelism."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        import paddle  # noqa: F401
    for line in said.getvalue().splitlines():
        if "OMP_NUM_THREADS" not in line:
            sys.stderr.write(f"{line}\n")


def _is_amd() -> bool:
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return False
    with cpuinfo.open(encoding="utf-8", errors="replace") as file:
        return any("AuthenticAMD" in line for line in file if line.startswith("vendor_id"))
