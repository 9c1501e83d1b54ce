"""`erniekit generate` as a command."""

import json
from pathlib import Path

import pytest

from erniekit.testing.tiny_checkpoint import write_tiny_checkpoint
from tests.cli.told import Told

ASK = ("--prompt", "hello", "max_new_tokens=12", "temperature=0")


def test_same_answer_from_chat_generate_stream_and_file(tiny_run: Path, told: Told, tmp_path: Path) -> None:
    model = tiny_run / "model"
    _, streamed, _ = told("generate", model, *ASK)
    assert len(streamed) > 1
    assert told("generate", model, *ASK, "stream=false")[1] == streamed
    assert told("chat", model, *ASK)[1] == streamed
    rows = [{"prompt": "other, longer"}, {"prompt": "hello", "id": 5}]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ("--input", tmp_path / "in.jsonl", "--output", tmp_path / "out.jsonl", "--rows", "2")
    code, _, err = told("generate", model, *words, "max_new_tokens=12", "temperature=0")
    assert code == 0, err
    answers = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row.get("id") for row in answers] == [None, 5]
    assert set(answers[1]) == {"prompt", "id", "answer", "finish_reason", "num_prompt_tokens", "num_tokens"}
    code, _, err = told("generate", model, *words)
    assert code == 2 and "exists" in err


def test_raw_continues_plain_text(tiny_run: Path, told: Told, tmp_path: Path) -> None:
    model = tiny_run / "model"
    _, asked, _ = told("generate", model, *ASK)
    _, raw, _ = told("generate", model, *ASK, "--raw")
    assert raw != asked
    bare = write_tiny_checkpoint(tmp_path / "bare", seed=9, template=None)
    assert told("generate", bare, *ASK, "--raw")[1] == raw
    code, _, err = told("generate", bare, *ASK)
    assert code == 1 and "no chat template" in err and "--raw" in err


def test_seed_repeats_and_is_told(tiny_run: Path, told: Told) -> None:
    words = ("generate", tiny_run / "model", "--prompt", "x", "max_new_tokens=12", "temperature=1.5")
    _, first, err = told(*words, "generation_seed=7")
    assert "generation_seed=7 repeats" in err
    assert told(*words, "generation_seed=7")[1] == first
    assert told(*words, "generation_seed=8")[1] != first


def test_prompt_longer_than_the_context(tiny_run: Path, told: Told, tmp_path: Path) -> None:
    code, _, err = told("generate", tiny_run / "model", "--prompt", "x" * 300, "--raw")
    assert code == 2
    assert "the prompt has 300 tokens, but the model's context is 256 tokens" in err
    (tmp_path / "in.txt").write_text("ok\n" + "x" * 300 + "\n")
    words = ("--input", tmp_path / "in.txt", "--output", tmp_path / "out.jsonl", "--raw")
    code, _, err = told("generate", tiny_run / "model", *words)
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
def test_wrong_words(tiny_run: Path, told: Told, words: tuple[str, ...], complaint: str) -> None:
    code, _, err = told("generate", tiny_run / "model", *words)
    assert code == 2
    assert complaint in err
