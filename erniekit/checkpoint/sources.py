"""From what `model_name_or_path` says to a model folder on this machine."""

import re
from difflib import get_close_matches
from pathlib import Path

from erniekit.checkpoint.adapter_files import is_adapter, open_adapter
from erniekit.checkpoint.download import download
from erniekit.checkpoint.manifest import MANIFEST, verify
from erniekit.checkpoint.presets import STARTER, known_names, preset_hub_id
from erniekit.checkpoint.starter import build_starter
from erniekit.checkpoint.store import CheckpointStore
from erniekit.errors import CheckpointError, MissingModelError

_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?$")
_CHECKPOINT = re.compile(r"checkpoint-\d+$")
_TOKENIZERS = ("tokenizer.json", "tokenizer.model")


def locate_model(*, model_name_or_path: str, download_hub: str) -> Path:
    """A model folder: a local one, else `starter`, else a preset's name or a hub id (`org/name@revision`).

    A training output folder stands for its best checkpoint, else its latest.

    Raises:
        MissingModelError: nothing of that name is to be had; says what was tried, and what is spelt alike.
        UnsupportedError: the package of the hub or of the starter is not installed.
    """
    path = Path(model_name_or_path).expanduser()
    if path.is_dir():
        return resolve_checkpoint(path)
    if path.is_file():
        raise MissingModelError(
            f"model_name_or_path: {model_name_or_path} is a file; name the folder that holds config.json"
        )
    if model_name_or_path == STARTER:
        return build_starter()
    name, at, revision = model_name_or_path.partition("@")
    hub_id = preset_hub_id(name)
    if hub_id:
        return download(f"{hub_id}{at}{revision}", download_hub=download_hub)
    beside = _spelt_alike(path)
    if looks_like_hub_id(model_name_or_path) and not beside:
        try:
            return download(model_name_or_path, download_hub=download_hub)
        except CheckpointError as error:
            known = get_close_matches(name, [n for n in known_names() if n != name], n=2, cutoff=0.8)
            raise MissingModelError(f"{error}{_local_hint(path)}{_did_you_mean(known)}") from error
    close = beside or get_close_matches(model_name_or_path, known_names(), n=3, cutoff=0.6)
    raise MissingModelError(
        f"model_name_or_path: there is no folder {model_name_or_path} ({_where(path)}), and it is neither "
        f"{STARTER}, nor a name of `erniekit models list`, nor a hub id (organisation/name)"
        f"{_did_you_mean(close)}"
    )


def locate_adapters(*, lora_path: str | None) -> list[Path]:
    """The adapter folders of a list separated by commas; a run's folder stands for its best, else latest.

    Raises:
        MissingModelError: there is no such folder.
        CheckpointError: one holds no adapter.
    """
    folders = []
    for name in filter(None, (part.strip() for part in (lora_path or "").split(","))):
        path = Path(name).expanduser()
        if not path.is_dir():
            raise MissingModelError(f"lora_path: there is no folder {name} ({_where(path)})")
        folder = resolve_checkpoint(path)
        if not is_adapter(folder):
            raise CheckpointError(
                f"lora_path: {folder} holds a whole model and no adapter; name it as model_name_or_path"
            )
        folders.append(folder)
    return folders


def base_folder(adapter: Path) -> Path:
    """The model that an adapter was trained on, where its settings say it is.

    Raises:
        MissingModelError: it is not there; says how to name another place.
    """
    base = open_adapter(adapter).settings.base
    hint = f"name the model, and the adapter as lora_path={adapter}"
    if not base:
        raise MissingModelError(f"{adapter} does not say which model it is for: {hint}")
    try:
        return locate_model(model_name_or_path=base, download_hub="huggingface")
    except MissingModelError as error:
        raise MissingModelError(f"{adapter} is an adapter of {base}: {error}; or {hint}") from error


def companions_folder(folder: Path) -> Path:
    """Where the tokenizer of a model folder is: the folder itself, or the base of an adapter without one."""
    if not is_adapter(folder) or any((folder / name).is_file() for name in _TOKENIZERS):
        return folder
    return base_folder(folder)


def looks_like_hub_id(name: str) -> bool:
    """Whether a name may be one of a hub: org/name or org/name@revision, and not a checkpoint of a run."""
    return bool(_HUB_ID.match(name)) and not _CHECKPOINT.search(name)


def resolve_checkpoint(folder: Path) -> Path:
    """A model folder itself; of a run's folder the best checkpoint, else the latest; its weights verified.

    Raises:
        MissingModelError: the folder is neither.
        CheckpointError: weights are not as a run wrote them; names the file and the newest good checkpoint.
    """
    if (folder / "config.json").is_file() or is_adapter(folder):
        return _verified(folder)
    store = CheckpointStore(folder, save_total_limit=None)
    chosen = store.best() or store.latest()
    if chosen is None:
        raise MissingModelError(
            f"{folder} is no model folder (no config.json) and holds no checkpoint-<step>"
        )
    return _verified(chosen.path)


def _verified(folder: Path) -> Path:
    """The folder, when the weights are as its manifest says; other files may have been edited since."""
    if (folder / MANIFEST).is_file():
        try:
            verify(folder, only=_is_weights)
        except CheckpointError as error:
            raise CheckpointError(f"{error}; {CheckpointStore(folder.parent).good_hint()}") from error
    return folder


def _is_weights(name: str) -> bool:
    return name.endswith(".safetensors") and not name.startswith("optimizer")


def _spelt_alike(path: Path) -> list[str]:
    """Folders beside a missing one whose names are nearly its own, as paths."""
    if not path.parent.is_dir():
        return []
    folders = [entry.name for entry in path.parent.iterdir() if entry.is_dir()]
    return [str(path.parent / name) for name in get_close_matches(path.name, folders, n=2, cutoff=0.8)]


def _local_hint(path: Path) -> str:
    """For `a/b` where a folder `a` exists here: it may have been meant."""
    if path.parent == Path(".") or not path.parent.is_dir():
        return ""
    folders = sorted(entry.name for entry in path.parent.iterdir() if entry.is_dir())
    held = f"holds {', '.join(folders[:5])}" if folders else "holds no folders"
    return f"\nThe folder {path.parent} is here, but {held}, and no {path.name}."


def _where(path: Path) -> str:
    parent = path.absolute().parent
    return f"in {parent}" if parent.is_dir() else f"{parent} does not exist either"


def _did_you_mean(names: list[str]) -> str:
    return f"; did you mean {' or '.join(names)}?" if names else ""
