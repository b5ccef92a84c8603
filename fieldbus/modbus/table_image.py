"""One table of the registers that we serve: its bytes, and which addresses have a value.

Rules:

* An address without a point does not exist, unless `BlockRules` fill it: it then reads as the filler,
  and is never written.
* A read that touches a bad point is refused; by the rule `bad_points_read` only if all points that it
  touches are bad. What a bad point reads as, between others, is the caller's to put there.

Design: a byte string of registers plus one state byte per address, from the lowest point to the highest,
so that a read of 125 registers is checked by two C searches in a slice, not by a loop over points. What is
filled beyond them is made when it is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fieldbus.modbus.registers import RegisterPoint

ABSENT, GOOD, BAD, FILLER = 0, 1, 2, 3


@dataclass(frozen=True, slots=True)
class BlockRules:
    """What clients read where there is no value."""

    fills_gaps: bool = False
    """Whether addresses between points read as 0."""
    fill: int | None = None
    """What all addresses without a point read as, in tables that have points; None if they do not exist."""
    bad_points_read: bool = False
    """Whether bad points can be read beside good ones."""

    @property
    def no_value(self) -> int:
        """The register of a bad point that can be read and has no value of its own for that."""
        return 0xFFFF if self.fill is None else self.fill


class TableImage:
    """One table: contiguous from its lowest to its highest point."""

    def __init__(self, points: Sequence[RegisterPoint], rules: BlockRules) -> None:
        self.is_bits = points[0].table.is_bits
        self.start = min(point.address for point in points)
        self.end = max(point.end for point in points)
        size = self.end - self.start
        fill = rules.fill or 0
        self._is_filled = rules.fill is not None
        self._filler = bytes((bool(fill),)) if self.is_bits else fill.to_bytes(2, "big")
        self._bad_points_read = rules.bad_points_read
        self.data = bytearray(self._filler * size)
        """Registers as on the wire, or one byte per bit."""
        is_filled = rules.fills_gaps or self._is_filled
        self.state = bytearray((FILLER if is_filled else ABSENT,)) * size
        self.owners: list[list[RegisterPoint]] = [[] for _ in range(size)]
        for point in points:
            for index in self.indexes(point):
                self.owners[index].append(point)
                self.state[index] = BAD

    def indexes(self, point: RegisterPoint) -> list[int]:
        """Return where in the table the addresses of a point are."""
        found = {address for piece in point.pieces for address in range(piece.address, piece.end)}
        return sorted(address - self.start for address in found)

    def contains(self, address: int, count: int) -> bool:
        """Return whether all addresses of a range exist."""
        if self._is_filled:
            return address + count <= 0x10000
        first = address - self.start
        if first < 0 or address + count > self.end:
            return False
        return ABSENT not in self.state[first : first + count]

    def is_refused(self, address: int, count: int) -> bool:
        """Return whether a read of a range is refused for the bad points in it."""
        first = max(0, address - self.start)
        states = self.state[first : max(0, address + count - self.start)]
        return BAD in states and not (self._bad_points_read and GOOD in states)

    def read(self, address: int, count: int) -> bytes:
        """Return what a range reads as: registers as on the wire, or bits packed from the lowest."""
        data = self._cut(address, count)
        if not self.is_bits:
            return data
        packed = 0
        for index, state in enumerate(data):
            packed |= state << index
        return packed.to_bytes((count + 7) // 8, "little")

    def _cut(self, address: int, count: int) -> bytes:
        width = len(self._filler)
        first = address - self.start
        if first >= 0 and address + count <= self.end:
            return bytes(self.data[width * first : width * (first + count)])
        before = min(count, max(0, -first))
        inside = self.data[width * max(0, first) : width * max(0, first + count)]
        behind = count - before - len(inside) // width
        return self._filler * before + bytes(inside) + self._filler * behind
