"""Bytes of tensors in a process of 1, 2 and 4, under every stage, against what is predicted before a run."""

import pytest

from erniekit.estimate.machines import MACHINES
from erniekit.estimate.parallel import estimate_run
from erniekit.estimate.shares import Spread
from erniekit.estimate.step_time import Workload
from erniekit.models.registry import load_family
from erniekit.parallel.schedule import build_schedule
from erniekit.testing.distributed import run_distributed
from erniekit.testing.held import MICRO_BATCHES, TOKENS, measure_sharding, numbers_of

STAGES = (0, 1, 2, 3)
CASES = [(1, 1, {}), (2, 1, {}), (4, 1, {"tie_word_embeddings": False, "vocab_size": 3072}), (4, 2, {})]


def predicted(stage, processes, data, changes):
    config = numbers_of(**changes)
    family = load_family(config)
    work = Workload(
        compute_type="fp32",
        rows=1,
        seq_len=TOKENS,
        micro_batches=MICRO_BATCHES,
        attended=TOKENS,
        logits_rows=TOKENS,
    )
    spread = Spread(data=data, sharding=processes // data, sharding_stage=stage)
    if stage == 0:
        spread = Spread(data=processes)
    estimate = estimate_run(
        config,
        spread,
        work,
        MACHINES["cpu"],
        stages=[range(config.num_hidden_layers)],
        schedule=build_schedule("1f1b", 1, MICRO_BATCHES),
        shapes=family.weights.memory_shapes(config),
        parts=family.plan,
    )
    return estimate.ranks[0].memory


@pytest.mark.parametrize(("processes", "data", "changes"), CASES, ids=["1", "2", "4", "2 by 2"])
def test_what_a_process_holds_falls_as_predicted(processes, data, changes):
    if processes == 1:
        found = [measure_sharding(STAGES)]
    else:
        function = "erniekit.testing.held:measure_sharding"
        found = run_distributed(function, processes, STAGES, data, changes, timeout=480)
    sharing = processes // data
    for rank in found:
        whole = 4 * rank[0]["parameters"]
        for stage, held in rank.items():
            parts = {"weights": stage >= 3, "gradients": stage >= 1, "states": stage >= 1}
            for kind, parted in parts.items():
                size = whole * (2 if kind == "states" else 1)
                assert held[kind] == pytest.approx(size / sharing if parted else size, rel=1e-3), (
                    stage,
                    kind,
                )
            assert held["gradients_after"] == 0
            memory = predicted(stage, processes, data, changes)
            expected = sum(memory.get(c, 0) for c in ("weights", "gradients", "optimizer", "buffers"))
            assert held["peak"] == pytest.approx(expected, rel=0.1), (stage, memory, held)
