"""Schedules of pipelines: worked by hand, and checked over many numbers of ranks and micro-batches."""

from dataclasses import replace

import pytest

from erniekit.errors import ConfigError
from erniekit.parallel.schedule import (
    BACKWARD,
    BACKWARD_INPUT,
    BACKWARD_WEIGHT,
    FORWARD,
    NAMES,
    RECEIVE_ACTIVATION,
    SEND_ACTIVATION,
    Action,
    Schedule,
    build_schedule,
    check_schedule,
    default_cap,
    forward_only,
    simulate,
)

SIZES = [(1, 1), (1, 3), (2, 1), (2, 2), (2, 5), (4, 2), (4, 4), (4, 12), (8, 16)]
KINDS = {FORWARD: "F", BACKWARD: "B", BACKWARD_INPUT: "B", BACKWARD_WEIGHT: "W"}


def _all() -> list[Schedule]:
    found = []
    for ranks, micro in SIZES:
        found.append(build_schedule("1f1b", ranks, micro))
        found.append(build_schedule("zero_bubble", ranks, micro))
        for chunks, cap in [(1, None), (1, 1), (1, ranks), (2, None), (2, 2), (2, ranks + 1), (2, 2 * ranks)]:
            found.append(
                build_schedule("memory_capped", ranks, micro, virtual_pp_degree=chunks, activation_cap=cap)
            )
        if ranks > 1 and micro % ranks == 0:
            found += [build_schedule("interleaved", ranks, micro, virtual_pp_degree=v) for v in (2, 3)]
    assert len(found) == 9 * 9 + 4 * 2 and {schedule.name for schedule in found} == set(NAMES)
    return found


def _order(schedule: Schedule, rank: int) -> str:
    return " ".join(
        f"{KINDS[action.kind]}{action.micro_batch}{'abc'[action.chunk] if schedule.num_chunks > 1 else ''}"
        for action in schedule.programs[rank]
        if action.kind in KINDS
    )


def test_all_schedules_are_complete_and_can_run() -> None:
    for schedule in _all():
        check_schedule(schedule)
        work = [action for action in schedule.programs[0] if action.kind in KINDS]
        per_pass = 3 if schedule.splits_backward else 2
        assert len(work) == per_pass * schedule.num_micro_batches * schedule.num_chunks


def test_1f1b_by_hand() -> None:
    schedule = build_schedule("1f1b", 2, 3)
    assert _order(schedule, 0) == "F0 F1 B0 F2 B1 B2"
    assert _order(schedule, 1) == "F0 B0 F1 B1 F2 B2"
    # F0, sent; F1, sent; the first gradient is awaited only when it is needed.
    assert [action.kind for action in schedule.programs[0][:5]] == [
        *("forward", "send_activation", "forward", "send_activation", "receive_gradient")
    ]


def test_interleaved_by_hand() -> None:
    """Two ranks, two chunks: rank 0 has stages 0 and 2; warm-ups of 2 (p - r - 1) + (v - 1) p."""
    schedule = build_schedule("interleaved", 2, 2, virtual_pp_degree=2)
    assert schedule.places == ((0, 2), (1, 3))
    assert _order(schedule, 0) == "F0a F1a F0b F1b B0b B1b B0a B1a"
    assert _order(schedule, 1) == "F0a F1a F0b B0b F1b B1b B0a B1a"


def test_zero_bubble_by_hand() -> None:
    """Weights' gradients fill what 1f1b waits: the last rank starts one forward late and then never stops."""
    schedule = build_schedule("zero_bubble", 2, 3)
    assert _order(schedule, 0) == "F0 F1 B0 W0 F2 B1 W1 B2 W2"
    assert _order(schedule, 1) == "F0 B0 F1 B1 W0 F2 B2 W1 W2"
    assert simulate(schedule).makespan == 3 * 3 + 1


@pytest.mark.parametrize(("ranks", "micro"), SIZES)
def test_bubble_and_peaks_of_1f1b(ranks: int, micro: int) -> None:
    found = simulate(build_schedule("1f1b", ranks, micro))
    assert found.makespan == 3 * (micro + ranks - 1)
    assert found.bubble == pytest.approx((ranks - 1) / (micro + ranks - 1))
    assert found.peaks == tuple(min(ranks - rank, micro) for rank in range(ranks))


@pytest.mark.parametrize(
    ("ranks", "micro", "chunks"), [(2, 4, 2), (2, 6, 3), (4, 8, 2), (4, 12, 3), (8, 16, 4)]
)
def test_bubble_and_peaks_of_interleaved(ranks: int, micro: int, chunks: int) -> None:
    """The pause, counted in whole passes, is divided by the number of chunks."""
    each = 1 / chunks
    found = simulate(
        build_schedule("interleaved", ranks, micro, virtual_pp_degree=chunks),
        forward=each,
        backward_input=each,
        backward_weight=each,
    )
    assert found.makespan - 3 * micro == pytest.approx(3 * (ranks - 1) / chunks)
    assert found.bubble == pytest.approx((ranks - 1) / (chunks * micro + ranks - 1))
    assert found.peaks == tuple(
        min(2 * (ranks - rank - 1) + (chunks - 1) * ranks + 1, micro * chunks) for rank in range(ranks)
    )


@pytest.mark.parametrize(("ranks", "micro"), [(2, 6), (4, 12), (8, 32)])
def test_zero_bubble_pauses_less_with_the_memory_of_1f1b(ranks: int, micro: int) -> None:
    """Instead of (p - 1) (F + B + W) the pause is (p - 1) (F + B - W)."""
    found = simulate(build_schedule("zero_bubble", ranks, micro))
    assert found.makespan == 3 * micro + ranks - 1
    assert max(found.peaks) <= ranks


