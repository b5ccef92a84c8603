"""What the response to a write means, what is read beside it, and what is written together or after it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from test_writing import (
    ANOTHER,
    FAILED,
    REFUSED,
    UNKNOWN,
    VERIFIED,
    WRITTEN,
    Device,
    Ended,
    coils_at,
    point,
    refusing,
    touches,
    words_at,
)

from fieldbus.errors import NotSentError, RequestTimeoutError
from fieldbus.link import WriteOutcome
from fieldbus.modbus import pdu
from fieldbus.modbus.quirks import UnitQuirks
from fieldbus.modbus.registers import RegisterPoint
from fieldbus.modbus.write_steps import perform, read_back
from fieldbus.modbus.write_trouble import OutOfStepError
from fieldbus.modbus.writing import Write, gather
from fieldbus.model import Reason, Value

Answer = Callable[[bytes], bytes | None]


def writes(change: Callable[[bytes], bytes | None]) -> Answer:
    """Answer the requests that write by another function, the others well."""
    return lambda request: change(request) if request[0] > 4 else None


def silent(request: bytes) -> bytes | None:
    raise RequestTimeoutError(0.1)


# --- the response is the device's word --------------------------------------------------------------


@pytest.mark.parametrize(
    ("place", "response", "text"),
    [
        ("holding 5000", "0600000078", "address 0 in the response, 5000 was written"),
        ("holding 5000", "0613880079", "value 121 in the response, 120 was written"),
        ("holding 5000", "061388", "3 bytes in the response, 5 were expected"),
        ("holding 5000", "1013880001", "function 16 in the response, 6 was sent"),
        ("coil 9", "050008ff00", "address 8 in the response, 9 was written"),
    ],
)
def test_the_reason_names_what_is_wrong_in_the_response(place: str, response: str, text: str) -> None:
    device = Device()
    device.obstinate = writes(lambda _: bytes.fromhex(response))
    [ended] = device.write((point("p", place, access="write"), 1 if "coil" in place else 120))
    assert ended == Ended("p", UNKNOWN, f"bad response: {text}")


def test_a_wrong_quantity_is_named_too() -> None:
    device = Device()
    device.obstinate = writes(lambda _: bytes.fromhex("1000640001"))
    ended = device.write(*((item, 5) for item in words_at(100, 2, access="write")))
    reason = "bad response: quantity 1 in the response, 2 was written"
    assert {(item.outcome, item.reason) for item in ended} == {(UNKNOWN, reason)}


@pytest.mark.parametrize("is_done", [True, False])
def test_after_a_wrong_response_a_readable_value_is_read(is_done: bool) -> None:
    device = Device()

    def confused(request: bytes) -> bytes:
        if is_done:
            device.server.answer(1, request)
        return bytes.fromhex("0600000078")

    device.obstinate = writes(confused)
    [ended] = device.write((point("setpoint", "holding 5000"), 120))
    wrong = "bad response: address 0 in the response, 5000 was written"
    if is_done:
        assert ended == Ended("setpoint", VERIFIED, f"{wrong}; read back, the device has it")
    else:
        assert ended == Ended("setpoint", UNKNOWN, f"{wrong}; {ANOTHER}")
    assert device.functions == [6, 3]


@pytest.mark.parametrize("code", [5, 0x0B])
def test_an_exception_that_leaves_it_open_is_an_unknown_outcome(code: int) -> None:
    device = Device()
    device.obstinate = writes(lambda request: bytes((request[0] | 0x80, code)))
    ended = device.write(*((item, 1) for item in words_at(100, 2)))
    assert {(item.outcome, item.reason) for item in ended} == {(UNKNOWN, f"device exception {code:02X}")}
    assert len(device.asked) == 1


@pytest.mark.parametrize("code", [1, 2, 3, 4, 6, 0x0A])
def test_an_exception_that_says_no_is_a_failure(code: int) -> None:
    device = Device()
    device.obstinate = writes(lambda request: bytes((request[0] | 0x80, code)))
    [ended] = device.write((words_at(100, 1)[0], 1))
    assert ended == Ended("r100", FAILED, f"device exception {code:02X}")


@pytest.mark.parametrize(
    ("error", "reason"), [(NotSentError("x"), Reason.BAD_RESPONSE), (OutOfStepError(0.1), Reason.TIMEOUT)]
)
def test_what_was_not_sent_has_certainly_failed(error: Exception, reason: str) -> None:
    device = Device()

    def refuse(_: bytes) -> bytes:
        raise error

    device.obstinate = writes(refuse)
    assert device.write((words_at(100, 1)[0], 1)) == [Ended("r100", FAILED, reason)]


def test_a_read_that_fails_before_a_merge_is_a_failure() -> None:
    device = Device()
    device.obstinate = silent
    [ended] = device.write((point("b", "holding 5", bit=3), True))
    assert ended == Ended("b", FAILED, Reason.TIMEOUT)


def test_half_of_a_value_of_several_requests_is_said() -> None:
    device = Device()
    device.obstinate = refusing(touches(11), 4)
    own = point("f", "holding 10", "float32")
    [ended] = device.write((own, 1.5), quirks=UnitQuirks(single_writes=True))
    assert ended == Ended("f", FAILED, "device exception 04, after 1 of 2 requests were accepted")


# --- read from elsewhere ----------------------------------------------------------------------------


def test_a_bit_is_written_beside_what_another_register_shows() -> None:
    device = Device(r47=0, r512=0b1001_0000)
    own = point("b", "holding 47", bit=0, read_from=512, access="write", verify=False)
    assert device.write((own, True)) == [Ended("b", WRITTEN)]
    assert [request.hex() for request in device.asked] == ["0302000001", "06002f0091"]


def test_what_another_table_shows_is_read_back_there() -> None:
    device = Device()
    device.server.words[1, "input", 7] = 42
    own = point("s", "holding 47", read_from={"table": "input", "address": 7}, verify=True)
    assert device.write((own, 42)) == [Ended("s", VERIFIED)]
    assert device.functions == [6, 4]
    assert device.write((own, 43)) == [Ended("s", FAILED, ANOTHER)]


def test_a_coil_may_be_shown_by_a_discrete_input() -> None:
    device = Device()
    device.server.words[1, "discrete", 3] = 1
    own = point("v", "coil 9", read_from={"table": "discrete", "address": 3}, verify=True)
    assert device.write((own, True)) == [Ended("v", VERIFIED)]


def test_all_reads_of_a_write_begin_at_the_first_address() -> None:
    """A relay board that answers every read from coil 0 on."""
    device = Device()
    own = point("valve5", "coil 5", verify=True)
    ended: list[Ended] = []
    write = Write(own, True)
    [run] = gather([write], lambda *_: None)
    device.drive(
        perform(
            run, UnitQuirks(), lambda w, outcome, reason: ended.append(Ended(w.name, outcome, reason)), str,
            first_address=0,
        )
    )  # fmt: skip
    assert ended == [Ended("valve5", VERIFIED)]
    assert [request.hex() for request in device.asked] == ["050005ff00", "0100000006"]


# --- the function -----------------------------------------------------------------------------------


def test_each_point_may_have_its_own_function() -> None:
    device = Device()
    current = point("charge_current", "holding 46607", function=6)
    limit = point("soc_limit", "holding 46610", function=16)
    assert [item.outcome for item in device.write((current, 60), (limit, 80))] == [WRITTEN] * 2
    assert device.writes == ["06b60f003c", "10b6120001020050"]


def test_neighbours_with_different_functions_do_not_share_a_request() -> None:
    device = Device()
    points = [
        point("a", "holding 10", function=6),
        point("b", "holding 11", function=6),
        point("c", "holding 12", function=16),
        point("d", "holding 13", function=16),
        point("e", "holding 14"),
        point("f", "holding 15", "uint32", function=6),
    ]
    device.write(*((item, 1) for item in points))
    assert device.writes == [
        "06000a0001", "06000b0001", "10000c00020400010001", "06000e0001", "06000f0000", "0600100001",
    ]  # fmt: skip


def test_the_function_of_a_point_outweighs_the_quirk_of_its_device() -> None:
    for quirks in (UnitQuirks(multiple_writes=True), UnitQuirks(single_writes=True)):
        device = Device()
        device.write(
            (point("a", "holding 10", function=6), 1),
            (point("b", "holding 20", function=16), 1),
            (point("c", "coil 5", function=15), 1),
            (point("d", "coil 9", function=5), 1),
            quirks=quirks,
        )
        assert [request[:2] for request in device.writes] == ["06", "10", "0f", "05"]


def test_one_bit_may_be_written_by_22_on_a_device_without_the_quirk() -> None:
    device = Device(r5=0xF0)
    assert device.write((point("b", "holding 5", bit=3, function=22, access="write"), True)) == [
        Ended("b", WRITTEN)
    ]
    assert device.functions == [22]
    device.asked.clear()
    own = point("b", "holding 5", bit=3, function=16)
    assert device.write((own, True), quirks=UnitQuirks(mask_write=True)) == [Ended("b", VERIFIED)]
    assert device.functions == [3, 16, 3]


# --- groups -----------------------------------------------------------------------------------------


def slot(**more: object) -> tuple[RegisterPoint, RegisterPoint]:
    more.setdefault("group", "slot")
    return point("start", "holding 3038", **more), point("end", "holding 3039", **more)


class Group(Device):
    """A device, and what is written to it together with all points of which groups are made."""

    def __init__(self, *points: RegisterPoint, **words: int) -> None:
        super().__init__(**words)
        self.points = points

    def write(
        self,
        *values: tuple[RegisterPoint, Value],
        quirks: UnitQuirks = UnitQuirks(),  # noqa: B008
    ) -> list[Ended]:
        from fieldbus.modbus.exploration import reason_of
        from fieldbus.modbus.writing import groups_of

        ended: list[Ended] = []

        def finish(write: Write, outcome: WriteOutcome, reason: str | None) -> None:
            assert not write.is_finished
            write.is_finished = True
            ended.append(Ended(write.name, outcome, reason))

        all_writes = [Write(place, value) for place, value in values]
        for run in gather(all_writes, finish, groups_of(self.points)):
            self.drive(perform(run, quirks, finish, reason_of))
        assert all(write.is_finished for write in all_writes)
        return ended


def test_members_that_come_together_are_one_request_and_nothing_is_read() -> None:
    start, end = slot()
    device = Group(start, end)
    assert device.write((end, 1700), (start, 1400)) == [Ended("end", WRITTEN), Ended("start", WRITTEN)]
    assert [request.hex() for request in device.asked] == ["100bde0002040578" + "06a4"]


def test_a_member_that_did_not_change_comes_from_a_fresh_read() -> None:
    start, end = slot()
    device = Group(start, end, r3038=1400, r3039=1600)
    assert device.write((end, 1700)) == [Ended("end", WRITTEN)]
    assert [request.hex() for request in device.asked] == ["030bde0001", "100bde00020405" + "7806a4"]


def test_a_group_that_the_device_refuses_is_not_split() -> None:
    start, end = slot()
    device = Group(start, end, r3038=1400, r3039=1600)
    device.obstinate = refusing(lambda request: request[0] > 4, 3)
    ended = device.write((start, 1800), (end, 900))
    assert ended == [Ended(name, FAILED, "device exception 03") for name in ("start", "end")]
    assert device.functions == [16]


def test_one_member_that_is_refused_refuses_all() -> None:
    start, end = point("start", "holding 3038", group="slot", max=2359), slot()[1]
    other = words_at(9, 1)[0]
    device = Group(start, end, other)
    ended = {item.name: item for item in device.write((end, 900), (other, 1), (start, 2400))}
    assert ended["start"].outcome is REFUSED
    assert ended["end"] == Ended("end", REFUSED, "not written: start of the same group (slot) was refused")
    assert ended["r9"] == Ended("r9", WRITTEN)
    assert device.functions == [6]


def test_a_member_that_cannot_be_read_must_be_given_too() -> None:
    start, end = slot(access="write")
    device = Group(start, end)
    [ended] = device.write((end, 900))
    assert ended.outcome is REFUSED
    assert "start" in str(ended.reason)
    assert "read_from" in str(ended.reason)
    assert device.asked == []
    assert [item.outcome for item in device.write((end, 900), (start, 800))] == [WRITTEN] * 2


def test_a_group_of_bits_is_written_beside_the_other_bits_of_its_register() -> None:
    mode = point("mode", "holding 10", bits="0-3", group="g")
    on = point("on", "holding 10", bit=8, group="g")
    level = point("level", "holding 11", group="g")
    device = Group(mode, on, level, r10=0xF0F0, r11=77)
    ended = device.write((level, 5), (on, True))
    assert [item.outcome for item in ended] == [WRITTEN] * 2
    assert (device.word(10), device.word(11)) == (0xF1F0, 5)
    assert device.functions[-1] == 16


def test_coils_of_a_group_are_written_with_15_all_of_them() -> None:
    coils = [point(f"c{n}", f"coil {n}", group="valves") for n in (10, 11, 12)]
    device = Group(*coils)
    device.server.words[1, "coil", 10] = 1
    device.server.words[1, "coil", 12] = 1
    assert device.write((coils[1], True)) == [Ended("c11", WRITTEN)]
    assert device.writes == ["0f000a00030107"]


def test_a_group_of_one_register_keeps_what_its_device_wants() -> None:
    own = point("a", "holding 10", group="g")
    device = Group(own)
    device.write((own, 1), quirks=UnitQuirks(multiple_writes=True))
    assert device.writes == ["10000a0001020001"]


# --- then -------------------------------------------------------------------------------------------


def with_commit(name: str, place: str, commit: RegisterPoint, value: Value, **more: object) -> Write:
    own = point(name, place, then={commit.point.name: 1}, **more)
    return Write(own, value, then=[Write(commit, 1)])


def written(device: Device, *given: Write) -> list[Ended]:
    from fieldbus.modbus.exploration import reason_of

    ended: list[Ended] = []

    def finish(write: Write, outcome: WriteOutcome, reason: str | None) -> None:
        assert not write.is_finished
        write.is_finished = True
        ended.append(Ended(write.name, outcome, reason))

    for run in gather(given, finish):
        device.drive(perform(run, UnitQuirks(), finish, reason_of))
    assert all(write.is_finished for write in given)
    return ended


COMMIT = point("commit", "holding 61696", access="write")


def test_a_commit_follows_a_value_that_was_accepted() -> None:
    device = Device()
    assert written(device, with_commit("limit", "holding 61441", COMMIT, 70)) == [Ended("limit", WRITTEN)]
    assert device.writes == ["06f0010046", "06f1000001"]


def test_no_commit_follows_a_value_that_was_refused() -> None:
    device = Device()
    device.obstinate = refusing(touches(61441), 3)
    ended = written(device, with_commit("limit", "holding 61441", COMMIT, 120))
    assert ended == [Ended("limit", FAILED, "device exception 03")]
    assert device.writes == ["06f0010078"]


def test_no_commit_follows_an_unknown_outcome() -> None:
    device = Device()
    device.obstinate = silent
    ended = written(device, with_commit("limit", "holding 61441", COMMIT, 70))
    assert ended == [Ended("limit", UNKNOWN, Reason.TIMEOUT)]
    assert len(device.asked) == 1


def test_a_commit_that_fails_is_the_failure_of_the_value() -> None:
    device = Device()
    device.obstinate = refusing(touches(61696), 4)
    ended = written(device, with_commit("limit", "holding 61441", COMMIT, 70))
    assert ended == [Ended("limit", FAILED, "written, but then commit failed: device exception 04")]


def test_a_value_is_read_back_after_its_commit() -> None:
    device = Device()
    ended = written(device, with_commit("limit", "holding 61441", COMMIT, 70, verify=True))
    assert ended == [Ended("limit", VERIFIED)]
    assert device.functions == [6, 6, 3]


def test_values_of_one_request_have_one_commit() -> None:
    device = Device()
    ended = written(
        device,
        with_commit("a", "holding 10", COMMIT, 1),
        with_commit("b", "holding 11", COMMIT, 2),
    )
    assert [item.outcome for item in ended] == [WRITTEN] * 2
    assert device.functions == [16, 6]


def test_no_commit_where_one_of_the_values_that_share_it_was_refused() -> None:
    device = Device()
    device.obstinate = refusing(touches(11), 3)
    ended = written(
        device,
        with_commit("a", "holding 10", COMMIT, 1),
        with_commit("b", "holding 11", COMMIT, 2),
    )
    found = {item.name: item for item in ended}
    assert found["b"] == Ended("b", FAILED, "device exception 03")
    assert found["a"].outcome is FAILED
    assert "another value of the same request was refused" in str(found["a"].reason)
    assert device.word(61696) == 61696


def test_a_commit_may_have_a_step_after_it() -> None:
    device = Device()
    lock = point("lock", "holding 9", access="write")
    chain = Write(COMMIT, 1, then=[Write(lock, 0)])
    own = Write(point("limit", "holding 61441"), 70, then=[chain])
    assert written(device, own) == [Ended("limit", WRITTEN)]
    assert device.writes == ["06f0010046", "06f1000001", "0600090000"]


# --- in doubt ---------------------------------------------------------------------------------------


def test_what_is_in_doubt_is_read_before_it_is_written_again() -> None:
    device = Device(r5=42)
    own = point("s", "holding 5")
    assert written(device, Write(own, 42, is_doubted=True)) == [Ended("s", VERIFIED)]
    assert device.functions == [3]
    device.hold(5, 41)
    device.asked.clear()
    assert written(device, Write(own, 42, is_doubted=True)) == [Ended("s", WRITTEN)]
    assert device.functions == [3, 6]


def test_what_is_in_doubt_is_not_written_while_the_device_is_silent() -> None:
    device = Device()
    device.obstinate = silent
    [ended] = written(device, Write(point("s", "holding 5"), 42, is_doubted=True))
    assert ended.outcome is UNKNOWN
    assert device.functions == [3]


@pytest.mark.parametrize("more", [{"access": "write"}, {"verify": False}, {}])
def test_what_cannot_be_read_is_written_again(more: dict[str, object]) -> None:
    device = Device()
    if not more:
        device.obstinate = refusing(lambda request: request[0] == 3)
    own = point("s", "holding 5", **more)
    assert written(device, Write(own, 42, is_doubted=True)) == [Ended("s", WRITTEN)]
    assert device.functions == ([6] if more else [3, 6])


# --- read back later --------------------------------------------------------------------------------


def test_a_value_that_comes_late_is_read_back_later() -> None:
    device = Device()
    own = point("boost", "holding 47", bit=4, verify={"after": "400ms"})
    later: list[Write] = []
    ended: list[Ended] = []

    def finish(write: Write, outcome: WriteOutcome, reason: str | None) -> None:
        ended.append(Ended(write.name, outcome, reason))

    device.obstinate = writes(lambda request: request)  # taken, and not there yet
    [run] = gather([Write(own, True)], finish)
    device.drive(perform(run, UnitQuirks(), finish, str, defer=later.append))
    assert ended == []
    assert [write.name for write in later] == ["boost"]
    device.hold(47, 0b1_0000)
    device.drive(read_back(later[0], UnitQuirks(), finish, str))
    assert ended == [Ended("boost", VERIFIED)]
    device.hold(47, 0)
    device.drive(read_back(later[0], UnitQuirks(), finish, str))
    assert ended[1:] == [Ended("boost", FAILED, ANOTHER)]


def test_every_write_request_has_a_reason_for_each_wrong_byte() -> None:
    """A response that differs anywhere is named, whatever differs."""
    requests = [
        pdu.write_registers_request(0x1234, b"\x56\x78"),
        pdu.write_registers_request(0x1234, b"\x56\x78\x9a\xbc"),
        pdu.write_coils_request(0x1234, [True]),
        pdu.write_coils_request(0x1234, [True, False]),
        pdu.mask_write_request(0x1234, 0xFFF0, 5),
    ]
    for request in requests:
        good = request[: 7 if request[0] == 22 else 5]
        pdu.check_write_reply(request, good)
        for at in range(1, len(good)):
            wrong = good[:at] + bytes((good[at] ^ 1,)) + good[at + 1 :]
            with pytest.raises(pdu.BadResponseError, match="in the response"):
                pdu.check_write_reply(request, wrong)


def test_coils_beside_each_other_are_no_group_by_themselves() -> None:
    device = Device()
    a, b = coils_at(10, 2)
    device.write((a, True), (b, True))
    assert device.functions == [15]


# --- what one odd value leaves to the others --------------------------------------------------------


def test_a_refused_value_hides_none_that_follows_it() -> None:
    low, high = point("low", "holding 5", max=9), words_at(15, 1)[0]
    device = Device()
    ended = {item.name: item.outcome for item in device.write((low, 10), (high, 3))}
    assert ended == {"low": REFUSED, "r15": WRITTEN}
    assert device.writes == ["06000f0003"]


def test_coils_written_singly_each_have_their_own_address() -> None:
    device = Device()
    a, b = coils_at(10, 2)
    device.write((a, True), (b, False), quirks=UnitQuirks(single_writes=True))
    assert device.writes == ["05000aff00", "05000b0000"]


@pytest.mark.parametrize("which", [0, 1])
def test_a_value_in_doubt_shares_no_request(which: int) -> None:
    given = [Write(place, 1, is_doubted=index == which) for index, place in enumerate(words_at(10, 2))]
    runs = gather(given, lambda *_: None)
    assert [len(run.writes) for run in runs] == [1, 1]


def test_a_bit_shares_no_request_with_the_next_register() -> None:
    device = Device(r5=0x0100)
    bit, word = point("bit", "holding 5", bit=3, verify=False), words_at(6, 1)[0]
    device.write((bit, True), (word, 7))
    device.write((word, 8), (bit, False))
    assert device.writes == ["0600050108", "0600060007", "0600060008", "0600050100"]


def test_coils_of_a_group_written_singly_have_their_own_addresses() -> None:
    a, b = point("a", "coil 10", group="pair"), point("b", "coil 11", group="pair")
    device = Group(a, b)
    device.write((a, True), (b, False), quirks=UnitQuirks(single_writes=True))
    assert device.writes == ["05000aff00", "05000b0000"]


@pytest.mark.parametrize(("answer", "outcome"), [(silent, UNKNOWN), (refusing(lambda _: True, 3), FAILED)])
def test_an_unknown_end_of_a_commit_is_that_of_its_value(answer: Answer, outcome: WriteOutcome) -> None:
    device = Device()
    device.obstinate = lambda request: answer(request) if touches(61696)(request) else None
    [ended] = written(device, with_commit("limit", "holding 5", COMMIT, 7))
    assert ended.outcome is outcome
    assert "then commit" in str(ended.reason)


# --- read from the first address --------------------------------------------------------------------


def perform_from(device: Device, first_address: int, *given: Write) -> list[Ended]:
    """Write to a device whose reads all begin at one address."""
    ended: list[Ended] = []
    [run] = gather(given, lambda *_: None)
    device.drive(
        perform(
            run, UnitQuirks(), lambda w, outcome, reason: ended.append(Ended(w.name, outcome, reason)), str,
            first_address=first_address,
        )
    )  # fmt: skip
    return ended


@pytest.mark.parametrize(
    ("first", "address", "type_", "read"),
    [
        (0, 0, "uint16", "0300000001"),
        (0, 7, "uint16", "0300000008"),
        (0, 124, "uint16", "030000007d"),
        (0, 125, "uint16", "03007d0001"),
        (0, 123, "uint32", "030000007d"),
        (0, 124, "uint32", "03007c0002"),
        (10, 9, "uint16", "0300090001"),
    ],
)
def test_a_register_is_read_from_the_first_address_if_one_request_reaches_it(
    first: int, address: int, type_: str, read: str
) -> None:
    own = point("s", f"holding {address}", type_, verify=True)
    device = Device()
    assert perform_from(device, first, Write(own, 0x1234)) == [Ended("s", VERIFIED)]
    assert device.asked[-1].hex() == read
    device.obstinate = writes(lambda request: request[:5])  # taken, and forgotten
    device.hold(own.end - 1, 0x4321)
    assert perform_from(device, first, Write(own, 0x1234)) == [Ended("s", FAILED, ANOTHER)]


@pytest.mark.parametrize("address", [0, 7, 8, 9, 17, 40])
@pytest.mark.parametrize("state", [True, False])
def test_a_coil_is_found_among_those_that_are_read_before_it(address: int, state: bool) -> None:
    own = point("valve", f"coil {address}", verify=True)
    device = Device()
    device.obstinate = writes(lambda request: request)  # taken, and forgotten
    for held, end in ((state, Ended("valve", VERIFIED)), (not state, Ended("valve", FAILED, ANOTHER))):
        for other in range(60):
            device.server.words[1, "coil", other] = int(not held)
        device.server.words[1, "coil", address] = int(held)
        assert perform_from(device, 0, Write(own, state)) == [end]


# --- what is read back of several -------------------------------------------------------------------


def test_after_a_silence_no_other_neighbour_is_read_back() -> None:
    """The unit would be waited for once more for each of them."""
    device = Device()
    device.obstinate = lambda request: silent(request) if request[0] == 3 else None
    ended = device.write(*((item, 5) for item in words_at(100, 3, verify=True)))
    text = "written, but reading back failed: timeout"
    assert ended == [Ended(f"r{address}", FAILED, text) for address in (100, 101, 102)]
    assert device.functions == [16, 3]


def test_after_an_exception_the_other_neighbours_are_read_back() -> None:
    device = Device()
    device.obstinate = refusing(lambda request: request[:3] == b"\x03\x00\x64")
    ended = device.write(*((item, 5) for item in words_at(100, 3, verify=True)))
    text = "written, but reading back failed: device exception 02"
    assert ended == [Ended("r100", FAILED, text), Ended("r101", VERIFIED), Ended("r102", VERIFIED)]


def test_bits_of_one_register_are_read_back_once_even_if_that_is_refused() -> None:
    device = Device(r5=0)
    device.obstinate = refusing(lambda request: request[0] == 3 and 6 in device.functions)
    ended = device.write(*((point(f"b{bit}", "holding 5", bit=bit, verify=True), True) for bit in (3, 4)))
    text = "written, but reading back failed: device exception 02"
    assert ended == [Ended("b3", FAILED, text), Ended("b4", FAILED, text)]
    assert device.functions == [3, 6, 3]


def test_each_neighbour_is_read_back_as_it_is_configured() -> None:
    plain, at_once = point("plain", "holding 5"), point("at_once", "holding 6", verify=True)
    slow = [point(name, f"holding {n}", verify={"after": "1s"}) for n, name in ((7, "slow"), (8, "slower"))]
    given = [Write(item, 3) for item in (plain, *slow, at_once)]
    ended: list[Ended] = []
    later: list[Write] = []

    def finish(write: Write, outcome: WriteOutcome, reason: str | None) -> None:
        ended.append(Ended(write.name, outcome, reason))

    device = Device()
    for run in gather([given[0], given[3], given[1], given[2]], finish):
        device.drive(perform(run, UnitQuirks(), finish, str, defer=later.append))
    assert device.functions == [16, 3]
    assert ended == [Ended("plain", WRITTEN), Ended("at_once", VERIFIED)]
    assert [write.name for write in later] == ["slow", "slower"]


def test_a_scaled_value_is_answered_with_what_its_registers_hold() -> None:
    factor = point("sf", "holding 30", "int16", access="read")
    own = point("power", "holding 20", "int16", factor=factor)
    device = Device(r30=1)
    write = Write(own, 1504.0)
    assert written(device, write) == [Ended("power", WRITTEN)]
    assert device.word(20) == 150
    assert write.value == 1500.0


def test_after_a_wrong_response_and_a_read_that_fails_each_value_is_answered() -> None:
    device = Device()
    device.obstinate = lambda request: b"\x83\x04" if request[0] == 3 else bytes.fromhex("1000640001")
    ended = device.write(*((item, 5) for item in words_at(100, 3)))
    assert {item.outcome for item in ended} == {UNKNOWN}
    assert [item.name for item in ended] == ["r100", "r101", "r102"]
    assert device.functions == [16, 3], "what cannot be read is asked once"


# --- groups that are given in part ------------------------------------------------------------------


def test_a_group_in_doubt_of_which_one_value_cannot_be_read_is_written_again() -> None:
    start, end = slot()[0], point("end", "holding 3039", group="slot", access="write")
    device = Group(start, end, r3038=1400)
    ended: list[Ended] = []
    given = [Write(start, 1400, is_doubted=True), Write(end, 1700, is_doubted=True)]
    [run] = gather(given, lambda *_: None, {"slot": [start, end]})
    device.drive(perform(run, UnitQuirks(), lambda w, how, why: ended.append(Ended(w.name, how, why)), str))
    assert device.functions == [16]
    assert ended == [Ended("start", WRITTEN), Ended("end", WRITTEN)]


def test_given_bits_of_one_register_of_a_group_stand_beside_the_rest() -> None:
    level, tail = point("level", "holding 10", group="g"), point("tail", "holding 12", group="g")
    mode = point("mode", "holding 11", bits="0-3", group="g")
    on = point("on", "holding 11", bit=8, group="g")
    device = Group(level, mode, on, tail, r10=1, r11=0xF0F0, r12=77)
    ended = device.write((mode, 5), (on, True), (level, 6))
    assert {item.outcome for item in ended} == {WRITTEN}
    assert [device.word(address) for address in (9, 10, 11, 12, 13)] == [9, 6, 0xF1F5, 77, 13]


@pytest.mark.parametrize(("given", "word"), [("high", 0x05CD), ("low", 0xAB05)])
def test_half_of_a_register_of_a_group_is_written_beside_its_other_half(given: str, word: int) -> None:
    halves = {
        "high": point("high", "holding 10", bits="8-15", group="g"),
        "low": point("low", "holding 10", bits="0-7", group="g"),
    }
    device = Group(*halves.values(), r10=0xABCD)
    assert device.write((halves[given], 5)) == [Ended(given, WRITTEN)]
    assert device.word(10) == word


def test_a_group_of_one_coil_is_written() -> None:
    own = point("valve", "coil 7", group="g")
    device = Group(own)
    assert device.write((own, True)) == [Ended("valve", WRITTEN)]
    assert device.coil(7) == 1


def test_a_group_of_which_one_value_is_not_in_doubt_is_written_at_once() -> None:
    start, end = slot()
    device = Group(start, end, r3038=1400, r3039=1700)
    ended: list[Ended] = []

    def finish(write: Write, outcome: WriteOutcome, reason: str | None) -> None:
        ended.append(Ended(write.name, outcome, reason))

    given = [Write(start, 1400, is_doubted=True), Write(end, 1700)]
    [run] = gather(given, finish, {"slot": [start, end]})
    device.drive(perform(run, UnitQuirks(), finish, str))
    assert device.functions == [16]
    assert ended == [Ended("start", WRITTEN), Ended("end", WRITTEN)]


# --- several steps after a value --------------------------------------------------------------------


def test_after_a_step_that_fails_no_other_step_is_tried() -> None:
    device = Device()
    device.obstinate = refusing(touches(61696), 4)
    last = point("last", "holding 9", access="write")
    own = Write(point("limit", "holding 5"), 70, then=[Write(COMMIT, 1), Write(last, 2)])
    reason = "written, but then commit failed: device exception 04"
    assert written(device, own) == [Ended("limit", FAILED, reason)]
    assert device.writes == ["0600050046", "06f1000001"]


def test_a_step_whose_own_step_fails_is_not_read_back() -> None:
    device = Device()
    device.obstinate = refusing(touches(9), 4)
    lock = point("lock", "holding 9", access="write")
    commit = point("commit", "holding 61696", verify=True)
    own = Write(point("limit", "holding 5"), 70, then=[Write(commit, 1, then=[Write(lock, 0)])])
    [ended] = written(device, own)
    assert ended.outcome is FAILED
    assert "then lock failed" in str(ended.reason)
    assert device.functions == [6, 6, 6]
