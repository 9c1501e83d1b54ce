"""The interpreter of the peer: one that was named, or an environment of its own in the cache folder.

PyTorch comes from its index for CPUs: the package index would add gigabytes for GPUs.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from measure import say

TORCH_INDEX = "https://download.pytorch.org/whl/cpu"
_SECONDS = 1800
_PROBE = "import torch, transformers; print(torch.__version__, transformers.__version__)"


def find_peer(wanted: str, *more: str) -> str | None:
    """A Python with torch and transformers; None, after saying so, where there is none.

    Args:
        more: other packages that it has to have.
        wanted: `none`, a Python, or `auto` for the environment in the cache folder, made when it is
            not there.
    """
    if wanted == "none":
        return None
    if wanted != "auto":
        if not works(wanted, *more):
            names = " and ".join(["torch", "transformers", *more])
            raise SystemExit(f"--peer {wanted}: is no Python that imports {names}")
        return wanted
    folder = Path(os.environ.get("ERNIEKIT_CACHE") or Path.home() / ".cache" / "erniekit") / "peer-torch"
    python = str(folder / "bin" / "python")
    if works(python, *more):
        return python
    say(f"installing torch and transformers for comparison into {folder} (about 1 GB, once)")
    reason = install(folder, *more)
    if reason is None and works(python, *more):
        return python
    say(f"torch cannot be compared with, only ErnieKit is measured: {reason or 'it does not import'}")
    return None


def works(python: str, *more: str) -> bool:
    """Whether a Python has what the peer needs."""
    if shutil.which(python) is None:
        return False
    probe = "\n".join([_PROBE, *(f"import {package}" for package in more)])
    done = subprocess.run([python, "-c", probe], capture_output=True, timeout=_SECONDS, check=False)
    return done.returncode == 0


def install(folder: Path, *more: str) -> str | None:
    """Make the environment; returns why that failed, or None."""
    pip = [str(folder / "bin/python"), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    commands = [
        [sys.executable, "-m", "venv", "--clear", str(folder)],
        [*pip, "--index-url", TORCH_INDEX, "torch"],
        [*pip, "transformers", *more],
    ]
    for command in commands:
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            return str(error)
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if line.strip()]
            return lines[-1] if lines else f"{' '.join(command)} ended with {done.returncode}"
    return None
