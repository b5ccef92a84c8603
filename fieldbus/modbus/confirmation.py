"""Reads from a line on which others ask, too: a value counts only if two different requests agree. Pure.

Rules:

* The same registers are read by requests whose responses have other lengths: a block in two parts, a single
  register together with a neighbour. A response to somebody else can look like one of ours, but not like all
  of them with the same contents.
* Lengths that responses to others had are avoided.
* What does not agree is read again, `ROUNDS` times; then there is no value. Registers whose contents change
  with each read have none on such a line.
* A neighbour that the device does not have is left alone; if there is no other way to ask, there is no value.

Design: a generator that yields requests and is sent responses, as everything that has several steps.
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterator, Sequence

from fieldbus.errors import BadResponseError, DeviceExceptionError
from fieldbus.modbus import pdu
from fieldbus.modbus.framing import Ask
from fieldbus.modbus.planner import most_of
from fieldbus.modbus.traffic import Shape
from fieldbus.modbus.units import UnitState

ROUNDS = 4
_TRIES = 3
"""How often the whole is asked for before its parts are asked for again."""


def is_read(ask: Ask) -> bool:
    """Return whether a request reads, so that it can be confirmed."""
    return ask.pdu[0] in pdu.READING


def confirmed(
    state: UnitState, ask: Ask, shapes: Collection[Shape]
) -> Generator[tuple[UnitState, Ask], bytes, bytes]:
    """Read until requests of different shape agree; return the response's PDU.

    Args:
        shapes: how responses to others look.

    Raises:
        RequestError: the device does not answer, refuses, or nothing agrees.
    """
    ways = list(_ways(ask, shapes))
    refusal: DeviceExceptionError | None = None
    rounds = 0
    while ways and rounds < ROUNDS:
        parts: list[tuple[Ask, bytes]] = []
        rounds += 1
        try:
            for part in ways[0]:
                found = pdu.check_read_reply(part.pdu, (yield state, part), part.width)
                parts.append((part, found))
        except DeviceExceptionError as error:
            refusal = error
            ways.pop(0)  # perhaps it has no such neighbour, or is not read from there
            rounds -= 1
            continue
        except BadResponseError:
            continue
        for _ in range(_TRIES):
            try:
                whole = yield state, ask
                data = pdu.check_read_reply(ask.pdu, whole, ask.width)
            except DeviceExceptionError as error:
                refusal = error
                continue
            except BadResponseError:
                continue
            if all(_agree(ask, data, part, found) for part, found in parts):
                return whole
        ways.append(ways.pop(0))
    if refusal is not None and not ways:
        raise refusal
    raise BadResponseError("others ask on the line, too, and no two responses agree")


def _ways(ask: Ask, shapes: Collection[Shape]) -> Iterator[Sequence[Ask]]:
    """Yield other ways to read the same, those first whose responses look like nobody else's."""
    table, address, count = pdu.read_place(ask.pdu)
    if table.is_whole:
        return  # there is one way to read it
    step = 8 if table.is_bits else 1
    most = most_of(table) * 16 // ask.width
    end = (address | 0xFFFF) + 1
    cuts = sorted(range(step, count, step), key=lambda cut: abs(2 * cut - count))
    found: list[Sequence[Ask]] = [
        (_ask(ask, address, cut), _ask(ask, address + cut, count - cut)) for cut in cuts[:16]
    ]
    for more in range(1, 4):
        wider = (count + step - 1) // step * step + more * step
        if wider <= most and address + wider <= end:
            found.append((_ask(ask, address, wider),))
        if wider <= most and (address & 0xFFFF) + count >= wider:
            found.append((_ask(ask, address + count - wider, wider),))
    yield from sorted(found, key=lambda way: sum(_shape(part) in shapes for part in way))


def _ask(ask: Ask, address: int, count: int) -> Ask:
    return Ask(ask.unit_id, pdu.read_request(pdu.read_place(ask.pdu)[0], address, count), ask.width)


def _shape(ask: Ask) -> Shape:
    return Shape(ask.unit_id, ask.pdu[0], ask.size)


def _agree(ask: Ask, data: bytes, other: Ask, found: bytes) -> bool:
    """Return whether two responses have the same where both requests ask."""
    table, address, count = pdu.read_place(ask.pdu)
    _, other_address, other_count = pdu.read_place(other.pdu)
    begin = max(address, other_address)
    end = min(address + count, other_address + other_count)
    if table.is_bits:
        mask = (1 << (end - begin)) - 1
        ours = int.from_bytes(data, "little") >> (begin - address)
        theirs = int.from_bytes(found, "little") >> (begin - other_address)
        return ours & mask == theirs & mask
    width = ask.width // 8
    ours_at, theirs_at, size = (
        width * (begin - address), width * (begin - other_address), width * (end - begin),
    )  # fmt: skip
    return data[ours_at : ours_at + size] == found[theirs_at : theirs_at + size]
