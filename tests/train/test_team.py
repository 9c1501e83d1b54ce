"""Whose micro-batches, in one process and in several that are made by hand."""

from types import SimpleNamespace

from erniekit.parallel.comm import Group
from erniekit.train.team import Team


def spread(rank, size):
    group = Group(tuple(range(size)), rank)
    mesh = SimpleNamespace(batch=group, world=group, tensor=Group())
    return SimpleNamespace(mesh=mesh)


def test_one_process_does_everything():
    team = Team()
    assert [(turn.number, turn.batch, turn.counts) for turn in team.turns("ab")] == [
        (0, "a", True),
        (1, "b", True),
    ]
    assert team.is_first and team.num_replicas == 1 and team.held() is None and team.counts("w")
    assert team.total({"loss": 2.0}) == {"loss": 2.0} and team.sum_of(3.0) == 3.0
    assert team.agree(None) is None and team.agree(15) == 15


def test_every_micro_batch_has_its_turn_once_and_all_have_as_many():
    for count in range(1, 9):
        turns = [list(Team(spread(rank, 3)).turns(range(count))) for rank in range(3)]
        assert len({len(of_rank) for of_rank in turns}) == 1
        counted = [turn.number for of_rank in turns for turn in of_rank if turn.counts]
        assert sorted(counted) == list(range(count))
        assert all(turn.batch == turn.number for of_rank in turns for turn in of_rank if turn.counts)


def test_a_schedule_has_the_multiple_that_it_takes():
    for count in range(1, 9):
        turns = [list(Team(spread(rank, 2)).turns(range(count), 3)) for rank in range(2)]
        assert [len(of_rank) for of_rank in turns] == [3 * -(-count // 6)] * 2
        assert sorted(turn.batch for one in turns for turn in one if turn.counts) == list(range(count))
        assert all(turn.batch in range(count) for of_rank in turns for turn in of_rank)
        numbers = [turn.number for of_rank in turns for turn in of_rank]
        assert len(set(numbers)) == len(numbers)
