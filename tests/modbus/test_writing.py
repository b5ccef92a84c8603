"""Values to write requests: what goes over the wire, what becomes of the device, and that nobody waits for ever.

The device is the fault server's model without its sockets: it knows nothing of fieldbus.
"""

from __future__ import annotations

import asyncio
import struct
import time
from collections.abc import Callable, Sequence
from itertools import pairwise, product
from typing import NamedTuple

import pytest
from conftest import eventually
from fault_server import Connection, FaultServer, Good, fault_server
from hypothesis import given, settings
from hypothesis import strategies as st
from support.examples import examples
from test_client_faults import polling

from fieldbus.errors import BadResponseError, ConversionError, RequestError, RequestTimeoutError
from fieldbus.link import Delivery, Target, WriteOutcome, WriteResult
from fieldbus.modbus import failures as failures_module
from fieldbus.modbus import pdu
from fieldbus.modbus.exploration import reason_of
from fieldbus.modbus.link import ModbusClientLink
from fieldbus.modbus.places import TcpPlace
from fieldbus.modbus.point_settings import PointSettings
from fieldbus.modbus.quirks import UnitQuirks
from fieldbus.modbus.registers import RegisterPoint
from fieldbus.modbus.units import Unit
from fieldbus.modbus.write_steps import perform
from fieldbus.modbus.writing import (
    Steps,
    Write,
    gather,
    groups_of,
    is_written_by_many,
    is_written_singly,
    requests,
)
from fieldbus.model import Quality, Reason, Sample, Value

WRITTEN, VERIFIED = WriteOutcome.WRITTEN, WriteOutcome.VERIFIED
REFUSED, FAILED, UNKNOWN = WriteOutcome.REFUSED, WriteOutcome.FAILED, WriteOutcome.UNKNOWN
PLAIN = UnitQuirks()
ANOTHER = "read back, the device has another value"


def point(
    name: str,
    place: str,
    type_: str | None = None,
    *,
    factor: RegisterPoint | None = None,
    device: str = "plc",
    **more: object,
) -> RegisterPoint:
    """Return a point that is read and written, unless `more` says otherwise."""
    table, address = place.split()
    more.setdefault("access", "readwrite")
    if factor is not None:
        more["scale_from"] = factor.point.name
    made = PointSettings(table=table, address=int(address), type=type_, **more)
    return made.build(device, name, is_served=False, factor=factor)


class Ended(NamedTuple):
    name: str
    outcome: WriteOutcome
    reason: str | None = None


class Device:
    """A device that is right unless `obstinate` returns another answer, or raises."""

    def __init__(self, **words: int) -> None:
        self.server = FaultServer()
        self.asked: list[bytes] = []
        self.obstinate: Callable[[bytes], bytes | None] = lambda _: None
        for name, word in words.items():
            self.hold(int(name[1:]), word)

    def hold(self, address: int, word: int) -> None:
        self.server.words[1, "holding", address] = word

    def word(self, address: int) -> int:
        return self.server.word(1, "holding", address)

    def coil(self, address: int) -> int:
        return self.server.word(1, "coil", address)

    @property
    def writes(self) -> list[str]:
        return [request.hex() for request in self.asked if request[0] > 4]

    @property
    def functions(self) -> list[int]:
        return [request[0] for request in self.asked]

    def ask(self, request: bytes) -> bytes:
        """Answer as a link does: an exception is raised."""
        self.asked.append(request)
        answer = self.obstinate(request)
        if answer is None:
            answer = self.server.answer(1, request)
        if answer and answer[0] & 0x80:
            pdu.check_function(request[0], answer)
        return answer

    def drive(self, steps: Steps, most: int = 10_000) -> None:
        """Answer the requests of a generator until it ends."""
        answer: bytes | None = None
        error: RequestError | None = None
        for _ in range(most):
            try:
                request = steps.throw(error) if error is not None else steps.send(answer)
            except StopIteration:
                return
            answer = error = None
            try:
                answer = self.ask(request)
            except RequestError as failure:
                error = failure
        raise AssertionError("no end of requests")

    def write(self, *values: tuple[RegisterPoint, Value], quirks: UnitQuirks = PLAIN) -> list[Ended]:
        """Write values; return how they ended, in the order in which that was said."""
        ended: list[Ended] = []

        def finish(write: Write, outcome: WriteOutcome, reason: str | None) -> None:
            assert not write.is_finished, f"{write.point.point.name} was answered twice"
            write.is_finished = True
            ended.append(Ended(write.point.point.name, outcome, reason))

        writes = [Write(place, value) for place, value in values]
        groups = groups_of([place for place, _ in values])
        for run in gather(writes, finish, groups):
            self.drive(perform(run, quirks, finish, reason_of))
        assert all(write.is_finished for write in writes), "a write was never answered"
        return ended


def words_at(address: int, count: int, **more: object) -> list[RegisterPoint]:
    return [point(f"r{address + n}", f"holding {address + n}", "uint16", **more) for n in range(count)]


def coils_at(address: int, count: int) -> list[RegisterPoint]:
    return [point(f"c{address + n}", f"coil {address + n}") for n in range(count)]


def refusing(condition: Callable[[bytes], object], code: int = 2) -> Callable[[bytes], bytes | None]:
    """Refuse the requests for which a condition holds."""
    return lambda request: bytes((request[0] | 0x80, code)) if condition(request) else None


