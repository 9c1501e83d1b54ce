import os

from erniekit.estimate import hardware


def test_available_memory_is_within_the_machine():
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < hardware.available_memory() <= total


def test_a_limit_of_the_group_counts(tmp_path, monkeypatch):
    for name, text in (("max", "1000000"), ("current", "400000"), ("none", "max")):
        (tmp_path / name).write_text(text + "\n")
    monkeypatch.setattr(hardware, "_CGROUP_LIMITS", (str(tmp_path / "none"), str(tmp_path / "max")))
    monkeypatch.setattr(hardware, "_CGROUP_USED", (str(tmp_path / "missing"), str(tmp_path / "current")))
    assert hardware.available_memory() == 600_000


def test_the_fastest_call_counts_and_the_first_does_not(monkeypatch):
    ticks = iter([0.0, 4.0, 10.0, 12.0])
    monkeypatch.setattr(hardware.time, "perf_counter", lambda: next(ticks))
    calls = []
    assert hardware.measure_flops(lambda: calls.append(1), 8.0, repeats=2) == 4.0
    assert len(calls) == 3
