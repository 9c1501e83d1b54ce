"""What a process of a sharded run holds: bytes of tensors, counted in a step of a model of tens of millions.

Run by several processes, `run_distributed("erniekit.testing.held:measure_sharding", 4, [3])`; the plan
of a run is held against it, and benchmarks print it.
"""

import resource
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from erniekit.models.ernie45.config import Ernie45Config

# 25 million parameters.
NUMBERS = {
    **{"vocab_size": 6144, "hidden_size": 512, "num_hidden_layers": 8, "intermediate_size": 1536},
    **{"num_attention_heads": 8, "num_key_value_heads": 2, "tie_word_embeddings": True},
}

# Of each process in a step, of so many tokens.
MICRO_BATCHES, TOKENS = 2, 64


def numbers_of(**changes: Any) -> Ernie45Config:
    """Of the model that is measured."""
    from erniekit.testing.tiny_checkpoint import tiny_config

    return tiny_config(**{**NUMBERS, **changes})


def measure_sharding(
    stages: Sequence[int], data: int = 1, changes: Mapping[str, Any] = MappingProxyType({})
) -> dict[int, dict[str, float]]:
    """Bytes of one process in a step, by stage, all processes sharing (but for `data` replicas of them).

    Args:
        stages: that are measured one after the other; give one alone to have what the system tells of it.
        changes: of the model's numbers.

    Returns:
        `weights`, `gradients` and `states` that lie here between two steps (gradients before the update,
        `gradients_after` after it); `peak_weights` and `peak_gradients` with what is here for a moment, and
        `peak` of everything together, all counted by the shapes of tensors; `most_resident` so far in this
        process, as the system tells; and `parameters` of the whole model.
    """
    from erniekit.parallel import comm

    world = comm.open_world()
    return {stage: _measure(world, stage, data, numbers_of(**changes)) for stage in stages}


def _measure(world: Any, stage: int, data: int, config: Ernie45Config) -> dict[str, float]:
    import paddle

    from erniekit.models.ernie45 import plan
    from erniekit.models.ernie45.model import Ernie45
    from erniekit.optim.adamw import AdamW
    from erniekit.parallel.blocks import watch_blocks
    from erniekit.parallel.distribute import distribute
    from erniekit.parallel.layout import Layout
    from erniekit.parallel.mesh import open_mesh
    from erniekit.parallel.sharding import Sharing

    layout = Layout(data=data, sharding=world.size // data)
    with paddle.LazyGuard():
        model = Ernie45(config)
    spread = distribute(model, plan, open_mesh(layout, world))
    for parameter in model.parameters():
        parameter.set_value(paddle.full(parameter.shape, 0.01))
    sharing = Sharing(model, plan, spread, stage)
    held = None if sharing.shards is None else {n: (s.tensor, s.start) for n, s in sharing.shards.items()}
    optimizer = AdamW(list(model.named_parameters()), held=held, **_SETTINGS)
    sampled = _Sampled(sharing)
    watch_blocks(model, plan, sampled)
    ids = paddle.to_tensor(np.arange(TOKENS).reshape(1, TOKENS))
    for micro_batch in range(MICRO_BATCHES):
        sharing.begin(last=micro_batch == MICRO_BATCHES - 1)
        hidden = model(ids, ids, paddle.zeros([1, TOKENS], "int32"))
        (model.logits(hidden.reshape([TOKENS, -1])) ** 2).mean().backward()
        optimizer.accumulate_grads()
        sampled.sample()
        sharing.end()
    sharing.finish()
    sampled.sample()
    between = sharing.bytes_held()
    optimizer.grad_norm_and_clip()
    optimizer.step(0.01)
    sharing.take_updates()
    optimizer.zero_grad()
    released = sharing.bytes_held()["gradients"]
    states = optimizer.num_bytes()
    return {
        **{name: float(size) for name, size in between.items()},
        "states": float(states),
        "gradients_after": float(released),
        "peak_weights": float(sampled.most["weights"]),
        "peak_gradients": float(sampled.most["gradients"]),
        "peak": float(sampled.most["together"] + states),
        "most_resident": 1024.0 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        "parameters": float(config.num_parameters()),
    }


_SETTINGS: dict[str, Any] = {
    **{"weight_decay": 0.1, "adam_beta1": 0.9, "adam_beta2": 0.95, "adam_epsilon": 1e-8},
    **{"max_grad_norm": 1.0, "layerwise_lr_decay_bound": 1.0},
}


class _Sampled:
    """The most bytes at any begin or end of a block's passes; see `parallel/blocks.py`."""

    def __init__(self, sharing: Any) -> None:
        self._sharing = sharing
        self.most = {"weights": 0, "gradients": 0, "together": 0}

    def sample(self) -> None:
        held = self._sharing.bytes_held()
        held["together"] = sum(held.values())
        self.most = {name: max(most, held[name]) for name, most in self.most.items()}

    def before_forward(self, block: int) -> None:
        self.sample()

    before_backward = after_forward = after_backward = before_forward
