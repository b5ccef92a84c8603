"""Values to write: what goes together into one request, and which requests that are.

Rules:

* In the order in which they were given. Neighbours that follow each other share one request.
* Members of one `group` always share one request, at the turn of the first of them. If one is refused, all
  are.
* FC 5 and 6 for one coil or register, FC 15 and 16 for more, or what the point's `function` says, or what the
  device's quirks leave.
* What cannot be expressed is refused before anything is sent.

How requests are sent and what their responses mean: `write_steps.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field

from fieldbus.errors import ConversionError
from fieldbus.link import WriteOutcome, WriteResult
from fieldbus.modbus import other_functions, pdu
from fieldbus.modbus.quirks import UnitQuirks
from fieldbus.modbus.registers import RegisterPoint, Table
from fieldbus.modbus.write_rules import MASK, SINGLE
from fieldbus.model import Value

Answer = Callable[[WriteResult], None]
Steps = Generator[bytes, bytes, None]
"""Yields request PDUs and is sent the answers' PDUs."""


@dataclass(slots=True, eq=False)
class Write:
    """One value on its way to a point."""

    point: RegisterPoint
    value: Value
    answers: list[Answer] = field(default_factory=list)
    """Who waits for the end of it."""
    is_finished: bool = False
    is_routed: bool = False
    """Whether a route gave it, or one that waited before it."""
    until_s: float = math.inf
    """After this moment (monotonic) it is not sent any more."""
    then: Sequence[Write] = ()
    """What is written after this was accepted."""
    has_left: bool = False
    """Whether a request that writes something of it was sent: the device may have it."""
    is_doubted: bool = False
    """Whether the device may have this value already: then that is read first."""

    @property
    def name(self) -> str:
        """The point's name in its device."""
        return self.point.point.name


@dataclass(slots=True)
class Run:
    """Writes that go together."""

    writes: list[Write]
    """In order of address."""
    data: list[bytes]
    """Of each, registers as on the wire, or one byte per coil."""
    given: list[Write]
    """The same writes in the order in which they were given."""
    bits: bool = False
    """Whether only some bits of one place are written."""
    members: Sequence[RegisterPoint] = ()
    """Of a group: all its points, in order of address. All their registers are in the request."""

    @property
    def first(self) -> RegisterPoint:
        """The point at the lowest address."""
        return self.writes[0].point


Finish = Callable[[Write, WriteOutcome, str | None], None]
Groups = Mapping[str, Sequence[RegisterPoint]]
"""The points of each group of a device, in order of address."""


def groups_of(points: Sequence[RegisterPoint]) -> Groups:
    """Return the groups of a device's points."""
    found: dict[str, list[RegisterPoint]] = {}
    for point in points:
        if point.rules.group and point.word is None:
            found.setdefault(point.rules.group, []).append(point)
    return {name: sorted(members, key=lambda point: point.address) for name, members in found.items()}


def gather(writes: Sequence[Write], finish: Finish, groups: Groups | None = None) -> list[Run]:
    """Encode what waits for one unit and put together what goes together; refuse what cannot be expressed.

    A value with a factor is encoded later, when the factor is known.

    Args:
        writes: in the order in which they were given.
        finish: is told what is refused.
        groups: of the unit.
    """
    pieces, refusals = _encoded(writes)
    runs: list[Run] = []
    of_group: dict[str, Run] = {}
    spoilt = {write.point.rules.group: write for write in reversed(writes) if write in refusals}
    for write in writes:
        group = write.point.rules.group
        culprit = spoilt.get(group) if group else None
        if write in refusals:
            finish(write, WriteOutcome.REFUSED, refusals[write])
        elif culprit is not None:
            finish(write, WriteOutcome.REFUSED, with_group(group, culprit.name, "was refused"))
        elif group in of_group:
            of_group[group].writes.append(write)
            of_group[group].data.append(pieces[write])
            of_group[group].given.append(write)
        elif group and groups:
            run = Run([write], [pieces[write]], [write], members=groups[group])
            of_group[group] = run
            runs.append(run)
        elif runs and _joins(write, runs[-1]):
            last = runs[-1]
            at = 0 if write.point.end == last.first.address else len(last.writes)
            last.writes.insert(at, write)
            last.data.insert(at, pieces[write])
            last.given.append(write)
        else:
            runs.append(Run([write], [pieces[write]], [write], write.point.low_bit is not None))
    return runs


