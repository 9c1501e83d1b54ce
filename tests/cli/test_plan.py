"""`erniekit plan`: what it prints, what it answers to programs, and errors with their place."""

import json

import pytest

from erniekit.cli.main import main
from erniekit.testing.tiny_checkpoint import tiny_config, write_tiny_checkpoint


@pytest.fixture(scope="module")
def configuration(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plan")
    model = write_tiny_checkpoint(folder / "model", tiny_config(num_hidden_layers=4))
    path = folder / "run.yaml"
    path.write_text(
        f"model_name_or_path: {model}\nmax_seq_len: 64\ngradient_accumulation_steps: 8\n"
        "pipeline_parallel_degree: 2\ntensor_parallel_degree: 2\n"
    )
    return str(path)


def told(capsys, code, *words):
    assert main(["plan", *words]) == code
    return capsys.readouterr()


def test_a_plan_for_people(configuration, capsys):
    text = told(capsys, 0, configuration, "devices=8").out
    assert "8 x H800: pipeline 2, data 2, tensor 2" in text
    assert "worst: pipeline rank" in text and "fits" in text and "bubble 1" in text
    assert "tensor" in text and "data" in text


def test_the_same_for_programs(configuration, capsys):
    found = json.loads(told(capsys, 0, configuration, "--json").out)
    assert found["layout"]["pipeline"] == 2 and found["devices"] == 4
    assert len(found["ranks"]) == 2 and found["fits"] and found["remedies"] == []
    worst = found["ranks"][found["worst_rank"]]
    assert worst["total"] == sum(worst["memory"].values()) == max(rank["total"] for rank in found["ranks"])
    assert found["tokens"] == 8 * 64 and 0 < found["bubble"] < 1 and 0 < found["mfu"] < 1


def test_what_does_not_fit_says_what_to_change(configuration, capsys):
    words = (configuration, "memory_gb=0.5", "max_seq_len=16384", "per_device_train_batch_size=4")
    text = told(capsys, 1, *words).out
    assert "DOES NOT FIT" in text and "it fits with:" in text
    assert "per_device_train_batch_size: 1, gradient_accumulation_steps: 32" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("devices=6",), "run.yaml:4:1: pipeline_parallel_degree"),
        (("tensor_parallel_degree=4",), "tensor_parallel_degree: 4 does not divide num_key_value_heads: 2"),
        (("pipeline_parallel_degree=8",), "pipeline_parallel_degree: 8 is more than num_hidden_layers: 4"),
        (("devices=4", "expert_parallel_degree=2"), "this model has none; leave moe_group and"),
        (("memory_gb=much",), "memory_gb=much: write a number above 0"),
        (("machine=A10",), "machine=A10: write one of H800"),
        (("efficiency=60",), "at most 1"),
        (("model_name_or_path=nobody/knows",), "neither a model folder nor a known name"),
    ],
)
def test_mistakes(configuration, capsys, words, message):
    assert message in " ".join(told(capsys, 2, configuration, *words).err.split())


def test_search(configuration, capsys):
    words = ("search", configuration, "devices=4")
    text = told(capsys, 0, *words).out.splitlines()
    assert "plans of 4 H800 fit" in text[0] and len(text) > 3
    found = json.loads(told(capsys, 0, *words, "--json").out)
    seconds = [plan["seconds"] for plan in found]
    assert seconds == sorted(seconds)
    # The sequences of a step stay as many as the configuration asks for.
    assert {plan["tokens"] for plan in found} == {8 * 64}
    assert "devices=N" in told(capsys, 2, "search", configuration).err
    assert "no plan" in told(capsys, 1, *words, "memory_gb=0.01").out


def test_adapters_and_frozen_parts(configuration, capsys):
    alone = (configuration, "pipeline_parallel_degree=1", "tensor_parallel_degree=1", "--json")
    (adapter,) = json.loads(told(capsys, 0, *alone, "fine_tuning=LoRA", "lora_rank=2").out)["ranks"]
    # q, k, v of 64, 32, 32; o of 64; gate and up of 48; down: pairs of rank 2 in each of 4 blocks.
    pairs = 3 * 32 + 128 + 64 + 32 + 2 * 32 + 96 + 48 + 32
    assert adapter["trained"] == 4 * 2 * pairs
    (frozen,) = json.loads(told(capsys, 0, *alone, "freeze=[layers]").out)["ranks"]
    assert 0 < frozen["trained"] < frozen["parameters"]


def test_recompute_auto(configuration, capsys):
    words = (configuration, "memory_gb=0.42", "max_seq_len=8192", "recompute=auto", "--json")
    found = json.loads(told(capsys, 0, *words).out)
    assert found["fits"]


def test_published(capsys):
    text = told(capsys, 0, "published").out
    assert text.startswith("| run | published |") and "47 %" in text and len(text.splitlines()) == 9
    assert "takes no words" in told(capsys, 2, "published", "more").err
