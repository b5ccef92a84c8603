"""Reads from a shared line: by which other requests the same is read, and what counts as the same."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest
from test_shared_line import UNIT, drive, memory, request

from fieldbus.modbus import pdu
from fieldbus.modbus.confirmation import is_read
from fieldbus.modbus.framing import Ask
from fieldbus.modbus.registers import Table

NO = bytes((0x83, 2))


def places(ask: Ask, answer: Callable[[Ask], bytes]) -> list[tuple[int, int]]:
    """Return address and count of each request beside the one that is confirmed."""
    asked: list[tuple[int, int]] = []

    def note(part: Ask) -> bytes:
        if part.pdu != ask.pdu:
            asked.append(pdu.read_place(part.pdu)[1:])
        return answer(part)

    drive(ask, note)
    return asked


def only(condition: Callable[[int, int], bool]) -> Callable[[Ask], bytes]:
    """Answer as a device that refuses every read for which a condition does not hold."""

    def answer(part: Ask) -> bytes:
        _, address, count = struct.unpack(">BHH", part.pdu)
        return memory(part) if condition(address, count) else NO

    return answer


def test_up_to_three_neighbours_on_each_side_are_tried() -> None:
    ask = request(100, 1)
    asked = places(ask, only(lambda address, count: (address, count) == (100, 1)))
    assert sorted(asked) == [(97, 4), (98, 3), (99, 2), (100, 2), (100, 3), (100, 4)]


def test_a_long_block_is_cut_at_sixteen_places_near_its_middle() -> None:
    ask = request(100, 64)
    asked = places(ask, only(lambda address, count: (address, count) == (100, 64)))
    cuts = [place for place in asked if place[1] < 64]
    assert sorted(count for _, count in cuts) == list(range(24, 40))
    assert cuts[0] == (100, 32)


@pytest.mark.parametrize("table", [Table.COIL, Table.DISCRETE, Table.HOLDING])
@pytest.mark.parametrize("count", [1, 7, 8, 9, 10, 16, 17, 18, 24, 25, 100])
def test_no_other_request_has_a_response_of_the_same_length(table: Table, count: int) -> None:
    ask = request(40, count, table=table)
    sizes: list[int] = []

    def refuse(part: Ask) -> bytes:
        sizes.append(part.size)
        return bytes((part.pdu[0] | 0x80, 2))

    drive(ask, refuse)
    assert len(sizes) >= 6
    assert ask.size not in sizes


def test_bits_are_read_with_whole_bytes_of_neighbours() -> None:
    ask = request(40, 3, table=Table.COIL)
    asked = places(ask, lambda part: memory(part) if part.pdu == ask.pdu else bytes((0x81, 2)))
    assert sorted(asked) == [(11, 32), (19, 24), (27, 16), (40, 16), (40, 24), (40, 32)]


@pytest.mark.parametrize(
    ("first", "end", "address", "count"),
    [
        (0, 2, 1, 1),  # a neighbour before it only
        (0, 2, 0, 1),
        (0xFFFE, 0x10000, 0xFFFE, 1),
        (0xFFFE, 0x10000, 0xFFFF, 1),
        (0, 0x10000, 0xFFFF, 1),
        (0, 0x10000, 0, 1),
    ],
)
def test_a_register_beside_the_end_of_the_map_is_confirmed(
    first: int, end: int, address: int, count: int
) -> None:
    device = only(lambda begin, size: first <= begin and begin + size <= end)
    assert drive(request(address, count), device)[0] == memory(request(address, count))


def test_nothing_is_asked_beyond_the_ends_of_the_map() -> None:
    for address in (0, 1, 2, 0xFFFD, 0xFFFE, 0xFFFF):
        asked = places(request(address, 1), only(lambda *_: False))
        assert asked
        assert all(begin >= 0 and begin + count <= 0x10000 for begin, count in asked)
        assert (address, 2) in asked or address == 0xFFFF


@pytest.mark.parametrize(
    "condition", [lambda address, _: address == 10, lambda address, n: address + n == 134]
)
def test_the_longest_request_confirms_one_that_is_shorter_by_one(condition) -> None:
    ask = request(10, 124)
    assert drive(ask, only(condition))[0] == memory(ask)
    assert drive(request(10, 125), only(lambda address, count: (address, count) == (10, 125))) == (
        "DeviceExceptionError",
        16,
    )


def test_one_garbled_response_costs_one_more_round() -> None:
    ask = request(10, 2)
    for bad in range(3):
        asked = 0

        def garbled(part: Ask, bad: int = bad) -> bytes:
            nonlocal asked
            asked += 1
            return b"\x03\x05\x00" if asked == bad + 1 else memory(part)

        assert drive(ask, garbled)[0] == memory(ask)


def test_a_whole_that_is_garbled_is_asked_for_three_times() -> None:
    ask = request(10, 2)
    asked: list[tuple[int, int]] = []

    def garbled(part: Ask) -> bytes:
        asked.append(pdu.read_place(part.pdu)[1:])
        if part.pdu == ask.pdu and asked.count((10, 2)) < 3:
            return b"\x03\x05\x00"
        return memory(part)

    assert drive(ask, garbled)[0] == memory(ask)
    assert asked == [(10, 1), (11, 1), (10, 2), (10, 2), (10, 2)]


def test_a_whole_that_is_refused_now_and_then_is_asked_again() -> None:
    ask = request(10, 2)
    asked: list[tuple[int, int]] = []

    def moody(part: Ask) -> bytes:
        asked.append(pdu.read_place(part.pdu)[1:])
        return bytes((0x83, 6)) if asked == [(10, 1), (11, 1), (10, 2)] else memory(part)

    assert drive(ask, moody)[0] == memory(ask)
    assert asked == [(10, 1), (11, 1), (10, 2), (10, 2)], "its parts are not read again"


def test_a_way_that_is_refused_is_no_round() -> None:
    ask = request(100, 1)
    asked: list[tuple[int, int]] = []

    def never(part: Ask) -> bytes:
        asked.append(pdu.read_place(part.pdu)[1:])
        if part.pdu == ask.pdu:
            return memory(request(7, 1))
        return NO if part.size == 6 else memory(part)

    assert drive(ask, never)[0] == "BadResponseError"
    assert asked.count((100, 1)) == 4 * 3
    assert len(asked) == 2 + 4 * (1 + 3)


def test_only_reads_can_be_confirmed() -> None:
    assert is_read(request(0, 1))
    assert not is_read(Ask(UNIT, bytes.fromhex("0600010002")))
