import pytest

from erniekit.estimate.machines import GIB, MACHINES


def test_bytes_go_faster_within_a_node():
    machine = MACHINES["H800"]
    assert machine.bandwidth(8) == machine.within > machine.bandwidth(9) == machine.between


def test_changes_leave_the_rest():
    machine = MACHINES["H800"].changed(memory=40 * GIB, peak=None)
    assert machine.memory == 40 * GIB and machine.peak == 989e12
    assert MACHINES["H800"].memory == 80 * GIB


@pytest.mark.parametrize("name", MACHINES)
def test_names_and_shares(name):
    machine = MACHINES[name]
    assert machine.name == name and 0 < machine.efficiency < 1 and machine.between <= machine.within
