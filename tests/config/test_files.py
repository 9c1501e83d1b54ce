"""YAML and JSON files, and what is neither."""

import json
from pathlib import Path

import pytest

from erniekit.config.load import config_from_dict, load_config
from erniekit.errors import ConfigError
from tests.config.loading import write


def test_json_says_the_same_as_yaml(tmp_path: Path) -> None:
    values = {
        "model_name_or_path": "starter",
        "train_dataset_path": "a",
        "seed": 3,
        "stop": ["x"],
        "packing": False,
    }
    text = json.dumps(values, indent="\t")
    loaded = load_config(write(tmp_path, text, "run.json"), verb="train")
    assert loaded.config == config_from_dict(values, "train").config
    assert str(loaded.sources["seed"]).endswith("run.json:4:2")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", ":1:1: the file is empty"),
        (b"  \n\n", "empty"),
        (b"# only this\n", ":1:1: the file holds only comments"),
        (b"- a\n- b\n", ":1:1: is a list"),
        (b"hello\n", "single value"),
        (b"seed: 1\nrun_name: caf\xe9\n", ":2:14: byte 0xe9 is not UTF-8"),
        (b"seed: [1\nrun_name: a\n", "not YAML"),
        (b"seed: 1\n\tpacking: true\n", ":2:"),
        (b"[1, 2]: 3\n", "a key must be a word"),
        (b"stop: " + b"[" * 5000, "more than 50 deep"),
        (b"stop: " + b"[" * 20000 + b"]" * 20000, "values are nested"),
        (b"stop: " + b"[" * 60 + b"]" * 60, ":1:56: values are nested"),
        (b"stop:\n" + b"- " * 20000 + b"a\n", "more than 50 deep"),
        (b"x-a: &a [*a]\n", ":1:6: an alias repeats what it stands in"),
        (b"x-a: &a {b: {c: *a}}\n", "an alias repeats what it stands in"),
        (b"#" * 1_000_001, ":1:1: the file is larger than 1 MB"),
        ("seed: 1\n".encode("utf-16"), ":1:1: the file is UTF-16"),
        ("seed: 1\n".encode("utf-16-be"), ":1:1: the file is UTF-16"),
        (b"seed: 1\n<<: 3\n", ":2:1: <<: merges mappings"),
        (b"seed: 1\n---\nseed: 2\n", "another document"),
        (b"seed: !!python/object:os.system 1\n", "seed"),
    ],
)
def test_files_that_are_no_configuration(tmp_path: Path, content: bytes, told: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_config(path, verb="train")
    assert str(caught.value).startswith(str(path))
    assert told in str(caught.value)


def test_broken_json_tells_where(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"run\.json:2:\d+: not JSON"):
        load_config(write(tmp_path, '{"seed": 1,\n seed: 2}', "run.json"), verb="train")
    with pytest.raises(ConfigError, match="given twice"):
        load_config(write(tmp_path, '{"seed": 1,\n "seed": 2}', "run.json"), verb="show")


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load_config(tmp_path / "nowhere.yaml", verb="train")
    with pytest.raises(ConfigError, match="is a folder"):
        load_config(tmp_path, verb="train")


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes(b"\xef\xbb\xbfseed: 3\n")
    assert load_config(path, verb="show").config.run.seed == 3


@pytest.mark.parametrize("key", ["x-bomb", "stop", "unknown"])
@pytest.mark.parametrize("leaf", ["lol", "'${seed}'"])
def test_aliases_of_aliases_do_not_fill_the_memory(tmp_path: Path, key: str, leaf: str) -> None:
    lines = [f"x-0: &a0 [{', '.join([leaf] * 10)}]"]
    lines += [f"x-{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    path = write(tmp_path, "\n".join([*lines, f"{key}: *a11"]) + "\n")
    with pytest.raises(ConfigError, match=r"run\.yaml:\d+:\d+: the file stands for more than 100,000 values"):
        load_config(path, verb="train")


def test_an_alias_does_not_multiply_a_long_text(tmp_path: Path) -> None:
    path = write(tmp_path, f"x-a: &a {'a' * 100_000}\nx-b: [{', '.join(['*a'] * 200)}]\n")
    with pytest.raises(ConfigError, match="more than 100,000 values"):
        load_config(path, verb="show")


def test_depth_through_aliases_counts(tmp_path: Path) -> None:
    lines = ["x-0: &a0 [a]", *(f"x-{n}: &a{n} [*a{n - 1}]" for n in range(1, 3000))]
    with pytest.raises(ConfigError, match="more than 50 deep"):
        load_config(write(tmp_path, "\n".join(lines)), verb="show")


def test_json_has_the_same_limits(tmp_path: Path) -> None:
    for depth in (60, 20_000):
        text = '{"stop": ' + "[" * depth + "]" * depth + "}"
        with pytest.raises(ConfigError, match=r"run\.json:1:1: values are nested"):
            load_config(write(tmp_path, text, "run.json"), verb="show")


def test_a_deep_value_on_the_command_line_is_a_problem(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="command line: stop: .*more than 50 deep"):
        load_config(write(tmp_path, "seed: 1\n"), ["stop=" + "[" * 100 + "]" * 100], verb="show")


def test_plain_aliases_work(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, "x-n: &n 5\nseed: *n\nwarmup_steps: *n\n"), verb="show").config
    assert (config.run.seed, config.schedule.warmup_steps) == (5, 5)
    with pytest.raises(ConfigError, match=r":2:7: seed: many is not allowed"):
        load_config(write(tmp_path, "x-n: &n many\nseed: *n\n"), verb="show")


def test_merge_keys(tmp_path: Path) -> None:
    text = "x-a: &a {seed: 1, warmup_steps: 3}\nx-b: &b {seed: 2}\n<<: [*a, *b]\nwarmup_steps: 4\n"
    loaded = load_config(write(tmp_path, text), verb="show")
    assert (loaded.config.run.seed, loaded.config.schedule.warmup_steps) == (1, 4)
    assert str(loaded.sources["seed"]).endswith("run.yaml:1:10")


def test_the_place_of_a_value_in_json(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"run\.json:2:9: seed: many"):
        load_config(write(tmp_path, '{"packing": true,\n"seed": "many"}', "run.json"), verb="show")