def with_group(group: str, name: str, what: str) -> str:
    """Return why a member of a group was not written."""
    return f"not written: {name} of the same group ({group}) {what}"


def _encoded(writes: Sequence[Write]) -> tuple[dict[Write, bytes], dict[Write, str]]:
    """Return the bytes of what can be written, and why the rest is refused."""
    pieces: dict[Write, bytes] = {}
    refusals: dict[Write, str] = {}
    for write in writes:
        place = write.point
        refusal = place.point.refusal(write.value)
        if refusal is not None:
            refusals[write] = refusal
            continue
        try:
            if place.table.is_bits:
                pieces[write] = bytes((place.encode_bit(write.value),))
            else:
                pieces[write] = b"" if place.factor is not None else place.encode(write.value)
        except ConversionError as error:
            refusals[write] = str(error)
    return pieces, refusals


def _joins(write: Write, run: Run) -> bool:
    """Return whether a write can share the request of a run, in front of it or behind it."""
    place, first, last = write.point, run.first, run.writes[-1].point
    if place.table is not first.table or place.factor is not None or first.factor is not None:
        return False
    function = first.rules.function
    is_apart = write.is_doubted or run.writes[0].is_doubted or bool(run.members)
    if is_apart or place.rules.function != function or function in SINGLE:
        return False
    if run.bits or place.low_bit is not None:
        is_same_place = (place.address, place.end) == (first.address, first.end)
        is_same_shown = place.rules.read_from == first.rules.read_from
        return run.bits and place.low_bit is not None and is_same_place and is_same_shown
    most = pdu.MAX_WRITE_BITS if place.table.is_bits else 2 * pdu.MAX_WRITE_REGISTERS
    if place.table is Table.FILE:
        most = 2 * other_functions.MAX_FILE_WRITE
    size = place.count if place.table.is_bits else 2 * place.count
    is_beside = last.end == place.address or place.end == first.address
    return is_beside and sum(map(len, run.data)) + size <= most


def requests(place: RegisterPoint, address: int, data: bytes, quirks: UnitQuirks) -> list[bytes]:
    """Return the requests that write registers as on the wire, or coils as one byte each.

    Args:
        place: the point, for its table and its function.
        address: of the first register or coil.
        data: what is written.
        quirks: the device's.

    Raises:
        ConversionError: it is more than one request can write.
    """
    if place.table is Table.FILE:
        if len(data) > 2 * other_functions.MAX_FILE_WRITE:
            raise ConversionError(f"one request writes at most {other_functions.MAX_FILE_WRITE} records")
        return [other_functions.write_request(address, data)]
    is_single, is_multiple = is_written_singly(place, quirks), is_written_by_many(place, quirks)
    if place.table is Table.COIL:
        states = [bool(state) for state in data]
        if is_single:
            return [pdu.write_coils_request(address + n, [state]) for n, state in enumerate(states)]
        return [pdu.write_coils_request(address, states, multiple=is_multiple)]
    if is_single:
        words = [data[n : n + 2] for n in range(0, len(data), 2)]
        return [pdu.write_registers_request(address + n, word) for n, word in enumerate(words)]
    if len(data) > 2 * pdu.MAX_WRITE_REGISTERS:
        raise ConversionError(f"one request writes at most {pdu.MAX_WRITE_REGISTERS} registers")
    return [pdu.write_registers_request(address, data, multiple=is_multiple)]


def is_written_singly(place: RegisterPoint, quirks: UnitQuirks) -> bool:
    """Return whether each register or coil needs a request of its own."""
    function = place.rules.function
    return (
        function in SINGLE if function is not None else quirks.single_writes and place.table is not Table.FILE
    )


def is_written_by_many(place: RegisterPoint, quirks: UnitQuirks) -> bool:
    """Return whether one register or coil is written by FC 15 or 16 too."""
    function = place.rules.function
    return function in (15, 16) if function is not None else quirks.multiple_writes


def takes_mask(place: RegisterPoint, quirks: UnitQuirks) -> bool:
    """Return whether bits of a place are written by FC 22."""
    function = place.rules.function
    is_asked = function == MASK or (function is None and quirks.mask_write)
    return is_asked and place.count == 1 and place.table is Table.HOLDING