def touches(address: int) -> Callable[[bytes], bool]:
    """Return whether a write touches a register."""

    def condition(request: bytes) -> bool:
        function, first, count = struct.unpack_from(">BHH", request)
        return function > 4 and first <= address < first + (count if function == 16 else 1)

    return condition


# --- together and apart -----------------------------------------------------------------------------


def test_neighbours_that_follow_each_other_share_a_request_whichever_comes_first() -> None:
    for order in ((0, 1, 2), (2, 1, 0), (1, 0, 2), (1, 2, 0)):
        device, points = Device(), words_at(100, 3)
        ended = device.write(*((points[n], 7 + n) for n in order))
        assert device.writes == ["10006400030600070008" + "0009"]
        assert {item.outcome for item in ended} == {WRITTEN}


def test_what_does_not_follow_its_neighbour_keeps_its_place_in_the_order() -> None:
    """First the setpoint, then the coil that starts the machine, then the next setpoint."""
    device, (a, b), (start,) = Device(), words_at(100, 2), coils_at(10, 1)
    device.write((a, 1), (start, True), (b, 2))
    assert device.writes == ["0600640001", "05000aff00", "0600650002"]


def test_registers_are_parted_at_123() -> None:
    for count, sizes in ((123, [123]), (124, [123, 1]), (300, [123, 123, 54])):
        device = Device()
        ended = device.write(*((item, 5) for item in words_at(1000, count)))
        assert [item.outcome for item in ended] == [WRITTEN] * count
        assert [int(request[6:10], 16) if request[:2] == "10" else 1 for request in device.writes] == sizes
        assert [device.word(1000 + n) for n in range(count)] == [5] * count
        assert device.word(999) == 999
        assert device.word(1000 + count) == 1000 + count


def test_coils_are_parted_at_1968() -> None:
    device = Device()
    device.write(*((item, n % 3 == 0) for n, item in enumerate(coils_at(20, 1970))))
    assert [int(request[6:10], 16) for request in device.writes] == [1968, 2]
    assert [device.coil(20 + n) for n in range(1970)] == [int(n % 3 == 0) for n in range(1970)]


def test_a_value_of_several_registers_is_never_torn_over_two_requests() -> None:
    points = [point(f"f{n}", f"holding {4 * n}", "float64") for n in range(40)]
    device = Device()
    device.write(*((item, 1.5 * n) for n, item in enumerate(points)))
    assert [int(request[6:10], 16) for request in device.writes] == [120, 40]
    data = struct.pack(">160H", *(device.word(n) for n in range(160)))
    assert struct.unpack(">40d", data) == tuple(1.5 * n for n in range(40))


def test_a_text_that_is_too_long_for_one_write_is_refused_and_nothing_is_sent() -> None:
    """125 registers can be read with one request; 123 can be written."""
    device = Device()
    ended = device.write((point("t", "holding 0", "string", length=124), "x"), (words_at(500, 1)[0], 1))
    assert [(item.name, item.outcome) for item in ended] == [("t", REFUSED), ("r500", WRITTEN)]
    assert device.writes == ["0601f40001"]
    ended = device.write((point("t", "holding 0", "string", length=123), "x"))
    assert [item.outcome for item in ended] == [WRITTEN]


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["uint16", "int32", "float64", "coil", "bit"]),
            st.integers(0, 40),
            st.integers(0, 1),
        ),
        max_size=40,
    )
)
def test_whatever_shares_requests_the_device_has_in_the_end_what_one_write_after_the_other_gives(
    items,
) -> None:
    points = []
    for n, (kind, address, value) in enumerate(items):
        if kind == "coil":
            points.append((point(f"p{n}", f"coil {address}"), value))
        elif kind == "bit":
            points.append((point(f"p{n}", f"holding {address}", "uint16", bit=(n * 7) % 16), value))
        else:
            points.append((point(f"p{n}", f"holding {address}", kind), value * (n + 1)))
    together, alone = Device(), Device()
    ended = together.write(*points)
    for each in points:
        alone.write(each)
    assert together.server.words == alone.server.words
    assert {item.outcome for item in ended} <= {WRITTEN, VERIFIED}
    assert len(together.asked) <= len(alone.asked)


# --- groups, records of files, functions ------------------------------------------------------------


def test_the_points_of_a_group_are_found_in_order_of_address() -> None:
    a, b, c = (point(name, f"holding {n}", group="g") for n, name in ((9, "a"), (7, "b"), (8, "c")))
    other = point("other", "holding 1", group="h")
    assert groups_of([a, *words_at(20, 2), b, other, c]) == {"g": [b, c, a], "h": [other]}


def test_a_group_is_one_run_at_the_turn_of_its_first_value() -> None:
    a, b = (point(name, f"holding {n}", group="g") for n, name in ((9, "a"), (8, "b")))
    x, y = words_at(20, 1)[0], words_at(30, 1)[0]
    refused: list[str] = []
    given = [Write(x, 1), Write(a, 2), Write(y, 3), Write(b, 4)]
    runs = gather(given, lambda write, *_: refused.append(write.name), groups_of([a, b, x, y]))
    assert [[write.name for write in run.given] for run in runs] == [["r20"], ["a", "b"], ["r30"]]
    assert [list(run.members) for run in runs] == [[], [b, a], []]
    assert refused == []


