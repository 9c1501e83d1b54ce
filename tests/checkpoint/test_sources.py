from pathlib import Path

import pytest

from erniekit.checkpoint import sources
from erniekit.checkpoint.manifest import write_manifest
from erniekit.checkpoint.sources import locate_model, resolve_checkpoint
from erniekit.errors import CheckpointError


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """What would be downloaded; the downloads give a folder."""
    names: list[str] = []

    def fake(model: str, *, download_hub: str) -> Path:
        names.append(f"{download_hub}:{model}")
        return tmp_path

    monkeypatch.setattr(sources, "download", fake)
    return names


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def fake(model: str, *, download_hub: str) -> Path:
        raise CheckpointError(f"model_name_or_path: {model} not reached")

    monkeypatch.setattr(sources, "download", fake)


def locate(name: str) -> Path:
    return locate_model(model_name_or_path=name, download_hub="huggingface")


def model(path: Path) -> Path:
    path.mkdir(parents=True)
    (path / "config.json").write_text("{}")
    return path


def test_local_folder_comes_first(here: Path, asked: list[str]) -> None:
    for name in ("starter", "baidu/ERNIE-4.5-0.3B-PT", "ERNIE-4.5-0.3B", "ERNIE-4.5-21B-A3B"):
        model(here / name)
        assert locate(name) == Path(name)
    assert asked == []


def test_home_is_expanded(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(here))
    assert locate(f"~/{model(here / 'mine').name}") == here / "mine"


def test_run_folder_stands_for_best_else_latest(here: Path) -> None:
    run = here / "run"
    for step in (2, 10, 9):
        model(run / f"checkpoint-{step}")
    assert locate("run").name == "checkpoint-10"
    (run / "latest").write_text("checkpoint-9\n")
    assert resolve_checkpoint(run).name == "checkpoint-9"
    (run / "best").write_text("checkpoint-2\n")
    assert resolve_checkpoint(run).name == "checkpoint-2"
    assert locate("run/checkpoint-10") == Path("run/checkpoint-10")


def test_damaged_weights_of_a_run_are_refused_and_edited_files_are_not(here: Path) -> None:
    run = here / "run"
    for step in (1, 2):
        folder = model(run / f"checkpoint-{step}")
        (folder / "model.safetensors").write_bytes(bytes(100))
        (folder / "optimizer.safetensors").write_bytes(bytes(100))
        write_manifest(folder, number=step)
    newest = run / "checkpoint-2"
    (newest / "config.json").write_text("{}  ")
    (newest / "optimizer.safetensors").write_bytes(b"not needed to answer a question")
    assert resolve_checkpoint(run) == newest
    (newest / "model.safetensors").write_bytes(bytes(99) + b"\x01")
    for folder in (run, newest):
        with pytest.raises(
            CheckpointError, match=r"checkpoint-2/model\.safetensors is damaged.*checkpoint-1$"
        ):
            resolve_checkpoint(folder)


def test_folder_that_is_neither(here: Path) -> None:
    (here / "empty").mkdir()
    with pytest.raises(CheckpointError, match="empty is no model folder .*no checkpoint-<step>"):
        locate("empty")
    (here / "file.yaml").touch()
    with pytest.raises(CheckpointError, match="file.yaml is a file; name the folder"):
        locate("file.yaml")


def test_hub_ids_and_names(asked: list[str]) -> None:
    for name in ("org/name", "org/name@v1", "ERNIE-4.5-0.3B", "ernie-4.5-0.3b-paddle@abc"):
        locate(name)
    assert asked == [
        "huggingface:org/name",
        "huggingface:org/name@v1",
        "huggingface:baidu/ERNIE-4.5-0.3B-PT",
        "huggingface:baidu/ERNIE-4.5-0.3B-Paddle@abc",
    ]


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        ("startr", "starter"),
        ("ERNIE-4.5-03B", "ERNIE-4.5-0.3B"),
        ("./modle", "model"),
        ("runs/modle", "runs/model"),
        ("/nowhere/at/all", "does not exist either"),
    ],
)
def test_misspelt_names(here: Path, asked: list[str], name: str, suggestion: str) -> None:
    model(here / "model")
    model(here / "runs" / "model")
    with pytest.raises(CheckpointError) as caught:
        locate(name)
    assert name in str(caught.value) and suggestion in str(caught.value)
    assert asked == []


def test_misspelt_hub_id(offline: None) -> None:
    with pytest.raises(CheckpointError, match="not reached; did you mean baidu/ERNIE-4.5-0.3B-PT"):
        locate("baidu/ERNIE-4.5-0.3B-TP")


def test_local_path_or_hub_id(here: Path, offline: None) -> None:
    """`a/b` may be either: when neither is there, the error speaks of both."""
    model(here / "outputs" / "first")
    with pytest.raises(CheckpointError) as caught:
        locate("outputs/second-run")
    assert "not reached" in str(caught.value)
    assert "The folder outputs is here, but holds first, and no second-run" in str(caught.value)
    with pytest.raises(CheckpointError, match="there is no folder outputs/checkpoint-7"):
        locate("outputs/checkpoint-7")
