"""A plan for people: memory by cause and rank, what is sent, bubble, time, and what was assumed."""

from collections.abc import Iterator

from erniekit.estimate.parallel import Estimate
from erniekit.estimate.shares import Spread


def axes_in_words(spread: Spread) -> str:
    """The axes along which there are several."""
    axes = [f"{axis} {size}" for axis, size in spread.sizes().items() if size > 1]
    if spread.sharding > 1:
        axes[[axis.split()[0] for axis in axes].index("sharding")] += f" (stage {spread.sharding_stage})"
    if spread.expert > 1:
        axes.append(f"expert {spread.expert} ({spread.moe_group})")
    return ", ".join(axes) or "one device"


def lines(estimate: Estimate) -> Iterator[str]:
    """The plan for people."""
    spread, machine, work = estimate.spread, estimate.machine, estimate.workload
    yield f"{spread.world_size} x {machine.name}: {axes_in_words(spread)}"
    yield ""
    yield f"memory of a device at the peak, GiB; {_gib(estimate.allowed)} may be filled (90 %)"
    causes = list(dict.fromkeys(cause for rank in estimate.ranks for cause in rank.memory))
    rows = [("pipeline rank", "blocks", "parameters", *causes, "total")]
    for place, rank in enumerate(estimate.ranks):
        held = f"{len(rank.blocks)}"
        numbers = [_gib(rank.memory.get(cause, 0)) for cause in causes]
        mark = "*" if place == estimate.worst else ""
        rows.append((f"{mark}{place}", held, f"{rank.parameters:,}", *numbers, _gib(rank.total)))
    yield from _columns(rows)
    worst = estimate.ranks[estimate.worst]
    verdict = "fits" if estimate.fits else "DOES NOT FIT"
    used = f"{_gib(worst.total)} GiB of {_gib(estimate.allowed)}"
    yield f"worst: pipeline rank {estimate.worst} with {used}: {verdict}"
    if worst.host:
        in_node = worst.host * min(machine.devices_per_node, spread.world_size)
        yield f"in main memory: {_gib(worst.host)} GiB a device, {_gib(in_node)} GiB a node"
    yield ""
    sent = {axis: max(rank.sent.get(axis, 0) for rank in estimate.ranks) for axis in _axes(estimate)}
    listed = ", ".join(f"{axis} {size / 1e9:,.3g}" for axis, size in sent.items())
    yield f"a device sends in a step, GB, at most: {listed or 'nothing'}"
    yield (
        f"step of {estimate.tokens:,} tokens: {estimate.seconds:.3g} s (pipeline {estimate.pipeline:.3g}, "
        f"reduction not hidden {estimate.exposed:.3g}, optimizer {estimate.update:.3g}), "
        f"{estimate.tokens / estimate.seconds:,.0f} tokens/s"
    )
    yield f"bubble {100 * estimate.bubble:.1f} %, MFU {100 * estimate.utilisation:.1f} %"
    yield (
        f"assumed: {work.compute_type}, kernels at {machine.efficiency:.0%} of {machine.peak / 1e12:,.4g} "
        f"TFLOP/s, {machine.within / 1e9:,.4g} GB/s within {machine.devices_per_node} devices and "
        f"{machine.between / 1e9:,.4g} between nodes, samples of {work.attended:,.0f} tokens, even experts"
    )


def _axes(estimate: Estimate) -> list[str]:
    return list(dict.fromkeys(axis for rank in estimate.ranks for axis in rank.sent))


def _columns(rows: list[tuple[str, ...]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  " + "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))


def _gib(size: float) -> str:
    return f"{size / 2**30:,.1f}" if size >= 2**30 else f"{size / 2**30:.3f}"