def test_a_refused_value_refuses_its_group_and_nobody_else() -> None:
    a, b = point("a", "holding 8", group="g", max=5), point("b", "holding 9", group="g")
    c = point("c", "holding 10", group="h")
    plain = point("plain", "holding 20", max=5)
    ended: dict[str, str | None] = {}
    given = [Write(b, 1), Write(a, 6), Write(c, 2), Write(plain, 9), Write(words_at(30, 1)[0], 1)]
    runs = gather(given, lambda write, _, reason: ended.update({write.name: reason}), groups_of([a, b, c]))
    assert [[write.name for write in run.given] for run in runs] == [["c"], ["r30"]]
    assert ended["b"] == "not written: a of the same group (g) was refused"
    assert set(ended) == {"a", "b", "plain"}


def test_without_its_group_a_member_is_written_alone() -> None:
    """As a step after another value."""
    [run] = gather([Write(point("a", "holding 8", group="g"), 1)], lambda *_: None)
    assert run.members == ()


def file_text(length: int) -> RegisterPoint:
    settings = PointSettings(table="file", file=4, record=7, type="string", length=length, access="readwrite")
    return settings.build("plc", "t", is_served=False)


def test_one_request_writes_122_records_of_a_file() -> None:
    """A PDU has 253 bytes: function, length, type 6, file, record, count and the data."""
    own = file_text(121)
    [request] = requests(own, own.address, bytes(244), PLAIN)
    assert (request[0], len(request)) == (21, 253)
    with pytest.raises(ConversionError, match="at most 122 records"):
        requests(own, own.address, bytes(246), PLAIN)


def test_neighbouring_records_share_a_request_up_to_122() -> None:
    def record(n: int, length: int) -> RegisterPoint:
        settings = PointSettings(
            table="file", file=4, record=n, type="string", length=length, access="readwrite"
        )
        return settings.build("plc", f"t{n}", is_served=False)

    for lengths, runs in (((61, 61), [2]), ((61, 62), [1, 1])):
        points = [record(0, lengths[0]), record(lengths[0], lengths[1])]
        made = gather([Write(item, "x") for item in points], lambda *_: None)
        assert [len(run.writes) for run in made] == runs


@pytest.mark.parametrize(
    ("function", "quirks", "is_single", "is_multiple"),
    [
        (None, PLAIN, False, False),
        (None, UnitQuirks(single_writes=True), True, False),
        (None, UnitQuirks(multiple_writes=True), False, True),
        (6, PLAIN, True, False),
        (6, UnitQuirks(multiple_writes=True), True, False),
        (16, PLAIN, False, True),
        (16, UnitQuirks(single_writes=True), False, True),
    ],
)
def test_the_function_decides_over_the_quirks(
    function: int | None, quirks: UnitQuirks, is_single: bool, is_multiple: bool
) -> None:
    own = point("p", "holding 5", function=function)
    assert (is_written_singly(own, quirks), is_written_by_many(own, quirks)) == (is_single, is_multiple)
    if function is not None:
        coil = point("c", "coil 5", function=function - 1)
        assert (is_written_singly(coil, quirks), is_written_by_many(coil, quirks)) == (is_single, is_multiple)


def test_records_of_a_file_are_never_written_singly() -> None:
    assert not is_written_singly(file_text(2), UnitQuirks(single_writes=True))


# --- refused together -------------------------------------------------------------------------------


def test_one_refusal_does_not_cost_the_others() -> None:
    device = Device()
    device.obstinate = refusing(touches(102), 3)
    ended = device.write(*((item, 50 + n) for n, item in enumerate(words_at(100, 5))))
    assert {item.name: (item.outcome, item.reason) for item in ended} == {
        "r100": (WRITTEN, None),
        "r101": (WRITTEN, None),
        "r102": (FAILED, "device exception 03"),
        "r103": (WRITTEN, None),
        "r104": (WRITTEN, None),
    }
    assert [device.word(100 + n) for n in range(5)] == [50, 51, 102, 53, 54]


def test_what_was_refused_together_is_written_singly_in_the_order_in_which_it_was_given() -> None:
    device = Device()
    device.obstinate = refusing(lambda request: request[0] == 16)
    a, b, c = words_at(100, 3)
    ended = device.write((c, 3), (b, 2), (a, 1))
    assert device.writes[1:] == ["0600660003", "0600650002", "0600640001"]
    assert [item.name for item in ended] == ["r102", "r101", "r100"]


def test_coils_that_are_refused_together_are_written_singly_too() -> None:
    device = Device()
    device.obstinate = refusing(lambda request: request[0] == 15, 1)
    ended = device.write(*((item, True) for item in coils_at(10, 3)))
    assert [item.outcome for item in ended] == [WRITTEN] * 3
    assert device.functions == [15, 5, 5, 5]


def test_after_a_silence_nothing_is_repeated() -> None:
    """The device may have done it: a write is an act, and not done twice."""
    device = Device()

    def silent(request: bytes) -> bytes | None:
        raise RequestTimeoutError(0.1)

    device.obstinate = silent
    ended = device.write(*((item, 1) for item in words_at(100, 3)))
    assert [(item.outcome, item.reason) for item in ended] == [(UNKNOWN, Reason.TIMEOUT)] * 3
    assert len(device.asked) == 1


def test_a_unit_that_falls_silent_after_its_refusal_costs_one_timeout_and_not_one_a_value() -> None:
    device = Device()

    def obstinate(request: bytes) -> bytes | None:
        if request[0] == 16:
            return b"\x90\x02"
        raise RequestTimeoutError(0.1)

    device.obstinate = obstinate
    ended = device.write(*((item, 1) for item in words_at(100, 50)))
    assert ended[0] == Ended("r100", UNKNOWN, Reason.TIMEOUT)
    rest = {(item.outcome, item.reason) for item in ended[1:]}
    assert rest == {(FAILED, "not tried: r100 unknown outcome")}
    assert len(device.asked) == 2


