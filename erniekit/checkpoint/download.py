"""Model folders from a hub (Hugging Face, AI Studio, ModelScope): weights, configuration, tokenizer; no code.

Whether the hub can be reached is found out first and within seconds: the hubs' own libraries wait
for minutes on a network that swallows packets. Without the hub, the copy that an earlier download
left is used when there is one.
"""

import re
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

from erniekit.checkpoint.starter import cache_folder
from erniekit.errors import ConfigError, MissingModelError, UnsupportedError
from erniekit.log import logger

PATTERNS = ["*.safetensors", "*.json", "*.jinja", "tokenizer.model", "README.md", "LICENSE*"]
_SECONDS = 5.0
_COMMIT = re.compile(r"^[0-9a-f]{40}$")


def download(model: str, *, download_hub: str) -> Path:
    """The local copy of `org/name` or `org/name@revision`, fetched when it is not there yet.

    Raises:
        UnsupportedError: the hub's package is not installed; names it.
        MissingModelError: the hub cannot be reached, or does not have the model; says what was tried.
        ConfigError: there is no such hub.
    """
    if download_hub not in HUBS:
        raise ConfigError(f"download_hub: {download_hub!r} is not known; write one of {', '.join(HUBS)}")
    hub = HUBS[download_hub]
    if find_spec(hub.package) is None:
        raise UnsupportedError(
            f"download_hub: {download_hub} needs a package that is not installed: pip install {hub.install}"
        )
    name, _, revision = model.partition("@")
    name = hub.name_of(name)
    endpoint = hub.endpoint()
    online = reachable(endpoint)
    logger.info(
        f"looking up {name} on {download_hub}" + ("" if online else f" (offline: {endpoint} does not answer)")
    )
    try:
        folder = Path(hub.fetch(name, revision or None, not online))
    # Each hub's library raises classes of its own, several straight below Exception.
    except Exception as error:
        raise MissingModelError(_failure(model, download_hub, endpoint, online, error)) from error
    logger.info(f"{name}: revision {revision_of(folder) or revision or 'the newest'}, in {folder}")
    return folder


def revision_of(folder: Path) -> str | None:
    """The commit that a folder of huggingface_hub's cache holds; None for other folders."""
    return folder.name if folder.parent.name == "snapshots" and _COMMIT.match(folder.name) else None


def reachable(endpoint: str) -> bool:
    """Whether a TCP connection to a URL's host comes about within seconds; behind a proxy that is assumed."""
    if {"https", "all"} & set(getproxies()):
        return True
    parts = urlsplit(endpoint)
    address = (parts.hostname or "", parts.port or (80 if parts.scheme == "http" else 443))
    answered = threading.Event()

    def connect() -> None:
        try:
            socket.create_connection(address, timeout=_SECONDS).close()
        except OSError:
            return
        answered.set()

    # In a thread, because looking up the name has no time limit of its own.
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(_SECONDS)
    return answered.is_set()


def _failure(model: str, download_hub: str, endpoint: str, online: bool, error: Exception) -> str:
    if online:
        lines = [line for line in str(error).splitlines() if line.strip()]
        found = f"{download_hub} gave no such model: {lines[0].strip() if lines else type(error).__name__}"
    else:
        found = f"{endpoint} cannot be reached, and no earlier download of it is in the cache"
    return (
        f"model_name_or_path: {model} is no folder here, and {found}\n"
        "Check the spelling and the network; or copy the model folder to this machine and write its path "
        "(./name); or write model_name_or_path: starter, a model that needs a package index only."
    )


def _huggingface_endpoint() -> str:
    from huggingface_hub.constants import ENDPOINT

    return ENDPOINT


def _from_huggingface(name: str, revision: str | None, offline: bool) -> str:
    from huggingface_hub import snapshot_download

    return snapshot_download(
        name, revision=revision, allow_patterns=PATTERNS, etag_timeout=_SECONDS, local_files_only=offline
    )


def _from_aistudio(name: str, revision: str | None, offline: bool) -> str:
    target = cache_folder() / "aistudio" / name / (revision or "newest")
    if offline:
        if not (target / "config.json").is_file():
            raise FileNotFoundError(target)
        return str(target)
    from aistudio_sdk.snapshot_download import snapshot_download

    snapshot_download(repo_id=name, revision=revision, local_dir=str(target), allow_patterns=PATTERNS)
    return str(target)


def _from_modelscope(name: str, revision: str | None, offline: bool) -> str:
    from modelscope import snapshot_download

    return snapshot_download(name, revision=revision, allow_patterns=PATTERNS, local_files_only=offline)


def _same(name: str) -> str:
    return name


def _paddlepaddle(name: str) -> str:
    """Baidu's models are published by another organisation there."""
    return re.sub("^baidu/", "PaddlePaddle/", name)


@dataclass(frozen=True)
class Hub:
    """A hub: the package that reads it, where it is, how it calls models."""

    package: str
    install: str
    endpoint: Callable[[], str]
    name_of: Callable[[str], str]
    fetch: Callable[[str, str | None, bool], str]


HUBS = {
    "huggingface": Hub("huggingface_hub", "huggingface_hub", _huggingface_endpoint, _same, _from_huggingface),
    "aistudio": Hub(
        "aistudio_sdk", "aistudio-sdk", lambda: "https://aistudio.baidu.com", _paddlepaddle, _from_aistudio
    ),
    "modelscope": Hub(
        "modelscope", "modelscope", lambda: "https://www.modelscope.cn", _paddlepaddle, _from_modelscope
    ),
}
