"""What `data preview` takes for data and what for a configuration, and that it needs no Paddle."""

import json
import subprocess
import sys

import pytest

from erniekit.cli.data import _with_data, run
from erniekit.errors import ConfigError
from erniekit.testing.tiny_checkpoint import write_tiny_checkpoint


@pytest.fixture
def folder(tmp_path):
    write_tiny_checkpoint(tmp_path / "the model")
    rows = [{"src": f"question {number}", "tgt": "yes \x1b[31m"} for number in range(30)]
    (tmp_path / "some data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


def words(folder, *more):
    return [
        "preview",
        str(folder / "some data.jsonl"),
        f"model_name_or_path={folder / 'the model'}",
        "max_seq_len=96",
        *more,
    ]


def test_samples_figures_and_steps_are_shown(folder, capsys):
    assert run(words(folder, "-n", "2")) == 0
    told = capsys.readouterr().out
    assert told.count(" trained (") == 2 and "some data.jsonl:" in told
    # Not a terminal: brackets show the mask, and nothing in the data reaches the terminal as a command.
    assert "<|assistant|>[[yes \\x1b[31m<|end|>]]" in told and "\x1b" not in told
    assert "30 rows, 30 samples" in told and "tokens a sample: " in told and "##" in told
    assert "an epoch: " in told and "packed to " in told


def test_no_sample_is_shown_when_none_is_wanted(folder, capsys):
    assert run(words(folder, "-n", "0")) == 0
    told = capsys.readouterr().out
    assert " trained (" not in told and "30 rows" in told


def test_paddle_is_not_imported(folder):
    script = (
        "import sys; from erniekit.cli.data import run; run(sys.argv[1:]); assert 'paddle' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", script, *words(folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_data_file_is_told_from_a_configuration(tmp_path):
    data, config, objects = (tmp_path / name for name in ("data.json", "config.json", "objects.json"))
    data.write_text('[{"src": "a", "tgt": "b"}]')
    config.write_text('{"model_name_or_path": "starter"}')
    objects.write_text('{"src": "a", "tgt": "b"}')
    assert _with_data([str(data), "x=1"]) == [f"train_dataset_path={data}", "x=1"]
    assert _with_data([str(objects)]) == [f"train_dataset_path={objects}"]
    for path in (str(config), "run.yaml", "train_dataset_path=a.jsonl"):
        assert _with_data([path]) == [path]
    assert _with_data([str(tmp_path)]) == [f"train_dataset_path={tmp_path}"]
    assert _with_data(["data/*.json"]) == ["train_dataset_path=data/*.json"]
    (tmp_path / "erniekit.yaml").write_text("")
    assert _with_data([str(tmp_path)]) == [str(tmp_path)]
    assert _with_data(["a.jsonl.gz"]) == ["train_dataset_path=a.jsonl.gz"]


@pytest.mark.parametrize("given", [[], ["show", "x"], ["preview"], ["preview", "x.jsonl", "-n", "many"]])
def test_wrong_words(given):
    with pytest.raises(ConfigError, match="data preview|not a number"):
        run(given)
