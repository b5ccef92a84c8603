"""Points to fewest legal requests.

Rules:

* A block is one request: consecutive addresses of one table of one unit, read at one period.
* A point is never torn over two requests.
* Gaps are read over up to a limit: what a gap costs in bytes is less than what a request costs.
* Never more than 125 registers or 2000 bits (Modbus Application Protocol V1.1b3), less if the device
  has its own limit.

Design: points in order of address, greedy. With a fixed limit on gaps and blocks, taking as much as
fits from the left gives the fewest blocks. (A planner that knows the cost of a request and of a byte
on each link can do better than a fixed limit; it would replace `plan` and nothing else.)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fieldbus.modbus.registers import RegisterPoint, Table

MAX_REGISTERS = 125
MAX_BITS = 2000


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may ask of a device."""

    max_registers: int = MAX_REGISTERS
    max_bits: int = MAX_BITS
    max_gap: int = 16
    """Unused registers between two points that are read over; 16 times as many bits."""

    def __post_init__(self) -> None:
        if not (1 <= self.max_registers <= MAX_REGISTERS and 1 <= self.max_bits <= MAX_BITS):
            raise ValueError(f"a request has 1 to {MAX_REGISTERS} registers or 1 to {MAX_BITS} bits")


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """One request of the poll plan."""

    unit_id: int
    table: Table
    address: int
    count: int
    """Registers, or bits."""
    period_s: float
    points: Sequence[RegisterPoint]
    """In order of address."""

    @property
    def name(self) -> str:
        """For logs: ``holding 0..11``."""
        return f"{self.table} {self.address}..{self.address + self.count - 1}"


def plan(points: Iterable[RegisterPoint], unit_id: int, period_s: float, limits: Limits) -> list[Block]:
    """Return the blocks that read all `points`, each at its own period or else at `period_s`."""
    classes: dict[tuple[float, Table], list[RegisterPoint]] = {}
    for point in points:
        period = period_s if point.scan_s is None else point.scan_s
        classes.setdefault((period, point.table), []).append(point)
    blocks = []
    for (period, table), members in sorted(classes.items()):
        members.sort(key=lambda member: (member.address, member.end))
        for group in _runs(members, table, limits):
            start = group[0].address
            end = max(member.end for member in group)
            blocks.append(Block(unit_id, table, start, end - start, period, tuple(group)))
    return blocks


def _runs(members: Sequence[RegisterPoint], table: Table, limits: Limits) -> Iterable[list[RegisterPoint]]:
    size = limits.max_bits if table.is_bits else limits.max_registers
    gap = limits.max_gap * 16 if table.is_bits else limits.max_gap
    run: list[RegisterPoint] = []
    start = end = 0
    for member in members:
        if run and (member.address - end > gap or max(end, member.end) - start > size):
            yield run
            run = []
        if not run:
            start = end = member.address
        run.append(member)
        end = max(end, member.end)
    if run:
        yield run