# --- quirks -----------------------------------------------------------------------------------------


def test_a_device_without_15_and_16_gets_one_register_or_coil_a_request() -> None:
    device, quirks = Device(), UnitQuirks(single_writes=True)
    device.obstinate = refusing(lambda request: request[0] in (15, 16), 1)
    ended = device.write(
        (point("f", "holding 10", "float32"), 1.5), *((item, 1) for item in coils_at(10, 2)), quirks=quirks
    )
    assert [item.outcome for item in ended] == [WRITTEN] * 3
    assert device.writes == ["06000a3fc0", "06000b0000", "05000aff00", "05000bff00"]


def test_of_single_writes_none_is_done_twice_because_another_is_refused() -> None:
    """A register may be a command, or count how often it was written."""
    device, quirks = Device(), UnitQuirks(single_writes=True)
    device.obstinate = refusing(touches(101))
    ended = device.write(*((item, 5) for item in words_at(100, 3)), quirks=quirks)
    assert [item.outcome for item in ended] == [WRITTEN, FAILED, WRITTEN]
    assert device.writes == ["0600640005", "0600650005", "0600660005"]


def test_of_single_writes_the_rest_is_not_tried_after_a_silence() -> None:
    device, quirks = Device(), UnitQuirks(single_writes=True)

    def obstinate(request: bytes) -> bytes | None:
        if touches(101)(request):
            raise RequestTimeoutError(0.1)
        return None

    device.obstinate = obstinate
    ended = device.write(*((item, 5) for item in words_at(100, 4)), quirks=quirks)
    assert [item.outcome for item in ended] == [WRITTEN, UNKNOWN, FAILED, FAILED]
    assert len(device.asked) == 2


def test_a_device_without_5_and_6_gets_15_and_16_for_one_too() -> None:
    device, quirks = Device(), UnitQuirks(multiple_writes=True)
    device.obstinate = refusing(lambda request: request[0] in (5, 6), 1)
    ended = device.write((words_at(10, 1)[0], 7), (coils_at(10, 1)[0], True), quirks=quirks)
    assert [item.outcome for item in ended] == [WRITTEN] * 2
    assert device.writes == ["10000a0001020007", "0f000a00010101"]


# --- bits of a register -----------------------------------------------------------------------------


def test_a_bit_is_written_by_22_where_the_device_has_it() -> None:
    device = Device(r5=0b1010_0000_0000_0101)
    ended = device.write((point("b", "holding 5", bit=3), True), quirks=UnitQuirks(mask_write=True))
    assert ended == [Ended("b", WRITTEN)]
    assert device.writes == ["160005fff70008"]
    assert device.word(5) == 0b1010_0000_0000_1101


def test_a_bit_is_else_written_into_what_the_register_holds_and_read_again() -> None:
    device = Device(r5=0b1010_0000_0000_0101)
    ended = device.write((point("b", "holding 5", bit=0), False))
    assert ended == [Ended("b", VERIFIED)]
    assert [request.hex() for request in device.asked] == ["0300050001", "060005a004", "0300050001"]


def test_bits_of_one_register_that_wait_together_are_one_request() -> None:
    names = [point(f"b{bit}", "holding 5", bit=bit) for bit in (0, 3, 15)]
    field = point("mode", "holding 5", bits="4-7")
    for quirks, functions in ((UnitQuirks(mask_write=True), [22]), (UnitQuirks(), [3, 6, 3])):
        device = Device(r5=0x0F0F)
        ended = device.write(*((item, True) for item in names), (field, 9), quirks=quirks)
        assert device.functions == functions
        assert device.word(5) == 0x8F9F
        assert [item.name for item in ended] == ["b0", "b3", "b15", "mode"]


ORDERS = ["ABCD", "CDAB", "BADC", "DCBA"]


@pytest.mark.parametrize(("order", "type_"), list(product(ORDERS, ["uint16", "uint32", "uint64", "int48"])))
@pytest.mark.parametrize("quirks", [UnitQuirks(), UnitQuirks(mask_write=True), UnitQuirks(single_writes=True),
                                    UnitQuirks(multiple_writes=True)], ids=str)  # fmt: skip
