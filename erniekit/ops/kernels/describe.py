"""What `doctor` tells about the kernels: which run here, and why not the others. Imports no Paddle."""

import ctypes
import os

from erniekit.ops.kernels import build
from erniekit.ops.kernels.library import cache_folder, find_library, has_matrix_tiles, onednn_path


class _Version(ctypes.Structure):
    _fields_ = [("major", ctypes.c_int), ("minor", ctypes.c_int), ("patch", ctypes.c_int)]


def describe() -> dict[str, str]:
    """Facts about the kernels by name; compiles them when that has not happened yet."""
    found = find_library()
    try:
        program = build.compiler()
        compiler = f"{build.compiler_version(program)} ({' '.join(program)})"
    except build.BuildError as error:
        compiler = str(error)
    facts = {"native kernels": "run here"}
    if found.library is None:
        facts["native kernels"] = f"do not run: {found.reason}"
    else:
        record = found.library.record
        products = "bf16 and fp32" if found.library.level == "avx512bf16" else "fp32"
        facts["level"] = f"{found.library.level} of {', '.join(record['levels'])}; products in {products}"
        facts["threads"] = str(found.library.threads)
        facts["library"] = f"{found.library.folder}, made by {record['compiler']}"
    facts["compiler"] = compiler
    facts["cache folder"] = str(cache_folder())
    facts["chosen by the environment"] = os.environ.get("ERNIEKIT_KERNELS") or "no"
    facts["oneDNN of Paddle"] = _onednn()
    return facts


def _onednn() -> str:
    path = onednn_path()
    if path is None:
        return "not found"
    try:
        library = ctypes.CDLL(str(path))
        library.dnnl_version.restype = ctypes.POINTER(_Version)
        version = library.dnnl_version().contents
    except (OSError, AttributeError) as error:
        return f"found, but of no use: {error}"
    used = "multiplies bf16 here (AMX)" if has_matrix_tiles() else "not needed, this processor has no AMX"
    return f"{version.major}.{version.minor}.{version.patch} ({path}); {used}"