@pytest.mark.parametrize(("ranks", "micro", "chunks"), [(4, 12, 1), (4, 12, 2), (8, 32, 1), (8, 32, 2)])
def test_memory_capped_trades_pauses_for_activations(ranks: int, micro: int, chunks: int) -> None:
    makespans = []
    for cap in range(chunks, chunks * ranks + 1):
        schedule = build_schedule("memory_capped", ranks, micro, virtual_pp_degree=chunks, activation_cap=cap)
        found = simulate(schedule, forward=1 / chunks, backward_input=1 / chunks, backward_weight=1 / chunks)
        assert max(found.peaks) <= cap
        makespans.append(found.makespan)
    assert makespans[-1] < 0.6 * makespans[0]
    assert makespans[-1] == min(makespans)


def test_half_the_activations_at_the_pause_of_1f1b() -> None:
    """What the stages that go forth and back are for."""
    half = build_schedule("memory_capped", 8, 32, virtual_pp_degree=2)
    assert half.places[0] == (0, 15) and half.places[7] == (7, 8)
    found = simulate(half, forward=0.5, backward_input=0.5, backward_weight=0.5, activations=0.5)
    plain = simulate(build_schedule("1f1b", 8, 32))
    assert max(found.peaks) == max(plain.peaks) / 2 == default_cap(8, 2) / 2
    assert found.makespan <= 1.01 * plain.makespan


def test_times_of_stages_and_messages() -> None:
    """Two ranks, one micro-batch: F 1, message 0.5, F 2, B 4, message 0.5, B 2."""
    schedule = build_schedule("1f1b", 2, 1)
    found = simulate(
        schedule,
        forward=(1, 2),
        backward_input=(1, 3),
        backward_weight=(1, 1),
        communication=0.5,
        activations=(10, 3),
    )
    assert found.makespan == 1 + 0.5 + 2 + 4 + 0.5 + 2
    assert found.busy == (3, 6) and found.peaks == (10, 3)
    assert found.bubbles == (1 - 3 / 10, 1 - 6 / 10)


def test_forward_only() -> None:
    schedule = forward_only(((0, 3), (1, 2)), 2)
    check_schedule(schedule)
    assert _order(schedule, 0) == "F0a F0b F1a F1b"
    # From stage 1 to stage 2 nothing is sent: both are of rank 1.
    assert [action.kind for action in schedule.programs[1][:4]] == [
        *("receive_activation", "forward", "forward", "send_activation")
    ]


def _with(schedule: Schedule, rank: int, program: list[Action]) -> Schedule:
    programs = list(schedule.programs)
    programs[rank] = tuple(program)
    return replace(schedule, programs=tuple(programs))


def test_faults_are_named() -> None:
    schedule = build_schedule("1f1b", 2, 3)
    program = list(schedule.programs[0])
    last = program[-1]
    with pytest.raises(ValueError, match="rank 0 lacks backward of micro-batch 2, chunk 0"):
        check_schedule(_with(schedule, 0, program[:-1]))
    with pytest.raises(ValueError, match="rank 0 has backward of micro-batch 2, chunk 0 2 times"):
        check_schedule(_with(schedule, 0, [*program, last]))
    with pytest.raises(ValueError, match="rank 0 has no use for forward of micro-batch 7"):
        check_schedule(_with(schedule, 0, [*program, Action(FORWARD, 7, 0)]))
    with pytest.raises(ValueError, match="does send_activation of micro-batch 0.* before forward"):
        check_schedule(_with(schedule, 0, [program[1], program[0], *program[2:]]))
    swapped = [
        action._replace(micro_batch=1 - action.micro_batch)
        if action.kind == RECEIVE_ACTIVATION and action.micro_batch < 2
        else action
        for action in schedule.programs[1]
    ]
    with pytest.raises(ValueError, match="awaits receive_activation of micro-batch 1.*micro-batch 0"):
        check_schedule(_with(schedule, 1, swapped))


def test_a_circle_of_waiting_is_found() -> None:
    """Rank 0 awaits the gradient of micro-batch 0 before it sends its activation."""
    schedule = build_schedule("1f1b", 2, 1)
    forward, send, receive, backward = schedule.programs[0]
    assert send.kind == SEND_ACTIVATION
    circle = _with(schedule, 0, [forward, receive, send, backward])
    with pytest.raises(ValueError, match="wait for each other: rank 0 at receive_gradient.*rank 1 at"):
        check_schedule(circle)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("gpipe", 2, 2), "1f1b"),
        (("interleaved", 2, 2), "virtual_pp_degree of 2"),
        (("interleaved", 2, 3, 2), "gradient_accumulation_steps gives 3"),
        (("1f1b", 2, 2, 2), "for pipeline_schedule: interleaved"),
        (("memory_capped", 2, 2, 2, 1), "at least"),
        (("1f1b", 2, 2, 1, 2), "is for pipeline_schedule: memory_capped"),
    ],
)
def test_numbers_that_do_not_fit(arguments: tuple, words: str) -> None:
    keys = dict(zip(("virtual_pp_degree", "activation_cap"), arguments[3:], strict=False))
    with pytest.raises(ConfigError, match=words):
        build_schedule(*arguments[:3], **keys)


def test_numbers_of_stages_are_checked() -> None:
    with pytest.raises(ValueError, match="3 numbers for 2 stages"):
        simulate(build_schedule("1f1b", 2, 2), forward=(1, 1, 1))
