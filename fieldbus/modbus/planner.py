"""Points to the cheapest legal requests.

Rules:

* A block is one request: consecutive addresses of one table of one unit, read at one period.
* A device may want each read to begin at one address, and its addresses may hold 32 bits.
* A point is never torn over two requests, and never parted from the point that holds its factor
  (`scale_from`): what belongs together is out of one read.
* Never more than 125 registers or 2000 bits (Modbus Application Protocol V1.1b3), less if the device has
  its own limit, nor over a place that the device is known to refuse (`Barriers`).
* Addresses between points are read over where that costs less than another request.

Design: points that overlap or belong together form atoms, which no cut goes through; sorted, atoms do not
overlap. The cheapest cover of the first *i* atoms is the cheapest cover of the first *j*, plus one request
for the atoms from *j* to *i*, over all *j* from which that request is legal: ``R + B * (end_i - start_j)``
with a cost ``R`` a request and ``B`` an address. The places *j* from which a request may still reach *i*
form a window that only moves forward, so the minimum over it is kept in a monotonic queue and a plan of *n*
points costs O(n).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from fieldbus.modbus.other_functions import MAX_FILE_READ, SIZE_OF_WHOLE
from fieldbus.modbus.registers import RegisterPoint, Table

MAX_REGISTERS = 125
MAX_BITS = 2000


def most_of(table: Table) -> int:
    """Return how many addresses of a table one request reads at most."""
    if table.is_bits:
        return MAX_BITS
    return MAX_FILE_READ if table is Table.FILE else MAX_REGISTERS


Barriers = Sequence[tuple[int, int]]
"""Ranges (first address, address behind the last) that no request may touch, sorted. An empty range (a, a)
is a seam: a request may end or begin there and not go over it."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What asking costs on a link, in seconds."""

    request_s: float = 0.005
    """A request and its answer without data: frames, silence, the device's own time, the network."""
    byte_s: float = 2e-6
    """Each byte of data in an answer."""

    def of(self, table: Table, count: int) -> float:
        """Return what one request takes."""
        return self.request_s + self.byte_s * ((count + 7) // 8 if table.is_bits else 2 * count)


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may ask of a device."""

    max_registers: int = MAX_REGISTERS
    max_bits: int = MAX_BITS
    max_gap: int | None = None
    """Unused registers between two points that are read over, 16 times as many bits; None for what is
    cheapest."""
    first_address: int | None = None
    """Where every read begins, if the device wants that."""

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
    is_anchored: bool = False
    """Whether the device answers only what begins at this address."""
    width: int = 16
    """How many bits of data an address of a register table has."""

    @property
    def name(self) -> str:
        """For logs: ``holding 0..11``."""
        if self.table.is_whole:
            return self.table.place_name(self.address)
        return f"{self.table.place_name(self.address)}..{(self.address + self.count - 1) & 0xFFFF}"

    @property
    def key(self) -> tuple[object, ...]:
        """What makes two blocks the same request for the same points."""
        return (self.table, self.address, self.count, self.period_s, tuple(map(id, self.points)))


@dataclass(slots=True)
class _Atom:
    """Points that no cut may part."""

    start: int
    end: int
    members: list[RegisterPoint] = field(default_factory=list)


def plan(
    points: Iterable[RegisterPoint],
    unit_id: int,
    period_s: float,
    limits: Limits,
    cost: Cost = Cost(),
    barriers: Mapping[Table, Barriers] | None = None,
) -> list[Block]:
    """Return the cheapest blocks that read all `points`, each at its own period or else at `period_s`."""
    classes: dict[tuple[float, Table, int], list[RegisterPoint]] = {}
    for point in points:
        period = period_s if point.scan_s is None else point.scan_s
        classes.setdefault((period, point.table, point.width), []).append(point)
    return [
        block
        for (period, _, _), members in sorted(classes.items())
        for block in plan_together(members, unit_id, period, limits, cost, barriers)
    ]


def plan_together(
    members: Sequence[RegisterPoint],
    unit_id: int,
    period_s: float,
    limits: Limits,
    cost: Cost = Cost(),
    barriers: Mapping[Table, Barriers] | None = None,
) -> list[Block]:
    """Return the cheapest blocks that read points of one table and width, all at one period."""
    table, width = members[0].table, members[0].width
    if table.is_whole:
        return [_whole_block(unit_id, period_s, group) for group in _by_queue(members)]
    size = limits.max_bits if table.is_bits else max(1, limits.max_registers * 16 // width)
    if limits.first_address is not None and table.is_numbered:
        return list(_anchored(members, limits.first_address, size, unit_id, period_s))
    gap = limits.max_gap
    if table is Table.FILE:  # what lies between records that somebody wants may be no record
        size, gap = min(size, most_of(table)), 0
    if gap is not None and table.is_bits:
        gap *= 16
    address_s = cost.byte_s / 8 if table.is_bits else cost.byte_s * 2
    walls = () if barriers is None else barriers.get(table, ())
    blocks = []
    for start, end, group in _cover(_atoms(members, size), size, gap, cost.request_s, address_s, walls):
        group.sort(key=lambda member: (member.address, member.end))
        blocks.append(Block(unit_id, table, start, end - start, period_s, tuple(group), width=width))
    return blocks


def _by_queue(members: Sequence[RegisterPoint]) -> list[list[RegisterPoint]]:
    """Return the points of each table that is read as a whole."""
    found: dict[int, list[RegisterPoint]] = {}
    for member in members:
        found.setdefault(member.address >> 16, []).append(member)
    return [group for _, group in sorted(found.items())]


def _whole_block(unit_id: int, period_s: float, group: list[RegisterPoint]) -> Block:
    group.sort(key=lambda member: (member.address, member.end))
    table, start = group[0].table, group[0].address & ~0xFFFF
    return Block(unit_id, table, start, SIZE_OF_WHOLE[table], period_s, tuple(group))


def _anchored(
    members: Sequence[RegisterPoint], first: int, size: int, unit_id: int, period_s: float
) -> Iterable[Block]:
    """Yield the blocks of a device whose requests all begin at one address: at most two."""
    own = set(members)
    near: list[RegisterPoint] = []
    far: list[RegisterPoint] = []
    for member in members:
        start, end = _reach(member, own)
        # What no such request can read is told when the configuration is loaded.
        is_possible = start >= first and end - first <= (MAX_BITS if member.table.is_bits else MAX_REGISTERS)
        if is_possible:
            (near if end - first <= size else far).append(member)
    for group in (near, far):
        if group:
            end = max(_reach(member, own)[1] for member in group)
            points = tuple(sorted(group, key=lambda member: (member.address, member.end)))
            table, width = group[0].table, group[0].width
            yield Block(unit_id, table, first, end - first, period_s, points, is_anchored=True, width=width)


def _atoms(members: Sequence[RegisterPoint], size: int) -> list[_Atom]:
    own = set(members)
    ordered = sorted(((*_reach(member, own), member) for member in members), key=lambda item: item[:2])
    tied: dict[RegisterPoint, int] = {}
    """Of a point that begins a stretch that belongs together: up to where that goes."""
    for member in members:
        factor = member.factor
        if factor is not None and factor in own:
            first = min(member, factor, key=lambda item: item.address)
            tied[first] = max(tied.get(first, 0), member.end, factor.end)
    found: list[_Atom] = []
    tied_to = -1
    for start, end, member in ordered:
        last = found[-1] if found else None
        if last is not None and (start < last.end or start < tied_to):
            last.members.append(member)
            last.end = max(last.end, end)
        else:
            found.append(_Atom(start, end, [member]))
        tied_to = max(tied_to, tied.get(member, -1))
    return [part for atom in found for part in _fitting(atom, size)]


def _reach(member: RegisterPoint, own: Collection[RegisterPoint]) -> tuple[int, int]:
    """Return what a point needs to be read; its factor too, if nothing else reads that."""
    factor = member.factor
    if factor is None or factor in own:
        return member.address, member.end
    return min(member.address, factor.address), max(member.end, factor.end)


def _fitting(atom: _Atom, size: int) -> Iterable[_Atom]:
    """Part what is too long for one request: each point with its own factor, as many as fit."""
    if atom.end - atom.start <= size:
        yield atom
        return
    part: _Atom | None = None
    for member in atom.members:
        start, end = member.address, member.end
        if member.factor is not None:
            start, end = min(start, member.factor.address), max(end, member.factor.end)
        if part is None or max(part.end, end) - min(part.start, start) > size:
            if part is not None:
                yield part
            part = _Atom(start, end, [member])
        else:
            part.members.append(member)
            part.start, part.end = min(part.start, start), max(part.end, end)
    if part is not None:
        yield part


def _cover(
    atoms: Sequence[_Atom], size: int, gap: int | None, request_s: float, address_s: float, walls: Barriers
) -> Iterable[tuple[int, int, list[RegisterPoint]]]:
    """Return start, end and points of the cheapest requests for atoms in order of address."""
    best = [0.0]
    begins = [0]
    window: deque[tuple[float, int]] = deque()
    """(cost up to j less what the addresses before its start would cost, j), cheapest first."""
    wall = 0
    first = 0
    for index, atom in enumerate(atoms):
        if index:
            before = atoms[index - 1]
            is_apart = gap is not None and atom.start - before.end > gap
            while wall < len(walls) and walls[wall][1] <= before.start:
                wall += 1
            if is_apart or _parts(walls, wall, before, atom):
                first = index
                window.clear()
        entry = best[index] - address_s * atom.start
        while window and window[-1][0] >= entry:
            window.pop()
        window.append((entry, index))
        while first < index and atom.end - atoms[first].start > size:
            first += 1
        while window[0][1] < first:
            window.popleft()
        cheapest, begin = window[0]
        best.append(cheapest + address_s * atom.end + request_s)
        begins.append(begin)
    place = len(atoms)
    found = []
    while place:
        begin = begins[place]
        members = [member for atom in atoms[begin:place] for member in atom.members]
        found.append((atoms[begin].start, max(atom.end for atom in atoms[begin:place]), members))
        place = begin
    return reversed(found)


def _parts(walls: Barriers, place: int, before: _Atom, atom: _Atom) -> bool:
    """Return whether a barrier, from `place` on, forbids a request for two neighbouring atoms."""
    while place < len(walls) and walls[place][0] < atom.end:
        if walls[place][1] > before.start:
            return True
        place += 1
    return False
