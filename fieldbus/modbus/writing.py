"""Values to write requests, and what becomes of them.

Rules:

* In the order in which they were given. Neighbours that follow each other share one request; if the device
  refuses that, each is written by itself, so that one bad value does not cost the others. What may have been
  done is not repeated: after a silence, or an answer that is none, the rest has failed.
* FC 5 and 6 for one coil or register, FC 15 and 16 for more, or what the device's quirks leave.
* Single bits of a register by FC 22 if the device has it; else the register is read, the bits are changed,
  and it is written back and read again. Bits of one register that wait together are written together.
* A value with a factor (`scale_from`) is written with the factor that the device has now.
* What cannot be expressed is refused before anything is sent. `verify` reads back: what is found there must
  be what was written.

Design: a generator that yields requests and is sent their answers, or has the error thrown into it, so that
several steps read like one; it knows nothing of connections and clocks.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, field

from fieldbus.errors import ConversionError, DeviceExceptionError, RequestError
from fieldbus.link import WriteOutcome, WriteResult
from fieldbus.modbus import other_functions, pdu
from fieldbus.modbus.quirks import UnitQuirks
from fieldbus.modbus.registers import RegisterPoint, Table
from fieldbus.model import Value

_NO_REFUSAL = (
    pdu.ACKNOWLEDGE,
    pdu.GATEWAY_PATH_UNAVAILABLE,
    pdu.GATEWAY_TARGET_FAILED_TO_RESPOND,
)
"""Exceptions after which nothing is tried otherwise: it may be done already, or nobody is there."""

Steps = Generator[bytes, bytes, None]
"""Yields request PDUs and is sent the answers' PDUs."""


@dataclass(slots=True, eq=False)
class Write:
    """One value on its way to a point."""

    point: RegisterPoint
    value: Value
    answers: list[asyncio.Future[WriteResult]] = field(default_factory=list)
    is_finished: bool = False
    is_routed: bool = False
    """Whether a route gave it, or one that waited before it."""
    until_s: float = math.inf
    """After this moment (monotonic) it is not sent any more."""


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

    @property
    def first(self) -> RegisterPoint:
        """The point at the lowest address."""
        return self.writes[0].point


Finish = Callable[[Write, WriteOutcome, str | None], None]
Why = Callable[[RequestError], str]


def gather(writes: Sequence[Write], finish: Finish) -> list[Run]:
    """Encode what waits for one unit and put together what goes together; refuse what cannot be expressed.

    A value with a factor is encoded later, when the factor is known.
    """
    runs: list[Run] = []
    for write in writes:
        place = write.point
        refusal = place.point.refusal(write.value)
        if refusal is not None:
            finish(write, WriteOutcome.REFUSED, refusal)
            continue
        try:
            if place.table.is_bits:
                piece = bytes((place.encode_bit(write.value),))
            elif place.factor is not None:
                piece = b""
            else:
                piece = place.encode(write.value)
        except ConversionError as error:
            finish(write, WriteOutcome.REFUSED, str(error))
            continue
        if runs and _joins(write, runs[-1]):
            last = runs[-1]
            at = 0 if place.end == last.first.address else len(last.writes)
            last.writes.insert(at, write)
            last.data.insert(at, piece)
            last.given.append(write)
        else:
            runs.append(Run([write], [piece], [write], place.low_bit is not None))
    return runs


def _joins(write: Write, run: Run) -> bool:
    """Return whether a write can share the request of a run, in front of it or behind it."""
    place, first, last = write.point, run.first, run.writes[-1].point
    if place.table is not first.table or place.factor is not None or first.factor is not None:
        return False
    if run.bits or place.low_bit is not None:
        is_same_place = (place.address, place.end) == (first.address, first.end)
        return run.bits and place.low_bit is not None and is_same_place
    most = pdu.MAX_WRITE_BITS if place.table.is_bits else 2 * pdu.MAX_WRITE_REGISTERS
    if place.table is Table.FILE:
        most = 2 * other_functions.MAX_FILE_WRITE
    size = place.count if place.table.is_bits else 2 * place.count
    is_beside = last.end == place.address or place.end == first.address
    return is_beside and sum(map(len, run.data)) + size <= most


def perform(run: Run, quirks: UnitQuirks, finish: Finish, why: Why) -> Steps:
    """Write a run and answer each of its writes."""
    is_alone = len(run.writes) == 1 or run.bits
    if quirks.single_writes and not is_alone:
        # Together they would be as many requests, and some done twice if one is refused.
        yield from _perform_singly(run, quirks, finish, why)
        return
    error = yield from _try(run, quirks)
    if error is None:
        yield from _read_back(run, quirks, finish, why)
    elif is_alone or not _is_refusal(error):
        _give_up(run.writes, error, finish, why)
    else:
        yield from _perform_singly(run, quirks, finish, why)


def _perform_singly(run: Run, quirks: UnitQuirks, finish: Finish, why: Why) -> Steps:
    """Write each by itself; after one that has no answer the others are not tried."""
    pieces = dict(zip(run.writes, run.data, strict=True))
    for index, write in enumerate(run.given):
        alone = Run([write], [pieces[write]], [write])
        error = yield from _try(alone, quirks)
        if error is None:
            yield from _read_back(alone, quirks, finish, why)
        elif _is_refusal(error):
            _give_up([write], error, finish, why)
        else:
            _give_up(run.given[index:], error, finish, why)
            return


def _try(run: Run, quirks: UnitQuirks) -> Generator[bytes, bytes, RequestError | ConversionError | None]:
    """Send what writes a run; return why it was not written."""
    try:
        if run.bits:
            yield from _write_bits(run, quirks)
        elif run.first.factor is not None:
            yield from _write_scaled(run.writes[0], quirks)
        else:
            yield from _write_data(run, quirks)
    except (RequestError, ConversionError) as error:
        return error
    return None


