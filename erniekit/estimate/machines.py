"""Machines a run is planned for: memory, arithmetic, and how fast bytes go between devices.

Bandwidths are of one device in one direction, the share of the nominal figure that large collectives
reach (80 %) taken off. `efficiency` is the share of the peak that the kernels of a block reach with all
that is around the products; it scales every time that is told, so measure it where you can.
"""

from dataclasses import dataclass, replace
from typing import Any

GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Numbers of one device and of what joins it to others.

    memory: bytes. peak: FLOP/s in bf16 (fp32 on a CPU). peak_fp8: the same in fp8, 0 where there is none.
    within, between: bytes a second in a node and between nodes; host: to main memory.
    """

    name: str
    devices_per_node: int
    memory: float
    peak: float
    peak_fp8: float
    within: float
    between: float
    host: float
    efficiency: float
    on_cpu: bool = False

    def bandwidth(self, span: int) -> float:
        """Bytes a second between ranks of which the farthest are `span` apart."""
        return self.within if span <= self.devices_per_node else self.between

    def changed(self, **changes: Any) -> "Machine":
        """The same with other numbers where they are not None."""
        return replace(self, **{name: value for name, value in changes.items() if value is not None})


_NODE: dict[str, Any] = {"devices_per_node": 8, "host": 25e9, "efficiency": 0.6}
MACHINES = {
    "H800": Machine(
        name="H800", memory=80 * GIB, peak=989e12, peak_fp8=1979e12, within=160e9, between=40e9, **_NODE
    ),
    "H100": Machine(
        name="H100", memory=80 * GIB, peak=989e12, peak_fp8=1979e12, within=360e9, between=40e9, **_NODE
    ),
    "A100": Machine(
        name="A100", memory=80 * GIB, peak=312e12, peak_fp8=0.0, within=240e9, between=20e9, **_NODE
    ),
    "cpu": Machine(
        name="cpu",
        devices_per_node=64,
        memory=16 * GIB,
        peak=200e9,
        peak_fp8=0.0,
        within=2e9,
        between=1e9,
        host=10e9,
        efficiency=0.6,
        on_cpu=True,
    ),
}
