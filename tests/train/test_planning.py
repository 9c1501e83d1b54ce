"""The plan of a run: what it is made of, that it is checked, and that a run tells it before it begins."""

from types import SimpleNamespace

import pytest

from erniekit.config.config import build_config
from erniekit.errors import ConfigError, UnsupportedError
from erniekit.estimate.machines import MACHINES
from erniekit.log import logger
from erniekit.parallel.comm import Group
from erniekit.parallel.layout import Layout
from erniekit.testing.tiny_checkpoint import tiny_config
from erniekit.testing.tiny_run import run_erniekit, write_run
from erniekit.train.planning import check_plan, machine_of, plan_run

NUMBERS = tiny_config(num_hidden_layers=4)
REPORT = SimpleNamespace(typical_length=20, trained_share=0.5, lengths=[10, 40])
MIB = 2**20


def planned(layout=Layout(tensor=2), memory=None, **keys):  # noqa: B008
    config = build_config(
        {"max_seq_len": 64, "gradient_accumulation_steps": 4, "compute_type": "fp32", **keys}
    )
    machine = MACHINES["cpu"] if memory is None else MACHINES["cpu"].changed(memory=memory)
    return plan_run(config, NUMBERS, layout, REPORT, machine)


def test_what_is_known_of_a_run():
    plan = planned(packing=False)
    work = plan.estimate.workload
    assert (work.seq_len, work.attended, work.labelled_share, work.compute_type) == (40, 20, 0.5, "fp32")
    assert planned().estimate.workload.seq_len == 64
    assert planned(use_sparse_head_and_loss_fn=False).estimate.workload.labelled_share == 1
    assert not plan.is_cut and plan.places == ((0,),)
    assert plan.memory == plan.estimate.ranks[0].memory


def test_stages():
    plan = planned(Layout(pipeline=2), pipeline_parallel_degree=2, virtual_pp_degree=2)
    assert plan.is_cut and plan.places == ((0, 2), (1, 3))
    assert plan.stages == ((0, 1), (1, 2), (2, 3), (3, 4))


@pytest.mark.parametrize(
    ("layout", "reason"),
    [
        (Layout(tensor=8), "does not divide num_attention_heads: 4"),
        (Layout(pipeline=5), "is more than num_hidden_layers: 4"),
        (Layout(data=2, expert=2, moe_group="dp"), "moe_group: dp spreads experts"),
    ],
)
def test_a_model_that_cannot_be_laid_out_so_has_no_plan(layout, reason):
    with pytest.raises(ConfigError, match=reason):
        planned(layout)


@pytest.fixture
def told(caplog):
    caplog.set_level("INFO", logger=logger.name)
    logger.addHandler(caplog.handler)
    yield caplog
    logger.removeHandler(caplog.handler)


def test_a_plan_that_does_not_fit(told):
    check_plan(planned(), tells=True)
    assert "2 x cpu: tensor 2" in told.text and "a device sends in a step" in told.text
    told.clear()
    check_plan(planned(memory=100 * MIB), tells=True)
    assert "estimated not to fit" in told.text
    with pytest.raises(UnsupportedError, match="pipeline rank 0 holds .* MB .*weights, gradients, optimizer"):
        check_plan(planned(memory=MIB / 10), tells=False)


def test_recomputation_is_found_for_all():
    long = {"max_seq_len": 4096, "per_device_train_batch_size": 8, "recompute": "auto"}
    roomy, tight = planned(**long), planned(memory=550 * MIB, **long)
    assert roomy.estimate.workload.recomputation is None
    assert tight.estimate.workload.recomputation is not None and tight.estimate.fits


def test_memory_is_shared_by_the_processes_of_a_machine(monkeypatch):
    from erniekit.parallel import comm
    from erniekit.train import planning

    told = [("one", 1, 800 * MIB), ("one", 2, 900 * MIB), ("two", 1, 500 * MIB)]
    monkeypatch.setattr(comm, "gather_objects", lambda value, group: told)
    monkeypatch.setattr(planning, "free_memory", lambda device: 0)
    assert machine_of(build_config({}), Group(), "cpu").memory == 400 * MIB
    limited = build_config({"recompute": "auto", "memory_limit_gb": 0.9})
    assert machine_of(limited, Group(), "cpu").memory == 2**30


def test_a_run_tells_its_plan_before_it_begins(tmp_path):
    path = write_run(
        tmp_path, nproc_per_node=2, tensor_parallel_degree=2, max_steps=1, evaluation_strategy="no"
    )
    done = run_erniekit("train", str(path), timeout=300)
    assert done.returncode == 0, done.stderr
    before, _, after = done.stderr.partition("ErnieKit ─")
    assert (
        before.count("2 x cpu: tensor 2") == 1 and "a device sends in a step, GB, at most: tensor" in before
    )
    assert "tensor 2; each sends in a step at most, MB: tensor" in after
    assert "memory of a process estimated" in after
