"""What takes several devices is refused with the memory it would need."""

from dataclasses import asdict

import pytest

from erniekit.checkpoint.presets import find_preset
from erniekit.config.load import config_from_dict
from erniekit.config.parallel import Parallel
from erniekit.errors import UnsupportedError
from erniekit.testing.tiny_checkpoint import tiny_config, write_tiny_checkpoint
from erniekit.train.devices import free_memory, known_numbers, require_devices, run_identity, state_of
from erniekit.train.session import train_session

ONE = asdict(Parallel())


def refused(free: int, num_processes: int = 1, **degrees: int) -> str:
    state = {"weights": 2 * 10**9, "gradients": 4 * 10**9, "optimizer": 12 * 10**9}
    with pytest.raises(UnsupportedError) as caught:
        require_devices(lambda: state, lambda: free, num_processes, **{**ONE, **degrees})
    return str(caught.value)


def test_degrees_are_refused_with_what_one_device_would_hold() -> None:
    text = refused(10**10, tensor_parallel_degree=4, pipeline_parallel_degree=2)
    assert "tensor_parallel_degree: 4, pipeline_parallel_degree: 2 asks for 8 devices" in text
    assert "holds 18 GB (weights 2.0 GB, gradients 4.0 GB, optimizer 12 GB)" in text
    assert "10 GB are free here" in text and "Write nproc_per_node: 8" in text
    fitting = refused(10**11, sharding_parallel_degree=2)
    assert "Leave the degrees out" in fitting and "smaller" not in fitting


def test_one_process_is_not_several() -> None:
    text = refused(10**11, expert_parallel_degree=4)
    assert text.startswith("expert_parallel_degree: 4 asks for 4 devices, and this run is one process.")
    require_devices(lambda: {"weights": 10**9}, lambda: 0, 4, **{**ONE, "expert_parallel_degree": 4})


def test_a_run_too_large_for_one_device_is_refused() -> None:
    text = refused(10**10)
    assert text.startswith("On one device this run holds 18 GB") and "freeze" in text and "search" in text


@pytest.mark.parametrize("degree", [-1, 0, 1])
def test_what_fits_is_let_through(degree: int) -> None:
    degrees = {**ONE, "tensor_parallel_degree": degree}
    require_devices(lambda: {"weights": 5}, lambda: 5, **degrees)
    require_devices(lambda: None, lambda: 0, **degrees)


def test_unknown_numbers_still_name_the_degrees() -> None:
    with pytest.raises(UnsupportedError, match="^pipeline_parallel_degree: 2 asks for 2 devices"):
        require_devices(lambda: None, lambda: 0, **{**ONE, "pipeline_parallel_degree": 2})


def test_numbers_are_known_of_folders_and_presets_alone(tmp_path) -> None:  # type: ignore[no-untyped-def]
    folder = write_tiny_checkpoint(tmp_path / "m")
    assert known_numbers(str(folder)) == tiny_config()
    for name in ("starter", "org/name", str(tmp_path)):
        assert known_numbers(name) is None
    numbers = known_numbers("baidu/ERNIE-4.5-21B-A3B-Paddle")
    preset = find_preset("ERNIE-4.5-21B-A3B")
    assert preset is not None and numbers.num_parameters() == preset.parameters


def test_frozen_parts_need_no_gradients() -> None:
    numbers = tiny_config()
    whole, part = state_of(numbers, (), "fp32"), state_of(numbers, ("embed_tokens",), "fp32")
    assert whole["weights"] == part["weights"] == 4 * numbers.num_parameters()
    table = numbers.vocab_size * numbers.hidden_size
    assert whole["gradients"] - part["gradients"] == 4 * table
    assert whole["optimizer"] - part["optimizer"] == 8 * table


def test_a_session_refuses_before_it_downloads() -> None:
    values = {
        "model_name_or_path": "baidu/ERNIE-4.5-300B-A47B-Paddle",
        "train_dataset_path": "nowhere.jsonl",
        "compute_type": "bf16",
        "tensor_parallel_degree": 8,
        "pipeline_parallel_degree": 12,
    }
    loaded = config_from_dict(values)
    assert loaded.config.parallel == Parallel(tensor_parallel_degree=8, pipeline_parallel_degree=12)
    with pytest.raises(UnsupportedError, match="asks for 96 devices[\\s\\S]*holds 5,391 GB"):
        train_session(loaded)
    del values["tensor_parallel_degree"], values["pipeline_parallel_degree"]
    with pytest.raises(UnsupportedError, match="^On one device this run holds 5,391 GB"):
        train_session(config_from_dict(values))


def test_memory_of_this_machine() -> None:
    assert 0 < free_memory("cpu") < 2**50


def test_processes_with_other_configurations_are_told_apart() -> None:
    one = config_from_dict({"model_name_or_path": "starter", "train_dataset_path": "a", "seed": 1}).config
    two = config_from_dict({"model_name_or_path": "starter", "train_dataset_path": "a", "seed": 2}).config
    assert run_identity(one.values()) == run_identity(one.values())
    differing = {
        key for key, value in run_identity(one.values()).items() if run_identity(two.values())[key] != value
    }
    assert differing == {"configuration"}
