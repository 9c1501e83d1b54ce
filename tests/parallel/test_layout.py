"""Axes, coordinates and groups, by examples worked by hand and by rules that hold for all layouts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from erniekit.errors import ConfigError
from erniekit.parallel.layout import AXES, Layout, choose_layout, misfits


def test_neighbours_are_on_the_tensor_axis() -> None:
    layout = Layout(pipeline=2, data=2, tensor=2)
    assert layout.world_size == 8
    assert layout.groups("tensor") == [(0, 1), (2, 3), (4, 5), (6, 7)]
    assert layout.groups("data") == [(0, 2), (1, 3), (4, 6), (5, 7)]
    assert layout.groups("pipeline") == [(0, 4), (1, 5), (2, 6), (3, 7)]
    assert layout.groups("stage") == [(0, 1, 2, 3), (4, 5, 6, 7)]
    assert layout.groups("model") == [(0, 1, 4, 5), (2, 3, 6, 7)]
    assert layout.coordinates(6) == {"pipeline": 1, "data": 1, "sharding": 0, "context": 0, "tensor": 0}


def test_sharding_and_context_lie_between() -> None:
    layout = Layout(data=2, sharding=2, context=2, tensor=2)
    assert layout.ranks_along("context", 0) == (0, 2)
    assert layout.ranks_along("sharding", 1) == (1, 5)
    assert layout.ranks_along("batch", 1) == (1, 5, 9, 13)
    assert layout.ranks_along("replicas", 0) == (0, 2, 4, 6, 8, 10, 12, 14)


def test_ranks_that_share_experts() -> None:
    mp = choose_layout(8, tensor_parallel_degree=2, pipeline_parallel_degree=2, moe_group="mp")
    assert (mp.expert, mp.data) == (2, 2)
    assert mp.groups("expert") == [(0, 1), (2, 3), (4, 5), (6, 7)]
    assert mp.groups("expert_replicas") == [(0, 2), (1, 3), (4, 6), (5, 7)]
    world = choose_layout(8, expert_parallel_degree=4)
    assert world.groups("expert") == [(0, 1, 2, 3), (4, 5, 6, 7)]
    assert world.groups("expert_replicas") == [(0, 4), (1, 5), (2, 6), (3, 7)]
    dp = choose_layout(8, tensor_parallel_degree=2, moe_group="dp", expert_parallel_degree=2)
    assert dp.groups("expert") == [(0, 2), (1, 3), (4, 6), (5, 7)]
    assert dp.groups("expert_replicas") == [(0, 4), (1, 5), (2, 6), (3, 7)]
    none = choose_layout(4, tensor_parallel_degree=2)
    assert none.groups("expert") == [(0,), (1,), (2,), (3,)]
    assert none.groups("expert_replicas") == [(0, 2), (1, 3)]
    assert choose_layout(4, moe_group="dp").expert == 4
    assert choose_layout(4, moe_group="world").groups("expert") == [(0, 1, 2, 3)]


@given(st.lists(st.sampled_from((1, 1, 2)), min_size=5, max_size=5), st.sampled_from(("mp", "dp", "world")))
def test_every_rank_is_in_one_group_of_each_axis(sizes: list[int], moe_group: str) -> None:
    pipeline, data, sharding, context, tensor = sizes
    plain = Layout(pipeline=pipeline, data=data, sharding=sharding, context=context, tensor=tensor)
    layout = choose_layout(
        plain.world_size,
        tensor_parallel_degree=plain.tensor,
        pipeline_parallel_degree=plain.pipeline,
        sharding_parallel_degree=plain.sharding,
        context_parallel_degree=plain.context,
        sharding="stage1",
        moe_group=moe_group,
    )
    assert layout.sizes() == plain.sizes()
    everyone = list(range(layout.world_size))
    assert [layout.rank_of(**layout.coordinates(rank)) for rank in everyone] == everyone
    experts = ("expert", "expert_replicas", "expert_shards", "expert_shard_copies")
    for axis in (
        *AXES,
        "world",
        "batch",
        "replicas",
        "stage",
        "model",
        "tensor_sums",
        "shard_copies",
        *experts,
    ):
        groups = layout.groups(axis)
        assert sorted(rank for group in groups for rank in group) == everyone
        assert len({len(group) for group in groups}) == 1
        for rank in everyone:
            assert rank in layout.ranks_along(axis, rank)
    # A process' own experts and those that hold the same ones meet in it alone.
    for rank in everyone:
        shared = set(layout.ranks_along("expert", rank)) & set(layout.ranks_along("expert_replicas", rank))
        assert shared == {rank}
    # Those that share states and those with the same range of them are all with the same parameters.
    for whole, parts in (("replicas", ("sharding", "shard_copies")), ("expert_replicas", experts[2:])):
        for rank in everyone:
            shards, copies = (layout.ranks_along(axis, rank) for axis in parts)
            assert set(shards) & set(copies) == {rank}
            reached = {one for shard in shards for one in layout.ranks_along(parts[1], shard)}
            assert reached == set(layout.ranks_along(whole, rank))


def test_what_is_left_open() -> None:
    assert choose_layout(1) == Layout()
    assert choose_layout(4) == Layout(data=4)
    assert choose_layout(8, sharding="stage1", tensor_parallel_degree=2) == Layout(sharding=4, tensor=2)
    assert choose_layout(4, sharding="stage1", sharding_parallel_degree=2) == Layout(data=2, sharding=2)
    assert choose_layout(4, tensor_parallel_degree=-1, pipeline_parallel_degree=0) == Layout(data=4)
    assert choose_layout(2, tensor_parallel_degree=2, moe_group="dummy") == Layout(tensor=2)
    assert choose_layout(1, moe_group="mp") == Layout()


@pytest.mark.parametrize(
    ("world", "keys", "message"),
    [
        (6, {"tensor_parallel_degree": 4}, "tensor_parallel_degree: 4 take 4 processes together, .* has 6"),
        (
            1,
            {"tensor_parallel_degree": 2, "pipeline_parallel_degree": 2},
            "_degree: 2, pipeline.* take 4 .* 1:",
        ),
        (
            4,
            {"sharding_parallel_degree": 2},
            "sharding_parallel_degree: 2 shares nothing .* sharding: stage1",
        ),
        (4, {"sharding_parallel_degree": 3, "sharding": "stage2"}, "3 does not divide the 4 processes"),
        (4, {"moe_group": "ring"}, "moe_group: ring is none of dummy, mp, "),
        (
            4,
            {"tensor_parallel_degree": 4, "moe_group": "mp", "expert_parallel_degree": 2},
            "leave the latter out",
        ),
        (4, {"expert_parallel_degree": 3}, "expert_parallel_degree: 3 does not fit moe_group: dummy"),
        (6, {"tensor_parallel_degree": 2, "expert_parallel_degree": 3}, "2 of them with the same sequences"),
    ],
)
def test_what_does_not_fit_names_the_keys(world: int, keys: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        choose_layout(world, **keys)


def test_models_that_do_not_fit() -> None:
    numbers = {
        "num_attention_heads": 20,
        "num_key_value_heads": 4,
        "vocab_size": 103_424,
        "intermediate_size": 12_288,
    }
    experts = {"moe_num_experts": 64, "moe_intermediate_size": 1536, "num_hidden_layers": 28}
    assert misfits(choose_layout(8, tensor_parallel_degree=4, moe_group="mp"), numbers | experts) == []
    assert misfits(Layout(tensor=8), numbers) == [
        "tensor_parallel_degree: 8 does not divide num_attention_heads: 20",
        "tensor_parallel_degree: 8 does not divide num_key_value_heads: 4",
    ]
    assert misfits(choose_layout(24, expert_parallel_degree=24), experts) == [
        "expert_parallel_degree: 24 does not divide moe_num_experts: 64"
    ]
    assert misfits(Layout(pipeline=29), experts)[0].startswith(
        "pipeline_parallel_degree: 29 is more than num_hidden"
    )
    assert misfits(Layout(data=2, expert=2, moe_group="world"), {"moe_num_experts": 0}) == [
        "moe_group: world spreads experts over 2 processes, and this model has none; leave moe_group and "
        "expert_parallel_degree out"
    ]
    assert misfits(Layout(tensor=5), {"moe_intermediate_size": 12}) != []
    assert misfits(Layout(tensor=5, expert=5, moe_group="mp"), {"moe_intermediate_size": 12}) == []
    assert misfits(Layout(context=2, data=3), {"global_batch_size": 4}) == [
        "data and sharding_parallel_degree: 3 does not divide global_batch_size: 4",
    ]
    heads = {"num_attention_heads": 24, "num_key_value_heads": 6}
    assert misfits(Layout(context=12), heads) == misfits(Layout(context=4, tensor=3), heads) == []
    assert misfits(Layout(context=4, tensor=6), heads) == []
    assert ["the 24 attention heads" in line for line in misfits(Layout(context=7), heads)] == [True]
    assert ["its 6 key heads" in line for line in misfits(Layout(context=4), heads)] == [True]
