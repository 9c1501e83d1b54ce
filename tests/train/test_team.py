"""Whose micro-batches, in one process and in several that are made by hand."""

from types import SimpleNamespace

import pytest

from erniekit.errors import DataError
from erniekit.parallel import comm
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


def test_what_the_first_makes_all_have(monkeypatch):
    """A broadcast by hand: what the first of two gives, its error included."""
    told = []
    monkeypatch.setattr(comm, "broadcast_object", lambda value, group: told.append(value) or told[0])

    def fail():
        raise DataError("no file")

    first, second = Team(spread(0, 2)), Team(spread(1, 2))
    assert [team.of_first(lambda: "made") for team in (first, second)] == ["made", "made"]
    assert told[1] == (None, None), "the others do not try"
    told.clear()
    for team in (first, second):
        with pytest.raises(DataError, match="no file"):
            team.of_first(fail)
    assert Team().of_first(lambda: 3) == 3


def test_what_replicas_found_together(monkeypatch):
    monkeypatch.setattr(comm, "gather_objects", lambda value, group: [value, {"b": 2}])
    assert Team(spread(0, 2)).union({"a": 1}) == {"a": 1, "b": 2}
    assert Team().union({"a": 1}) == {"a": 1}


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
