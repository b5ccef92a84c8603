"""The queue of writes without a link: its order, its refusals, what is in doubt, and that each has one answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from test_writing import FAILED, REFUSED, UNKNOWN, VERIFIED, WRITTEN, Device, Ended, point, refusing, words_at

from fieldbus.clock import Clock
from fieldbus.errors import RequestError, RequestTimeoutError
from fieldbus.link import NEVER, WriteOutcome, WriteResult
from fieldbus.modbus.agenda import Rank
from fieldbus.modbus.echo import LineEcho
from fieldbus.modbus.framing import Ask
from fieldbus.modbus.places import Framing
from fieldbus.modbus.planner import Cost
from fieldbus.modbus.quirks import UnitQuirks
from fieldbus.modbus.registers import RegisterPoint
from fieldbus.modbus.traffic import LineTraffic
from fieldbus.modbus.units import Steps, Unit, UnitState
from fieldbus.modbus.write_queue import FIRST_PAUSE_S, LONGEST_PAUSE_S, WriteQueue
from fieldbus.model import Point, Value

EXPIRED = WriteOutcome.EXPIRED
LATE = "its turn came too late"
LOST = "written, but reading back failed: not connected"


class Bench:
    """A queue whose requests a model of devices answers, in a time that tests set."""

    def __init__(
        self,
        *points: RegisterPoint,
        echo: LineEcho | None = None,
        traffic: LineTraffic | None = None,
        quirks: UnitQuirks = UnitQuirks(),  # noqa: B008
        unit_id: int = 1,
    ) -> None:
        self.now_s = 1000.0
        self.clock = Clock(lambda: self.now_s)
        self.device = Device()
        self.asked: list[str] = []
        """Device and request."""
        self.ended: list[Ended] = []
        self.values: list[Value] = []
        self.routed: list[bool] = []
        self.aside: list[Steps] = []
        self.pokes = 0
        self.sent_s: Callable[[bytes], float] = lambda _: 0.0
        """How long a request takes."""
        self.places = {item.point: item for item in points}
        names = dict.fromkeys(item.point.device for item in points)
        self.states = {
            name: UnitState(
                Unit(
                    name,
                    unit_id,
                    [item for item in points if item.point.device == name],
                    1.0,
                    0.5,
                    quirks=quirks,
                ),
                Cost(),
                None,
            )
            for name in names
        }
        self.queue = WriteQueue(self, echo, traffic)

    @property
    def state(self) -> UnitState:
        return next(iter(self.states.values()))

    @property
    def writes(self) -> list[str]:
        return [item for item in self.asked if int(item.split()[1][:2], 16) > 4]

    # --- the host

    def state_of(self, own: Point) -> tuple[RegisterPoint, UnitState]:
        return self.places[own], self.states[own.device]

    def drive_aside(self, steps: Steps) -> None:
        self.aside.append(steps)

    def poke(self) -> None:
        self.pokes += 1

    def wrote(self, result: WriteResult, *, is_routed: bool) -> None:
        self.ended.append(Ended(result.point.name, result.outcome, result.reason))
        self.values.append(result.value)
        self.routed.append(is_routed)

    # --- what tests do

    def route(self, *values: tuple[RegisterPoint, Value]) -> None:
        for place, value in values:
            self.queue.put(place.point, value)

    def command(self, place: RegisterPoint, value: Value, until_s: float = NEVER) -> list[WriteResult]:
        """Give a value as a person does; return where its answer will be."""
        answers: list[WriteResult] = []
        self.queue.put(place.point, value, answers.append, until_s=until_s)
        return answers

    def drive(self, steps: Steps | None = None) -> None:
        """Answer the requests of steps until they end."""
        steps = self.queue.begin() if steps is None else steps
        answer: bytes | None = None
        error: RequestError | None = None
        for _ in range(1000):
            try:
                state, ask = steps.throw(error) if error is not None else steps.send(answer)
            except StopIteration:
                return
            answer = None
            error = self.queue.sending(ask)
            if error is not None:
                continue
            self.asked.append(f"{state.unit.device} {ask.pdu.hex()}")
            try:
                answer = self.device.ask(ask.pdu) if ask.unit_id else b""
            except RequestError as failure:
                error = failure
            self.now_s += self.sent_s(ask.pdu)
        raise AssertionError("no end of requests")


def silent(request: bytes) -> bytes | None:
    raise RequestTimeoutError(0.5)


def on_writes(answer: Callable[[bytes], bytes | None]) -> Callable[[bytes], bytes | None]:
    return lambda request: answer(request) if request[0] > 4 else None


# --- order ------------------------------------------------------------------------------------------


def test_writes_of_several_units_keep_their_order() -> None:
    a, b, c = (point(name, f"holding {n}", device=device) for n, (name, device) in enumerate(
        [("a", "one"), ("b", "two"), ("c", "one")], 5))  # fmt: skip
    bench = Bench(a, b, c)
    bench.route((a, 1), (b, 2), (c, 3))
    bench.drive()
    assert bench.asked == ["one 0600050001", "two 0600060002", "one 0600070003"]
    assert bench.ended == [Ended("a", WRITTEN), Ended("b", WRITTEN), Ended("c", WRITTEN)]


def test_of_several_values_of_a_point_the_last_is_written_last() -> None:
    a, b = words_at(5, 1)[0], words_at(15, 1)[0]
    bench = Bench(a, b)
    bench.route((a, 1), (b, 2), (a, 3))
    bench.drive()
    assert bench.asked == ["plc 06000f0002", "plc 0600050003"]


def test_only_one_batch_of_writes_is_under_way() -> None:
    a = words_at(5, 1)[0]
    bench = Bench(a)
    assert not bench.queue
    assert not bench.queue.is_ready
    bench.route((a, 1))
    assert bench.queue
    assert bench.queue.is_ready
    steps = bench.queue.begin()
    next(steps)
    bench.route((a, 2))
    assert bench.queue
    assert not bench.queue.is_ready
    steps.close()
    assert bench.queue.is_ready


def test_the_answer_tells_the_value_that_the_registers_hold() -> None:
    scaled = point("s", "holding 5", "uint16", scale=0.1)
    coil = point("c", "coil 5")
    bench = Bench(scaled, coil)
    first, second = bench.command(scaled, 1.26), bench.command(coil, 1)
    bench.drive()
    assert first == [(scaled.point, 1.3, WRITTEN, None)]
    assert second == [(coil.point, 1, WRITTEN, None)]
    bench.device.obstinate = silent
    third = bench.command(scaled, 2.26)
    bench.drive()
    assert third == [(scaled.point, 2.26, UNKNOWN, "timeout")]


# --- one value in the place of another --------------------------------------------------------------


def test_a_replaced_command_is_told_so() -> None:
    a = words_at(5, 1)[0]
    bench = Bench(a)
    first = bench.command(a, 1, until_s=2000.0)
    second = bench.command(a, 2, until_s=2000.0)
    assert first == [(a.point, 1, FAILED, "replaced by a newer value before it was sent")]
    bench.drive()
    assert (first[1:], second) == ([], [(a.point, 2, WRITTEN, None)])
    assert bench.asked == ["plc 0600050002"]


def test_two_commands_with_the_same_value_have_the_same_end() -> None:
    a = words_at(5, 1)[0]
    bench = Bench(a)
    first, second = bench.command(a, 2, until_s=2000.0), bench.command(a, 2, until_s=2000.0)
    bench.drive()
    assert first == second == [(a.point, 2, WRITTEN, None)]
    assert bench.asked == ["plc 0600050002"]


def test_who_waits_without_end_hears_of_the_newer_value() -> None:
    a = words_at(5, 1)[0]
    bench = Bench(a)
    first, second = bench.command(a, 1), bench.command(a, 2)
    bench.drive()
    assert first == second == [(a.point, 2, WRITTEN, None)]


@pytest.mark.parametrize(
    ("givers", "is_routed"), [("r", True), ("c", False), ("rc", True), ("cr", True), ("cc", False)]
)
def test_a_route_hears_of_a_command_in_its_place(givers: str, is_routed: bool) -> None:
    a = words_at(5, 1)[0]
    bench = Bench(a)
    for giver in givers:
        if giver == "r":
            bench.route((a, 7))
        else:
            bench.command(a, 7)
    bench.drive()
    assert bench.ended == [Ended("r5", WRITTEN)]
    assert bench.routed == [is_routed]


# --- refused while it waited ------------------------------------------------------------------------


@pytest.mark.parametrize(("until_s", "outcome"), [(1000.0, EXPIRED), (1000.001, WRITTEN)])
def test_a_write_is_not_sent_from_its_end_on(until_s: float, outcome: WriteOutcome) -> None:
    a, b = words_at(5, 1)[0], words_at(15, 1)[0]
    bench = Bench(a, b)
    bench.command(a, 1, until_s=until_s)
    bench.command(b, 2)
    bench.drive()
    assert bench.ended[0] == Ended("r5", outcome, LATE if outcome is EXPIRED else None)
    assert bench.ended[1] == Ended("r15", WRITTEN)
    assert len(bench.asked) == (2 if outcome is WRITTEN else 1)


def test_a_write_that_expires_behind_slow_ones_costs_no_others() -> None:
    a, b, c, d = (words_at(address, 1)[0] for address in (5, 15, 16, 25))
    bench = Bench(a, b, c, d)
    bench.sent_s = lambda _: 1.0
    bench.command(a, 1)
    bench.command(b, 2, until_s=1000.5)
    bench.command(c, 3)
    bench.command(d, 4)
    bench.drive()
    assert bench.asked == ["plc 0600050001", "plc 0600100003", "plc 0600190004"]
    assert bench.ended == [
        Ended("r5", WRITTEN), Ended("r15", EXPIRED, LATE), Ended("r16", WRITTEN), Ended("r25", WRITTEN),
    ]  # fmt: skip


def test_permission_is_asked_when_the_request_leaves() -> None:
    """A bit is read first: what was allowed then may not be allowed a moment later."""
    own = point("b", "holding 5", bit=3)
    bench = Bench(own)
    is_allowed = True

    def stop(request: bytes) -> None:
        nonlocal is_allowed
        is_allowed = request[0] != 3

    bench.device.obstinate = stop
    bench.queue.still_allowed = lambda *_: None if is_allowed else (REFUSED, "interlock open")
    bench.route((own, True))
    bench.drive()
    assert bench.asked == ["plc 0300050001"]
    assert bench.ended == [Ended("b", REFUSED, "interlock open")]


def test_permission_is_asked_once_for_a_value_of_several_requests() -> None:
    own = point("f", "holding 10", "uint32")
    bench = Bench(own, quirks=UnitQuirks(single_writes=True))
    is_allowed = True

    def stop(request: bytes) -> None:
        nonlocal is_allowed
        is_allowed = False

    bench.device.obstinate = stop
    bench.queue.still_allowed = lambda *_: None if is_allowed else (REFUSED, "interlock open")
    bench.route((own, 0x10002))
    bench.drive()
    assert bench.asked == ["plc 06000a0001", "plc 06000b0002"]
    assert bench.ended == [Ended("f", WRITTEN)]


def test_who_shares_a_request_with_a_refused_value_is_told() -> None:
    """Between the look at the queue and the wire one of two values lost its permission."""
    a, b = words_at(5, 2)
    bench = Bench(a, b)
    asked: list[str] = []

    def ask(own: Point, _: Value) -> tuple[WriteOutcome, str] | None:
        asked.append(own.name)
        return (REFUSED, "interlock open") if asked.count("r5") > 2 and own is a.point else None

    bench.queue.still_allowed = ask
    bench.route((a, 1), (b, 2))
    bench.drive()
    assert bench.asked == []
    assert bench.ended == [
        Ended("r5", REFUSED, "interlock open"), Ended("r6", REFUSED, "not sent, because r5 was not"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("outcome", "why"), [(EXPIRED, "came too late"), (REFUSED, "was refused")]
)  # fmt: skip
def test_a_group_ends_as_its_member_ends(outcome: WriteOutcome, why: str) -> None:
    a, b = point("a", "holding 5", group="slot"), point("b", "holding 6", group="slot")
    other, last = words_at(1, 1)[0], words_at(20, 1)[0]
    bench = Bench(a, b, other, last)
    if outcome is REFUSED:
        bench.queue.still_allowed = lambda own, _: (REFUSED, "no") if own is b.point else None
    bench.command(other, 9)
    bench.command(a, 1)
    bench.command(b, 2, until_s=999.0 if outcome is EXPIRED else NEVER)
    bench.command(last, 8)
    bench.drive()
    assert {item.name: (item.outcome, item.reason) for item in bench.ended} == {
        "r1": (WRITTEN, None),
        "a": (outcome, f"not written: b of the same group (slot) {why}"),
        "b": (outcome, LATE if outcome is EXPIRED else "no"),
        "r20": (WRITTEN, None),
    }
    assert bench.asked == ["plc 0600010009", "plc 0600140008"]


def test_a_refused_member_refuses_only_routed_values_of_its_group() -> None:
    a, b, c = (point(name, f"holding {n}", group="slot") for n, name in enumerate("abc", 5))
    far = point("far", "holding 5", group="slot", device="other")
    ungrouped = words_at(1, 1)[0]
    bench = Bench(a, b, c, far, ungrouped)
    bench.route((ungrouped, 1))
    person = bench.command(b, 2)
    bench.route((far, 3), (c, 4))
    bench.queue.refuse_group(a.point)
    assert bench.ended == [Ended("c", REFUSED, "not written: a of the same group (slot) was refused")]
    bench.drive()
    assert [item.name for item in bench.ended[1:]] == ["r1", "b", "far"]
    assert [result.outcome for result in person] == [WRITTEN]


def test_all_waiting_members_of_a_refused_group_are_refused() -> None:
    a, b, c = (point(name, f"holding {n}", group="slot") for n, name in enumerate("abc", 5))
    other = words_at(1, 1)[0]
    bench = Bench(a, b, c, other)
    bench.command(other, 1)
    bench.route((b, 2), (c, 3))
    bench.queue.refuse_group(a.point)
    assert [item.name for item in bench.ended] == ["b", "c"]


# --- a unit or a connection that is lost ------------------------------------------------------------


def test_a_lost_unit_costs_one_timeout_and_no_other_unit() -> None:
    places = [words_at(address, 1, device="one")[0] for address in (5, 15, 25)]
    other = words_at(5, 1, device="two")[0]
    bench = Bench(*places, other)

    def lose(request: bytes) -> None:
        if request[:3] == b"\x06\0\x05" and bench.asked[-1].startswith("one"):
            bench.states["one"].turns.rank = Rank.DEMOTED
            silent(request)

    bench.device.obstinate = lose
    bench.route(*((place, 1) for place in places), (other, 2))
    bench.drive()
    assert bench.asked == ["one 0600050001", "two 0600050002"]
    assert bench.ended == [
        Ended("r5", UNKNOWN, "timeout"), Ended("r15", FAILED, "timeout"), Ended("r25", FAILED, "timeout"),
        Ended("r5", WRITTEN),
    ]  # fmt: skip


@pytest.mark.parametrize("is_sent", [True, False])
def test_a_closed_connection_leaves_only_sent_requests_open(is_sent: bool) -> None:
    a, b = words_at(5, 1)[0], words_at(15, 1)[0]
    bench = Bench(a, b)
    bench.route((a, 1), (b, 2))
    steps = bench.queue.begin()
    _, ask = next(steps)
    if is_sent:
        assert bench.queue.sending(ask) is None
    steps.close()
    lost = Ended("r5", UNKNOWN, "connection lost before the response came")
    assert bench.ended == [
        lost if is_sent else Ended("r5", FAILED, "not connected"), Ended("r15", FAILED, "not connected"),
    ]  # fmt: skip
    assert bench.queue.has_doubts == is_sent


def test_a_request_that_never_left_has_failed() -> None:
    a = words_at(5, 1)[0]
    bench = Bench(a)
    bench.route((a, 1))
    steps = bench.queue.begin()
    next(steps)
    with pytest.raises(StopIteration):
        steps.throw(RequestTimeoutError(0.5))
    assert [item.outcome for item in bench.ended] == [FAILED]
    assert not bench.queue.has_doubts


# --- in doubt ---------------------------------------------------------------------------------------


def test_a_doubtful_value_is_held_back_for_growing_pauses() -> None:
    own = point("s", "holding 5", access="write")
    bench = Bench(own)
    bench.device.obstinate = silent
    assert (bench.queue.has_doubts, bench.queue.holds_back(own.point, 42)) == (False, False)
    pauses = []
    for _ in range(9):
        bench.route((own, 42))
        bench.drive()
        assert bench.queue.has_doubts
        assert not bench.queue.holds_back(own.point, 43), "a new value goes out at once"
        began_s, pause_s = bench.now_s, FIRST_PAUSE_S
        while bench.queue.holds_back(own.point, 42):
            pause_s = bench.now_s - began_s
            bench.now_s += 0.5
        pauses.append(bench.now_s - began_s)
        assert pause_s < pauses[-1]
    assert pauses == [1, 2, 4, 8, 16, 32, LONGEST_PAUSE_S, LONGEST_PAUSE_S, LONGEST_PAUSE_S]
    bench.route((own, 43))
    bench.drive()
    assert not bench.queue.holds_back(own.point, 42)
    bench.now_s += FIRST_PAUSE_S
    assert not bench.queue.holds_back(own.point, 43), "another value begins with the first pause"


def test_a_written_value_ends_the_doubt() -> None:
    own = point("s", "holding 5", access="write")
    bench = Bench(own)
    bench.device.obstinate = silent
    bench.route((own, 42))
    bench.drive()
    bench.device.obstinate = lambda _: None
    bench.route((own, 43))
    bench.drive()
    assert not bench.queue.has_doubts
    assert not bench.queue.holds_back(own.point, 42)


def test_a_failed_write_leaves_a_doubt_as_it_was() -> None:
    own = point("s", "holding 5", access="write")
    bench = Bench(own)
    bench.device.obstinate = silent
    bench.route((own, 42))
    bench.drive()
    bench.device.obstinate = refusing(lambda _: True, 3)
    bench.route((own, 43))
    bench.drive()
    assert bench.queue.holds_back(own.point, 42)


@pytest.mark.parametrize(("giver", "value", "is_read"), [
    ("route", 42, True), ("route", 43, False), ("person", 42, False),
])  # fmt: skip
def test_only_a_route_reads_before_it_repeats_a_value(giver: str, value: int, is_read: bool) -> None:
    own = words_at(5, 1)[0]
    bench = Bench(own)
    bench.device.obstinate = on_writes(silent)
    bench.route((own, 42))
    bench.drive()
    bench.asked.clear()
    bench.device.obstinate = lambda _: None
    if giver == "route":
        bench.route((own, value))
    else:
        bench.command(own, value)
    bench.drive()
    assert [item.split()[1][:2] for item in bench.asked] == (["03", "06"] if is_read else ["06"])


# --- in step, and echoes ----------------------------------------------------------------------------


WRITE = Ask(1, bytes.fromhex("0600050001"))


def test_a_late_response_is_waited_out_before_a_write_like_it() -> None:
    own = words_at(5, 1)[0]
    bench = Bench(own)
    bench.state.suspect(WRITE, bench.now_s)
    bench.route((own, 1))
    bench.drive()
    assert bench.asked == ["plc 0300050001", "plc 0600050001"]
    assert bench.ended == [Ended("r5", WRITTEN)]


def test_a_write_that_a_late_response_fits_is_not_sent() -> None:
    own, other = words_at(5, 1)[0], point("coil", "coil 9")
    bench = Bench(own, other)
    bench.state.suspect(WRITE, bench.now_s)
    bench.device.obstinate = lambda request: silent(request) if request[0] < 5 else None
    bench.route((own, 1), (other, True))
    bench.drive()
    assert bench.writes == ["plc 050009ff00"]
    assert bench.ended == [Ended("r5", FAILED, "timeout"), Ended("coil", WRITTEN)]


def test_nothing_is_written_to_a_unit_lost_while_it_was_asked() -> None:
    own = words_at(5, 1)[0]
    bench = Bench(own)
    bench.state.suspect(WRITE, bench.now_s)

    def lose(_: bytes) -> None:
        bench.state.turns.rank = Rank.DEMOTED

    bench.device.obstinate = lose
    bench.route((own, 1))
    bench.drive()
    assert bench.writes == []
    assert [item.outcome for item in bench.ended] == [FAILED]


@pytest.mark.parametrize("is_late", [True, False])
def test_a_refusal_may_belong_to_a_request_given_up_before(is_late: bool) -> None:
    own = words_at(5, 1)[0]
    bench = Bench(own)
    if is_late:
        bench.state.suspect(Ask(1, bytes.fromhex("0300050001")), bench.now_s)
    bench.device.obstinate = on_writes(refusing(lambda _: True, 3))
    bench.route((own, 1))
    bench.drive()
    assert bench.ended == [Ended("r5", FAILED, "device exception 03")]
    assert bench.state.is_out_of_step(WRITE, bench.now_s) == is_late, "its own response may still come"


@pytest.mark.parametrize(
    ("said", "unit_id", "function", "asked"),
    [
        (None, 1, None, ["0300050001", "0600050001"]),
        (None, 1, 16, ["10000500" + "01020001"]),
        (None, 0, None, ["0600050001"]),
        (False, 1, None, ["0600050001"]),
        (True, 1, None, ["0600050001"]),
    ],
)
def test_an_unknown_line_is_read_before_a_write_like_its_echo(
    said: bool | None, unit_id: int, function: int | None, asked: list[str]
) -> None:
    own = point("s", "holding 5", function=function)
    bench = Bench(own, echo=LineEcho(said), unit_id=unit_id)
    bench.route((own, 1))
    bench.drive()
    assert bench.asked == [f"plc {item}" for item in asked]
    assert bench.ended == [Ended("s", WRITTEN)]


def test_a_second_identical_write_is_sent_again() -> None:
    """On RTU over TCP too, where the response to the first looks like that to the second."""
    own = words_at(5, 1)[0]
    bench = Bench(own, echo=LineEcho(said=False))
    for _ in range(2):
        bench.route((own, 1))
        bench.drive()
    assert bench.asked == ["plc 0600050001"] * 2
    assert bench.ended == [Ended("r5", WRITTEN)] * 2


@pytest.mark.parametrize("is_shared", [True, False])
def test_on_a_shared_line_bits_are_read_twice_before_a_write(is_shared: bool) -> None:
    own = point("b", "holding 5", bit=3, verify=False)
    traffic = LineTraffic(Framing.RTU)
    bench = Bench(own, traffic=traffic)
    traffic.shared_until_s = bench.now_s + (10.0 if is_shared else 0.0)
    bench.device.hold(5, 0x0100)
    bench.route((own, True))
    bench.drive()
    assert len(bench.asked) > 3 if is_shared else bench.asked[:-1] == ["plc 0300050001"]
    assert bench.writes == ["plc 0600050108"]
    assert bench.ended == [Ended("b", WRITTEN)]


# --- read back later --------------------------------------------------------------------------------


def slow(**more: object) -> RegisterPoint:
    return point("boost", "holding 47", verify={"after": "10ms"}, **more)


async def test_a_write_is_answered_once_it_was_read_back() -> None:
    own, other = slow(), words_at(5, 1)[0]
    bench = Bench(own, other)
    bench.route((own, 7), (other, 1))
    bench.drive()
    assert bench.ended == [Ended("r5", WRITTEN)]
    assert (bench.aside, bench.pokes) == ([], 0)
    await asyncio.sleep(0.05)
    assert bench.pokes == 1
    bench.drive(bench.aside.pop())
    assert bench.ended[1:] == [Ended("boost", VERIFIED)]
    assert bench.asked[-1] == "plc 03002f0001"
    assert not bench.queue._unverified, "nothing is kept of what has ended"
    bench.queue.close()
    assert len(bench.ended) == 2


async def test_a_newer_value_ends_the_wait_for_the_reading_back() -> None:
    own, other = slow(), words_at(5, 1)[0]
    bench = Bench(own, other)
    bench.route((own, 7))
    bench.drive()
    bench.route((other, 1))
    assert bench.ended == []
    bench.route((own, 8))
    assert bench.ended == [Ended("boost", WRITTEN, "replaced by a newer value before it was read back")]
    assert bench.values == [7]
    await asyncio.sleep(0.05)
    assert bench.aside == [], "what was replaced is not read"


async def test_with_the_connection_the_reading_back_is_lost() -> None:
    own, other = slow(), point("other", "holding 50", verify={"after": "10ms"})
    bench = Bench(own, other)
    bench.route((own, 7), (other, 8))
    bench.drive()
    bench.queue.close()
    assert bench.ended == [Ended("boost", FAILED, LOST), Ended("other", FAILED, LOST)]
    await asyncio.sleep(0.05)
    assert bench.aside == []


async def test_a_reading_back_that_is_cut_off_is_a_failure() -> None:
    own = slow()
    bench = Bench(own)
    bench.route((own, 7))
    bench.drive()
    await asyncio.sleep(0.05)
    [steps] = bench.aside
    next(steps)
    steps.close()
    assert bench.ended == [Ended("boost", FAILED, LOST)]
    bench.queue.close()
    assert len(bench.ended) == 1


async def test_an_old_reading_back_leaves_the_newer_one_alone() -> None:
    own = slow()
    bench = Bench(own)
    bench.route((own, 7))
    bench.drive()
    await asyncio.sleep(0.05)
    reading = bench.aside.pop()
    next(reading)
    bench.route((own, 8))
    bench.drive()
    reading.close()
    bench.queue.close()
    assert bench.ended == [
        Ended("boost", WRITTEN, "replaced by a newer value before it was read back"),
        Ended("boost", FAILED, LOST),
    ]
    assert bench.values == [7, 8]


async def test_a_value_given_meanwhile_ends_the_reading_back_too() -> None:
    """The newer value came when the older one was on the wire, and both are to be read back."""
    own = slow()
    bench = Bench(own)
    first = bench.command(own, 7)
    steps = bench.queue.begin()
    next(steps)
    second = bench.command(own, 8)
    with pytest.raises(StopIteration):
        steps.send(bench.device.ask(bytes.fromhex("06002f0007")))
    bench.drive()
    assert first == [(own.point, 7, WRITTEN, "replaced by a newer value before it was read back")]
    bench.queue.close()
    assert second == [(own.point, 8, FAILED, LOST)]
    await asyncio.sleep(0.05)
    assert bench.aside == [], "nothing is read back after the end"


def test_what_waits_fails_with_the_connection() -> None:
    a, b = words_at(5, 2)
    bench = Bench(a, b)
    bench.route((a, 1), (b, 2))
    bench.queue.close()
    assert bench.ended == [Ended("r5", FAILED, "not connected"), Ended("r6", FAILED, "not connected")]
    assert not bench.queue


async def test_a_reading_back_of_a_replaced_value_ends_quietly() -> None:
    own = slow()
    bench = Bench(own)
    bench.route((own, 7))
    bench.drive()
    await asyncio.sleep(0.05)
    reading = bench.aside.pop()
    next(reading)
    bench.route((own, 8))
    reading.close()
    assert bench.ended == [Ended("boost", WRITTEN, "replaced by a newer value before it was read back")]


def test_a_commit_goes_out_after_its_value() -> None:
    commit = words_at(90, 1, access="write")[0]
    own = point("limit", "holding 5", then={"r90": 1})
    bench = Bench(own, commit)
    bench.route((own, 7))
    bench.drive()
    assert bench.asked == ["plc 0600050007", "plc 06005a0001"]
    assert bench.ended == [Ended("limit", WRITTEN)]


def test_half_of_a_value_is_not_failed_when_the_session_ends() -> None:
    wide = point("w", "holding 5", "uint32")
    bench = Bench(wide, quirks=UnitQuirks(single_writes=True))
    bench.route((wide, 0x0001_0002))
    steps = bench.queue.begin()
    _, ask = next(steps)
    assert bench.queue.sending(ask) is None
    steps.send(bench.device.ask(ask.pdu))  # the second register, which is never sent
    steps.close()
    assert bench.ended == [Ended("w", UNKNOWN, "not connected")]


def test_what_was_never_sent_has_failed_when_the_session_ends() -> None:
    a = words_at(5, 1)[0]
    bench = Bench(a)
    bench.route((a, 1))
    steps = bench.queue.begin()
    next(steps)
    steps.close()
    assert bench.ended == [Ended("r5", FAILED, "not connected")]