@given(data=st.data())
@settings(max_examples=examples(25))
def test_the_other_bits_of_the_registers_never_change(
    order: str, type_: str, quirks: UnitQuirks, data: st.DataObject
) -> None:
    width = int(type_.lstrip("uint"))
    low = data.draw(st.integers(0, min(width, 64) - 1))
    high = data.draw(st.integers(low, min(width, 64) - 1))
    before = data.draw(st.binary(min_size=width // 8, max_size=width // 8))
    device = Device()
    for n in range(width // 16):
        device.hold(20 + n, int.from_bytes(before[2 * n : 2 * n + 2], "big"))
    value = data.draw(st.integers(0, (1 << high - low + 1) - 1))
    if low == high:
        own = point("b", "holding 20", type_, bit=low, order=order)
    else:
        own = point("b", "holding 20", type_, bits=f"{low}-{high}", order=order)
    [ended] = device.write((own, value), quirks=quirks)
    assert ended.outcome in (WRITTEN, VERIFIED)
    after = b"".join(device.word(20 + n).to_bytes(2, "big") for n in range(width // 16))
    assert own.decode(after)[0] == value
    plain = point("w", "holding 20", type_.replace("int48", "uint48"), order=order)
    was, now = plain.decode(before)[0], plain.decode(after)[0]
    mask = (1 << high - low + 1) - 1 << low
    assert was & ~mask == now & ~mask
    assert (device.word(19), device.word(20 + width // 16)) == (19, 20 + width // 16)


@pytest.mark.parametrize("order", ORDERS)
def test_bits_far_apart_in_a_number_of_several_registers_are_written_together(order: str) -> None:
    low = point("low", "holding 20", "uint32", bit=0, order=order)
    high = point("high", "holding 20", "uint32", bits="28-31", order=order)
    word = point("w", "holding 20", "uint32", order=order)
    device = Device()
    device.write((word, 0x12345678))
    device.asked.clear()
    device.write((low, True), (high, 0xA))
    assert device.functions == [3, 16, 3]
    data = device.word(20).to_bytes(2, "big") + device.word(21).to_bytes(2, "big")
    assert word.decode(data)[0] == 0xA2345679


def test_a_bit_of_a_register_that_cannot_be_read_is_not_written() -> None:
    device = Device()
    device.obstinate = refusing(lambda request: request[0] == 3)
    ended = device.write((point("b", "holding 5", bit=3), True), (words_at(9, 1)[0], 4))
    assert ended == [Ended("b", FAILED, "device exception 02"), Ended("r9", WRITTEN)]
    assert device.writes == ["0600090004"]


@pytest.mark.parametrize(("verify", "outcome"), [(None, WRITTEN), (True, FAILED)])
def test_a_bit_that_reads_back_otherwise_has_failed_if_that_was_asked_for(
    verify: bool | None, outcome: WriteOutcome
) -> None:
    """The device said that it took the bit: some bits fall back by themselves, some come late."""
    device = Device(r5=0)

    def stubborn(request: bytes) -> bytes | None:
        if request[0] != 6:
            return None
        device.hold(5, int.from_bytes(request[3:5], "big") & ~0x8)
        return request

    device.obstinate = stubborn
    ended = device.write(
        (point("b3", "holding 5", bit=3, verify=verify), True),
        (point("b4", "holding 5", bit=4, verify=verify), True),
    )
    assert ended == [Ended("b3", outcome, ANOTHER), Ended("b4", VERIFIED)]


@pytest.mark.parametrize(("verify", "outcome"), [(None, WRITTEN), (True, FAILED)])
def test_bits_that_were_written_and_cannot_be_read_back_say_so(
    verify: bool | None, outcome: WriteOutcome
) -> None:
    device = Device()
    device.obstinate = lambda request: b"\x83\x04" if device.functions.count(3) > 1 else None
    ended = device.write((point("b", "holding 5", bit=3, verify=verify), True))
    assert ended == [Ended("b", outcome, "written, but reading back failed: device exception 04")]


def test_a_pulse_is_not_read_back() -> None:
    device = Device(r5=0x20)
    ended = device.write((point("reset", "holding 5", bit=3, verify=False), True))
    assert ended == [Ended("reset", WRITTEN)]
    assert [request.hex() for request in device.asked] == ["0300050001", "0600050028"]


def test_a_bit_with_verify_is_read_back_once() -> None:
    device = Device()
    own = point("b", "holding 5", bit=3, verify=True)
    assert device.write((own, True)) == [Ended("b", VERIFIED)]
    assert device.functions == [3, 6, 3]
    device.asked.clear()
    assert device.write((own, False), quirks=UnitQuirks(mask_write=True)) == [Ended("b", VERIFIED)]
    assert device.functions == [22, 3]


def test_a_word_and_a_bit_of_it_are_written_in_their_order() -> None:
    device = Device(r5=0)
    word, bit = point("w", "holding 5"), point("b", "holding 5", bit=0)
    device.write((bit, True), (word, 0xFF00))
    assert device.word(5) == 0xFF00
    device.write((word, 0xFF00), (bit, True))
    assert device.word(5) == 0xFF01


# --- factors ----------------------------------------------------------------------------------------


def scaled(**more: object) -> tuple[RegisterPoint, RegisterPoint]:
    factor = point("sf", "holding 30", "int16", access="read", invalid=[0x8000])
    return factor, point("power", "holding 20", "int16", factor=factor, **more)


@pytest.mark.parametrize(("exponent", "word"), [(0, 1500), (-1, 15000), (1, 150), (3, 2), (2, 15)])
def test_a_scaled_value_is_written_with_the_factor_that_the_device_has_now(exponent: int, word: int) -> None:
    _, power = scaled()
    device = Device(r30=exponent & 0xFFFF)
    assert device.write((power, 1500.0)) == [Ended("power", WRITTEN)]
    assert [request.hex()[:6] for request in device.asked] == ["03001e", "060014"]
    assert device.word(20) == word


@pytest.mark.parametrize("word", [0x8000, 11, 0xFFF5, 0x7FFF])
def test_without_a_factor_a_scaled_value_is_refused(word: int) -> None:
    _, power = scaled()
    device = Device(r30=word)
    [ended] = device.write((power, 1500.0))
    assert ended.outcome is REFUSED
    assert ended.reason
    assert device.writes == []


def test_a_scaled_value_that_does_not_fit_with_the_factor_is_refused() -> None:
    _, power = scaled()
    device = Device(r30=0xFFFE)  # hundredths
    [ended] = device.write((power, 1500.0))
    assert ended.outcome is REFUSED
    assert device.writes == []
    [ended] = device.write((power, 327.67))
    assert ended.outcome is WRITTEN
    assert device.word(20) == 32767


def test_a_factor_that_cannot_be_read_fails_the_write_and_not_the_next_one() -> None:
    _, power = scaled()
    device = Device(r30=0)
    device.obstinate = refusing(lambda request: request[0] == 3, 4)
    ended = device.write((power, 1500.0), (words_at(40, 1)[0], 1))
    assert ended == [Ended("power", FAILED, "device exception 04"), Ended("r40", WRITTEN)]


def test_a_scaled_value_shares_no_request() -> None:
    _, power = scaled()
    device = Device(r30=0)
    beside = words_at(19, 3)
    device.write((beside[0], 1), (power, 5.0), (beside[2], 3))
    assert device.writes == ["0600130001", "0600140005", "0600150003"]


# --- reading back -----------------------------------------------------------------------------------


def verified_points() -> list[tuple[RegisterPoint, Value, Value]]:
    _, power = scaled(verify=True)
    return [
        (point("word", "holding 20", verify=True), 7, 8),
        (point("scaled", "holding 20", "int16", scale=0.1, verify=True), 7.26, 8.0),
        (point("single", "holding 20", "float32", verify=True), 0.1, 0.2),
        (point("swapped", "holding 20", "float64", order="CDAB", verify=True), 0.1, 0.2),
        (point("text", "holding 20", "string", length=3, verify=True), "ab", "cd"),
        (point("field", "holding 20", bits="3-6", verify=True), 5, 6),
        (point("coil", "coil 20", verify=True), True, False),
        (power, 700.0, 800.0),
    ]


@pytest.mark.parametrize("at", range(8), ids=[item[0].point.name for item in verified_points()])
@pytest.mark.parametrize("quirks", [UnitQuirks(), UnitQuirks(mask_write=True)], ids=["plain", "FC 22"])
def test_what_is_read_back_must_be_what_was_written(at: int, quirks: UnitQuirks) -> None:
    own, value, other = verified_points()[at]
    device = Device(r30=0)
    assert device.write((own, value), quirks=quirks) == [Ended(own.point.name, VERIFIED)]

    def forgetful(request: bytes) -> bytes | None:
        return request[: 7 if request[0] == 22 else 5] if request[0] > 4 else None

    device.obstinate = forgetful
    assert device.write((own, value), quirks=quirks) == [Ended(own.point.name, VERIFIED)]
    assert device.write((own, other), quirks=quirks) == [Ended(own.point.name, FAILED, ANOTHER)]
    device.obstinate = lambda request: (
        b"\x81\x04" if request[0] == 1 else
        bytes((request[0] | 0x80, 4)) if request[0] == 3 and device.functions[-2:-1] not in ([3], []) and
        device.functions[-2] > 4 else None
    )  # fmt: skip
    assert device.write((own, other), quirks=quirks) == [
        Ended(own.point.name, FAILED, "written, but reading back failed: device exception 04")
    ]


@pytest.mark.parametrize("word", [0x8000, 0xFFFB, 1])
def test_a_factor_that_changes_before_the_value_is_read_back_is_another_value(word: int) -> None:
    """With it, what was written cannot even be expressed any more."""
    _, power = scaled(verify=True)
    device = Device(r30=1)

    def change(request: bytes) -> bytes | None:
        if request[0] == 6:
            device.hold(30, word)
        return None

    device.obstinate = change
    expected = [Ended("power", VERIFIED)] if word == 1 else [Ended("power", FAILED, ANOTHER)]
    assert device.write((power, 300_000.0)) == expected


def test_neighbours_that_were_written_together_are_each_read_back() -> None:
    device, points = Device(), words_at(100, 3, verify=True)

    def deaf(request: bytes) -> bytes | None:
        if request[0] == 16:
            device.hold(100, 1)
            device.hold(102, 3)
            return request[:5]
        return None

    device.obstinate = deaf
    ended = device.write(*((item, n + 1) for n, item in enumerate(points)))
    assert ended == [Ended("r100", VERIFIED), Ended("r101", FAILED, ANOTHER), Ended("r102", VERIFIED)]


# --- nothing unanswered -----------------------------------------------------------------------------


def everything() -> list[tuple[RegisterPoint, Value]]:
    """Values of every kind, neighbours among them."""
    found: list[tuple[RegisterPoint, Value]] = []
    for verify in (False, True):
        _, power = scaled(verify=verify)
        base = 50 + 20 * verify
        found += [
            (power, 1500.0),
            *((point(f"w{base + n}", f"holding {base + n}", verify=verify), n) for n in range(3)),
            (point(f"f{base}", f"holding {base + 3}", "float32", verify=verify), 1.5),
            (point(f"b{base}", f"holding {base + 6}", bit=3, verify=verify), True),
            (point(f"n{base}", f"holding {base + 6}", bits="4-6", verify=verify), 2),
            (point(f"l{base}", f"holding {base + 8}", "uint32", bits="12-20", verify=verify), 2),
            (point(f"c{base}", f"coil {base}", verify=verify), True),
            (point(f"d{base}", f"coil {base + 1}", verify=verify), False),
            (point(f"t{base}", f"holding {base + 10}", "string", length=124, verify=verify), "x"),
            (point(f"x{base}", f"holding {base + 15}", "uint8", verify=verify), 256),
        ]
    return found


outcomes = st.one_of(
    st.just("right"),
    st.just("right"),
    st.sampled_from([1, 2, 3, 4, 5, 6, 8, 10, 11, 99]),
    st.sampled_from(["silence", "garbage", "broadcast", "other data", "other echo", "short"]),
)


@given(
    chosen=st.lists(st.integers(0, 23), unique=True, min_size=1),
    script=st.lists(outcomes, max_size=60),
    after=outcomes,
    quirks=st.builds(UnitQuirks, st.just(0.0), st.booleans(), st.booleans(), st.booleans()),
)
@settings(max_examples=examples(400))
def test_each_write_is_answered_exactly_once_whatever_the_device_says(chosen, script, after, quirks) -> None:
    values = everything()
    device = Device(r30=0)
    left = iter(script)

    def answer(request: bytes) -> bytes | None:
        what = next(left, after)
        if what == "silence":
            raise RequestTimeoutError(0.1)
        if what == "garbage":
            raise BadResponseError("x")
        if isinstance(what, int):
            return bytes((request[0] | 0x80, what))
        if what == "broadcast":
            return b""
        if what == "short":
            return bytes(request[:1])
        good = device.server.answer(1, request)
        if what == "other data" and request[0] < 5:
            return good[:2] + bytes(byte ^ 0x55 for byte in good[2:])
        if what == "other echo" and request[0] > 4:
            return good[:-1] + bytes((good[-1] ^ 1,))
        return good

    device.obstinate = answer
    ended = device.write(*(values[n] for n in chosen if n < len(values)), quirks=quirks)
    assert len(ended) == sum(n < len(values) for n in chosen)
    for item in ended:
        assert item.reason is not None or item.outcome in (WRITTEN, VERIFIED)


def test_what_is_said_to_all_units_has_no_answer_and_is_written() -> None:
    device = Device()
    device.obstinate = lambda _: b""
    ended = device.write(*((item, 1) for item in words_at(100, 2)), (coils_at(5, 1)[0], True))
    assert [item.outcome for item in ended] == [WRITTEN] * 3
    assert device.functions == [16, 5]
    ended = device.write((point("b", "holding 5", bit=3), True), quirks=UnitQuirks(mask_write=True))
    assert ended == [Ended("b", WRITTEN)]


def test_what_is_said_to_all_units_cannot_be_read_back_nor_bits_merged() -> None:
    device = Device()
    device.obstinate = lambda _: b""
    [ended] = device.write((words_at(100, 1, verify=True)[0], 1))
    assert ended.outcome is FAILED
    [ended] = device.write((point("b", "holding 5", bit=3), True))
    assert ended.outcome is FAILED


# --- over a socket ----------------------------------------------------------------------------------


@pytest.fixture
async def server() -> object:
    async with fault_server() as running:
        yield running


def plc(
    server: FaultServer, points: Sequence[RegisterPoint], quirks: UnitQuirks = PLAIN, scan_s: float = 600
) -> ModbusClientLink:
    unit = Unit("plc", 1, points, scan_s, 0.15, quirks=quirks)
    return ModbusClientLink("net", TcpPlace("127.0.0.1", server.port), [unit])


async def ended(
    link: ModbusClientLink, *values: tuple[RegisterPoint, Value], timeout_s: float = 5
) -> list[tuple[WriteOutcome, str | None]]:
    async with asyncio.timeout(timeout_s):
        results = await link.write({item.point: value for item, value in values})
    return [(result.outcome, result.reason) for result in results]


@pytest.mark.parametrize("quirks", [UnitQuirks(), UnitQuirks(mask_write=True)], ids=["plain", "FC 22"])
async def test_bits_are_written_into_a_register_of_a_real_server(
    server: FaultServer, quirks: UnitQuirks
) -> None:
    bits = [point(f"b{bit}", "holding 5", bit=bit) for bit in range(16)]
    server.words[1, "holding", 5] = 0xF0F0
    link = plc(server, bits, quirks)
    async with polling(link):
        outcome = WRITTEN if quirks.mask_write else VERIFIED
        assert await ended(link, (bits[0], True), (bits[15], False)) == [(outcome, None)] * 2
        assert server.word(1, "holding", 5) == 0x70F1
        assert len(server.writes()) == 1


async def test_an_address_that_does_not_exist_costs_one_of_many_writes(server: FaultServer) -> None:
    points = words_at(100, 5, access="write")
    server.illegal.add((1, "holding", 103))
    link = plc(server, [*points, *words_at(7, 1)])
    async with polling(link):
        results = await ended(link, *((item, 1) for item in points))
        assert results == [(WRITTEN, None)] * 3 + [(FAILED, "device exception 02"), (WRITTEN, None)]
        assert [server.word(1, "holding", 100 + n) for n in range(5)] == [1, 1, 1, 103, 1]


async def test_a_pause_is_kept_between_the_requests_of_a_write(server: FaultServer) -> None:
    points = [*words_at(7, 1), point("b", "holding 50", bit=2, access="write")]
    link = plc(server, points, UnitQuirks(pause_s=0.05))
    async with polling(link):
        assert await ended(link, (points[1], True)) == [(VERIFIED, None)]
    times = [asked.at_s for asked in server.asked]
    assert len(times) == 4
    assert min(after - before for before, after in pairwise(times)) >= 0.049


async def test_a_write_while_one_to_the_same_point_is_under_way_is_done_after_it(server: FaultServer) -> None:
    own, *_ = points = words_at(100, 1, access="write") + words_at(7, 1)
    link = plc(server, points)
    held: list[tuple[Connection, Good]] = []
    async with polling(link):
        server.rules[1, 6] = lambda connection, good: held.append((connection, good))
        first = asyncio.create_task(ended(link, (own, 1)))
        await eventually(lambda: held)
        later = [asyncio.create_task(link.write({own.point: value})) for value in (2, 3)]
        await asyncio.sleep(0.02)
        assert not first.done()
        del server.rules[1, 6]
        connection, good = held.pop()
        connection.send(good.frame)
        assert await first == [(WRITTEN, None)]
        results = [result for [result] in await asyncio.gather(*later)]
        assert [(result.value, result.outcome) for result in results] == [(3, WRITTEN)] * 2
        assert server.writes() == ["0600640001", "0600640003"]


async def test_a_caller_who_does_not_wait_any_more_holds_up_nobody(server: FaultServer) -> None:
    own, *_ = points = words_at(100, 2, access="write") + words_at(7, 1)
    link = plc(server, points)
    held: list[tuple[Connection, Good]] = []
    async with polling(link):
        server.rules[1, 6] = lambda connection, good: held.append((connection, good))
        first = asyncio.create_task(ended(link, (own, 1)))
        await eventually(lambda: held)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        del server.rules[1, 6]
        held[0][0].send(held[0][1].frame)
        assert await ended(link, (points[1], 2)) == [(WRITTEN, None)]


async def test_writes_under_way_and_waiting_are_answered_when_the_link_is_closed(server: FaultServer) -> None:
    points = words_at(100, 1, access="write") + words_at(200, 3, access="write") + words_at(7, 1)
    link = plc(server, points)
    async with polling(link):
        server.rules[1, 6] = lambda _connection, _good: None
        first = asyncio.create_task(ended(link, (points[0], 1), (points[1], 1)))
        await eventually(server.writes)
        second = asyncio.create_task(ended(link, (points[2], 1), (points[3], 2)))
        await asyncio.sleep(0)
        # … and `polling` cancels the link.
    async with asyncio.timeout(1):
        lost = "connection lost before the response came"
        assert await first == [(UNKNOWN, lost), (FAILED, Reason.NOT_CONNECTED)]
        assert await second == [(FAILED, Reason.NOT_CONNECTED)] * 2


async def test_a_text_that_no_request_can_write_does_not_end_the_session(server: FaultServer) -> None:
    points = [point("t", "holding 0", "string", length=125, access="write"), *words_at(300, 1)]
    link = plc(server, points)
    async with polling(link) as gateway:
        [(outcome, _)] = await ended(link, (points[0], "x"))
        assert outcome is REFUSED
        assert await ended(link, (points[1], 1)) == [(WRITTEN, None)]
        assert gateway.lost == []


async def test_a_unit_that_is_only_written_to_is_found_again_after_it_was_lost(
    server: FaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is no poll to ask with whether it is back."""
    monkeypatch.setattr(failures_module, "LONGEST_PROBE_S", 0.3)
    units = [
        Unit("plc", 1, words_at(7, 1), 0.02, 0.15),
        Unit("valve", 2, [point("v", "holding 100", device="valve", access="write")], 0.02, 0.15),
    ]
    link = ModbusClientLink("net", TcpPlace("127.0.0.1", server.port), units)
    valve = units[1].points[0]
    async with polling(link):
        server.silent.add(2)
        for value in range(3):
            assert (await ended(link, (valve, value)))[0][0] in (FAILED, UNKNOWN)
        server.silent.clear()
        async with asyncio.timeout(2):
            while (await ended(link, (valve, 9)))[0][0] is not WRITTEN:
                await asyncio.sleep(0.1)


def routed(own: RegisterPoint, value: Value) -> Delivery:
    return Delivery(Target("net", own.point), own.point, Sample(value, Quality.GOOD, None, time.time_ns()))


async def test_a_routed_value_that_waits_is_replaced_by_a_newer_one_and_by_a_persons(
    server: FaultServer,
) -> None:
    own, first_own = words_at(100, 2, access="write")
    points = [first_own, own, *words_at(7, 1)]
    link = plc(server, points)
    held: list[tuple[Connection, Good]] = []
    async with polling(link) as gateway:
        server.rules[1, 6] = lambda connection, good: held.append((connection, good))
        first = asyncio.create_task(link.write({points[0].point: 0}))
        await eventually(lambda: held)
        link.send([routed(own, 1)])
        link.send([routed(own, 2)])
        writing = asyncio.create_task(link.write({own.point: 3}))
        await asyncio.sleep(0)
        del server.rules[1, 6]
        held[0][0].send(held[0][1].frame)
        await first
        [result] = await writing
        assert result == WriteResult(own.point, 3, WRITTEN)
        assert server.writes() == ["0600650000", "0600640003"]
        assert gateway.results == [result], "the route is told what became of it too"


async def test_what_is_verified_over_a_socket_is_what_the_device_holds(server: FaultServer) -> None:
    points = [place for place, _, _ in verified_points()]
    server.words[1, "holding", 30] = 0
    link = plc(server, points)
    async with polling(link, wait=False) as gateway:
        await eventually(gateway.is_up.is_set)
        for own, value, _ in verified_points():
            mine = next(item for item in points if item.point.name == own.point.name)
            assert await ended(link, (mine, value)) == [(VERIFIED, None)]
        word = points[0]
        server.illegal.add((1, "holding", 20))
        assert await ended(link, (word, 10)) == [(FAILED, "device exception 02")]
        assert gateway.lost == []
