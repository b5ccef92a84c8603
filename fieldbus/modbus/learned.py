"""What is known of a device beside its map: addresses that it does not give, and how much it gives at once.

Rules:

* A block that fails, in whatever way, is taken apart until it is known which points cannot be read, across
  which places the device cannot be read, or how long a request may be. Everything else stays good.
* A gap that the plan reads over is the first suspect: a block is cut at its gaps before points are parted.
* A part that fails costs only itself and has a reason of its own; whatever was taken stays known.
* What may be different the next time (silence, busy, a garbled response) is asked once more before a wall
  follows from it, and where nothing at all was taken nothing follows from it.
* What was learned belongs to a list of points: its fingerprint is kept beside it, and a map that changed
  begins without knowledge.
* A refused point is asked again now and then, alone.

Design: `explore` is a generator that yields the reads it wants to try and is sent their outcomes, so it knows
nothing of connections and is tested without any. Kept on disk is one JSON file a device; one that cannot be
read is as good as none.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from fieldbus.modbus.planner import MAX_BITS, MAX_REGISTERS, Barriers, Block, Limits
from fieldbus.modbus.registers import RegisterPoint, Table

REFUSED_REASON = "device exception 02"
"""Why a refused point is bad unless something else is known."""
_HOPELESS = 64
"""How many single points must have failed in a way that may pass, and nothing been taken, to give up."""
_COSTLY = 8
"""For how many of them one counts for which was waited."""


class Trial(NamedTuple):
    """A read that is tried."""

    table: Table
    address: int
    size: int
    """How many registers or bits."""
    is_decisive: bool = False
    """Whether something follows from its failure alone: it is given its full time."""


class Outcome(NamedTuple):
    """What became of a trial."""

    is_taken: bool
    reason: str = REFUSED_REASON
    """Why its points have no value, if it was not taken."""
    is_odd: bool = False
    """Whether the same read may be taken the next time."""
    is_costly: bool = False
    """Whether it took a timeout, or a pause."""


TAKEN = Outcome(is_taken=True)
REFUSED = Outcome(is_taken=False)
Search = Generator[Trial, Outcome, None]


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
    reasons: dict[tuple[Table, int, int], str] = field(default_factory=dict)
    """Of places that are refused with another reason than device exception 02."""

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
            configured.first_address,
        )

    def is_refused(self, point: RegisterPoint) -> bool:
        """Return whether the device is known not to have a point."""
        return (point.address, point.end) in self.refused.get(point.table, ())

    def refuse(self, points: Iterable[RegisterPoint], reason: str = REFUSED_REASON) -> None:
        """Remember points that the device does not give."""
        for point in points:
            self.refused.setdefault(point.table, set()).add((point.address, point.end))
            if reason != REFUSED_REASON:
                self.reasons[point.table, point.address, point.end] = reason
            else:
                self.reasons.pop((point.table, point.address, point.end), None)

    def reason(self, point: RegisterPoint) -> str:
        """Return why a refused point has no value."""
        return self.reasons.get((point.table, point.address, point.end), REFUSED_REASON)

    def forgive(self, point: RegisterPoint) -> None:
        """Forget that a point was refused."""
        self.refused.get(point.table, set()).discard((point.address, point.end))
        self.reasons.pop((point.table, point.address, point.end), None)

    def forgive_like(self, point: RegisterPoint) -> None:
        """Forget whatever was refused for the same reason as a point."""
        reason = self.reason(point)
        for table, places in self.refused.items():
            alike = {place for place in places if self.reasons.get((table, *place), REFUSED_REASON) == reason}
            places.difference_update(alike)
            for place in alike:
                self.reasons.pop((table, *place), None)

    def copy(self) -> Knowledge:
        """Return the same knowledge, which changes by itself."""
        return Knowledge(
            {table: set(places) for table, places in self.refused.items()},
            {table: set(places) for table, places in self.walls.items()},
            self.max_registers, self.max_bits, self.turnaround_s, dict(self.reasons),
        )  # fmt: skip

    def restore(self, earlier: Knowledge) -> None:
        """Forget whatever was learned since `earlier` was copied, but how long a request takes."""
        self.refused, self.walls, self.reasons = earlier.refused, earlier.walls, earlier.reasons
        self.max_registers, self.max_bits = earlier.max_registers, earlier.max_bits

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
            "reasons": [[str(table), *place, reason] for (table, *place), reason in self.reasons.items()],
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
                {
                    (Table(table), int(a), int(b)): str(reason)[:60]
                    for table, a, b, reason in data.get("reasons", [])
                },
            )
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
            return cls()
        return known


def _ranges(found: dict[Table, set[tuple[int, int]]]) -> dict[str, list[tuple[int, int]]]:
    return {str(table): sorted(places) for table, places in found.items() if places}


class Explorer:
    """Finds out why a block failed, and puts it into what is known."""

    def __init__(self, knowledge: Knowledge) -> None:
        self._knowledge = knowledge
        self._longest: dict[bool, int] = {}
        """The longest read that was ever taken, of bits and of registers."""
        self.was_passing = False
        """Whether the last block that was explored was taken when it was asked for once more."""
        self.has_taken = False
        """Whether any trial of the last exploration was taken."""
        self.is_odd = False
        """Whether any of its failures may be different the next time."""
        self._anchor: int | None = None
        """Where all reads begin, if they must."""
        self._words = 1
        """How many registers' data an address has."""
        self._odd: list[Sequence[RegisterPoint]] = []
        """What failed alone in a way that may pass, each with the points of one place."""
        self._failed_alone = 0
        """Counts single points that failed in a way that may pass, before anything was taken."""

    def took(self, table: Table, count: int) -> None:
        """Learn that a read of so many was taken."""
        if count > self._longest.get(table.is_bits, 0):
            self._longest[table.is_bits] = count

    def doubt(self) -> None:
        """Believe no longer that reads are taken as long as they were."""
        self._longest.clear()

    def explore(self, block: Block) -> Search:
        """Find out why a block failed; yields reads and is sent what became of them."""
        self.has_taken = self.is_odd = False
        self._failed_alone = 0
        self._odd = []
        self._anchor = block.address if block.is_anchored else None
        self._words = block.width // 16
        groups = _inseparable(block.points)
        whole = yield from self._try(block.table, groups)
        self.was_passing = whole.is_taken
        if not self.was_passing:
            yield from self._halve(block.table, groups, self._most(block.table), whole)
            yield from self._ask_odd_again(block.table)

    def _ask_odd_again(self, table: Table) -> Search:
        """Ask once more for what failed alone in a way that may pass, if it has passed for the rest."""
        odd, self._odd = self._odd, []
        for points in odd if self.has_taken else ():
            outcome = yield from self._ask(table, points[0].address, points[0].end)
            if outcome.is_taken:
                for point in points:
                    self._knowledge.forgive(point)

    @property
    def is_hopeless(self) -> bool:
        """Whether so much has failed in a way that may pass that nothing is worth asking now."""
        return not self.has_taken and self._failed_alone >= _HOPELESS

    def _halve(
        self, table: Table, groups: Sequence[Sequence[RegisterPoint]], most: int, whole: Outcome
    ) -> Search:
        """Take a failed stretch apart, until it turns out that less than `most` may be asked at once."""
        if len(groups) == 1:
            yield from self._single_out(table, groups[0], whole)
            return
        cut = _middle(groups)
        left, right = groups[:cut], groups[cut:]
        first = yield from self._try(table, left)
        # A failure that may pass costs time, so the other half is asked before it is looked into: if that is
        # not taken either, the device may give nothing at all now.
        other = (yield from self._try(table, right)) if first.is_odd else None
        if not first.is_taken:
            yield from self._halve(table, left, most, first)
        if self._most(table) < most or self.is_hopeless:
            return  # the whole was too long anyway: what is left is planned again
        if other is None:
            other = yield from self._try(table, right)
        if not other.is_taken:
            yield from self._halve(table, right, most, other)
        elif first.is_taken:
            yield from self._explain(table, left, right, whole)

    def _single_out(self, table: Table, group: Sequence[RegisterPoint], whole: Outcome) -> Search:
        """Find out which of some points that share addresses the device does not give."""
        places = sorted({(point.address, point.end) for point in group})
        if len(places) == 1:
            self._refuse(group, whole)
            return
        is_missing = False
        for start, end in places:
            outcome = yield from self._ask(table, start, end, is_decisive=True)
            if not outcome.is_taken:
                is_missing = True
                self._refuse(
                    [point for point in group if (point.address, point.end) == (start, end)], outcome
                )
        if not is_missing:
            yield from self._measure(table, *_span([group]), max(end - start for start, end in places))

    def _refuse(self, points: Sequence[RegisterPoint], outcome: Outcome) -> None:
        self._knowledge.refuse(points, outcome.reason)
        if outcome.is_odd:
            self._odd.append(points)
            self._failed_alone += 0 if self.has_taken else _COSTLY if outcome.is_costly else 1

    def _explain(
        self,
        table: Table,
        left: Sequence[Sequence[RegisterPoint]],
        right: Sequence[Sequence[RegisterPoint]],
        whole: Outcome,
    ) -> Search:
        """Both halves can be read and the whole cannot: a place between them, or its length?"""
        (start, left_end), (right_start, end) = _span(left), _span(right)
        if whole.is_odd:
            again = yield from self._ask(table, start, end)
            if again.is_taken:
                return  # it has passed
        nearest_start, nearest_end = _span(left[-1:])[0], _span(right[:1])[1]
        is_short = nearest_end - nearest_start < end - start
        wall = (left_end, right_start)
        if (end - start) * self._words <= self._longest.get(table.is_bits, 0) or not is_short:
            self._knowledge.walls.setdefault(table, set()).add(wall)
            return
        nearest = yield from self._ask(table, nearest_start, nearest_end, is_decisive=True)
        if not nearest.is_taken:
            self._knowledge.walls.setdefault(table, set()).add(wall)
            return
        yield from self._measure(table, start, end, max(left_end - start, end - right_start))

    def _measure(self, table: Table, start: int, end: int, taken_count: int) -> Search:
        """Find out how many may be read at once, where every address can be read and the whole cannot."""
        refused_count = end - start
        taken_count = max(taken_count, self._longest.get(table.is_bits, 0) // self._words)
        while refused_count - taken_count > 1:
            count = (taken_count + refused_count) // 2
            outcome = yield from self._ask(table, start, start + count)
            if outcome.is_taken:
                taken_count = count
            else:
                refused_count = count
        taken_count *= self._words
        self.took(table, taken_count)
        if table.is_bits:
            self._knowledge.max_bits = min(self._knowledge.max_bits, taken_count)
        else:
            self._knowledge.max_registers = min(self._knowledge.max_registers, taken_count)

    def _ask(
        self, table: Table, start: int, end: int, *, is_decisive: bool = False
    ) -> Generator[Trial, Outcome, Outcome]:
        """Try one read."""
        start = start if self._anchor is None else self._anchor
        outcome = yield Trial(table, start, end - start, is_decisive)
        if outcome.is_taken:
            self.has_taken = True
            self.took(table, (end - start) * self._words)
        elif outcome.is_odd:
            self.is_odd = True
        return outcome

    def _most(self, table: Table) -> int:
        return self._knowledge.max_bits if table.is_bits else self._knowledge.max_registers

    def _try(
        self, table: Table, groups: Sequence[Sequence[RegisterPoint]]
    ) -> Generator[Trial, Outcome, Outcome]:
        """Try a stretch; of a single point the failure is the point's own."""
        start, end = _span(groups)
        return (yield from self._ask(table, start, end, is_decisive=len(groups) == 1))


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
    """Return where to cut: at the gap that is nearest to the middle; without gaps in the middle."""
    start, end = _span(groups)
    half = (start + end) / 2
    gaps = []
    reach = start
    for place in range(1, len(groups)):
        reach = max(reach, *(point.end for point in groups[place - 1]))
        if groups[place][0].address > reach:
            gaps.append(place)
    return min(gaps or range(1, len(groups)), key=lambda place: abs(groups[place][0].address - half))
