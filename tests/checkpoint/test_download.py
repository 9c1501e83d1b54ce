import os
import socket
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from erniekit.checkpoint import download as download_module
from erniekit.checkpoint.download import PATTERNS, download, reachable, revision_of
from erniekit.errors import CheckpointError, ConfigError, UnsupportedError

COMMIT = "0123456789" * 4


def fake_hub(
    monkeypatch: pytest.MonkeyPatch, module: str, *, online: bool, answer: Any
) -> list[dict[str, Any]]:
    """Put a module with `snapshot_download` in the place of a hub's library; returns its calls."""
    calls: list[dict[str, Any]] = []

    def snapshot_download(*args: Any, **keywords: Any) -> Any:
        calls.append({"args": args, **keywords})
        if isinstance(answer, Exception):
            raise answer
        return answer

    fake = ModuleType(module)
    fake.snapshot_download = snapshot_download  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module, fake)
    parent = module.partition(".")[0]
    if parent != module:
        monkeypatch.setitem(sys.modules, parent, ModuleType(parent))
    monkeypatch.setattr(
        download_module, "find_spec", lambda name: True if name == parent else find_spec(name)
    )
    monkeypatch.setattr(download_module, "reachable", lambda endpoint: online)
    return calls


def snapshot(tmp_path: Path) -> Path:
    folder = tmp_path / "models--org--name" / "snapshots" / COMMIT
    folder.mkdir(parents=True)
    return folder


def test_huggingface(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import huggingface_hub

    folder, calls = snapshot(tmp_path), []

    def fake(name: str, **keywords: Any) -> str:
        calls.append((name, keywords))
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fake)
    monkeypatch.setattr(download_module, "reachable", lambda endpoint: True)
    with caplog.at_level("INFO", logger="erniekit"):
        assert download("org/name@v2", download_hub="huggingface") == folder
    name, keywords = calls[0]
    assert (name, keywords["revision"], keywords["local_files_only"]) == ("org/name", "v2", False)
    assert keywords["allow_patterns"] == PATTERNS
    assert revision_of(folder) == COMMIT


def test_no_code_is_downloaded() -> None:
    assert not any(
        pattern.endswith((".py", ".bin", ".pdparams", "*")) for pattern in PATTERNS if pattern != "LICENSE*"
    )


@pytest.mark.parametrize(
    ("hub", "module", "name"),
    [
        ("modelscope", "modelscope", "PaddlePaddle/ERNIE-4.5-0.3B-PT"),
        ("aistudio", "aistudio_sdk.snapshot_download", "PaddlePaddle/ERNIE-4.5-0.3B-PT"),
    ],
)
def test_other_hubs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, hub: str, module: str, name: str
) -> None:
    monkeypatch.setenv("ERNIEKIT_CACHE", str(tmp_path))
    calls = fake_hub(monkeypatch, module, online=True, answer=str(tmp_path / "there"))
    folder = download("baidu/ERNIE-4.5-0.3B-PT", download_hub=hub)
    assert calls[0].get("repo_id", *calls[0]["args"]) == name
    assert calls[0]["allow_patterns"] == PATTERNS
    assert folder.is_relative_to(tmp_path)


def test_model_that_the_hub_does_not_have(monkeypatch: pytest.MonkeyPatch) -> None:
    class NotExistError(Exception):
        pass

    fake_hub(monkeypatch, "modelscope", online=True, answer=NotExistError("repo not found"))
    with pytest.raises(
        CheckpointError, match="org/none is no folder here, and modelscope gave no such model: repo"
    ):
        download("org/none", download_hub="modelscope")


@pytest.mark.parametrize(
    ("hub", "module"), [("modelscope", "modelscope"), ("aistudio", "aistudio_sdk.snapshot_download")]
)
def test_offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, hub: str, module: str) -> None:
    monkeypatch.setenv("ERNIEKIT_CACHE", str(tmp_path))
    fake_hub(monkeypatch, module, online=False, answer=ValueError("nothing cached"))
    with pytest.raises(CheckpointError, match=r"cannot be reached, and no earlier download[\s\S]*starter"):
        download("org/name", download_hub=hub)


def test_offline_with_an_earlier_download(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ERNIEKIT_CACHE", str(tmp_path))
    fake_hub(
        monkeypatch,
        "aistudio_sdk.snapshot_download",
        online=False,
        answer=AssertionError("must not be asked"),
    )
    earlier = tmp_path / "aistudio" / "org" / "name" / "newest"
    earlier.mkdir(parents=True)
    (earlier / "config.json").write_text("{}")
    assert download("org/name", download_hub="aistudio") == earlier


def test_huggingface_offline_by_its_own_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With nothing cached the real library finds nothing, without a look at the network."""
    monkeypatch.setattr(download_module, "reachable", lambda endpoint: False)
    with pytest.raises(CheckpointError, match="cannot be reached, and no earlier download"):
        download("erniekit-test/does-not-exist", download_hub="huggingface")


def test_missing_library_and_unknown_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download_module, "find_spec", lambda name: None)
    with pytest.raises(UnsupportedError, match="pip install aistudio-sdk"):
        download("org/name", download_hub="aistudio")
    with pytest.raises(ConfigError, match="one of huggingface, aistudio, modelscope"):
        download("org/name", download_hub="gitlab")


def test_reachable(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert reachable(f"http://127.0.0.1:{port}/path")
    assert not reachable(f"http://127.0.0.1:{port}")
    assert not reachable("https://name.invalid")


def test_network_that_swallows_packets_is_given_up_on(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(download_module, "_SECONDS", 0.2)

    def never_answers(*_args: object, **_kwargs: object) -> None:
        time.sleep(30)
        raise TimeoutError

    monkeypatch.setattr(socket, "create_connection", never_answers)
    started = time.monotonic()
    assert not reachable("https://hub.test")
    assert time.monotonic() - started < 5


def test_a_proxy_is_trusted_to_reach_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.invalid:1")
    assert reachable("https://name.invalid")
