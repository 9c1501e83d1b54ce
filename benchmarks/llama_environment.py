"""The interpreter with llama.cpp: one that was named, or an environment of its own in the cache folder.

llama-cpp-python is published as source and compiles llama.cpp for the machine it is installed on,
which takes some minutes and needs a C++ compiler.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from measure import say

PACKAGE = "llama-cpp-python==0.3.36"
_SECONDS = 3600
_PROBE = "import llama_cpp; print(llama_cpp.__version__)"


def find_llama(wanted: str) -> str | None:
    """A Python with llama-cpp-python; None, after saying so, where there is none.

    Args:
        wanted: `none`, a Python, or `auto` for the environment in the cache folder, made when it is
            not there.
    """
    if wanted == "none":
        return None
    if wanted != "auto":
        if not works(wanted):
            raise SystemExit(f"--llama {wanted}: is no Python that imports llama_cpp")
        return wanted
    folder = Path(os.environ.get("ERNIEKIT_CACHE") or Path.home() / ".cache" / "erniekit") / "peer-llama"
    python = str(folder / "bin" / "python")
    if works(python):
        return python
    say(f"compiling llama.cpp for comparison into {folder} (some minutes, once)")
    reason = install(folder)
    if reason is None and works(python):
        return python
    say(f"llama.cpp cannot be compared with, only ErnieKit is measured: {reason or 'it does not import'}")
    return None


def works(python: str) -> bool:
    """Whether a Python has what the peer needs."""
    if shutil.which(python) is None:
        return False
    done = subprocess.run([python, "-c", _PROBE], capture_output=True, timeout=_SECONDS, check=False)
    return done.returncode == 0


def install(folder: Path) -> str | None:
    """Make the environment; returns why that failed, or None."""
    pip = [str(folder / "bin/python"), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    for command in ([sys.executable, "-m", "venv", "--clear", str(folder)], [*pip, PACKAGE]):
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            return str(error)
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if line.strip()]
            return lines[-1] if lines else f"{' '.join(command)} ended with {done.returncode}"
    return None
