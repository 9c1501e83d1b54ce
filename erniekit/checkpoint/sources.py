"""From what `model_name_or_path` says to a model folder on this machine."""

import re
from difflib import get_close_matches
from pathlib import Path

from erniekit.checkpoint.download import download
from erniekit.checkpoint.starter import build_starter
from erniekit.checkpoint.store import CheckpointStore
from erniekit.errors import CheckpointError

STARTER = "starter"
_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[\w.-]+(@[\w./-]+)?$")


def locate_model(*, model_name_or_path: str, download_hub: str) -> Path:
    """A model folder: a local one first, then `starter`, then a hub id.

    A training output folder stands for its best checkpoint, else its latest.

    Raises:
        CheckpointError: nothing of that name is to be had; says what was tried.
    """
    path = Path(model_name_or_path).expanduser()
    if path.is_dir():
        return resolve_checkpoint(path)
    if path.is_file():
        raise CheckpointError(f"model_name_or_path: {path} is a file; name the folder that holds config.json")
    if model_name_or_path == STARTER:
        return build_starter()
    if _HUB_ID.match(model_name_or_path) and not (path.parent.is_dir() and path.parent != Path(".")):
        return download(model_name_or_path, download_hub=download_hub)
    beside = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    close = get_close_matches(path.name, [*beside, STARTER], n=3, cutoff=0.6)
    hint = f"; did you mean {' or '.join(close)}?" if close else ""
    raise CheckpointError(
        f"model_name_or_path: {model_name_or_path} is neither a folder here, nor {STARTER}, nor a hub id "
        f"(organisation/name){hint}"
    )


def resolve_checkpoint(folder: Path) -> Path:
    """A model folder itself; of a run's folder the best checkpoint, else the latest.

    Raises:
        CheckpointError: the folder is neither.
    """
    if (folder / "config.json").is_file():
        return folder
    store = CheckpointStore(folder, save_total_limit=None)
    chosen = store.best() or store.latest()
    if chosen is None:
        raise CheckpointError(f"{folder} is no model folder (no config.json) and holds no checkpoint-<step>")
    return chosen.path
