"""generate, chat, export and split as commands, over a tiny model and a tiny run."""

import io
import json
import shutil
from pathlib import Path

import pytest

from erniekit.checkpoint.files import open_tensors
from erniekit.cli.main import main
from erniekit.testing.tiny_checkpoint import write_tiny_checkpoint


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder, and a run of three checkpoints whose best is the second."""
    place = tmp_path_factory.mktemp("made with spaces")
    write_tiny_checkpoint(place / "model", seed=9)
    for step in (1, 2, 3):
        checkpoint = write_tiny_checkpoint(place / "run" / f"checkpoint-{step}", seed=step)
        state = {"step": step, "total_steps": 3, "progress": {"num_tokens": 10 * step, "evaluations": []}}
        (checkpoint / "trainer_state.json").write_text(json.dumps(state))
    (place / "run" / "best").write_text("checkpoint-2\n")
    (place / "run" / "latest").write_text("checkpoint-3\n")
    settings = (
        f"model_name_or_path: {place}/model\noutput_dir: elsewhere\nmax_new_tokens: 7\nlearning_rate: 0.125\n"
    )
    (place / "run" / "erniekit.yaml").write_text(settings + "overwrite_output_dir: true\n")
    (place / "run.yaml").write_text(f"model_name_or_path: {place}/model\noutput_dir: {place}/run\n")
    (place / "new.yaml").write_text(f"model_name_or_path: {place}/model\noutput_dir: {place}/none\n")
    return place


def told(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    code = main([str(word) for word in words])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


ASK = ("--prompt", "hello", "max_new_tokens=12", "temperature=0")


def test_which_model_is_used_is_told(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, model = made / "run", made / "model"
    answers = {}
    for name, words, description in [
        ("model", [model], f"model: {model}"),
        ("run", [run], f"model: step 2 (best) of {run}"),
        ("yaml", [made / "run.yaml"], f"model: step 2 (best) of {run}"),
        ("checkpoint", [run / "checkpoint-3"], f"model: step 3 (latest) of {run}"),
        ("new", [made / "new.yaml"], f"model: {model}"),
        ("named", [made / "run.yaml", f"model_name_or_path={model}"], f"model: {model}"),
    ]:
        code, out, err = told(capsys, "generate", *words, *ASK)
        assert code == 0, err
        assert description in err
        answers[name] = out
    assert answers["run"] == answers["yaml"]
    assert answers["model"] == answers["new"] == answers["named"]
    assert len({answers["model"], answers["run"], answers["checkpoint"]}) == 3


def test_settings_of_the_run_hold_for_its_checkpoints(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = told(capsys, "generate", made / "run", "--prompt", "hello", "stream=false")
    assert code == 0
    assert "cut off after max_new_tokens=7" in err


def test_same_answer_from_chat_generate_stream_and_file(
    made: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    model = made / "model"
    _, streamed, _ = told(capsys, "generate", model, *ASK)
    assert len(streamed) > 1
    assert told(capsys, "generate", model, *ASK, "stream=false")[1] == streamed
    assert told(capsys, "chat", model, *ASK)[1] == streamed
    rows = [{"prompt": "other, longer"}, {"prompt": "hello", "id": 5}]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ("--input", tmp_path / "in.jsonl", "--output", tmp_path / "out.jsonl", "--rows", "2")
    code, _, err = told(capsys, "generate", model, *words, "max_new_tokens=12", "temperature=0")
    assert code == 0, err
    answers = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row.get("id") for row in answers] == [None, 5]
    assert set(answers[1]) == {"prompt", "id", "answer", "finish_reason", "num_prompt_tokens", "num_tokens"}
    code, _, err = told(capsys, "generate", model, *words)
    assert code == 2 and "exists" in err


def test_raw_continues_plain_text(made: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    model = made / "model"
    _, asked, _ = told(capsys, "generate", model, *ASK)
    _, raw, _ = told(capsys, "generate", model, *ASK, "--raw")
    assert raw != asked
    bare = write_tiny_checkpoint(tmp_path / "bare", seed=9, template=None)
    assert told(capsys, "generate", bare, *ASK, "--raw")[1] == raw
    code, _, err = told(capsys, "generate", bare, *ASK)
    assert code == 1 and "no chat template" in err and "--raw" in err


def test_seed_repeats_and_is_told(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("generate", made / "model", "--prompt", "x", "max_new_tokens=12", "temperature=1.5")
    _, first, err = told(capsys, *words, "generation_seed=7")
    assert "generation_seed=7 repeats" in err
    assert told(capsys, *words, "generation_seed=7")[1] == first
    assert told(capsys, *words, "generation_seed=8")[1] != first


def test_chat_reads_questions_from_a_pipe(
    made: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(f"hello\nagain\n/save {tmp_path}/talk.jsonl\n"))
    code, out, err = told(capsys, "chat", made / "model", "--system", "s", "max_new_tokens=5")
    assert code == 0, err
    messages = json.loads((tmp_path / "talk.jsonl").read_text())["messages"]
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "user", "assistant"]
    assert messages[3]["content"] == "again"


def test_prompt_longer_than_the_context(
    made: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, _, err = told(capsys, "generate", made / "model", "--prompt", "x" * 300, "--raw")
    assert code == 2
    assert "the prompt has 300 tokens, but the model's context is 256 tokens" in err
    (tmp_path / "in.txt").write_text("ok\n" + "x" * 300 + "\n")
    words = ("--input", tmp_path / "in.txt", "--output", tmp_path / "out.jsonl", "--raw")
    code, _, err = told(capsys, "generate", made / "model", *words)
    assert code == 2 and "in.txt:2: the prompt has 300 tokens" in err
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ((), "give either --prompt TEXT or --input FILE"),
        (("--prompt", "a", "--input", "b"), "give either"),
        (("--input", "b"), "belong together"),
        (("--prompt", "a", "--rows", "0"), "whole number above 0"),
        (("--prompt", "a", "temprature=1"), "did you mean temperature"),
        (("--prompt", "a", "temperature=-1"), "temperature"),
    ],
)
def test_wrong_words(
    made: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], complaint: str
) -> None:
    code, _, err = told(capsys, "generate", made / "model", *words)
    assert code == 2
    assert complaint in err


def test_no_model_and_no_such_model(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, _, err = told(capsys, "chat")
    assert code == 2 and "needs a configuration, a model folder, or starter" in err
    code, _, err = told(capsys, "export", tmp_path / "nothing")
    assert code == 1 and "nothing" in err


def test_export_of_a_run_and_again(made: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    run = tmp_path / "moved run"
    shutil.copytree(made / "run", run)
    code, out, err = told(capsys, "export", run)
    assert code == 0, err
    assert f"model: step 2 (best) of {run}" in err
    assert out.startswith(f"{run}/export: all tensors and the logits")
    assert "| optimizer steps | 2 of 3 |" in (run / "export" / "README.md").read_text()
    _, answer, _ = told(capsys, "generate", run / "export", *ASK)
    assert answer == told(capsys, "generate", run / "checkpoint-2", *ASK)[1]
    code, _, err = told(capsys, "export", run)
    assert code == 1 and "overwrite_output_dir=true" in err
    assert told(capsys, "export", run, "overwrite_output_dir=true", "export_dtype=bf16")[0] == 0


def test_export_to_a_named_place(made: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = ("export_layout=paddle", f"export_dir={tmp_path}/for paddle")
    code, _, err = told(capsys, "export", made / "run.yaml", *words)
    assert code == 0, err
    assert "ernie.layers.0.self_attn.qkv_proj.weight" in open_tensors(tmp_path / "for paddle").names()


def test_export_of_an_adapter_is_not_built(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = told(capsys, "export", made / "run.yaml", "fine_tuning=LoRA")
    assert code == 2 and "not built yet" in err and "LoRA" in err


def test_split(made: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, out, err = told(capsys, "split", made / "model", "max_shard_size=20KB", f"output_dir={tmp_path}")
    assert code == 0, err
    assert out == f"{tmp_path}/split_export\n"
    assert len(list((tmp_path / "split_export").glob("*.safetensors"))) > 3
    assert (
        told(capsys, "generate", tmp_path / "split_export", *ASK)[1]
        == told(capsys, "generate", made / "model", *ASK)[1]
    )