def _is_refusal(error: RequestError | ConversionError) -> bool:
    """Return whether a device said no to what was asked, and may say yes to another request."""
    if isinstance(error, DeviceExceptionError):
        return error.exception_code not in _NO_REFUSAL
    return isinstance(error, ConversionError)


def _give_up(
    writes: Iterable[Write], error: RequestError | ConversionError, finish: Finish, why: Why
) -> None:
    for write in writes:
        if isinstance(error, ConversionError):
            finish(write, WriteOutcome.REFUSED, str(error))
        else:
            finish(write, WriteOutcome.FAILED, why(error))


def _read_back(run: Run, quirks: UnitQuirks, finish: Finish, why: Why) -> Steps:
    """Answer writes that the device took, and read back before that where it is wanted."""
    is_merged = run.bits and not _takes_mask(run.first, quirks)
    data = b""
    error: RequestError | None = None
    for write in run.writes:
        place = write.point
        if not (place.verify or is_merged):
            finish(write, WriteOutcome.WRITTEN, None)
            continue
        if error is None or (isinstance(error, DeviceExceptionError) and not run.bits):
            try:
                if not (run.bits and data):  # bits are all of one place
                    data = yield from _read(place.table, place.address, place.count)
                is_there = yield from _is_there(write, data)
            except RequestError as failure:
                error = failure
            else:
                error = None
        if error is not None:
            finish(write, WriteOutcome.FAILED, f"written, but reading back failed: {why(error)}")
        elif is_there:
            finish(write, WriteOutcome.VERIFIED, None)
        else:
            finish(write, WriteOutcome.FAILED, "read back, the device has another value")


def _write_data(run: Run, quirks: UnitQuirks) -> Steps:
    data = b"".join(run.data)
    for request in requests(run.first.table, run.first.address, data, quirks):
        yield from _ask(request)


def requests(table: Table, address: int, data: bytes, quirks: UnitQuirks) -> list[bytes]:
    """Return the requests that write registers as on the wire, or coils as one byte each.

    Raises:
        ConversionError: it is more than one request can write.
    """
    if table is Table.FILE:
        if len(data) > 2 * other_functions.MAX_FILE_WRITE:
            raise ConversionError(f"one request writes at most {other_functions.MAX_FILE_WRITE} records")
        return [other_functions.write_request(address, data)]
    if table is Table.COIL:
        states = [bool(state) for state in data]
        if quirks.single_writes:
            return [pdu.write_coils_request(address + n, [state]) for n, state in enumerate(states)]
        return [pdu.write_coils_request(address, states, multiple=quirks.multiple_writes)]
    if quirks.single_writes:
        words = [data[n : n + 2] for n in range(0, len(data), 2)]
        return [pdu.write_registers_request(address + n, word) for n, word in enumerate(words)]
    if len(data) > 2 * pdu.MAX_WRITE_REGISTERS:
        raise ConversionError(f"one request writes at most {pdu.MAX_WRITE_REGISTERS} registers")
    return [pdu.write_registers_request(address, data, multiple=quirks.multiple_writes)]


def _ask(request: bytes) -> Steps:
    answer = yield request
    if answer:  # what is said to all has none
        pdu.check_write_reply(request, answer)


def _read(table: Table, address: int, count: int) -> Generator[bytes, bytes, bytes]:
    request = pdu.read_request(table, address, count)
    answer = yield request
    return pdu.check_read_reply(request, answer)


def _takes_mask(place: RegisterPoint, quirks: UnitQuirks) -> bool:
    return place.count == 1 and quirks.mask_write and place.table is Table.HOLDING


def _write_bits(run: Run, quirks: UnitQuirks) -> Steps:
    place = run.first
    size = place.count * 2
    mask = value = 0
    for write, data in zip(run.writes, run.data, strict=True):
        own = write.point.bit_mask
        mask |= own
        value = value & ~own | int.from_bytes(data, "big") & own
    if _takes_mask(place, quirks):
        yield from _ask(pdu.mask_write_request(place.address, ~mask & 0xFFFF, value))
        return
    before = yield from _read(place.table, place.address, place.count)
    after = (int.from_bytes(before, "big") & ~mask | value).to_bytes(size, "big")
    for request in requests(place.table, place.address, after, quirks):
        yield from _ask(request)


def _write_scaled(write: Write, quirks: UnitQuirks) -> Steps:
    place = write.point
    factor = place.factor
    if factor is None:
        raise ConversionError("there is no factor")
    data = yield from _read(factor.table, factor.address, factor.count)
    exponent, flaw = factor.decode(data)
    if flaw is not None or not isinstance(exponent, int):
        raise ConversionError(f"{factor.point.address} has no value now: the power of ten is not known")
    registers = place.encode(write.value, exponent)
    for request in requests(place.table, place.address, registers, quirks):
        yield from _ask(request)
    nearest, _ = place.decode(registers, exponent)
    write.value = write.value if nearest is None else nearest


def _is_there(write: Write, data: bytes) -> Generator[bytes, bytes, bool]:
    """Return whether what was read from a point's place is what was written."""
    place = write.point
    if place.table.is_bits:
        return bool(data[0] & 1) == place.encode_bit(write.value)
    exponent: int | None = None
    if place.factor is not None:
        factor = yield from _read(place.factor.table, place.factor.address, place.factor.count)
        found = place.factor.decode(factor)[0]
        exponent = found if isinstance(found, int) else None
    try:
        wanted = place.encode(write.value, exponent)
    except ConversionError:
        return False  # the factor is another by now
    mask = place.bit_mask
    return int.from_bytes(data, "big") & mask == int.from_bytes(wanted, "big") & mask
