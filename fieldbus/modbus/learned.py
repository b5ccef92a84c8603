"""What a device taught us about itself: addresses that it refuses, and how much it gives at once.

Rules:

* A block that is refused (exception 02 or 03) is halved until it is known which points the device has not,
  across which places it cannot be read, or how long a request may be. Everything else stays good.
* What was learned belongs to a list of points: its fingerprint is kept beside it, and a map that changed
  begins anew.
* A refused point is asked again now and then, alone.

Design: `explore` is a generator that yields the reads it wants to try and is sent whether the device took
them, so it knows nothing of connections and is tested without any. Kept on disk is one JSON file a device;
one that cannot be read is as good as none.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from fieldbus.modbus.planner import MAX_BITS, MAX_REGISTERS, Barriers, Block, Limits
from fieldbus.modbus.registers import RegisterPoint, Table

Trial = tuple[Table, int, int]
"""A read that is tried: table, address, count."""
Exploration = Generator[Trial, bool, None]


def fingerprint(points: Iterable[RegisterPoint], unit_id: int) -> str:
    """Return what stands for a list of points: another one, and nothing that was learned is believed."""
    text = "\n".join(
        sorted(f"{unit_id} {item.table} {item.address} {item.count} {item.point.name}" for item in points)
    )
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(slots=True)
class Knowledge:
    """What is known of one device."""

    refused: dict[Table, set[tuple[int, int]]] = field(default_factory=dict)
    """Places of points that the device has not: (address, address behind)."""
    walls: dict[Table, set[tuple[int, int]]] = field(default_factory=dict)
    """Gaps that cannot be read over, and seams (a, a) where one request must end and the next begin."""
    max_registers: int = MAX_REGISTERS
    max_bits: int = MAX_BITS
    turnaround_s: float | None = None
    """Measured: what a request takes beyond the time of its bytes on the wire."""

    def barriers(self) -> dict[Table, Barriers]:
        """Return all that no block may touch, for the planner."""
        return {
            table: sorted(self.refused.get(table, set()) | self.walls.get(table, set()))
            for table in {*self.refused, *self.walls}
        }

    def limits(self, configured: Limits) -> Limits:
        """Return the tighter of what is configured and what is known."""
        return Limits(
            min(configured.max_registers, self.max_registers),
            min(configured.max_bits, self.max_bits),
            configured.max_gap,
        )

    def is_refused(self, point: RegisterPoint) -> bool:
        """Return whether the device is known not to have a point."""
        return (point.address, point.end) in self.refused.get(point.table, ())

    def refuse(self, points: Iterable[RegisterPoint]) -> None:
        """Remember points that the device has not."""
        for point in points:
            self.refused.setdefault(point.table, set()).add((point.address, point.end))

    def forgive(self, point: RegisterPoint) -> None:
        """Forget that a point was refused."""
        self.refused.get(point.table, set()).discard((point.address, point.end))

    @property
    def facts(self) -> tuple[object, ...]:
        """Everything that a plan depends on, to compare."""
        places = [
            (kind, table, places)
            for kind, found in (("refused", self.refused), ("walls", self.walls))
            for table, items in sorted(found.items())
            if (places := tuple(sorted(items)))
        ]
        return (*places, self.max_registers, self.max_bits)

    def to_json(self, mark: str) -> str:
        """Return it as the text of a file."""
        found: dict[str, Any] = {
            "fingerprint": mark,
            "refused": _ranges(self.refused),
            "walls": _ranges(self.walls),
            "max_registers": self.max_registers,
            "max_bits": self.max_bits,
            "turnaround_ms": None if self.turnaround_s is None else round(self.turnaround_s * 1000, 3),
        }
        return json.dumps(found, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str, mark: str) -> Knowledge:
        """Return what a file says; nothing if it is of another list of points or makes no sense.

        The time that a request takes does not depend on the points and is kept.
        """
        try:
            data = json.loads(text)
            found = cls()
            turnaround_ms = data.get("turnaround_ms")
            if isinstance(turnaround_ms, int | float) and 0 <= turnaround_ms < 60_000:
                found.turnaround_s = turnaround_ms / 1000
            if data.get("fingerprint") != mark:
                return found
            known = cls(
                {
                    Table(name): {(int(a), int(b)) for a, b in items}
                    for name, items in data["refused"].items()
                },
                {Table(name): {(int(a), int(b)) for a, b in items} for name, items in data["walls"].items()},
                min(MAX_REGISTERS, max(1, int(data["max_registers"]))),
                min(MAX_BITS, max(1, int(data["max_bits"]))),
                found.turnaround_s,
            )
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
            return cls()
        return known


def _ranges(found: dict[Table, set[tuple[int, int]]]) -> dict[str, list[tuple[int, int]]]:
    return {str(table): sorted(places) for table, places in found.items() if places}


class Explorer:
    """Finds out why a block was refused, and puts it into what is known."""

    def __init__(self, knowledge: Knowledge) -> None:
        self._knowledge = knowledge
        self._longest: dict[bool, int] = {}
        """The longest read that was ever taken, of bits and of registers."""
        self.was_passing = False
        """Whether the last block that was explored was taken when it was asked for once more."""

    def took(self, table: Table, count: int) -> None:
        """Learn that a read of so many was taken."""
        if count > self._longest.get(table.is_bits, 0):
            self._longest[table.is_bits] = count

    def doubt(self) -> None:
        """Believe no longer that reads are taken as long as they were."""
        self._longest.clear()

    def explore(self, block: Block) -> Exploration:
        """Find out why a block was refused; yields reads and is sent whether they were taken."""
        groups = _inseparable(block.points)
        self.was_passing = yield from self._try(block.table, groups)
        if not self.was_passing:
            yield from self._halve(block.table, groups, self._most(block.table))

    def _halve(self, table: Table, groups: Sequence[Sequence[RegisterPoint]], most: int) -> Exploration:
        """Take a refused stretch apart, until it turns out that less than `most` may be asked at once."""
        if len(groups) == 1:
            yield from self._single_out(table, groups[0])
            return
        cut = _middle(groups)
        left, right = groups[:cut], groups[cut:]
        is_left_whole = yield from self._try(table, left)
        if not is_left_whole:
            yield from self._halve(table, left, most)
        if self._most(table) < most:
            return  # the whole was too long anyway: what is left is planned anew
        is_right_whole = yield from self._try(table, right)
        if not is_right_whole:
            yield from self._halve(table, right, most)
        elif is_left_whole:
            yield from self._explain(table, left, right)

    def _single_out(self, table: Table, group: Sequence[RegisterPoint]) -> Exploration:
        """Find out which of some points that share addresses the device has not."""
        places = sorted({(point.address, point.end) for point in group})
        is_missing = len(places) == 1
        for start, end in places if len(places) > 1 else ():
            if (yield (table, start, end - start)):
                self.took(table, end - start)
                continue
            is_missing = True
            self._knowledge.refuse(point for point in group if (point.address, point.end) == (start, end))
        if len(places) == 1:
            self._knowledge.refuse(group)
        elif not is_missing:
            yield from self._measure(table, *_span([group]), max(end - start for start, end in places))

    def _explain(
        self,
        table: Table,
        left: Sequence[Sequence[RegisterPoint]],
        right: Sequence[Sequence[RegisterPoint]],
    ) -> Exploration:
        """Both halves can be read and the whole cannot: a place between them, or its length?"""
        (start, left_end), (right_start, end) = _span(left), _span(right)
        nearest_start, nearest_end = _span(left[-1:])[0], _span(right[:1])[1]
        is_short = nearest_end - nearest_start < end - start
        if end - start <= self._longest.get(table.is_bits, 0) or not is_short:
            self._knowledge.walls.setdefault(table, set()).add((left_end, right_start))
            return
        taken = yield (table, nearest_start, nearest_end - nearest_start)
        if not taken:
            self._knowledge.walls.setdefault(table, set()).add((left_end, right_start))
            return
        self.took(table, nearest_end - nearest_start)
        yield from self._measure(table, start, end, max(left_end - start, end - right_start))

    def _measure(self, table: Table, start: int, end: int, taken_count: int) -> Exploration:
        """Find out how many may be read at once, where every address can be read and the whole cannot."""
        refused_count = end - start
        taken_count = max(taken_count, self._longest.get(table.is_bits, 0))
        while refused_count - taken_count > 1:
            count = (taken_count + refused_count) // 2
            if (yield (table, start, count)):
                taken_count = count
            else:
                refused_count = count
        self.took(table, taken_count)
        if table.is_bits:
            self._knowledge.max_bits = min(self._knowledge.max_bits, taken_count)
        else:
            self._knowledge.max_registers = min(self._knowledge.max_registers, taken_count)

    def _most(self, table: Table) -> int:
        return self._knowledge.max_bits if table.is_bits else self._knowledge.max_registers

    def _try(self, table: Table, groups: Sequence[Sequence[RegisterPoint]]) -> Generator[Trial, bool, bool]:
        start, end = _span(groups)
        taken = yield (table, start, end - start)
        if taken:
            self.took(table, end - start)
        return taken


def _inseparable(points: Sequence[RegisterPoint]) -> list[list[RegisterPoint]]:
    """Return points that share addresses together, in order."""
    groups: list[list[RegisterPoint]] = []
    reach = -1
    for point in sorted(points, key=lambda item: (item.address, item.end)):
        if groups and point.address < reach:
            groups[-1].append(point)
        else:
            groups.append([point])
        reach = max(reach, point.end)
    return groups


def _span(groups: Sequence[Sequence[RegisterPoint]]) -> tuple[int, int]:
    return groups[0][0].address, max(point.end for point in groups[-1])


def _middle(groups: Sequence[Sequence[RegisterPoint]]) -> int:
    """Return where to cut: half the addresses on each side, as nearly as points allow."""
    start, end = _span(groups)
    half = (start + end) / 2
    return min(range(1, len(groups)), key=lambda place: abs(groups[place][0].address - half))
