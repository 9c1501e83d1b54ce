"""The part of a model that a rank of a pipeline holds, and each of its stages as a model of its own.

The model does not know. `cut_model` puts placeholders where the blocks and layers of other ranks are, so
that names and numbers of what stays are those of the whole model. `stage_views` gives a model for each
stage of the rank, which shares its layers and runs the model's own forward pass: a placeholder hands on
what it gets, in place of the embedding comes the received activation, and in place of the last norm what
is sent, the stream with what is yet to be added to it. The last stage ends as the model does, so
objectives run on it unchanged.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import paddle
from paddle import nn

from erniekit.errors import RunError
from erniekit.ops.linear import add
from erniekit.parallel.parts import find
from erniekit.parallel.stages import Stages


class Absent(nn.Layer):
    """In the place of a block or layer that another rank computes; hands on what it gets."""

    def __init__(self, plan: Any, like: Any = None) -> None:
        """`like` is a block that is here, of which a model may ask any of its blocks for the numbers."""
        super().__init__()
        # What is set on all blocks is set here too. No sublayer: its parameters are not of this one.
        attention = SimpleNamespace() if like is None else getattr(like, plan.WHOLE_ATTENTION)
        self.__dict__[plan.WHOLE_ATTENTION] = attention

    def __call__(self, *inputs: Any, **_: Any) -> Any:
        """Whatever is put around `forward` from outside has nothing to do here."""
        return self.forward(*inputs)

    def forward(self, *inputs: Any, **_: Any) -> Any:
        return inputs[0], inputs[1]


@dataclass(frozen=True)
class Cut:
    """What is known of a model that was cut.

    Args:
        stages: the blocks of every stage.
        shares_embedding: whether first and last stage both need the embedding.
        copies: parameters that are here and that an earlier stage has as well and answers for.
    """

    stages: Stages
    shares_embedding: bool
    copies: frozenset[str]


def cut_model(model: Any, plan: Any, stages: Stages, own: Sequence[int]) -> Cut:
    """Leave of `model` what the stages `own` need; takes no memory for it, see `distribute`.

    Args:
        plan: the family's module: BLOCKS, EMBEDDING, HEAD, FINAL_NORM, WHOLE_ATTENTION, AHEAD_BLOCKS.
        stages: the blocks of every stage.
    """
    first, last = 0 in own, len(stages) - 1 in own
    kept = {block for stage in own for block in range(*stages[stage])}
    blocks = find(model, plan.BLOCKS)
    assert len(blocks) == stages[-1][1], (len(blocks), stages)
    shared = shares_embedding(model, plan)
    for index in range(len(blocks)):
        if index not in kept:
            blocks[index] = Absent(plan)
    container, names = _container(plan)
    if not last:
        for name, layer in list(find(model, container)._sub_layers.items()):
            if f"{container}.{name}" not in (plan.BLOCKS, plan.EMBEDDING):
                empty = nn.LayerList() if isinstance(layer, nn.LayerList) else Absent(plan)
                _place(model, f"{container}.{name}", empty)
        _place(model, plan.HEAD, None)
    if not (first or (last and shared)):
        _place(model, plan.EMBEDDING, Absent(plan))
    copies = frozenset(name for name, _ in model.named_parameters() if name.startswith(f"{plan.EMBEDDING}."))
    return Cut(stages, shared, copies if last and shared and not first else frozenset())


def shares_embedding(model: Any, plan: Any) -> bool:
    """Whether the last stage needs the embedding: as its head, or for multi-token prediction."""
    head = find(model, plan.HEAD)
    return getattr(head, "weight", None) is None or len(find(model, plan.AHEAD_BLOCKS) or ()) > 0


class StageView:
    """A stage as a model; `model(...)` on what `received` holds gives what is to be sent, or the result."""

    def __init__(self, model: Any, plan: Any, stages: Stages, stage: int) -> None:
        self.is_first, self.is_last = stage == 0, stage == len(stages) - 1
        self.received: paddle.Tensor | None = None
        self._begins = False
        self.model = _twin(model)
        container, names = _container(plan)
        owner = self.model
        for name in names:
            inner = _twin(owner._sub_layers[name])
            owner._sub_layers[name] = inner
            owner = inner
        blocks = find(model, plan.BLOCKS)
        own = range(*stages[stage])
        like = blocks[own[0]]
        kept = [block if index in own else Absent(plan, like) for index, block in enumerate(blocks)]
        _place(self.model, plan.BLOCKS, nn.LayerList(kept))
        if not self.is_first:
            owner.register_forward_pre_hook(self._begin)
            _place(self.model, plan.EMBEDDING, self._entrance(find(model, plan.EMBEDDING)))
        if not self.is_last:
            leaving = nn.Layer()
            leaving.forward = _leave
            _place(self.model, plan.FINAL_NORM, leaving)

    def _begin(self, layer: Any, inputs: Any) -> None:
        self._begins = True

    def _entrance(self, embedding: Any) -> Any:
        """A layer that gives the received activation once, and later embeds, for multi-token prediction."""
        entrance = nn.Layer()
        if not isinstance(embedding, Absent):
            # A tied head reads its weight.
            for name, parameter in embedding.named_parameters(include_sublayers=False):
                entrance.add_parameter(name, parameter)

        def enter(ids: paddle.Tensor) -> paddle.Tensor:
            if not self._begins:
                return embedding(ids)
            self._begins = False
            received, self.received = self.received, None
            if received is None:
                raise RunError(
                    "an objective ran the model twice for one micro-batch, which a pipeline cannot serve"
                )
            return received

        entrance.forward = enter
        return entrance


def _leave(stream: paddle.Tensor, delta: paddle.Tensor | None = None) -> tuple[Any, Any]:
    total = stream if delta is None else add(stream, delta)
    return total, total


def _container(plan: Any) -> tuple[str, list[str]]:
    """Path of what holds the blocks, and its names."""
    path = plan.BLOCKS.rpartition(".")[0]
    return path, path.split(".") if path else []


def _place(model: Any, path: str, layer: Any) -> None:
    owner, _, name = path.rpartition(".")
    holder = find(model, owner) if owner else model
    if name in holder._sub_layers:
        holder._sub_layers[name] = layer


def _twin(layer: Any) -> Any:
    """A layer of the same parameters and sublayers, whose sublayers and hooks can be others."""
    assert "forward" not in vars(layer), f"{type(layer).__name__} was changed where a stage has to be cut"
    twin = object.__new__(type(layer))
    twin.__dict__.update(vars(layer))
    for name in ("_sub_layers", "_forward_pre_hooks", "_forward_post_hooks"):
        twin.__dict__[name] = OrderedDict(vars(layer)[name])
    return twin
